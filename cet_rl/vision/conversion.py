"""Convert a model of ordinary layers into one that learns from late credit."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from cet_rl.runs.values import unknown
from cet_rl.traces.base import Normalization, Trace
from cet_rl.traces.registry import TraceConfig, implied_delay
from cet_rl.traces.timing import BEHAVIOURAL_STEP, CreditTiming
from cet_rl.vision.credit import CreditRule
from cet_rl.vision.layers import TracedConv2d, TracedLayer, TracedLinear, traced_layers

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}

_SET_BY_CONVERT = {"trace", "delay_steps", "bias", "stride_padding", "activation"}
LAYER_OPTIONS = [each.name for each in fields(CreditRule) if each.name not in _SET_BY_CONVERT]
"""Options of `TracedLinear` that `convert` takes, too."""


def convert(
    model: nn.Module,
    trace: str | Trace | TraceConfig | None = None,
    *,
    delay: float = 0.0,
    order: int | None = None,
    decay: float | None = None,
    normalization: Normalization | None = None,
    step_duration: float = BEHAVIOURAL_STEP,
    stacked: bool = False,
    **options: Any,
) -> nn.Module:
    """Return a copy of a model in which every Linear and Conv2d is a traced layer with the same parameters.

    Within an `nn.Sequential`, an activation that directly follows such a layer becomes part of it, as synapses
    store f' x, and `nn.Identity` takes its place; names and the `state_dict` stay the same, but for the traces of
    streaming (`prepare`). Where no known activation follows, f' = 1. Without a delay nothing changes, bit for bit.

    Args:
        model: its Linear and Conv2d layers are taken in the order in which they are defined, which should be that
            in which they are used.
        trace: of the synapses, a name that `cet-rl list traces` shows; or a trace such as `CET(6, 20)`, or a
            `TraceConfig`, which have all options of their own; None for a cascade, or none without a delay.
        delay: T, in seconds, until credit reaches a layer; without one, the delay that a trace is made for.
        order: states of a trace; None for 5.
        decay: per step, of the classical trace; None for exp(-1/D).
        normalization: "area" or "peak"; None for area.
        step_duration: seconds an image is shown.
        stacked: add up delays from the output layer down (retrograde signalling).
        **options: `error_at`, `derivative_memory`, `streaming`, `streams`, `record_alignment`, `jitter`: see
            `TracedLinear`.

    Raises:
        ValueError: if there is no such layer or one is in two places; for a convolution with groups, dilation,
            oblong kernels or other than zero padding; for layers that a traced one cannot replace, as those with a
            `forward`, hooks, parameters or buffers of their own, or a parametrised weight; for a delay that is no
            whole number of steps; or for what `TracedLinear` refuses.
        TypeError: for an unknown option.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"convert takes a torch module, got {model!r}")
    for name in options.keys() - set(LAYER_OPTIONS):
        raise TypeError(str(unknown("argument", name, [*signature(convert).parameters, *LAYER_OPTIONS])))
    for name, layer in model.named_modules(remove_duplicate=False):
        _check_replaceable(name, layer)
    model = deepcopy(model)
    found = list(model.named_modules(remove_duplicate=False))
    layers = {name: layer for name, layer in found if isinstance(layer, nn.Linear | nn.Conv2d)}
    if len(set(layers.values())) < len(layers):
        raise ValueError("a layer is used in two places of the model: its traces would mix what happens in both")
    if not layers:
        raise ValueError("the model has no Linear or Conv2d layer to convert")
    if isinstance(trace, Trace | TraceConfig) and (order, decay, normalization) != (None, None, None):
        raise ValueError(f"a {type(trace).__name__} has order, decay and normalization of its own: leave them out")
    timing = CreditTiming(delay or implied_delay(trace, step_duration), step_duration, stacked, len(layers))
    when: dict[str, Any] = {"stacked": stacked, "step_duration": step_duration}
    if not timing.delay and (options.get("jitter") or options.get("derivative_memory") == "trace"):
        raise ValueError("jitter and derivative_memory='trace' have no meaning without a delay: give a delay")
    trace = TraceConfig.for_delay(timing.delay, trace, order, decay, normalization or "area", **when)
    for (name, layer), delay_steps in zip(layers.items(), timing.layer_delays, strict=True):
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        traced = _traced(
            layer,
            name,
            trace=trace.build(delay_steps),
            delay_steps=delay_steps,
            activation=_take_activation(parent, child),
            **options,
        )
        if name:
            setattr(parent, child, traced)
        else:
            model = traced
    return model


