"""From a memory's tensors to the loop's arrays and back."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.compiled.binding import bind_layer, bind_rule
from cet_rl.recurrent.compiled.jit import Array, build, layer_type, rule_type
from cet_rl.recurrent.compiled.layout import Slot
from cet_rl.recurrent.compiled.loop import compiled_loop
from cet_rl.recurrent.compiled.table import KERNELS
from cet_rl.recurrent.delayed import Delayed, Readout, TraceFilter
from cet_rl.recurrent.online import Memory, Online

_NETWORK = {
    slot.name: slot
    for slot in (
        Slot("weight", "nm", "m n"),
        Slot("weight_out", "oe", "o e"),
        Slot("rates", "bn", "b n"),
        Slot("pending", "nm", "m n"),
        Slot("pending_out", "oe", "o e"),
    )
}


def supports(online: Online, memory: Memory) -> bool:
    """Whether `run` can take the place of `Online.run`.

    It can for the built-in rules, late or not, in float32 or float64 on a CPU. It cannot for a class of a user's
    own, not even one that inherits from those of this package.
    """
    rule, readout = online.rule, online.readout
    bare = rule.rule if type(rule) is Delayed else rule
    kernel = KERNELS.get(type(bare))
    if kernel is None or (bare is not rule and kernel.late is None):
        return False
    if not (type(online) is Online and type(online.cell) is RNNCell and type(readout) is Readout):
        return False
    filters = [part.filter for part in (rule, readout) if isinstance(part, Delayed | Readout)]
    if any(type(bridge) is not TraceFilter for bridge in filters if bridge is not None):
        return False
    tensors = [*memory.named().values(), *([] if online.feedback is None else [online.feedback])]
    dtype = memory.weight.dtype
    return dtype in (torch.float32, torch.float64) and all(
        tensor.device.type == "cpu" and tensor.dtype == dtype for tensor in tensors
    )


def run(
    online: Online, memory: Memory, clock: int, x: Tensor, label: Tensor, noise: Tensor | None
) -> tuple[Memory, Tensor]:
    """What `Online.run` does, to rounding, as one compiled loop on one core; the arguments stay as they are.

    The first run with a rule and a type of numbers compiles its kernel, and the very first also the loop: seconds,
    once on a machine. A memory can go from one executor to the other at any step.

    Args:
        online: how the network learns; see `supports`.
        memory: what has been learned so far.
        clock: steps before these.
        x: shape (T, B, n_in).
        label: shape (T, B, n_out).
        noise: shape (T, B, …) as the rule's `draw` makes it; None for a rule without.

    Returns:
        The memory after them, and their losses, shape (T,).

    Raises:
        ValueError: where `supports` says no, or for a tensor whose shape does not fit.
    """
    if not supports(online, memory):
        raise ValueError(
            f"the compiled loop cannot run {type(online.rule).__name__} here: it takes the built-in rules "
            "in float32 or float64 on a CPU; use Online.run"
        )
    steps, sizes = len(x), _sizes(online.cell, len(memory.rates))
    dtype = np.dtype(np.float32 if memory.weight.dtype == torch.float32 else np.float64)
    rule, layer = bind_rule(online.rule, sizes, dtype), bind_layer(online.readout, sizes, dtype)
    packed = {name: slot.pack(getattr(memory, name), sizes) for name, slot in _NETWORK.items()}
    rule_arrays, layer_arrays = rule.pack(memory.rule), layer.pack(memory.readout)
    sequences = (
        _sequence("x", x, (steps, sizes["b"], sizes["i"]), dtype),
        _sequence("label", label, (steps, sizes["b"], sizes["o"]), dtype),
        _noise(noise, (steps, sizes["b"], sizes[rule.noise]), dtype),
    )
    back = packed["weight_out"]
    if online.feedback is not None:
        back = Slot("feedback", "on", "o n").pack(online.feedback, sizes)
    losses = np.zeros(steps, dtype)
    inputs, extended, slope, z, error, credit = (
        np.zeros([sizes[axis] for axis in axes], dtype) for axes in ("bm", "be", "bn", "bo", "bo", "bn")
    )
    weight, weight_out, rates, pending, pending_out = (array[0] for array in packed.values())
    network = (weight, weight_out, back[0], pending, pending_out, inputs, extended, rates, slope, z, error, credit)
    settings = np.array([online.cell.alpha, online.lr], dtype)
    options = [online.cell.activation == "tanh", online.cell.output == "softmax", online.update_every]
    loop, kernels = compiled_loop(dtype), (build(rule.run, rule_type(dtype)), build(layer.run, layer_type(dtype)))
    with _blas().limit(limits=1):
        constants = (settings, np.array(options, np.int64))
        loop(*kernels, sequences, losses, network, rule_arrays, layer_arrays, *constants, clock)
    plain = {name: slot.unpack(packed[name], sizes, steps) for name, slot in _NETWORK.items()}
    after = Memory(**plain, rule=rule.unpack(rule_arrays, steps), readout=layer.unpack(layer_arrays, steps))
    return after, torch.from_numpy(losses)


@cache
def _blas() -> ThreadpoolController:
    # Numba's matrix products are those of scipy's BLAS, which is loaded with them; on matrices this small its
    # threads spend their time waiting for each other.
    import scipy.linalg.cython_blas  # noqa: F401

    return ThreadpoolController().select(user_api="blas")


def _sizes(cell: RNNCell, batch: int) -> dict[str, int]:
    # By the letters of `layout`; beside them i for n_in, c for KF-RTRL's two signs, 0 for no noise.
    n, outputs = cell.units, cell.outputs
    return {
        "0": 0,
        "1": 1,
        "b": batch,
        "c": 2,
        "e": n + 1,
        "i": cell.inputs,
        "m": cell.columns,
        "n": n,
        "o": outputs,
        "q": n + outputs + 1,
        "u": n,
    }


def _sequence(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, steps first, got {tuple(tensor.shape)}")
    return np.require(tensor.detach().numpy(), dtype, ("C", "A", "W"))


def _noise(noise: Tensor | None, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> Array:
    if not shape[2]:
        return np.zeros(shape, dtype)
    if noise is None:
        raise ValueError("the rule needs noise: give what its draw(batch, steps) makes")
    return _sequence("noise", noise, shape, dtype)
