"""A traced layer's options, what follows from them alone, and what its kinds of credit are asked and return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from cet_rl.credit.activations import ACTIVATIONS, Activation
from cet_rl.credit.chunk import Times
from cet_rl.credit.factored import visible_support
from cet_rl.credit.geometry import Convolution, Dense, Geometry
from cet_rl.traces.base import FloatArray, Trace, check_whole

ErrorAt = Literal["preactivation", "activation"]
DerivativeMemory = Literal["exact", "trace"]


class Wanted(NamedTuple):
    """Say what to compute beside the gradients of weight and bias, and what is known of the errors.

    With jitter, their delays in steps; while streaming, the scale that errors have and gradients are to get, nan
    where an error is not finite.
    """

    down: bool
    truth: bool
    delays: Times | None = None
    scale: Tensor | None = None

    def kept(self, error: Tensor) -> Tensor:
        """Return errors as they are remembered, without the scale; zeros if they are not finite."""
        if self.scale is None:
            return error
        return error / self.scale if self.scale.isfinite() else torch.zeros_like(error)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""∂L/∂x and the late gradients of weight and bias; the weight's true one of the images whose error arrived.

Where errors have a scale, all but the first without it.
"""

Commit = Callable[[], None]
"""Advances a layer by a batch whose gradients are known: until then it is as it was."""


@dataclass(frozen=True)
class CreditRule:
    """Hold a traced layer's options, see `cet_rl.vision.TracedLinear`, and compute what follows from them alone.

    `window` is stride and padding of a convolution, None for a dense layer. Options that are invalid or do not go
    together are a ValueError.
    """

    trace: Trace | None
    delay_steps: int
    bias: bool
    window: tuple[int, int] | None = None
    activation: str = "identity"
    error_at: ErrorAt = "preactivation"
    derivative_memory: DerivativeMemory = "exact"
    streaming: bool = False
    streams: int = 1
    record_alignment: bool = False
    jitter: float = 0.0

    def __post_init__(self) -> None:
        choices = {
            "activation": tuple(ACTIVATIONS),
            "error_at": get_args(ErrorAt),
            "derivative_memory": get_args(DerivativeMemory),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        check_whole(self.delay_steps, "delay_steps", at_least=0)
        check_whole(self.streams, "streams", at_least=1)
        if self.is_late and self.error_at == "preactivation" and not self.f.binary:
            raise ValueError(
                f"{self.activation} needs error_at='activation': an error at the pre-activation holds f' already, "
                "which is right only where f' is 0 or 1"
            )
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must lie in [0, 1], as errors follow their cause, got {self.jitter:g}")
        if self.jitter and (self.derivative_memory == "trace" or self.record_alignment):
            raise ValueError("jitter does not go with derivative_memory='trace', nor with record_alignment")
        if self.derivative_memory == "trace" and self.streaming:
            raise ValueError(
                "derivative_memory='trace' needs images shown after the batch, which streaming does not wait for"
            )

    @property
    def is_late(self) -> bool:
        """Tell whether gradients differ from those of backpropagation."""
        return self.trace is not None or self.delay_steps > 0

    @property
    def longest_delay(self) -> int:
        """Return the steps after which an error has arrived for certain."""
        return round(self.delay_steps * (1 + self.jitter))

    @property
    def fixed_delay(self) -> int:
        """Return D; with jitter 0, as `arrive` has put errors where they arrive."""
        return 0 if self.jitter else self.delay_steps

    def delays(self, draws: FloatArray | None, images: int) -> Times | None:
        """Return the steps after which the error of each image arrives, D (1 + J u) to the nearest, (images,).

        None without jitter. With it, ValueError unless there is one draw u for each image.
        """
        if not self.jitter:
            return None
        if draws is None or len(draws) != images:
            raise ValueError(
                f"with jitter each of the {images} images needs a draw: `with jittered(model, draws)`"
            )
        return np.rint(self.delay_steps * (1 + self.jitter * draws)).astype(np.int64)

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
        if self.window is None:
            return self.f.function(functional.linear(x, weight, bias))
        return self.f.function(functional.conv2d(x, weight, bias, *self.window))

    def errors(
        self, x: Tensor, y: Tensor, grad: Tensor, weight: Tensor, want: Wanted, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return ∂L/∂z, ∂L/∂x where it is wanted, and δ, the error that the synapses get.

        With `derivative_memory="trace"`, `memory` is the share of each step's f', a column, in what is recalled
        of it when the error of a step, a row, arrives: (T, T). The other arguments are those of `backward`.
        """
        if memory is None:
            delta = self.f.times_derivative(grad, y)
        else:
            delta = grad * like(memory @ by_step(self.f.derivative(y, y), len(memory)), y)
        down = None
        if want.down:
            down = delta @ weight if self.window is None else conv2d_input(x.shape, weight, delta, *self.window)  # type: ignore[no-untyped-call]
        return delta, down, delta if self.error_at == "preactivation" else grad

    def weight_gradient(self, p: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return Σ p xᵀ over images and positions, shaped like the weight."""
        if self.window is None:
            return p.T @ x
        return conv2d_weight(x, weight.shape, p, *self.window)  # type: ignore[no-untyped-call, no-any-return]

    @lru_cache(maxsize=256)  # noqa: B019
    def geometry(self, in_shape: torch.Size, weight_shape: torch.Size) -> Geometry:
        """Return the layer's geometry for inputs of this shape."""
        n_out, n_in = weight_shape[:2]
        if self.window is None:
            return Dense(n_in, n_out, self.bias)
        height, width = in_shape[1:]
        return Convolution(n_in, n_out, weight_shape[2], (height, width), *self.window, self.bias)

    @lru_cache(maxsize=256)  # noqa: B019
    def kernel(self, dtype: torch.dtype, *, unit_area: bool = False) -> FloatArray:
        """Return g_0 … as far as `dtype` can tell it from zero, or scaled to area one; not to be written to."""
        if self.trace is None:
            return np.ones(1)
        # A memory that returned f' larger than it was would be wrong whatever the synapses do.
        trace: Trace = replace(self.trace, normalization="area") if unit_area else self.trace  # type: ignore[type-var]
        first, last = visible_support(trace, dtype)
        kernel = trace.kernel(last).numpy().copy()
        kernel[:first] = 0.0
        return kernel


def by_step(signal: Tensor, steps: int) -> Tensor:
    """Reshape (T · E, …) to (T, E · …), without a copy if possible; maps in the order of `channels_last`."""
    return (signal if signal.ndim == 2 else signal.movedim(1, -1)).reshape(steps, -1)


def like(flat: Tensor, signal: Tensor) -> Tensor:
    """Undo `by_step`."""
    if signal.ndim == 2:
        return flat.view(signal.shape)
    batch, channels, *size = signal.shape
    return flat.view(batch, *size, channels).movedim(-1, 1)
