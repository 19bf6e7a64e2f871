"""Inspect the backward pass that is under way: which gradients it computes, and the scale of its errors.

`torch.amp.GradScaler` multiplies the loss by a scale, and later divides gradients by its present value. Layers
that carry errors from batch to batch keep them without the scale, which may have changed when they arrive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from cet_rl.credit.chunk import Times, forget_oldest

_scales: dict[int, Tensor] = {}  # of the last few backward passes with a scale, by torch's number


class Wanted(NamedTuple):
    """Say what to compute beside the late gradients of weight and bias, and how errors arrive."""

    input_gradient: bool  # whether ∂L/∂x is wanted
    true_gradient: bool  # whether the true gradient of the weight is wanted
    delays: Times | None = None  # with jitter, the delay of each error in steps
    scale: Tensor | None = None  # of the errors, while streaming; nan if an error is not finite

    def unscaled(self, error: Tensor) -> Tensor:
        """Return errors without the scale, as they are remembered; zeros if one of them is not finite."""
        if self.scale is None:
            return error
        return error / self.scale if self.scale.isfinite() else torch.zeros_like(error)


class Gradients(NamedTuple):
    """Hold a layer's gradients, None where not wanted; if errors have a scale, all but `input` are without it."""

    input: Tensor | None  # ∂L/∂x
    weight: Tensor | None = None  # from late credit
    bias: Tensor | None = None  # from late credit
    true_weight: Tensor | None = None  # that of backpropagation, for images whose error arrived


Commit = Callable[[], None]
"""Advances the traces of a layer by a batch; until it is called, they are as they were before the batch."""


def current_pass() -> int:
    """Return torch's number of the backward pass that is under way; -1 outside of one."""
    return torch._C._current_graph_task_id()


@cache
def watch_scalers() -> None:
    """Wrap `GradScaler.scale`, so that the scale of a backward pass is known from now on."""
    plain = GradScaler.scale

    def scale(scaler: GradScaler, outputs: Any) -> Any:
        """Scale outputs, and remember the scale when a backward pass comes through them."""
        if not isinstance(outputs, Tensor):
            scaled = [scale(scaler, each) for each in outputs]
            return tuple(scaled) if isinstance(outputs, tuple) else scaled
        result = plain(scaler, outputs)
        if scaler.is_enabled() and result.requires_grad:
            assert scaler._scale is not None
            factor = scaler._scale.clone()  # which `update` overwrites

            def note(_: Tensor) -> None:
                forget_oldest(_scales)
                _scales[current_pass()] = factor

            result.register_hook(note)  # type: ignore[no-untyped-call]
        return result

    GradScaler.scale = scale  # type: ignore[method-assign, assignment]


def learning_step(ctx: Any, grad: Tensor) -> tuple[bool, Tensor | None]:
    """Return whether a streaming layer's backward pass is a step of learning, and the scale of its errors.

    It is a step of learning if it computes the gradient of any of the layer's parameters, or of its `anchor` (an
    empty input, see `TracedLayer.forward`), as `loss.backward()` always does. For a frozen layer, it also is if it
    computes that of a parameter further down. A gradient of inputs alone, by `torch.autograd.grad`, is no step of
    learning. The scale is nan if an error is not finite: nor are the gradients, then, and a scaler skips them.
    """
    input_node, *parameter_nodes, anchor_node = (node for node, _ in ctx.next_functions)
    frozen = not any(parameter_nodes) and ctx.number > ctx.layer._learned_pass
    learns = any(map(_is_computed, [*parameter_nodes, anchor_node])) or (frozen and _reaches_parameter(input_node))
    if not is_finite(grad):
        return learns, grad.new_full((), float("nan"))
    passes = current_pass(), ctx.checkpoint_pass
    return learns, next((_scales[number] for number in passes if number in _scales), None)


def _reaches_parameter(first: Any) -> bool:
    """Return whether the backward pass computes the gradient of a parameter from a node on."""
    nodes = [first]
    for node in nodes:  # which grow meanwhile
        if _is_computed(node):
            if isinstance(getattr(node, "variable", None), nn.Parameter):
                return True
            nodes += [after for after, _ in node.next_functions if after not in nodes]
    return False


def _is_computed(node: Any) -> bool:
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient is to be returned
        return True


def is_finite(signal: Tensor) -> bool:
    """Return whether all numbers are finite; the sum, which is quick, is finite unless one is not or is huge."""
    return signal.is_meta or math.isfinite(signal.sum().item()) or bool(signal.isfinite().all())
