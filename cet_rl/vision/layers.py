"""Linear and convolutional layers whose weights learn from credit that arrives late.

They compute what torch's own layers compute and pass the true gradient down; only the gradient of their weight and
bias is that of synapses with a trace. The images of a batch are successive steps in time: see
`cet_rl.vision.credit`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.autograd import Variable

from cet_rl.credit.alignment import cosine
from cet_rl.traces.base import FloatArray, Trace, check_whole
from cet_rl.vision.credit import BatchCredit, CreditRule, ImageTimes, SalientCredit, StreamCredit
from cet_rl.vision.passes import Commit, Gradients, Wanted, current_pass, is_finite, learning_step, watch_scalers


class TracedLayer(nn.Module):
    """Hold what `TracedLinear` and `TracedConv2d` have in common.

    Attributes:
        rule: the layer's trace, delay, activation and other options.
        traced: whether the layer's gradient differs from that of backpropagation.
        layer_name: its name in error messages, set by `convert`.
        alignment: cosine between the weight's last gradient and the true one, of the images whose error arrived;
            nan while either is zero.
    """

    weight: Tensor
    bias: Any
    matrix: Tensor | None  # of the kernel, (T, T), where `use_matrix` has set it

    def __init__(
        self,
        *sizes: Any,
        stride_padding: tuple[int, int] | None = None,
        trace: Trace | None = None,
        delay_steps: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*sizes, device=device, dtype=dtype)  # of Linear or Conv2d
        if not isinstance(trace, Trace | None):
            raise ValueError(f"trace must be a trace such as CET(6, 10), or None, got {trace!r}")
        if delay_steps is None:
            delay_steps = 0 if trace is None else trace.made_for
        if delay_steps is None:
            raise ValueError(f"{trace} has no delay of its own: give delay_steps")
        self.rule = CreditRule(trace, delay_steps, self.bias is not None, stride_padding, **options)
        self.traced = self.rule.is_late
        self.layer_name = type(self).__name__
        self.times: ImageTimes | None = None  # set by `seen_at`
        self.draws: FloatArray | None = None  # set by `jittered`
        self.executor: str | None = None  # of its `Synapses` while streaming, their `choice`; None to choose
        self.measured, self.alignment = False, float("nan")
        self._forward_passes = self._learned_pass = 0  # while streaming
        self._backward_pass = -1  # torch's number of the last one that counted
        self._timed: bool | None = None  # whether images that have been learned from had times of their own
        self.register_buffer("matrix", None, persistent=False)
        self.batch_credit = BatchCredit(self.rule)
        self.salient: SalientCredit | None = None
        self.stream: StreamCredit | None = None

    def prepare(self, in_shape: torch.Size, *, salient: bool = False) -> None:
        """Create what a layer with inputs of this shape carries from batch to batch, unless it exists already.

        The first forward pass does the same; call this before `load_state_dict`, which needs the buffers to load
        into. `salient` tells whether images will have times of their own (`seen_at`).
        """
        if self.traced and salient and self.salient is None:
            self.salient = SalientCredit(self.rule).to(self.weight.device)
        if self.traced and self.rule.streaming and not salient and self.stream is None:
            self.stream = StreamCredit(self.rule, self.weight, in_shape, self.executor).to(self.weight.device)
        if self.rule.streaming:
            watch_scalers()

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules but those that hold traces, so that nothing broadcasts or averages their buffers."""
        memo = set() if memo is None else memo
        memo |= {held for held in (self.salient, self.stream) if held is not None}
        yield from super().named_modules(memo, prefix, remove_duplicate)

    def use_matrix(self, batch: int) -> None:
        """Compute late credit by a product with the whole matrix of the kernel, for batches of this size.

        It takes torch's operations alone, for GPUs, `torch.compile` and `torch.func.vmap`; on a CPU the default is
        faster. Raises ValueError for a layer that streams, or has jitter or `derivative_memory="trace"`.
        """
        if self.rule.streaming or self.rule.derivative_memory != "exact" or self.rule.jitter:
            raise ValueError("use_matrix is not for layers with streaming, jitter or derivative_memory='trace'")
        steps = self.batch_credit.steps(batch)
        self.matrix = self.batch_credit.matrix(steps, self.weight.dtype, self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Return f(W x + b), shape (T · E, …): step by step, and all streams of each step.

        `cet_rl.credit.Synapses` says when time advances while streaming. In `eval()` a streaming layer is a plain
        one, whose gradients are those of backpropagation.

        Raises:
            ValueError: if the batch does not fit the layer's options.
            RuntimeError: in a replica of `torch.nn.DataParallel`, or while streaming within `torch.func`.
            FloatingPointError: while streaming, if a number of x or f' is not finite; nothing has changed then.
        """
        weight, bias, matrix, streaming = self.weight, self.bias, self.matrix, self.rule.streaming
        if streaming:
            learns = self.training
        else:  # weights that vmap has batched do not say whether they require a gradient
            weights = [weight] if bias is None else [weight, bias]
            learns = matrix is not None or any(each.requires_grad or is_batchedtensor(each) for each in weights)
        if not (self.traced and learns and torch.is_grad_enabled()) or torch.compiler.is_exporting():
            return self.rule.forward(x, weight, bias)
        if matrix is not None:
            size = len(matrix) * self.rule.streams
            if self.times is not None or len(x) != size:
                raise ValueError(f"after use_matrix, batches must have {size} images, without times of their own")
        elif torch.compiler.is_compiling():
            return torch.compiler.disable(self.forward)(x)  # type: ignore[no-untyped-call, no-any-return]
        else:
            self._check_batch(x)
        # An empty input that requires a gradient: by it, full backward passes reach a frozen layer, too.
        anchor = x.new_empty(0, requires_grad=True) if streaming else None
        y: Tensor = _LateCredit.apply(x, weight, bias, matrix, anchor, self)  # type: ignore[no-untyped-call]
        if streaming and not self.rule.f.binary:
            self._check_finite(y, "the derivative")
        return y

    def _check_batch(self, x: Tensor) -> None:
        """Check a batch before any work, and create what it needs."""
        times, axes, streaming = self.times, self.weight.ndim, self.rule.streaming
        if x.ndim != axes:
            raise ValueError(f"expected images in a batch of {axes} axes, got shape {tuple(x.shape)}")
        if times is not None and len(times.times) != len(x):
            raise ValueError(f"{len(x)} images, but times for {len(times.times)}")
        if times is not None and self.rule.streams > 1:
            raise ValueError("images at times of their own need streams=1")
        if getattr(self, "_is_replica", False):
            raise RuntimeError("DataParallel splits a batch, which is a sequence: use DistributedDataParallel")
        if times is None and not streaming:
            self.batch_credit.steps(len(x))
            return
        if streaming and torch._C._functorch.maybe_current_level() is not None:
            raise RuntimeError("torch.func cannot carry traces from batch to batch: use backward() for streaming")
        if times is None and self.rule.steps(len(x)) < 1:
            raise ValueError(f"layer {self.layer_name!r} is streaming, and got a batch without an image")
        if streaming:
            self._check_finite(x, "the input")
        self.prepare(x.shape[1:], salient=times is not None)

    def _check_finite(self, signal: Tensor, what: str) -> None:
        """Raise FloatingPointError if a number is not finite: it would stay in the traces for ever."""
        if is_finite(signal):
            return
        image = int((~signal.isfinite()).flatten(1).any(1).nonzero()[0])
        step = image // self.rule.streams if self.times is None else self.times.times[image]
        raise FloatingPointError(
            f"{what} of layer {self.layer_name!r} holds a number that is not finite at step {step} of this batch, "
            "which would stay in the traces for ever; the traces have been left as they were before this batch"
        )

    def _advance(self, number: int, commit: Commit, *, timed: bool) -> None:
        """Commit the forward pass of this number once the backward pass has completed without an error.

        Raises RuntimeError if the errors of the same or a later forward pass have arrived before, or if this
        backward pass has brought others; ValueError if images had times of their own (`timed`), others none.
        """
        if self._timed not in (None, timed):
            raise ValueError("streaming learns by one clock: all images at times of their own (`seen_at`) or none")
        if number <= self._learned_pass or self._backward_pass == current_pass():
            raise RuntimeError(
                "a streaming layer was used twice before the errors of its first use arrived, or these arrived "
                "twice: its time would run backwards"
            )

        def complete() -> None:
            commit()
            self._learned_pass, self._timed = number, timed

        self._backward_pass = current_pass()
        Variable._execution_engine.queue_callback(complete)

    def extra_repr(self) -> str:
        """Return the options shown by `print`."""
        rule = self.rule
        credit = f", trace={rule.trace}, delay_steps={rule.delay_steps}" if self.traced else ""
        return f"{super().extra_repr()}, activation={rule.activation}{credit}" + ", streaming" * rule.streaming


class _LateCredit(torch.autograd.Function):
    """Compute f(W x + b), and in the backward pass the gradients of weight and bias from late credit."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor | None, anchor: Any, layer: TracedLayer
    ) -> Tensor:
        return layer.rule.forward(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, matrix, _, layer = inputs
        # f' = 1 needs no output, which may then be overwritten in place.
        ctx.save_for_backward(x, weight, matrix, None if layer.rule.activation == "identity" else output)
        ctx.layer, ctx.times, ctx.has_bias = layer, layer.times, bias is not None
        ctx.delays = layer.rule.delays(layer.draws, len(x))
        if layer.rule.streaming:
            layer._forward_passes += 1
            ctx.number = layer._forward_passes
            ctx.checkpoint_pass = current_pass()  # the pass that a checkpoint computes this one in

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, matrix, y = ctx.saved_tensors
        layer: TracedLayer = ctx.layer
        within_func = torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None
        if torch.is_grad_enabled() and not within_func:
            raise RuntimeError(
                "traced layers cannot be differentiated twice (create_graph=True): the second derivative would "
                "mix late credit with the true gradient; compute such a penalty with the model before convert"
            )
        rule, commit = layer.rule, None
        learns, scale = learning_step(ctx, grad) if rule.streaming else (True, None)
        in_dtype, dtype = x.dtype, weight.dtype
        if not in_dtype == dtype == grad.dtype:  # autocast computes in less than it stores
            x, weight = x.to(grad.dtype), weight.to(grad.dtype)
        want = Wanted(ctx.needs_input_grad[0], layer.measured, ctx.delays, scale)
        signals = x, grad if y is None else y, grad, weight, want
        if not learns:
            found = Gradients(rule.errors(*signals)[1])
        elif ctx.times is not None:
            assert layer.salient is not None
            found, commit = layer.salient.backward(*signals, ctx.times)
        elif layer.stream is not None:
            found, commit = layer.stream.backward(*signals)
        else:
            found = layer.batch_credit.backward(*signals, matrix)
        if rule.streaming and commit is not None:
            layer._advance(ctx.number, commit, timed=ctx.times is not None)
        if layer.measured and found.weight is not None:
            truth = found.true_weight
            layer.alignment = float("nan") if truth is None else float(cosine(found.weight, truth))
        grad_weight, grad_bias = (
            each if each is None else each.to(dtype) if scale is None else (each * scale).to(dtype)
            for each in (found.weight, found.bias)
        )
        grad_x = None if found.input is None else found.input.to(in_dtype)
        return grad_x, grad_weight, grad_bias if ctx.has_bias else None, None, None, None


# torch looks at the signature in every forward pass, which takes as long as a small layer.
_LateCredit.forward.__signature__ = inspect.signature(_LateCredit.forward)  # type: ignore[attr-defined]


class TracedLinear(TracedLayer, nn.Linear):
    """Compute y = f(W x + b) like `torch.nn.Linear` and an activation, with synapses that remember.

    Args:
        in_features, out_features, bias: as of `torch.nn.Linear`; a bias is a synapse with x = 1.
        trace: the synaptic trace that bridges the delay; None (the default) for none.
        delay_steps: D, images between an image and the arrival of its error; None for the trace's own delay.
        activation: f, "identity" unless given, a name in `cet_rl.credit.activations`. It is part of the layer, as
            synapses store f' x.
        error_at: whether δ is the error at the "preactivation" (the default), which holds f' of its own image
            already and needs f' ∈ {0, 1}, or at the output, "activation", as Eq. 1 of the paper is printed.
        derivative_memory: how f' of an image is remembered until its error arrives: "exact" (the default), or
            "trace", by the layer's trace with unit area. This concerns δ at the pre-activation and ∂L/∂x, which is
            then no longer the true gradient (section 4.2 of the paper leaves this to future work).
        streaming: True to carry traces and errors from batch to batch; time advances with every backward pass in
            training mode.
        streams: E, sequences that share a batch, 1 unless given: row s · E + e is step s of sequence e.
        record_alignment: True to keep the signals that `alignment` needs while streaming.
        jitter: J in [0, 1]: an error arrives after D (1 + J u) steps, rounded, where `jittered` sets u for each
            image; the trace stays that of D. 0 unless given.
        device, dtype: of the parameters.

    Shapes: x (T · E, in_features) to y (T · E, out_features).

    Raises:
        ValueError: for options that are invalid or do not go together; in `forward` for a batch that does not
            divide into streams, or is not longer than the delay, unless it streams or images have their own times.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **options: Any) -> None:
        super().__init__(in_features, out_features, bias, **options)


class TracedConv2d(TracedLayer, nn.Conv2d):
    """Compute y = f(W * x + b) like `torch.nn.Conv2d` and an activation, with synapses that remember.

    Each position of the map acts like one more sequence that shares the weights. It is fastest for x in torch's
    `channels_last` format.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, bias: as of `torch.nn.Conv2d`; sizes are whole
            numbers that hold along both sides.
        **options: `trace` and the other options of `TracedLinear`. While streaming, the layer keeps the maps of as
            many steps as the kernel reaches back.

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
        **options: Any,
    ) -> None:
        for name, value in {"kernel_size": kernel_size, "stride": stride, "padding": padding}.items():
            check_whole(value, name, at_least=0 if name == "padding" else 1)
        sizes = (in_channels, out_channels, kernel_size, stride, padding, 1, 1, bias)
        super().__init__(*sizes, stride_padding=(stride, padding), **options)


