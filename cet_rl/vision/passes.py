"""What torch knows of the backward pass that is under way: what is asked for, and the scale of its errors.

`torch.amp.GradScaler` divides gradients by the scale of the moment. An error that was on its way when the scale
changed would come out wrong, so layers that carry errors from batch to batch keep them without it.
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

_scales: dict[int, Tensor] = {}  # of the last backward passes that had one


class Wanted(NamedTuple):
    """Say what to compute beside the gradients of weight and bias, and what is known of the errors."""

    down: bool
    truth: bool
    delays: Times | None = None  # in steps, with jitter
    scale: Tensor | None = None  # while streaming, if errors have one; nan if one of them is not finite

    def kept(self, error: Tensor) -> Tensor:
        """Return errors as they are remembered, without the scale; zeros if they are not finite."""
        if self.scale is None:
            return error
        return error / self.scale if self.scale.isfinite() else torch.zeros_like(error)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""∂L/∂x and the late gradients of weight and bias; the weight's true one of the images whose error arrived.

Where errors have a scale, all but the first are without it.
"""

Commit = Callable[[], None]
"""Advances a layer by a batch whose gradients are known; until then it is as it was."""


def current_pass() -> int:
    """Return torch's number of the backward pass that is under way; -1 outside of one."""
    return torch._C._current_graph_task_id()


@cache
def watch_scalers() -> None:
    """Let scalers tell their scale from now on: their method `scale` is the only place that knows it."""
    plain = GradScaler.scale

    def scale(scaler: GradScaler, outputs: Any) -> Any:
        """Scale outputs, and remember by what when a backward pass comes through them."""
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


def loss_scale(*passes: int) -> Tensor | None:
    """Return the scale of one of these backward passes, or None; those in a checkpoint have one around them."""
    return next((_scales[number] for number in passes if number in _scales), None)


def asks_to_learn(before: Any, own: list[Any], *, frozen: bool) -> bool:
    """Return whether the backward pass is one of learning, as seen from a layer.

    It is if it computes what any of the layer's `own` nodes stands for, as `loss.backward()` does in any case; or,
    where the layer is frozen, a parameter further down, from the node `before` on. What `torch.autograd.grad` asks
    of inputs is not learning.
    """
    if any(_is_computed(node) for node in own):
        return True
    nodes = [before] if frozen else []
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
    """Return whether all numbers are finite. Their sum is, unless one of them is not, or they are huge."""
    return signal.is_meta or math.isfinite(signal.sum().item()) or bool(signal.isfinite().all())