def prepare(model: nn.Module, in_shape: Sequence[int], *, salient: bool = False) -> None:
    """Create all that a converted model carries from batch to batch, so that a state can be loaded into it.

    `in_shape` is that of one image, and `salient` tells whether images will have times of their own (`seen_at`).
    """
    layers = traced_layers(model).values()
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: layer.prepare(inputs[0].shape[1:], salient=salient))
        for layer in layers
    ]
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(next(model.parameters()).new_zeros(1, *in_shape))
    finally:
        for module, was in training.items():
            module.training = was
        for hook in hooks:
            hook.remove()


def _take_activation(parent: nn.Module, child: str) -> str:
    """Return the activation that follows a child of an nn.Sequential, and put nn.Identity in its place."""
    if isinstance(parent, nn.Sequential) and _computes_as(parent, nn.Sequential):
        position = list(parent._modules).index(child) + 1
        following = parent[position] if position < len(parent) else nn.Identity()
        if type(following) in _ACTIVATIONS and not _has_hooks(following):
            parent[position] = nn.Identity().train(following.training)
            return _ACTIVATIONS[type(following)]
    return "identity"


def _computes_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module, perhaps of a subclass, has the forward pass of `kind`."""
    methods = ("forward", "__call__", "_call_impl", "_conv_forward")
    overrides = any(getattr(type(module), name, None) is not getattr(kind, name, None) for name in methods)
    return not overrides and not any(name in vars(module) for name in methods)


def _has_hooks(module: nn.Module) -> bool:
    return any("hooks" in name and bool(value) for name, value in vars(module).items())


def _check_replaceable(name: str, layer: nn.Module) -> None:
    """Raise ValueError for a layer that does more than a traced layer in its place would do."""
    where = f"layer {name!r}" if name else "the model"
    if isinstance(layer, nn.MultiheadAttention):
        raise ValueError(f"{where} is an attention, which uses its weights without calling layers: not supported")
    if isinstance(layer, TracedLayer):
        raise ValueError(f"{where} is traced already")
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return
    plain = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    extra_names = {*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias"}
    problems = {
        "has a parametrised weight, whose gradient is not the synapses': not supported": is_parametrized(layer),
        "has no shape yet: show the model a batch first": any(map(is_lazy, layer.parameters())),
        f"is a {type(layer).__name__} with a forward of its own: convert knows {plain.__name__}'s": (
            not _computes_as(layer, plain)
        ),
        "has hooks, which would be lost: register them after converting": _has_hooks(layer),
        f"has {', '.join(sorted(extra_names))} besides weight and bias, which would be lost": bool(extra_names),
    }
    for problem, exists in problems.items():
        if exists:
            raise ValueError(f"{where} {problem}")


def _traced(layer: nn.Module, name: str, **options: Any) -> TracedLayer:
    """Return the traced layer that takes the place of a Linear or Conv2d."""
    new: TracedLinear | TracedConv2d
    options |= {"bias": layer.bias is not None, "device": "meta"}
    if isinstance(layer, nn.Linear):
        plain: nn.Module = nn.Linear(1, 1, device="meta")
        new = TracedLinear(layer.in_features, layer.out_features, **options)
    else:
        assert isinstance(layer, nn.Conv2d)
        plain = nn.Conv2d(1, 1, 1, device="meta")
        padding = layer.padding
        if padding == "valid" or (padding == "same" and layer.stride == (1, 1)):
            padding = tuple((size - 1) // 2 if padding == "same" else 0 for size in layer.kernel_size)
        even_same = layer.padding == "same" and any(size % 2 == 0 for size in layer.kernel_size)
        square = all(len(set(pair)) == 1 for pair in (layer.kernel_size, layer.stride, padding))
        plainly = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
        if not (square and plainly) or even_same:
            raise ValueError(
                f"layer {name!r} is a convolution that traced layers do not support: they have square kernels, "
                "the same stride and zero padding along both sides, no groups and no dilation"
            )
        size = (layer.kernel_size[0], layer.stride[0], int(padding[0]))
        new = TracedConv2d(layer.in_channels, layer.out_channels, *size, **options)
    new.weight, new.bias = layer.weight, layer.bias
    new.layer_name = name or new.layer_name
    # What others have attached to the layer, such as a mark of their own, stays attached.
    for attribute in vars(layer).keys() - vars(plain).keys():
        if attribute in vars(new):
            raise ValueError(f"layer {name!r} has an attribute {attribute!r}, which means something else here")
        setattr(new, attribute, getattr(layer, attribute))
    return new.train(layer.training)