def traced_layers(model: nn.Module) -> dict[str, TracedLayer]:
    """Return a model's traced layers by name, the input side first; without a delay they learn as any other."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, TracedLayer)}


@contextmanager
def _set_on_layers(model: nn.Module, attribute: str, value: Any) -> Iterator[None]:
    """Set an attribute of all traced layers within the block, and restore it afterwards."""
    before = {layer: getattr(layer, attribute) for layer in traced_layers(model).values()}
    for layer in before:
        setattr(layer, attribute, value)
    try:
        yield
    finally:
        for layer, earlier in before.items():
            setattr(layer, attribute, earlier)


def seen_at(model: nn.Module, times: Any, steps: int) -> AbstractContextManager[None]:
    """Show images at times of their own in forward passes within a block: `with seen_at(model, times, steps)`.

    The batch stands for a stretch of `steps` steps; `times`, (S,), are the steps at which its images are shown.
    Raises ValueError unless they are whole numbers that increase within [0, steps).
    """
    check_whole(steps, "steps", at_least=0)
    given = times.cpu().numpy() if isinstance(times, Tensor) else np.asarray(times)
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"times must be whole numbers, got {given.dtype}")
    if given.ndim != 1 or (np.diff(given) <= 0).any():
        raise ValueError("the times of a batch must be one increasing row")
    if len(given) and not (given[0] >= 0 and given[-1] < steps):
        raise ValueError(f"the times of a batch must lie in [0, {steps})")
    return _set_on_layers(model, "times", ImageTimes(given.astype(np.int64), steps))


def jittered(model: nn.Module, draws: Any) -> AbstractContextManager[None]:
    """Let errors arrive after D (1 + J u) steps in passes within a block: `with jittered(model, draws)`.

    The draws, (T · E,), are u of each image, the same for all layers, which have been made with `jitter`. Raises
    ValueError unless the draws are a row of numbers within [-1, 1].
    """
    given = np.asarray(draws.cpu() if isinstance(draws, Tensor) else draws, dtype=np.float64)
    if given.ndim != 1 or not (abs(given) <= 1).all():
        raise ValueError("the draws of a batch must be one row of numbers within [-1, 1]")
    return _set_on_layers(model, "draws", given)


def measured(model: nn.Module) -> AbstractContextManager[None]:
    """Let backward passes within a block, `with measured(model)`, set the `alignment` of all traced layers."""
    return _set_on_layers(model, "measured", True)
