"""Define the leaky recurrent network of the audit paper, as plain functions of its weights.

    r_t = (1 - α) r_{t-1} + α φ(v_t)      v_t = W r̂_t      r̂_t = [r_{t-1}; x_t; 1]      z_t = W_out [r_t; 1]

W holds recurrent weights, input weights and biases side by side: (n, m) with m = n + n_in + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cet_rl.runs.values import checked
from cet_rl.traces.base import check_whole

ActivationName = Literal["tanh", "identity"]
Output = Literal["softmax", "linear"]


class Advance(NamedTuple):
    """Hold one step of the network."""

    inputs: Tensor  # r̂_t, shape (B, m)
    rates: Tensor  # r_t, shape (B, n)
    slope: Tensor  # D_t = α φ'(v_t), shape (B, n)


@dataclass(frozen=True)
class RNNCell:
    """Hold sizes and constants of a network; its methods take the weights as arguments (Marschall et al. 2019).

    Raises ValueError for counts below one, an α outside (0, 1], or an unknown activation or output.
    """

    units: int  # n, hidden units
    inputs: int  # n_in
    outputs: int  # n_out
    alpha: float = 0.5  # α in (0, 1], inverse time constant in steps
    activation: ActivationName = "tanh"  # φ
    output: Output = "softmax"  # with cross-entropy against a distribution, or "linear" with squared error

    def __post_init__(self) -> None:
        for name in ("units", "inputs", "outputs"):
            check_whole(getattr(self, name), name, at_least=1)
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {self.alpha:g}")
        for name, choices in {"activation": ActivationName, "output": Output}.items():
            checked(getattr(self, name), choices, name)

    @property
    def columns(self) -> int:
        """Return m = n + n_in + 1, length of r̂."""
        return self.units + self.inputs + 1

    def initial_weights(
        self, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Return W of shape (n, m) and W_out of shape (n_out, n + 1) as in the paper's experiments, on the CPU.

        W_rec is orthogonal, W_in ~ N(0, 1/n_in), W_out ~ N(0, 1/n), biases are 0. Values are the same for all
        types, up to rounding. Without a generator torch's global one draws them.
        """
        n, drawn = self.units, partial(torch.randn, generator=generator, dtype=torch.float64)
        factor, triangle = torch.linalg.qr(drawn(n, n))
        # Signs of the triangle's diagonal make the distribution uniform over the orthogonal group.
        recurrent = factor * triangle.diagonal().sign()
        entering = drawn(n, self.inputs) / math.sqrt(self.inputs)
        reading = drawn(self.outputs, n) / math.sqrt(n)
        weight, weight_out = (functional.pad(w, (0, 1)) for w in (torch.cat([recurrent, entering], 1), reading))
        return weight.to(dtype), weight_out.to(dtype)

    def recurrent(self, weight: Tensor) -> Tensor:
        """Return W_rec of W, shape (n, n): a view."""
        return weight[..., : self.units]

    def advance(self, weight: Tensor, rates: Tensor, x: Tensor) -> Advance:
        """Run one step, for W, r_{t-1} of shape (B, n), and x_t of shape (B, n_in)."""
        inputs = torch.cat([rates, x, torch.ones_like(rates[:, :1])], dim=1)
        voltage = inputs @ weight.mT
        if self.activation == "identity":
            return Advance(inputs, torch.lerp(rates, voltage, self.alpha), torch.full_like(voltage, self.alpha))
        active = torch.tanh(voltage)
        return Advance(inputs, torch.lerp(rates, active, self.alpha), self.alpha * (1 - active * active))

    def read(self, weight_out: Tensor, rates: Tensor) -> Tensor:
        """Return z = W_out [r; 1]: (B, n) to (B, n_out)."""
        return rates @ weight_out[:, :-1].mT + weight_out[:, -1]

    def unroll(
        self, weight: Tensor, weight_out: Tensor, x: Tensor, rates: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run through whole sequences, see `LeakyRNN.forward`."""
        rates = weight.new_zeros(x.shape[1], self.units) if rates is None else rates
        readouts = []
        for x_t in x:
            rates = self.advance(weight, rates, x_t).rates
            readouts.append(self.read(weight_out, rates))
        return (torch.stack(readouts) if readouts else x.new_empty(0, x.shape[1], self.outputs)), rates

    def loss(self, readout: Tensor, label: Tensor) -> Tensor:
        """Return the losses, shape (B,): cross-entropy in nats, or half the mean squared error."""
        if self.output == "softmax":
            return -(label * functional.log_softmax(readout, dim=1)).sum(1)
        return 0.5 * (readout - label).square().mean(1)

    def error(self, readout: Tensor, label: Tensor) -> Tensor:
        """Return ŷ - y*, shape (B, n_out): the derivative with respect to z of the loss that learning descends.

        With a linear output this is half the sum of squared errors, not the mean, as in the authors' code.
        """
        return (torch.softmax(readout, 1) if self.output == "softmax" else readout) - label

    def credit(self, weight_out: Tensor, error: Tensor) -> Tensor:
        """Return c̄ = W_outᵀ (ŷ - y*), the immediate credit of each unit: (B, n_out) to (B, n)."""
        return error @ weight_out[:, :-1]

    def jacobian_vector(self, weight: Tensor, slope: Tensor, vector: Tensor) -> Tensor:
        """Return J v for J = (1 - α) I + diag(D) W_rec, in the last axis: (B, ..., n) to (B, ..., n)."""
        between = (1,) * (vector.ndim - slope.ndim)
        driven = vector @ self.recurrent(weight).mT
        return (1 - self.alpha) * vector + slope.view(slope.shape[0], *between, -1) * driven

    def backproject(self, weight: Tensor, slope: Tensor, vector: Tensor) -> Tensor:
        """Return v J, in the last axis, which carries credit back over one step: (B, n) to (B, n)."""
        return (1 - self.alpha) * vector + (slope * vector) @ self.recurrent(weight)


class LeakyRNN(nn.Module):
    """Hold an `RNNCell` and its weights as a torch module, for whole sequences and for autograd.

    Parameters are W and W_out, `weight` and `weight_out`, as `RNNCell.initial_weights` draws them.
    """

    def __init__(
        self, cell: RNNCell, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.cell = cell
        weight, weight_out = cell.initial_weights(generator, dtype)
        self.weight, self.weight_out = nn.Parameter(weight), nn.Parameter(weight_out)

    def forward(self, x: Tensor, rates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return readouts z of shape (T, B, n_out) for x of shape (T, B, n_in), and the last rates, shape (B, n).

        It starts from `rates`, r_0, or zeros. ValueError if shapes do not fit.
        """
        if x.ndim != 3 or x.shape[2] != self.cell.inputs:
            raise ValueError(f"x must have shape (T, B, {self.cell.inputs}), got {tuple(x.shape)}")
        if rates is not None and rates.shape != (x.shape[1], self.cell.units):
            raise ValueError(f"rates must have shape ({x.shape[1]}, {self.cell.units}), got {tuple(rates.shape)}")
        return self.cell.unroll(self.weight, self.weight_out, x, rates)
