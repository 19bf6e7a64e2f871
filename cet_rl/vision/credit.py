"""Three ways to give a batch of images its credit, a batch being a stretch of time (paper, App. B.1).

Every image is a step. Its error δ reaches a layer D steps later, when other images have been there, and meets what
the trace still holds. With one environment, no RL trace and η = 1 the update of `cet_rl.credit` is

    p_s = f'_s ⊙ Σ_u g_{u-s} δ_{u-D}        ΔW = Σ_s p_s x_sᵀ

- `BatchCredit`: every batch begins with empty traces, and errors that are late for its end are lost (the paper's
  behavioural time scale).
- `SalientCredit`: few images of a long stretch count, each at its own time; only the rows and columns of the
  kernel's matrix that they need are built (Eq. 11, retrograde time scale).
- `StreamCredit`: traces and errors travel from batch to batch, so that no delay is too long for a batch.

They take y = f(z) and δ of a batch in the shape of the layer's output. The first returns p in the same shape; the
others, whose sum is over images of earlier batches too, the gradient of the weight and of the bias, a synapse with
x = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cet_rl.credit.activations import Activation
from cet_rl.credit.constants import forget_oldest, visible_support
from cet_rl.credit.correlation import Correlation, Times, correlation_matrix, event_matrix
from cet_rl.credit.delay_line import DelayLine
from cet_rl.credit.geometry import Convolution, Geometry, Parts
from cet_rl.credit.synapses import Synapses
from cet_rl.traces.base import FloatArray, Trace
from cet_rl.traces.perfect import PerfectMemory

_COLUMNS = 2048
"""Features filtered at once on a CPU, so that a whole batch of them fits its cache: one megabyte at T = 128."""

_COLUMNS_ON_DEVICE = 1 << 17
"""The same elsewhere, where only memory counts: 64 megabytes at T = 128."""

_SMALL_PAST = 1 << 18
"""Numbers of a past, one megabyte, that is kept even where states would be fewer: its products are faster."""


def steps_in(batch: int, streams: int) -> int:
    """T of a batch; ValueError if it is no whole number."""
    steps, rest = divmod(batch, streams)
    if rest:
        raise ValueError(f"a batch of {batch} images does not part into {streams} streams")
    return steps


@lru_cache(maxsize=256)
def kernel_of(trace: Trace | None, dtype: torch.dtype) -> FloatArray:
    """g_0 … as far as `dtype` can tell it from nothing, float64; not to be written to."""
    if trace is None:
        return np.ones(1)
    first, last = visible_support(trace, dtype)
    kernel = trace.kernel(last).numpy().copy()
    kernel[:first] = 0.0
    return kernel


def _by_step(signal: Tensor, steps: int) -> Tensor:
    """(T · E, …) to (T, E · …), without a copy if it can be; maps in the order of `channels_last`."""
    return (signal if signal.ndim == 2 else signal.movedim(1, -1)).reshape(steps, -1)


def _like(flat: Tensor, signal: Tensor) -> Tensor:
    """Undo `_by_step`."""
    if signal.ndim == 2:
        return flat.view(signal.shape)
    batch, channels, *size = signal.shape
    return flat.view(batch, *size, channels).movedim(-1, 1)


class BatchCredit:
    """Traces that begin empty with every batch.

    Args:
        trace: of the layer; None for none.
        delay_steps: D.
        streams: E, sequences that share a batch: row s · E + e of it is step s of sequence e.
        soma: whether the soma, too, remembers f' through the trace; see `TracedLinear`.
    """

    def __init__(self, trace: Trace | None, delay_steps: int, streams: int = 1, *, soma: bool = False) -> None:
        self.trace, self.delay_steps, self.streams = trace, delay_steps, streams
        self._correlations: dict[tuple[Any, ...], Correlation] = {}
        self._soma = soma

    def correlation(self, steps: int, dtype: torch.dtype, device: torch.device) -> Correlation:
        """g_{u+D-s} at [s, u] for the errors u < T - D that arrive in time; shape (T, T - D)."""
        return self._cached("credit", steps, steps - self.delay_steps, self.trace, dtype, device)

    def matrix(self, steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The same as one square matrix, (T, T), zero for errors that come too late."""
        arriving = self.correlation(steps, dtype, device).matrix
        return nn.functional.pad(arriving, (0, self.delay_steps))

    def _cached(
        self, use: str, rows: int, columns: int, trace: Trace | None, dtype: torch.dtype, device: torch.device
    ) -> Correlation:
        key = (use, rows, dtype, device)
        if key not in self._correlations:
            forget_oldest(self._correlations)
            matrix = correlation_matrix(kernel_of(trace, dtype), rows, columns, self.delay_steps)
            self._correlations[key] = Correlation(matrix, dtype, device)
        return self._correlations[key]

    def steps(self, batch: int) -> int:
        """T of a batch; ValueError if it is no whole number, or not one error of it would arrive."""
        steps = steps_in(batch, self.streams)
        if steps <= self.delay_steps:
            raise ValueError(
                f"credit comes {self.delay_steps} steps late, but a batch is only {steps} steps long and forgets "
                "all at its end: use larger batches, a shorter delay, or streaming (to look without learning: "
                "torch.no_grad())"
            )
        return steps

    def gate(self, error: Tensor, y: Tensor, activation: Activation) -> Tensor:
        """f' ⊙ δ, with f' as the soma remembers it."""
        if not self._soma:
            return activation.gate(error, y)
        steps = self.steps(len(y))
        soma = self._cached("soma", steps, steps, _for_soma(self.trace), y.dtype, y.device)
        return error * _like(soma.matrix.T @ _by_step(activation.derivative(y, y), steps), y)

    def due(self, error: Tensor, y: Tensor, activation: Activation) -> Tensor:
        """p, what each image is due of the batch's errors. `error` is used up, and takes no memory anew."""
        steps = self.steps(len(y))
        p, active = _by_step(error, steps), _by_step(y, steps)
        arriving = p[: steps - self.delay_steps]
        correlation = self.correlation(steps, p.dtype, p.device)
        columns = _COLUMNS if p.device.type == "cpu" else _COLUMNS_ON_DEVICE
        if p.shape[1] <= columns:
            return _like(activation.gate(correlation(arriving), active), error)
        for first in range(0, p.shape[1], columns):
            units = slice(first, first + columns)
            p[:, units] = activation.gate(correlation(arriving[:, units]), active[:, units])
        return _like(p, error)

    def arriving(self, batch: int) -> int:
        """How many images' errors arrive within the batch: these are its first."""
        return batch - self.delay_steps * self.streams


