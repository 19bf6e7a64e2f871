"""Three kinds of credit for a layer that sees a batch of images as a stretch of time (paper, App. B.1).

Every image is a step. Its error δ reaches a layer D steps later, when other images have been shown, and meets what
the trace still holds. With one environment, no RL trace and η = 1 the update of `cet_rl.credit` is

    p_τ = f'_τ ⊙ Σ_u g_{u-τ} δ_{u-D}        ΔW = Σ_τ p_τ x_τᵀ        Δb = Σ_τ p_τ

- `BatchCredit`: every batch begins with empty traces, and errors that arrive after its end are lost (the paper's
  behavioural time scale).
- `SalientCredit`: few images of a long stretch count, each at its own time; only the rows and columns of the
  kernel's matrix that they need are built (Eq. 11, retrograde time scale).
- `StreamCredit`: traces and errors are carried from batch to batch, so that no delay is too long for a batch.

The `backward` of each takes a layer's input x, (T · E, …), its output y, ∂L/∂y, which is not modified, its weight,
and what is wanted beside the gradients of weight and bias. A bias is a synapse with x = 1.
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
from cet_rl.runs.values import checked
from cet_rl.traces.base import FloatArray, Trace, check_whole
from cet_rl.traces.finite import PerfectMemory
from cet_rl.traces.timing import check_jitter, jittered_steps, longest_steps
from cet_rl.vision.passes import Commit, Gradients, Wanted

ErrorAt = Literal["preactivation", "activation"]
DerivativeMemory = Literal["exact", "trace"]

_COLUMNS = 2048
"""Features filtered at once on a CPU, so that a batch of them, one megabyte at T = 128, fits its cache."""

_SMALL_PAST = 1 << 18
"""Numbers, one megabyte, up to which the past is kept although states would be fewer: its products are faster."""


@dataclass(frozen=True)
class CreditRule:
    """Hold the options of a traced layer, see `cet_rl.vision.TracedLinear`, and what follows from them alone.

    `stride_padding` are those of a convolution, None for a dense layer. Raises ValueError for options that are
    invalid or do not go together.
    """

    trace: Trace | None
    delay_steps: int
    bias: bool
    stride_padding: tuple[int, int] | None = None
    activation: str = "identity"
    error_at: ErrorAt = "preactivation"
    derivative_memory: DerivativeMemory = "exact"
    streaming: bool = False
    streams: int = 1
    record_alignment: bool = False
    jitter: float = 0.0

    def __post_init__(self) -> None:
        checked(self.activation, Literal[tuple(ACTIVATIONS)], "activation")
        checked(self.error_at, ErrorAt, "error_at")
        checked(self.derivative_memory, DerivativeMemory, "derivative_memory")
        check_whole(self.delay_steps, "delay_steps", at_least=0)
        check_whole(self.streams, "streams", at_least=1)
        if self.is_late and self.error_at == "preactivation" and not self.f.binary:
            raise ValueError(
                f"{self.activation} needs error_at='activation': an error at the pre-activation holds f' already, "
                "which is right only where f' is 0 or 1"
            )
        check_jitter("jitter", self.jitter)
        if self.jitter and (self.derivative_memory == "trace" or self.record_alignment):
            raise ValueError("jitter does not go with derivative_memory='trace', nor with record_alignment")
        if self.derivative_memory == "trace" and self.streaming:
            raise ValueError("derivative_memory='trace' does not go with streaming: it needs later images")

    @property
    def is_late(self) -> bool:
        """Tell whether gradients differ from those of backpropagation."""
        return self.trace is not None or self.delay_steps > 0

    @property
    def longest_delay(self) -> int:
        """Return the largest number of steps that an error can take."""
        return longest_steps(self.delay_steps, self.jitter)

    @property
    def fixed_delay(self) -> int:
        """Return D, or 0 where there is jitter, as `arrive` has already moved errors to when they arrive."""
        return 0 if self.jitter else self.delay_steps

    def delays(self, draws: FloatArray | None, images: int) -> Times | None:
        """Return the steps after which the error of each image arrives, D (1 + J u) rounded, (images,).

        None without jitter. Raises ValueError if, with jitter, there is not one draw u for each image.
        """
        if not self.jitter:
            return None
        if draws is None or len(draws) != images:
            raise ValueError(f"with jitter each of {images} images needs a draw: `with jittered(model, draws)`")
        return jittered_steps(self.delay_steps, self.jitter, draws)

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

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return f(W x + b), as torch computes it."""
        if self.stride_padding is None:
            return self.f.function(functional.linear(x, weight, bias))
        return self.f.function(functional.conv2d(x, weight, bias, *self.stride_padding))

    def errors(
        self, x: Tensor, y: Tensor, grad: Tensor, weight: Tensor, want: Wanted, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return ∂L/∂z, ∂L/∂x where it is wanted, and δ, the error that the synapses get.

        With `derivative_memory="trace"`, `memory` is (T, T): at [t, s] the weight that f' of step s has in the f'
        that is recalled when the error of step t arrives. The other arguments are those of `backward`.
        """
        if memory is None:
            delta = self.f.times_derivative(grad, y)
        else:
            delta = grad * _like(memory @ _by_step(self.f.derivative(y, y), len(memory)), y)
        grad_x = None
        if want.input_gradient:
            if self.stride_padding is None:
                grad_x = delta @ weight
            else:
                grad_x = conv2d_input(x.shape, weight, delta, *self.stride_padding)  # type: ignore[no-untyped-call]
        return delta, grad_x, delta if self.error_at == "preactivation" else grad

    def weight_gradient(self, p: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return Σ p xᵀ, shaped like the weight, by torch's operations alone: for torch.func and torch.compile."""
        if self.stride_padding is None:
            return p.T @ x
        return conv2d_weight(x, weight.shape, p, *self.stride_padding)  # type: ignore[no-untyped-call, no-any-return]

    @lru_cache(maxsize=256)  # noqa: B019
    def geometry(self, in_shape: torch.Size, weight_shape: torch.Size) -> Geometry:
        """Return the layer's geometry for inputs of this shape."""
        n_out, n_in = weight_shape[:2]
        if self.stride_padding is None:
            return Dense(n_in, n_out, self.bias)
        height, width = in_shape[1:]
        return Convolution(n_in, n_out, weight_shape[2], (height, width), *self.stride_padding, self.bias)

    @lru_cache(maxsize=256)  # noqa: B019
    def kernel(self, dtype: torch.dtype, *, unit_area: bool = False) -> FloatArray:
        """Return g_0, g_1, … for as long as `dtype` tells it from zero, as scaled or of `unit_area`; read only."""
        if self.trace is None:
            return np.ones(1)
        # However the synapses' kernel is scaled, a recalled f' should not be larger than f' was.
        trace: Trace = replace(self.trace, normalization="area") if unit_area else self.trace  # type: ignore[type-var]
        first, last = visible_support(trace, dtype)
        kernel = trace.kernel_array(last)
        kernel[:first] = 0.0
        return kernel


def arrive(error: Tensor, delays: Times, steps: int, pending: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the errors that arrive at each of these T steps, in sum, (T · E, …), and those that arrive later.

    Errors are given, (T · E, …), with their delays in steps, (T · E,), step by step and all streams of each step.
    `pending`, (L · E, …), are those of earlier batches, by the step at which they arrive.
    """
    count = len(error)
    streams = count // steps
    kept = count + streams * int(delays.max(initial=0)) if pending is None else count + len(pending)
    line = error.new_zeros(kept, *error.shape[1:])
    if pending is not None:
        line[: len(pending)] = pending
    line.index_add_(0, torch.from_numpy(np.arange(count) + streams * delays).to(error.device), error)
    return line[:count], line[count:]


def _by_step(signal: Tensor, steps: int) -> Tensor:
    """Reshape (T · E, …) to (T, E · …), without a copy if possible; maps in the order of `channels_last`."""
    return (signal if signal.ndim == 2 else signal.movedim(1, -1)).reshape(steps, -1)


def _like(flat: Tensor, signal: Tensor) -> Tensor:
    """Undo `_by_step`."""
    if signal.ndim == 2:
        return flat.view(signal.shape)
    batch, channels, *size = signal.shape
    return flat.view(batch, *size, channels).movedim(-1, 1)


class BatchCredit:
    """Give credit within a batch, where traces begin empty and errors after the end are lost."""

    def __init__(self, rule: CreditRule) -> None:
        self.rule = rule
        self._correlations: dict[tuple[Any, ...], Correlation] = {}

    def backward(
        self, x: Tensor, y: Tensor, grad: Tensor, weight: Tensor, want: Wanted, matrix: Tensor | None = None
    ) -> Gradients:
        """Return the gradients of a batch; `matrix`, if given, is what `self.matrix` returns: see `use_matrix`."""
        rule = self.rule
        memory = None
        if rule.derivative_memory == "trace":
            memory = self._correlation(self.steps(len(y)), y.dtype, y.device, of_derivative=True).matrix.T
        delta, grad_x, error = rule.errors(x, y, grad, weight, want, memory)
        true_weight = None
        if want.true_gradient:  # before the error is used up
            exact = delta if memory is None else rule.f.times_derivative(grad, y)
            arriving: Any = slice(len(x) - rule.delay_steps * rule.streams)
            if want.delays is not None:
                arrival = np.arange(len(x)) // rule.streams + want.delays
                arriving = torch.from_numpy(arrival < self.steps(len(x))).to(x.device)
            true_weight = rule.weight_gradient(exact[arriving], x[arriving], weight)
        if want.delays is not None:
            error = arrive(error, want.delays, self.steps(len(x)))[0]
        if matrix is None:
            # Computed in place, and autograd's own tensor may be wanted elsewhere.
            p = self._credited_derivative(error.clone() if error is grad else error, y)
        else:
            delayed = matrix.to(error.dtype) @ error.reshape(matrix.shape[-1], -1)
            p = rule.f.times_derivative(delayed.view(error.shape), y)
        over_images = (0, *range(2, p.ndim))
        return Gradients(grad_x, rule.weight_gradient(p, x, weight), p.sum(over_images), true_weight)

    def matrix(self, steps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return g_{u+D-s} at [s, u], zero for errors u that arrive too late; shape (T, T)."""
        arriving = self._correlation(steps, dtype, device).matrix
        return functional.pad(arriving, (0, self.rule.delay_steps))

    def steps(self, batch: int) -> int:
        """Return T; raise ValueError if the batch does not fit the streams, or ends before an error arrives."""
        steps, delay = self.rule.steps(batch), self.rule.longest_delay
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
            kernel, delay = self.rule.kernel(dtype, unit_area=of_derivative), self.rule.fixed_delay
            matrix = correlation_matrix(kernel, steps, steps if of_derivative else steps - delay, delay)
            self._correlations[key] = Correlation(matrix, dtype, device)
        return self._correlations[key]

    def _credited_derivative(self, error: Tensor, y: Tensor) -> Tensor:
        """Return p, the credit of each image's derivative; `error` is overwritten, to save memory."""
        f, steps = self.rule.f, self.steps(len(y))
        p, active = _by_step(error, steps), _by_step(y, steps)
        arriving = p[: steps - self.rule.fixed_delay]
        correlation = self._correlation(steps, p.dtype, p.device)
        if p.shape[1] <= _COLUMNS or p.device.type != "cpu":
            return _like(f.times_derivative(correlation(arriving), active), error)
        for first in range(0, p.shape[1], _COLUMNS):
            units = slice(first, first + _COLUMNS)
            p[:, units] = f.times_derivative(correlation(arriving[:, units]), active[:, units])
        return _like(p, error)


class ImageTimes(NamedTuple):
    """Hold the steps at which images are shown, (S,), increasing, and the length of the whole stretch in steps."""

    times: Times
    steps: int


_PAST = ("past_pre", "past_derivative", "past_error")


class SalientCredit(nn.Module):
    """Give credit for some images of a long stretch of time.

    Images that are not salient leave no trace and cause no error, but their time passes. A stretch begins with
    empty traces, and all of its errors count, however late they arrive, as in the authors' code. While streaming,
    images and errors are kept for as long as they matter, and an error counts in the stretch in which it arrives.
    """

    times: Tensor
    arrivals: Tensor

    def __init__(self, rule: CreditRule) -> None:
        super().__init__()
        self.rule = rule
        if rule.streaming:
            for name in ("times", "arrivals"):
                self.register_buffer(name, torch.empty(0, dtype=torch.int64))
            for name in _PAST:
                self.register_buffer(name, torch.empty(0))

    def backward(
        self, x: Tensor, y: Tensor, grad: Tensor, weight: Tensor, want: Wanted, times: ImageTimes
    ) -> tuple[Gradients, Commit]:
        """Return the layer's gradients for one stretch; `times` says when its images were shown."""
        rule, f, shown = self.rule, self.rule.f, times.times
        arrival = shown + (rule.delay_steps if want.delays is None else want.delays)
        memory = None
        if rule.derivative_memory == "trace":
            kernel = rule.kernel(y.dtype, unit_area=True)
            memory = torch.from_numpy(event_matrix(kernel, shown, shown + rule.delay_steps)).to(y).T
        _, grad_x, error = rule.errors(x, y, grad, weight, want, memory)
        geometry = rule.geometry(x.shape[1:], weight.shape)
        signals = (geometry.flatten(signal) for signal in (x, f.derivative(y, y), error))
        if want.scale is not None:  # without the scale errors may be too small for half precision
            signals = (signal.to(torch.promote_types(y.dtype, torch.float32)) for signal in signals)
        pre, derivative, error = signals
        error = want.unscaled(error)
        if rule.streaming and len(self.times):
            past = zip(_PAST, (pre, derivative, error), strict=True)
            pre, derivative, error = (torch.cat([getattr(self, name).to(new), new]) for name, new in past)
            shown = np.concatenate([self.times.cpu().numpy(), shown])
            arrival = np.concatenate([self.arrivals.cpu().numpy(), arrival])
        arrives = (arrival >= 0) & (arrival < times.steps) if rule.streaming else np.ones(len(arrival), dtype=bool)
        which = torch.from_numpy(np.flatnonzero(arrives)).to(y.device)
        kernel = rule.kernel(y.dtype)
        matrix = torch.from_numpy(event_matrix(kernel, shown, arrival[arrives])).to(error)
        p = derivative * (matrix @ error[which])
        parts = geometry.outer_parts(geometry.unflatten_post(p), geometry.unflatten_pre(pre))
        true_weight = None
        if want.true_gradient and rule.streaming:
            p = derivative[which] * error[which]
            true_weight = geometry.outer_parts(geometry.unflatten_post(p), geometry.unflatten_pre(pre[which]))[0]
        elif want.true_gradient:
            true_weight = geometry.outer_parts(f.times_derivative(grad, y), x)[0]

        def commit() -> None:
            if rule.streaming:
                self._keep((pre, derivative, error), shown - times.steps, arrival - times.steps, len(kernel))

        return Gradients(grad_x, *parts, true_weight), commit

    def _keep(self, signals: tuple[Tensor, ...], shown: Times, arrival: Times, reach: int) -> None:
        """Keep images within the kernel's reach and errors on their way; times count from now."""
        matters = shown >= -max(reach - 1, self.rule.longest_delay)
        which = torch.from_numpy(np.flatnonzero(matters)).to(signals[0].device)
        self.times, self.arrivals = torch.from_numpy(shown[matters]), torch.from_numpy(arrival[matters])
        for name, signal in zip(_PAST, signals, strict=True):
            setattr(self, name, signal[which])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # The number of images kept varies: the shapes are those of the file.
        for name in self._buffers:
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor):
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class StreamCredit(nn.Module):
    """Give credit across batches, with `Synapses` in which each stream is an environment.

    It keeps states at the synapses or the factored past, whichever is smaller, and a small past in any case; a
    convolution keeps its past. With `record_alignment` a copy of all signals is kept for D steps.
    """

    pending: Tensor | None

    def __init__(
        self, rule: CreditRule, weight: Tensor, in_shape: torch.Size, executor: str | None = None
    ) -> None:
        super().__init__()
        self.rule = rule
        geometry, dtype = rule.geometry(in_shape, weight.shape), weight.dtype
        trace = rule.trace or PerfectMemory(0)
        _, last = visible_support(trace, dtype)
        factored = (last - 1) * (geometry.n_pre + geometry.n_post)
        numbers = trace.states * torch.Size(geometry.weight_shape).numel()
        wants_states = 0 < numbers < factored and factored > _SMALL_PAST
        dense_states = wants_states and not isinstance(geometry, Convolution)
        self.synapses = Synapses(
            trace=rule.trace,
            delay_steps=rule.fixed_delay,
            num_envs=rule.streams,
            executor="auto" if executor else "chunk" if dense_states else "history",
            choice=executor,
            dtype=dtype,
            geometry=geometry,
            supervised=True,
        )
        on_their_way = (rule.longest_delay * rule.streams, *geometry.post_shape)
        self.register_buffer("pending", torch.zeros(on_their_way, dtype=dtype) if rule.jitter else None)
        shapes = (geometry.pre_shape, geometry.post_shape) if rule.record_alignment else ()
        # x and f' ⊙ δ of the images whose error is on its way.
        self.recorded = nn.ModuleList(
            DelayLine(rule.delay_steps, (rule.streams, *shape), dtype=dtype) for shape in shapes
        )

    def backward(
        self, x: Tensor, y: Tensor, grad: Tensor, weight: Tensor, want: Wanted
    ) -> tuple[Gradients, Commit]:
        """Return the gradients from errors that arrive in this batch; the true one needs `record_alignment`."""
        rule = self.rule
        delta, grad_x, error = rule.errors(x, y, grad, weight, want)
        steps, dtype, pending = rule.steps(len(x)), self.synapses.eligibility.dtype, self.pending
        error, delta = want.unscaled(error.to(dtype)), want.unscaled(delta.to(dtype))
        if want.delays is not None:
            error, pending = arrive(error, want.delays, steps, pending)
        pre, derivative, error, delta = (
            signal.to(dtype).view(steps, rule.streams, *signal.shape[1:])
            for signal in (x, rule.f.derivative(y, y), error, delta)
        )
        true_weight = None
        lines: list[tuple[Any, Tensor]] = list(zip(self.recorded, (pre, delta), strict=False))  # there may be none
        if want.true_gradient and lines:
            delayed = (line.peek(signal) for line, signal in reversed(lines))
            true_weight = self.synapses.geometry.outer_parts(*delayed)[0]
        parts, advance = self.synapses.stage(pre, derivative, error)

        def commit() -> None:
            advance()
            self.pending = pending
            for line, signal in lines:
                line.push(signal)

        return Gradients(grad_x, *parts, true_weight), commit
