"""Three kinds of credit for a layer that sees a batch of images as a stretch of time (paper, App. B.1).

Every image is a step. Its error δ reaches a layer D steps later, when other images have been shown, and meets what
the trace still holds. With one environment, no RL trace and η = 1 the update of `cet_rl.credit` is

    p_s = f'_s ⊙ Σ_u g_{u-s} δ_{u-D}        ΔW = Σ_s p_s x_sᵀ        Δb = Σ_s p_s

- `BatchCredit`: every batch begins with empty traces, and errors that arrive after its end are lost (the paper's
  behavioural time scale).
- `SalientCredit`: few images of a long stretch count, each at its own time; only the rows and columns of the
  kernel's matrix that they need are built (Eq. 11, retrograde time scale).
- `StreamCredit`: traces and errors are carried from batch to batch, so that no delay is too long for a batch.

The `backward` of each takes a layer's input x, output y and ∂L/∂y, and returns ∂L/∂x and the gradients of weight
and bias; a bias is a synapse with x = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from cet_rl.credit.activations import ACTIVATIONS, Activation
from cet_rl.credit.chunk import Times, correlation_matrix, event_matrix, forget_oldest
from cet_rl.credit.factored import Correlation, visible_support
from cet_rl.credit.geometry import Convolution, Dense, Geometry
from cet_rl.credit.signals import DelayLine
from cet_rl.credit.synapses import Synapses
from cet_rl.traces.base import FloatArray, Trace
from cet_rl.traces.perfect import PerfectMemory

ErrorAt = Literal["preactivation", "activation"]
DerivativeMemory = Literal["exact", "trace"]

_COLUMNS = 2048
"""Features filtered at once on a CPU, so that a whole batch of them fits its cache: one megabyte at T = 128."""

_COLUMNS_ON_DEVICE = 1 << 17
"""Features filtered at once on other devices, where only memory counts: 64 megabytes at T = 128."""

_SMALL_PAST = 1 << 18
"""Numbers of a past, one megabyte, that is kept even where states would be fewer: its products are faster."""


@dataclass(frozen=True)
class CreditRule:
    """Hold what decides how late errors teach a layer; see `cet_rl.vision.TracedLinear` for the options.

    Attributes:
        trace: synaptic trace, or None.
        delay_steps: D, images between an image and the arrival of its error.
        streams: E, sequences that share a batch: row s · E + e of it is step s of sequence e.
        activation: name of f in `cet_rl.credit.activations`.
        error_at: whether δ is the error at the pre-activation or at the output.
        derivative_memory: whether f' of an image is known exactly when its error arrives, or through the trace.
        window: stride and padding of a convolution; None for a dense layer.
        bias: whether the layer has one.
    """

    trace: Trace | None
    delay_steps: int
    streams: int
    activation: str
    error_at: ErrorAt
    derivative_memory: DerivativeMemory
    window: tuple[int, int] | None
    bias: bool

    @property
    def f(self) -> Activation:
        """Return the activation."""
        return ACTIVATIONS[self.activation]

    def steps(self, batch: int) -> int:
        """Return T, the steps of a batch; raise ValueError unless it divides into the streams."""
        steps, rest = divmod(batch, self.streams)
        if rest:
            raise ValueError(f"a batch of {batch} images does not divide into {self.streams} streams")
        return steps

    def backproject(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return Wᵀ δ, shaped like x."""
        if self.window is None:
            return delta @ weight
        return conv2d_input(x.shape, weight, delta, *self.window)  # type: ignore[no-untyped-call, no-any-return]

    def weight_gradient(self, p: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return Σ p xᵀ over images and positions, shaped like the weight."""
        if self.window is None:
            return p.T @ x
        return conv2d_weight(x, weight.shape, p, *self.window)  # type: ignore[no-untyped-call, no-any-return]

    @lru_cache(maxsize=256)  # noqa: B019
    def geometry(self, in_shape: torch.Size, weight_shape: torch.Size) -> Geometry:
        """Return the layer's geometry for inputs of shape `in_shape`."""
        n_out, n_in = weight_shape[:2]
        if self.window is None:
            return Dense(n_in, n_out, self.bias)
        height, width = in_shape[1:]
        return Convolution(n_in, n_out, weight_shape[2], (height, width), *self.window, self.bias)


class Wanted(NamedTuple):
    """Say what a backward pass is to compute beside the gradients of weight and bias."""

    down: bool
    truth: bool


class LayerGradients(NamedTuple):
    """Hold what one backward pass of a layer computes.

    Attributes:
        down: ∂L/∂x, or None where it was not needed.
        weight: the weight's gradient from late credit.
        bias: the bias's gradient.
        truth: the weight's undelayed gradient of the images whose error arrived; None unless wanted.
    """

    down: Tensor | None
    weight: Tensor
    bias: Tensor | None
    truth: Tensor | None = None


@lru_cache(maxsize=256)
def kernel_of(trace: Trace | None, dtype: torch.dtype) -> FloatArray:
    """Return g_0 … as far as `dtype` can tell it from zero, float64; not to be written to."""
    if trace is None:
        return np.ones(1)
    first, last = visible_support(trace, dtype)
    kernel = trace.kernel(last).numpy().copy()
    kernel[:first] = 0.0
    return kernel


def _by_step(signal: Tensor, steps: int) -> Tensor:
    """Reshape (T · E, …) to (T, E · …), without a copy if possible; maps in the order of `channels_last`."""
    return (signal if signal.ndim == 2 else signal.movedim(1, -1)).reshape(steps, -1)


def _like(flat: Tensor, signal: Tensor) -> Tensor:
    """Undo `_by_step`."""
    if signal.ndim == 2:
        return flat.view(signal.shape)
    batch, channels, *size = signal.shape
    return flat.view(batch, *size, channels).movedim(-1, 1)


def _with_unit_area(trace: Trace | None) -> Trace | None:
    # A memory that returned f' larger than it was would be wrong whatever the synapses do.
    return None if trace is None else replace(trace, normalization="area")  # type: ignore[type-var]


class BatchCredit:
    """Give credit within a batch, where traces begin empty and errors after the end are lost.

    Args:
        rule: of the layer.
    """

    def __init__(self, rule: CreditRule) -> None:
        self.rule = rule
        self._correlations: dict[tuple[Any, ...], Correlation] = {}

    def backward(
        self, x: Tensor, y: Tensor, grad: Tensor, weight: Tensor, matrix: Tensor | None, want: Wanted
    ) -> LayerGradients:
        """Return the layer's gradients for one batch.

        Args:
            x: input, shape (T · E, …).
            y: output f(W x + b).
            grad: ∂L/∂y; not modified.
            weight: W.
            matrix: the kernel's matrix, (T, T), to use in place of the layer's own way.
            want: what is needed beside the gradients of weight and bias.
        """
        rule, f = self.rule, self.rule.f
        delta = self._times_derivative(grad, y)
        down = rule.backproject(delta, x, weight) if want.down else None
        error = delta if rule.error_at == "preactivation" else grad
        truth = None
        if want.truth:  # before the error is used up
            exact = delta if rule.derivative_memory == "exact" else f.times_derivative(grad, y)
            arriving = len(x) - rule.delay_steps * rule.streams
            truth = rule.weight_gradient(exact[:arriving], x[:arriving], weight)
        if matrix is None:
            # Computed in place, and autograd's own tensor may be wanted elsewhere.
            p = self._credited_derivative(error.clone() if error is grad else error, y)
        else:
            delayed = matrix.to(error.dtype) @ error.reshape(matrix.shape[-1], -1)
            p = f.times_derivative(delayed.view(error.shape), y)
        over_images = (0, *range(2, p.ndim))
        return LayerGradients(down, rule.weight_gradient(p, x, weight), p.sum(over_images), truth)

    def matrix(self, steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return g_{u+D-s} at [s, u], zero for errors u that arrive too late; shape (T, T)."""
        arriving = self._correlation(steps, dtype, device).matrix
        return functional.pad(arriving, (0, self.rule.delay_steps))

    def steps(self, batch: int) -> int:
        """Return T, the steps of a batch.

        Raises:
            ValueError: if the batch does not divide into streams, or ends before one of its errors arrives.
        """
        steps, delay = self.rule.steps(batch), self.rule.delay_steps
        if steps <= delay:
            raise ValueError(
                f"credit arrives {delay} steps late, but a batch is only {steps} steps long and forgets "
                "everything at its end: use larger batches, a shorter delay, or streaming (to run the model "
                "without learning: torch.no_grad())"
            )
        return steps

    def _correlation(
        self, steps: int, dtype: torch.dtype, device: torch.device, *, of_derivative: bool = False
    ) -> Correlation:
        """Return g_{u+D-s} at [s, u] for errors u < T - D that arrive in time, or for all and with unit area."""
        key = (of_derivative, steps, dtype, device)
        if key not in self._correlations:
            forget_oldest(self._correlations)
            trace, delay = self.rule.trace, self.rule.delay_steps
            kernel = kernel_of(_with_unit_area(trace) if of_derivative else trace, dtype)
            matrix = correlation_matrix(kernel, steps, steps if of_derivative else steps - delay, delay)
            self._correlations[key] = Correlation(matrix, dtype, device)
        return self._correlations[key]

    def _times_derivative(self, grad: Tensor, y: Tensor) -> Tensor:
        """Return f' ⊙ grad, with f' exact or as the trace remembers it."""
        rule, f = self.rule, self.rule.f
        if rule.derivative_memory == "exact":
            return f.times_derivative(grad, y)
        steps = self.steps(len(y))
        memory = self._correlation(steps, y.dtype, y.device, of_derivative=True)
        return grad * _like(memory.matrix.T @ _by_step(f.derivative(y, y), steps), y)

    def _credited_derivative(self, error: Tensor, y: Tensor) -> Tensor:
        """Return p, the credit of each image's derivative. `error` is used up, and no memory allocated anew."""
        f, steps = self.rule.f, self.steps(len(y))
        p, active = _by_step(error, steps), _by_step(y, steps)
        arriving = p[: steps - self.rule.delay_steps]
        correlation = self._correlation(steps, p.dtype, p.device)
        columns = _COLUMNS if p.device.type == "cpu" else _COLUMNS_ON_DEVICE
        if p.shape[1] <= columns:
            return _like(f.times_derivative(correlation(arriving), active), error)
        for first in range(0, p.shape[1], columns):
            units = slice(first, first + columns)
            p[:, units] = f.times_derivative(correlation(arriving[:, units]), active[:, units])
        return _like(p, error)


@dataclass(frozen=True, eq=False)
class ImageTimes:
    """Hold when the images of a batch are shown, within a stretch of time.

    Attributes:
        times: step of each image within the stretch, increasing, shape (S,) int64.
        steps: length of the stretch.

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


_KEPT = ("past_pre", "past_derivative", "past_error")


class SalientCredit(nn.Module):
    """Give credit for some images of a long stretch of time.

    Images that are not salient leave no trace and cause no error, but their time passes. Without `carry` each
    stretch begins with empty traces and its errors are followed until the last has arrived, as in the authors'
    code; with it, images and errors are kept as long as they matter, and an error counts in the stretch in which
    it arrives.

    Args:
        rule: of the layer, with one stream.
        carry: whether to continue from stretch to stretch; not with `derivative_memory="trace"`.
    """

    times: Tensor

    def __init__(self, rule: CreditRule, *, carry: bool = False) -> None:
        super().__init__()
        self.rule, self.carry = rule, carry
        if carry:
            self.register_buffer("times", torch.empty(0, dtype=torch.int64))
            for name in _KEPT:
                self.register_buffer(name, torch.empty(0))

    def backward(
        self, x: Tensor, y: Tensor, grad: Tensor, weight: Tensor, times: ImageTimes, want: Wanted
    ) -> LayerGradients:
        """Return the layer's gradients for one stretch; `times` says when its images were shown.

        The other arguments are those of `BatchCredit.backward`.
        """
        rule, f = self.rule, self.rule.f
        delta = self._times_derivative(grad, y, times)
        down = rule.backproject(delta, x, weight) if want.down else None
        error = delta if rule.error_at == "preactivation" else grad
        geometry = rule.geometry(x.shape[1:], weight.shape)
        derivative, error = geometry.flatten_post(f.derivative(y, y)), geometry.flatten_post(error)
        pre, shown = geometry.flatten_pre(x), times.times
        kernel = kernel_of(rule.trace, y.dtype)
        if self.carry:
            pre, derivative, error, shown = self._with_past(pre, derivative, error, shown)
        arrival = shown + rule.delay_steps
        arrives = (arrival >= 0) & (arrival < times.steps) if self.carry else np.ones(len(arrival), dtype=bool)
        which = torch.from_numpy(np.flatnonzero(arrives)).to(y.device)
        matrix = torch.from_numpy(event_matrix(kernel, shown, arrival[arrives])).to(y)
        p = derivative * (matrix @ error[which])
        for_weight, for_bias = geometry.outer_parts(geometry.post(p), geometry.pre(pre))
        truth = None
        if want.truth and self.carry:
            p = derivative[which] * error[which]
            truth = geometry.outer_parts(geometry.post(p), geometry.pre(pre[which]))[0]
        elif want.truth:
            truth = geometry.outer_parts(f.times_derivative(grad, y), x)[0]
        if self.carry:
            self._keep(pre, derivative, error, shown - times.steps, len(kernel))
        return LayerGradients(down, for_weight, for_bias, truth)

    def _times_derivative(self, grad: Tensor, y: Tensor, times: ImageTimes) -> Tensor:
        """Return f' ⊙ grad, with f' exact or as the trace remembers it."""
        rule, f = self.rule, self.rule.f
        if rule.derivative_memory == "exact":
            return f.times_derivative(grad, y)
        kernel = kernel_of(_with_unit_area(rule.trace), y.dtype)
        matrix = event_matrix(kernel, times.times, times.times + rule.delay_steps)
        derivative = _by_step(f.derivative(y, y), len(y))
        return grad * _like(torch.from_numpy(matrix).to(y).T @ derivative, y)

    def _with_past(
        self, pre: Tensor, derivative: Tensor, error: Tensor, shown: Times
    ) -> tuple[Tensor, Tensor, Tensor, Times]:
        """Return the signals and times with those of earlier stretches before them."""
        if not len(self.times):
            return pre, derivative, error, shown
        past = (getattr(self, name).to(new) for name, new in zip(_KEPT, (pre, derivative, error), strict=True))
        pairs = zip(past, (pre, derivative, error), strict=True)
        pre, derivative, error = (torch.cat(pair) for pair in pairs)
        return pre, derivative, error, np.concatenate([self.times.cpu().numpy(), shown])

    def _keep(self, pre: Tensor, derivative: Tensor, error: Tensor, shown: Times, reach: int) -> None:
        """Keep images within the kernel's reach and errors on their way; times count from now."""
        matters = shown >= -max(reach - 1, self.rule.delay_steps)
        which = torch.from_numpy(np.flatnonzero(matters)).to(pre.device)
        self.times = torch.from_numpy(shown[matters])
        for name, signal in zip(_KEPT, (pre, derivative, error), strict=True):
            setattr(self, name, signal[which])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # The number of images kept varies: the shapes are those of the file.
        for name in ("times", *_KEPT) if self.carry else ():
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class StreamCredit(nn.Module):
    """Give credit across batches, with `Synapses` in which each stream is an environment.

    It keeps states at the synapses or the factored past, whichever is smaller, and a small past in any case; a
    convolution keeps its past.

    Args:
        rule: of the layer.
        weight: of the layer.
        in_shape: shape of one input.
        record_alignment: whether the true gradient will be needed: a copy of all signals is kept for D steps.
    """

    def __init__(self, rule: CreditRule, weight: Tensor, in_shape: torch.Size, *, record_alignment: bool) -> None:
        super().__init__()
        self.rule = rule
        geometry, dtype = rule.geometry(in_shape, weight.shape), weight.dtype
        trace = rule.trace or PerfectMemory(0)
        _, last = visible_support(trace, dtype)
        factored = (last - 1) * (geometry.n_pre + geometry.n_post)
        numbers = trace.states * torch.Size(geometry.weight_shape).numel()
        wants_states = 0 < numbers < factored and factored > _SMALL_PAST
        self.synapses = Synapses(
            trace=rule.trace,
            delay_steps=rule.delay_steps,
            num_envs=rule.streams,
            executor="chunk" if wants_states and not isinstance(geometry, Convolution) else "history",
            dtype=dtype,
            geometry=geometry,
            supervised=True,
        )
        shapes = (geometry.pre_shape, geometry.post_shape) if record_alignment else ()
        # x and f' ⊙ δ of the images whose error is on its way.
        self.recorded = nn.ModuleList(
            DelayLine(rule.delay_steps, (rule.streams, *shape), dtype=dtype) for shape in shapes
        )

    def backward(self, x: Tensor, y: Tensor, grad: Tensor, weight: Tensor, want: Wanted) -> LayerGradients:
        """Return the layer's gradients from what arrives while this batch is shown.

        The arguments are those of `BatchCredit.backward`; without a record the true gradient is None.
        """
        rule, f = self.rule, self.rule.f
        delta = f.times_derivative(grad, y)
        down = rule.backproject(delta, x, weight) if want.down else None
        error = delta if rule.error_at == "preactivation" else grad
        steps, dtype = rule.steps(len(x)), self.synapses.eligibility.dtype
        pre, derivative, error, delta = (
            signal.to(dtype).view(steps, rule.streams, *signal.shape[1:])
            for signal in (x, f.derivative(y, y), error, delta)
        )
        arrived = []
        for line, signal in zip(self.recorded, (pre, delta), strict=False):  # there may be none
            assert isinstance(line, DelayLine)
            if want.truth:
                arrived.append(line(signal))
            else:
                line.push(signal)
        truth = self.synapses.geometry.outer_parts(*reversed(arrived))[0] if arrived else None
        return LayerGradients(down, *self.synapses.advance(pre, derivative, error), truth)