@dataclass(frozen=True, eq=False)
class Moments:
    """When the images of a batch were seen, and for how long the network has been looking.

    Attributes:
        times: step of each image within the batch's stretch of time, increasing, shape (S,) int64.
        steps: how long the stretch is.

    Raises:
        ValueError: unless times increase within [0, steps).
    """

    times: Times
    steps: int

    def __post_init__(self) -> None:
        if self.times.ndim != 1 or (np.diff(self.times) <= 0).any():
            raise ValueError("the times of a batch must be one increasing row")
        if len(self.times) and not (self.times[0] >= 0 and self.times[-1] < self.steps):
            raise ValueError(f"the times of a batch must lie in [0, {self.steps})")


class SalientCredit(nn.Module):
    """Credit for some images of a long stretch of time.

    What is not salient leaves no trace and causes no error, but its time passes. Without `carry` each stretch
    begins with empty traces and its errors are followed until the last has arrived, as in the authors' code; with
    it, images and errors are kept as long as they matter, and an error counts in the stretch in which it arrives.

    Args:
        trace: of the layer; None for none.
        delay_steps: D.
        carry: whether to go on from stretch to stretch.
        soma: as for `BatchCredit`; not with `carry`.
    """

    times: Tensor

    def __init__(self, trace: Trace | None, delay_steps: int, *, carry: bool = False, soma: bool = False) -> None:
        super().__init__()
        self.trace, self.delay_steps, self.carry = trace, delay_steps, carry
        self._soma = soma
        self._arrived: tuple[Tensor, Tensor] | None = None
        if carry:
            self.register_buffer("times", torch.empty(0, dtype=torch.int64))
            for name in _KEPT:
                self.register_buffer(name, torch.empty(0))

    def gate(self, error: Tensor, y: Tensor, activation: Activation, moments: Moments) -> Tensor:
        """f' ⊙ δ, with f' as the soma remembers it."""
        if not self._soma:
            return activation.gate(error, y)
        matrix = event_matrix(
            kernel_of(_for_soma(self.trace), y.dtype), moments.times, moments.times + self.delay_steps
        )
        derivative = _by_step(activation.derivative(y, y), len(y))
        return error * _like(torch.from_numpy(matrix).to(y).T @ derivative, y)

    def gradients(
        self,
        geometry: Geometry,
        activation: Activation,
        x: Tensor,
        y: Tensor,
        error: Tensor,
        moments: Moments,
    ) -> Parts:
        """What the stretch teaches the layer."""
        derivative = geometry.flatten_post(activation.derivative(y, y))
        error, x = geometry.flatten_post(error), geometry.flatten_pre(x)
        kernel = kernel_of(self.trace, y.dtype)
        happened = moments.times
        if self.carry:
            x, derivative, error, happened = self._join(x, derivative, error, happened)
        arrives = happened + self.delay_steps
        due_now = (arrives >= 0) & (arrives < moments.steps) if self.carry else np.ones(len(arrives), dtype=bool)
        which = torch.from_numpy(np.flatnonzero(due_now)).to(y.device)
        matrix = torch.from_numpy(event_matrix(kernel, happened, arrives[due_now])).to(y)
        p = derivative * (matrix @ error[which])
        self._arrived = (derivative[which] * error[which], x[which]) if self.carry else None
        gradients = geometry.outer_parts(geometry.post(p), geometry.pre(x))
        if self.carry:
            self._keep(x, derivative, error, happened - moments.steps, len(kernel))
        return gradients

    def true_weight_gradient(self, geometry: Geometry, x: Tensor, gated: Tensor) -> Tensor:
        """Σ f' δ xᵀ of the images whose error arrived in the last `gradients`, undelayed.

        Args:
            geometry: of the layer.
            x: of the batch.
            gated: f' ⊙ δ of the batch, at the layer's output.
        """
        if self._arrived is None:
            return geometry.outer_parts(gated, x)[0]
        p, pre = self._arrived
        return geometry.outer_parts(geometry.post(p), geometry.pre(pre))[0]

    def _join(
        self, x: Tensor, derivative: Tensor, error: Tensor, happened: Times
    ) -> tuple[Tensor, Tensor, Tensor, Times]:
        if not len(self.times):
            return x, derivative, error, happened
        past = (getattr(self, name).to(new) for name, new in zip(_KEPT, (x, derivative, error), strict=True))
        pairs = zip(past, (x, derivative, error), strict=True)
        x, derivative, error = (torch.cat(pair) for pair in pairs)
        return x, derivative, error, np.concatenate([self.times.cpu().numpy(), happened])

    def _keep(self, x: Tensor, derivative: Tensor, error: Tensor, happened: Times, reach: int) -> None:
        """What may still matter: images within the kernel's reach, errors on their way. Times count from now."""
        matters = happened >= -max(reach - 1, self.delay_steps)
        which = torch.from_numpy(np.flatnonzero(matters)).to(x.device)
        self.times = torch.from_numpy(happened[matters])
        for name, signal in zip(_KEPT, (x, derivative, error), strict=True):
            setattr(self, name, signal[which])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # There are as many remembered images as there happen to be: the shapes are those of the file.
        for name in ("times", *_KEPT) if self.carry else ():
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


