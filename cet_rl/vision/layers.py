"""Linear and convolutional layers whose weights learn from credit that comes late.

They compute what torch's own compute and pass the true gradient down; only the gradient of their weight and bias
is the one that synapses with a trace would arrive at. Time is the batch: see `cet_rl.vision.credit`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from cet_rl.credit.activations import ACTIVATIONS
from cet_rl.credit.alignment import cosine
from cet_rl.credit.geometry import Convolution, Dense, Geometry, Parts
from cet_rl.traces.base import Trace, check_whole
from cet_rl.vision.credit import BatchCredit, Moments, SalientCredit, StreamCredit, steps_in

ErrorAt = Literal["preactivation", "activation"]
Soma = Literal["exact", "trace"]


class TracedLayer(nn.Module):
    """What `TracedLinear` and `TracedConv2d` share.

    Attributes:
        trace: of the synapses; None for none.
        delay_steps: D, how many images later an image's error arrives.
        traced: whether the layer's gradient is any other than that of backpropagation.
        moments: when the images of the next forward pass are seen; None for one after another.
        measured: whether to compute `alignment` at the next backward pass.
        alignment: cosine between the weight's last gradient and the true one, of the images whose error arrived;
            nan while either is zero.
        matrix: the kernel's matrix, (T, T), where `use_matrix` has set it.
    """

    weight: Tensor
    bias: Any
    matrix: Tensor | None

    def _set_credit(
        self,
        trace: Trace | None,
        delay_steps: int | None,
        activation: str,
        error_at: ErrorAt,
        soma: Soma,
        streaming: bool,
        streams: int,
        record_alignment: bool,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if error_at not in get_args(ErrorAt):
            raise ValueError(f"error_at must be one of {', '.join(get_args(ErrorAt))}, got {error_at!r}")
        if soma not in get_args(Soma):
            raise ValueError(f"soma must be one of {', '.join(get_args(Soma))}, got {soma!r}")
        if not isinstance(trace, Trace | None):
            raise ValueError(f"trace must be a trace such as CET(6, 10), or None, got {trace!r}")
        if delay_steps is None and trace is not None and not hasattr(trace, "delay_steps"):
            raise ValueError(f"{trace} is made for no delay of its own: give delay_steps")
        if delay_steps is None:
            delay_steps = getattr(trace, "delay_steps", 0)
        check_whole(delay_steps, "delay_steps")
        check_whole(streams, "streams")
        if delay_steps < 0:
            raise ValueError(f"delay_steps must not be negative, got {delay_steps}")
        if streams < 1:
            raise ValueError(f"streams must be at least 1, got {streams}")
        traced = trace is not None or delay_steps > 0
        if traced and error_at == "preactivation" and not ACTIVATIONS[activation].binary:
            raise ValueError(
                f"{activation} needs error_at='activation': an error at the pre-activation holds f' already, "
                "which is right only where f' is 0 or 1"
            )
        if soma == "trace" and streaming:
            raise ValueError(
                "soma='trace' remembers images that are seen after the batch, which streaming does not wait for"
            )
        self.trace, self.delay_steps, self.streams, self.streaming = trace, delay_steps, streams, streaming
        self.traced = traced
        self.activation, self.error_at, self.soma = activation, error_at, soma
        self.moments: Moments | None = None
        self._shown = self._learned = 0  # numbers of the last forward and backward pass while streaming
        self.measured = False
        self.alignment = float("nan")
        self.record_alignment = record_alignment
        self.register_buffer("matrix", None, persistent=False)
        self._in_batch = BatchCredit(trace, delay_steps, streams, soma=soma == "trace")
        self.salient: SalientCredit | None = None
        self.stream: StreamCredit | None = None
        self._geometries: dict[tuple[int, ...], Geometry] = {}

    def geometry(self, in_shape: tuple[int, ...]) -> Geometry:
        """Of the layer, for inputs of this shape."""
        if in_shape not in self._geometries:
            self._geometries[in_shape] = self._geometry(in_shape)
        return self._geometries[in_shape]

    def _geometry(self, in_shape: tuple[int, ...]) -> Geometry:
        raise NotImplementedError

    def preactivation(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """z = W x + b, as torch computes it."""
        raise NotImplementedError

    def pull(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Wᵀ δ, shaped like x."""
        raise NotImplementedError

    def plain_gradient(self, p: Tensor, x: Tensor) -> Tensor:
        """Σ p xᵀ by torch's own operations, which can be mapped over many networks."""
        raise NotImplementedError

    def number_pass(self) -> int:
        """Of a forward pass while streaming, counted from 1; else 0, which is no state for a compiler to guard."""
        if self.streaming:
            self._shown += 1
        return self._shown

    def check_pass(self, number: int) -> None:
        """Raise RuntimeError if the errors of a later forward pass, or the same ones, have come already.

        While streaming, a backward pass is the time of its batch.
        """
        if not self.streaming:
            return
        if number <= self._learned:
            raise RuntimeError(
                "a streaming layer was used twice before the errors of the first use came, or these came twice: "
                "its time would run backwards"
            )
        self._learned = number

    def prepare(self, in_shape: tuple[int, ...], *, salient: bool = False) -> None:
        """Make what the layer carries from batch to batch, if it is not there yet.

        Happens by itself at the first forward pass; before `load_state_dict`, what is to be loaded must be there.

        Args:
            in_shape: of one input.
            salient: whether images will have times of their own.
        """
        if self.traced and salient and self.salient is None:
            self.salient = SalientCredit(
                self.trace, self.delay_steps, carry=self.streaming, soma=self.soma == "trace"
            ).to(self.weight.device)
        if self.traced and self.streaming and not salient and self.stream is None:
            self.stream = StreamCredit(
                self.geometry(in_shape),
                self.trace,
                self.delay_steps,
                self.streams,
                dtype=self.weight.dtype,
                alignment=self.record_alignment,
            ).to(self.weight.device)

    def extra_repr(self) -> str:
        """What the layer is, for `print`."""
        parts = [super().extra_repr()]  # of Linear or Conv2d
        if self.activation != "identity":
            parts.append(f"activation={self.activation}")
        if self.traced:
            parts += [f"trace={self.trace}", f"delay_steps={self.delay_steps}"]
        return ", ".join(parts + ["streaming"] * self.streaming)

    def use_matrix(self, batch: int) -> None:
        """From now on compute with the kernel's whole matrix, for batches of one size.

        Slower than the layer's own way on a CPU, but made of torch's operations alone: for GPUs, `torch.compile`
        and `torch.func.vmap`.

        Raises:
            ValueError: if the layer is streaming; in `forward`, for batches of another size or times of their own.
        """
        if self.streaming or self.soma != "exact":
            raise ValueError(
                "one matrix is all of a layer's past only if it neither streams nor has a soma's trace"
            )
        weight = self.weight
        self.matrix = self._in_batch.matrix(self._in_batch.steps(batch), weight.dtype, weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """f(W x + b), shape (T · E, …): step by step, and of each step all streams."""
        weight, bias, matrix = self.weight, self.bias, self.matrix
        # Within vmap, with a matrix, weights do not say whether they require a gradient.
        learning = matrix is not None or weight.requires_grad or (bias is not None and bias.requires_grad)
        learns = self.traced and learning and torch.is_grad_enabled()
        if not learns:
            return ACTIVATIONS[self.activation].function(self.preactivation(x, weight, bias))
        if matrix is None:
            self._check_batch(x)
        elif self.moments is not None or len(x) != len(matrix) * self.streams:
            raise ValueError(
                f"use_matrix was for batches of {len(matrix) * self.streams} images one after another"
            )
        y: Tensor = _LateCredit.apply(x, weight, bias, matrix, self)  # type: ignore[no-untyped-call]
        return y

    def _check_batch(self, x: Tensor) -> None:
        """Say what is wrong with a batch before any work, and have ready what it needs."""
        moments, axes = self.moments, self.weight.ndim
        if x.ndim != axes:
            raise ValueError(f"expected images in a batch of {axes} axes, got shape {tuple(x.shape)}")
        if moments is None and not self.streaming:
            self._in_batch.steps(len(x))
            return
        if moments is None:
            steps_in(len(x), self.streams)
        if moments is not None and len(moments.times) != len(x):
            raise ValueError(f"{len(x)} images, but times for {len(moments.times)}")
        if moments is not None and self.streams > 1:
            raise ValueError("images at times of their own need streams=1")
        self.prepare(tuple(x.shape[1:]), salient=moments is not None)

    def late_gradients(self, x: Tensor, y: Tensor, error: Tensor, gated: Tensor, moments: Moments | None) -> Parts:
        """What the errors that arrive teach the layer; sets `alignment` where it is to be measured.

        Args:
            x: the layer's input.
            y: its output.
            error: δ at the output or the pre-activation; used up.
            gated: f' ⊙ δ with f' exact, for the true gradient.
            moments: when the images were seen.
        """
        activation = ACTIVATIONS[self.activation]
        truth: Tensor | None = None
        for_bias: Tensor | None
        if moments is not None:
            assert self.salient is not None
            geometry = self.geometry(tuple(x.shape[1:]))
            for_weight, for_bias = self.salient.gradients(geometry, activation, x, y, error, moments)
            if self.measured:
                truth = self.salient.true_weight_gradient(geometry, x, gated)
        elif self.stream is not None:
            for_weight, for_bias = self.stream.gradients(activation, x, y, error, gated, measured=self.measured)
            if self.measured:
                truth = self.stream.true_weight_gradient()
        else:
            if self.measured:
                truth = self._true_in_batch(x, gated)  # before the error is used up
            p = self._in_batch.due(error, y, activation)
            for_weight, for_bias = self.plain_gradient(p, x), _sum_over_images(p)
        if self.measured:
            self.alignment = float("nan") if truth is None else float(cosine(for_weight, truth))
        return for_weight, for_bias

    def measure_in_batch(self, for_weight: Tensor, x: Tensor, gated: Tensor) -> None:
        """Set `alignment`, with arguments as for `late_gradients`."""
        self.alignment = float(cosine(for_weight, self._true_in_batch(x, gated)))

    def _true_in_batch(self, x: Tensor, gated: Tensor) -> Tensor:
        arriving = self._in_batch.arriving(len(x))
        return self.plain_gradient(gated[:arriving], x[:arriving])

    def gate(self, error: Tensor, y: Tensor, moments: Moments | None) -> Tensor:
        """f' ⊙ δ, with f' exact or as the soma remembers it."""
        activation = ACTIVATIONS[self.activation]
        if self.soma == "exact":
            return activation.gate(error, y)
        if moments is not None:
            assert self.salient is not None
            return self.salient.gate(error, y, activation, moments)
        return self._in_batch.gate(error, y, activation)


def _sum_over_images(p: Tensor) -> Tensor:
    """(N, n_out, …) to (n_out,)."""
    return p.sum((0, *range(2, p.ndim)))


class _LateCredit(torch.autograd.Function):
    """f(W x + b), whose weight and bias get the credit that arrives late."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor | None, layer: TracedLayer
    ) -> Tensor:
        return ACTIVATIONS[layer.activation].function(layer.preactivation(x, weight, bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, matrix, layer = inputs
        # f' = 1 needs no output, which may then be overwritten in place.
        ctx.save_for_backward(x, weight, matrix, None if layer.activation == "identity" else output)
        ctx.layer, ctx.moments, ctx.has_bias = layer, layer.moments, bias is not None
        ctx.number = layer.number_pass()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, matrix, y = ctx.saved_tensors
        layer: TracedLayer = ctx.layer
        layer.check_pass(ctx.number)
        y = grad if y is None else y
        in_dtype, dtype = x.dtype, weight.dtype
        if not in_dtype == dtype == grad.dtype:  # autocast computes in less than it stores
            x, weight = x.to(grad.dtype), weight.to(grad.dtype)
        delta = layer.gate(grad, y, ctx.moments)
        down = layer.pull(delta, x, weight) if ctx.needs_input_grad[0] else None
        error = delta if layer.error_at == "preactivation" else grad
        for_bias: Tensor | None
        if matrix is None:
            # Credit is computed in place, and autograd's own tensor may be wanted elsewhere.
            error = error.clone() if error is grad else error
            if layer.measured and layer.soma != "exact":
                delta = ACTIVATIONS[layer.activation].gate(grad, y)  # the truth forgets nothing
            for_weight, for_bias = layer.late_gradients(x, y, error, delta, ctx.moments)
        else:
            due = (matrix.to(error.dtype) @ error.reshape(matrix.shape[-1], -1)).view(error.shape)
            p = ACTIVATIONS[layer.activation].gate(due, y)
            for_weight, for_bias = layer.plain_gradient(p, x), _sum_over_images(p)
            if layer.measured:
                layer.measure_in_batch(for_weight, x, delta)
        if grad.dtype != dtype:
            for_weight, for_bias = for_weight.to(dtype), None if for_bias is None else for_bias.to(dtype)
        if down is not None and down.dtype != in_dtype:
            down = down.to(in_dtype)
        return down, for_weight, for_bias if ctx.has_bias else None, None, None


# torch looks at the signature in every forward pass, which takes as long as a small layer.
_LateCredit.forward.__signature__ = inspect.signature(_LateCredit.forward)  # type: ignore[attr-defined]


class TracedLinear(TracedLayer, nn.Linear):
    """`torch.nn.Linear` and an activation, y = f(W x + b), with synapses that remember.

    Args:
        in_features: inputs.
        out_features: outputs.
        bias: whether there is one: a synapse with x = 1.
        trace: the synaptic trace that bridges the delay; None for none.
        delay_steps: D, how many images later errors arrive; None for the delay the trace is made for.
        activation: f, a name in `cet_rl.credit.activations`; it belongs to the layer, as synapses store f' x.
        error_at: whether δ is the error at the pre-activation, which holds f' of its own image already and needs
            f' ∈ {0, 1}, or at the output, as Eq. 1 of the paper is printed.
        soma: how the layer still knows f' of an image when its error comes, for δ at the pre-activation and for
            what is passed down: "exact", or "trace", through the layer's trace with unit area (section 4.2 of the
            paper leaves this to future work). With "trace" what is passed down is no longer the true gradient.
        streaming: carry traces and errors from batch to batch; time advances with every backward pass.
        streams: E, sequences that share a batch: row s · E + e is step s of sequence e.
        record_alignment: while streaming, keep what `alignment` needs.
        device: of the parameters.
        dtype: of the parameters.

    Shapes: x (T · E, in_features) to y (T · E, out_features).

    Raises:
        ValueError: for options that cannot be or do not go together; in `forward` for a batch that does not part
            into streams, or is shorter than the delay without streaming.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        trace: Trace | None = None,
        delay_steps: int | None = None,
        activation: str = "identity",
        error_at: ErrorAt = "preactivation",
        soma: Soma = "exact",
        streaming: bool = False,
        streams: int = 1,
        record_alignment: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._set_credit(trace, delay_steps, activation, error_at, soma, streaming, streams, record_alignment)

    def _geometry(self, in_shape: tuple[int, ...]) -> Geometry:
        return Dense(self.in_features, self.out_features, self.bias is not None)

    def preactivation(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x + b."""
        return functional.linear(x, weight, bias)

    def pull(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """(N, out_features) to (N, in_features)."""
        return delta @ weight

    def plain_gradient(self, p: Tensor, x: Tensor) -> Tensor:
        """(out_features, in_features)."""
        return p.T @ x


class TracedConv2d(TracedLayer, nn.Conv2d):
    """`torch.nn.Conv2d` and an activation, y = f(W * x + b), with synapses that remember.

    A position of the map acts like one more sequence that shares the weights. Fastest with x in torch's
    `channels_last` format.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: of both sides.
        stride: between positions, along both sides.
        padding: zeros on every side.
        bias: whether there is one.
        trace: this and the following as for `TracedLinear`.
        delay_steps: see `TracedLinear`.
        activation: see `TracedLinear`.
        error_at: see `TracedLinear`.
        soma: see `TracedLinear`.
        streaming: see `TracedLinear`; keeps the maps of the kernel's support.
        streams: see `TracedLinear`.
        record_alignment: see `TracedLinear`.
        device: of the parameters.
        dtype: of the parameters.

    Shapes: x (T · E, in_channels, H, W) to y (T · E, out_channels, H', W').

    Raises:
        ValueError: as for `TracedLinear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        *,
        trace: Trace | None = None,
        delay_steps: int | None = None,
        activation: str = "identity",
        error_at: ErrorAt = "preactivation",
        soma: Soma = "exact",
        streaming: bool = False,
        streams: int = 1,
        record_alignment: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in {"kernel_size": kernel_size, "stride": stride, "padding": padding}.items():
            check_whole(value, name)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self._set_credit(trace, delay_steps, activation, error_at, soma, streaming, streams, record_alignment)

    def _geometry(self, in_shape: tuple[int, ...]) -> Geometry:
        assert isinstance(self.padding, tuple)
        _, height, width = in_shape
        return Convolution(
            self.in_channels,
            self.out_channels,
            self.kernel_size[0],
            (height, width),
            self.stride[0],
            self.padding[0],
            self.bias is not None,
        )

    def preactivation(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W * x + b."""
        return functional.conv2d(x, weight, bias, self.stride, self.padding)

    def pull(self, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """(N, out_channels, H', W') to (N, in_channels, H, W)."""
        result: Tensor = conv2d_input(x.shape, weight, delta, self.stride, self.padding)  # type: ignore[no-untyped-call]
        return result

    def plain_gradient(self, p: Tensor, x: Tensor) -> Tensor:
        """(out_channels, in_channels, k, k)."""
        result: Tensor = conv2d_weight(x, self.weight.shape, p, self.stride, self.padding)  # type: ignore[no-untyped-call]
        return result


def traced_layers(model: nn.Module) -> dict[str, TracedLayer]:
    """The layers of a model that learn from late credit, by name, the input side first."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, TracedLayer)}


@contextmanager
def seen_at(model: nn.Module, times: Any, steps: int) -> Iterator[None]:
    """Forward passes within the block show images at times of their own, see `Moments`.

    Args:
        model: with traced layers.
        times: step of each image, increasing, shape (S,).
        steps: length of the stretch of time that the batch stands for.
    """
    given = times.cpu().numpy() if isinstance(times, Tensor) else np.asarray(times)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"times must be whole numbers, got {given.dtype}")
    moments = Moments(given.astype(np.int64), steps)
    before = {layer: layer.moments for layer in traced_layers(model).values()}
    for layer in before:
        layer.moments = moments
    try:
        yield
    finally:
        for layer, earlier in before.items():
            layer.moments = earlier


@contextmanager
def measured(model: nn.Module) -> Iterator[None]:
    """Backward passes within the block set the `alignment` of all traced layers."""
    before = {layer: layer.measured for layer in traced_layers(model).values()}
    for layer in before:
        layer.measured = True
    try:
        yield
    finally:
        for layer, earlier in before.items():
            layer.measured = earlier
