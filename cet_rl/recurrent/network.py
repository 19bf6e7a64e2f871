"""The leaky recurrent network as a module of torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cet_rl.recurrent.cell import Cell
from cet_rl.recurrent.online import Memory


class LeakyRNN(nn.Module):
    """A `Cell` with its weights, for whole sequences and for autograd.

    Args:
        cell: sizes and constants.
        generator: of the initial weights; None for torch's own.
        dtype: of the weights.

    Attributes:
        weight: W, shape (n, m): recurrent weights, input weights and biases.
        weight_out: W_out, shape (n_out, n + 1): output weights and biases.
    """

    def __init__(
        self, cell: Cell, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.cell = cell
        weight, weight_out = cell.initial_weights(generator, dtype)
        self.weight, self.weight_out = nn.Parameter(weight), nn.Parameter(weight_out)

    @classmethod
    def from_memory(cls, cell: Cell, memory: Memory) -> LeakyRNN:
        """The network that has been learned online, with weights of its own."""
        network = cls(cell)
        network.weight = nn.Parameter(memory.weight.detach().clone())
        network.weight_out = nn.Parameter(memory.weight_out.detach().clone())
        return network

    def forward(self, x: Tensor, rates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run through sequences.

        Args:
            x: shape (T, B, n_in).
            rates: r_0, shape (B, n); None for zeros.

        Returns:
            Readouts z of shape (T, B, n_out), and the last rates, (B, n), to go on from.

        Raises:
            ValueError: if shapes do not fit.
        """
        cell = self.cell
        if x.ndim != 3 or x.shape[2] != cell.inputs:
            raise ValueError(f"x must have shape (T, B, {cell.inputs}), got {tuple(x.shape)}")
        if rates is None:
            rates = self.weight.new_zeros(x.shape[1], cell.units)
        if rates.shape != (x.shape[1], cell.units):
            raise ValueError(f"rates must have shape ({x.shape[1]}, {cell.units}), got {tuple(rates.shape)}")
        readouts = x.new_empty(0, x.shape[1], cell.outputs)
        steps = []
        for now in x:
            rates = cell.advance(self.weight, rates, now).rates
            steps.append(cell.read(self.weight_out, rates))
        return (torch.stack(steps) if steps else readouts), rates

    def __call__(self, x: Tensor, rates: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `forward`."""
        result: tuple[Tensor, Tensor] = super().__call__(x, rates)
        return result