_KEPT = ("past_pre", "past_derivative", "past_error")


class StreamCredit(nn.Module):
    """Traces and errors that travel from batch to batch: `Synapses` with one environment for each stream.

    It keeps states at the synapses or the factored past, whichever is smaller, and a small past in any case; a
    convolution keeps its past.

    Args:
        geometry: of the layer.
        trace: of the layer; None for none.
        delay_steps: D.
        streams: E, as for `BatchCredit`.
        dtype: of the weights.
        alignment: whether the true gradient will be asked for: it takes a copy of all signals for D steps.
    """

    def __init__(
        self,
        geometry: Geometry,
        trace: Trace | None,
        delay_steps: int,
        streams: int,
        *,
        dtype: torch.dtype,
        alignment: bool,
    ) -> None:
        super().__init__()
        self.streams, self.delay_steps = streams, delay_steps
        states = (trace or PerfectMemory(0)).states
        _, last = visible_support(trace or PerfectMemory(0), dtype)
        factored = (last - 1) * (geometry.n_pre + geometry.n_post)
        numbers = states * torch.Size(geometry.weight_shape).numel()
        wants_states = 0 < numbers < factored and factored > _SMALL_PAST
        self.synapses = Synapses(
            trace=trace,
            delay_steps=delay_steps,
            num_envs=streams,
            executor="chunk" if wants_states and not isinstance(geometry, Convolution) else "history",
            dtype=dtype,
            geometry=geometry,
            supervised=True,
        )
        shapes = (geometry.pre_shape, geometry.post_shape) if alignment else ()
        # x and f' ⊙ δ of the images whose error is on its way.
        self.recorded = nn.ModuleList(DelayLine(delay_steps, (streams, *shape), dtype=dtype) for shape in shapes)
        self._arrived: list[Tensor] | None = None

    def gradients(
        self, activation: Activation, x: Tensor, y: Tensor, error: Tensor, gated: Tensor, *, measured: bool
    ) -> Parts:
        """What arrives while the batch is seen teaches the layer.

        Args:
            activation: f of the layer.
            x: the layer's input.
            y: its output.
            error: δ at the output or the pre-activation.
            gated: f' ⊙ δ, for the true gradient.
            measured: whether that will be asked for.
        """
        steps = steps_in(len(x), self.streams)
        dtype = self.synapses.eligibility.dtype
        pre, derivative, error, gated = (
            signal.to(dtype).view(steps, self.streams, *signal.shape[1:])
            for signal in (x, activation.derivative(y, y), error, gated)
        )
        self._arrived = [] if measured else None
        for line, signal in zip(self.recorded, (pre, gated), strict=False):  # there may be none
            assert isinstance(line, DelayLine)
            if self._arrived is None:
                line.push(signal)
            else:
                self._arrived.append(line(signal))
        return self.synapses.advance(pre, derivative, error)

    def true_weight_gradient(self) -> Tensor | None:
        """Σ f' δ xᵀ of the images whose error arrived in the last batch; None if not recorded and measured."""
        if not self._arrived:
            return None
        pre, gated = self._arrived
        return self.synapses.geometry.outer_parts(gated, pre)[0]


def _for_soma(trace: Trace | None) -> Trace | None:
    # A soma that remembered f' larger than it was would be wrong whatever the synapses do.
    return None if trace is None else replace(trace, normalization="area")  # type: ignore[type-var]
