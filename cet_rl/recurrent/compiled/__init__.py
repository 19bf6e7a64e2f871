"""Run online learning as compiled loops: what `cet_rl.recurrent.online` defines, without its cost per operation.

`run` takes the place of `Online.run` where `supports` says so: for the built-in rules on a CPU. Each rule has a
loop over steps (`loops.py`), compiled by numba for float32 or float64; here tensors become its arrays and back.

A layout such as "bnm->bmn" says how a tensor of the definition lies in the loop, a letter an axis:

    b  sequences     n, u  units     m  r̂     o  outputs     e  [r; 1]     q  [r; y*; 1]
    t  window        d  delay        l  steps of a delay line              s  states of a trace

In the definition the steps along t, d and l are those past, oldest first. The loops do not move them: step k of a
run takes the place of the oldest, k modulo the length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.compiled import loops
from cet_rl.recurrent.compiled.network import Array, Data, DelayedTrace, Network
from cet_rl.recurrent.delayed import Delayed, Readout, TraceFilter
from cet_rl.recurrent.online import Memory, Online
from cet_rl.recurrent.rules import built_in
from cet_rl.recurrent.rules.base import Rule

__all__ = ["run", "supports"]


class Loop(NamedTuple):
    """Describe a rule's compiled loop."""

    run: Callable[..., None]
    layouts: Mapping[str, str] = {}  # of the rule's tensors by name, in the order in which the loop takes them
    noise: str = ""  # axis of a step's noise; "" for a rule without
    constants: tuple[str, ...] = ()  # names of the rule's numbers that the loop takes


_WINDOW = {"inputs": "btm->tbm", "slope": "btn->tbn", "credit": "btn->tbn"}
_GUESS = {"A": "nq->qn", "A_copy": "nq->qn", "known": "bq->bq", "credit": "bn->bn"}
_RATES = ("rate", "renewal")
_KERNL = {"A": "nu->nu", "timescale": "n->n", "B": "bnm->bmn"}
_KERNL |= {"perturbed": "bn->bn", "Omega": "bn->bn", "Gamma": "bn->bn"}
_NETWORK = {"weight": "nm->mn", "weight_out": "oe->oe", "rates": "bn->bn"}
_NETWORK |= {"pending": "nm->mn", "pending_out": "oe->oe"}
_SCRATCH = {"inputs": "bm", "extended": "be", "slope": "bn", "readout": "bo"}
_SCRATCH |= {"error": "bo", "credit": "bn", "scaled": "bo"}

LOOPS: dict[type[Rule], Loop] = {
    built_in.FixedW: Loop(loops.fixed_w),
    built_in.RFLO: Loop(loops.rflo, {"B": "bnm->bmn"}),
    built_in.KeRNL: Loop(loops.kernl, _KERNL, noise="n", constants=("rate", "sigma")),
    built_in.BPTT: Loop(loops.bptt, _WINDOW),
    built_in.FutureBPTT: Loop(loops.future_bptt, _WINDOW),
    built_in.RTRL: Loop(loops.rtrl, {"M": "bnmu->bmnu"}),
    built_in.UORO: Loop(loops.uoro, {"A": "bn->bn", "B": "bnm->bmn"}, noise="n"),
    built_in.KFRTRL: Loop(loops.kf_rtrl, {"A": "bm->bm", "B": "bnu->bnu"}, noise="2"),
    built_in.RKF: Loop(loops.r_kf, {"A": "bn->bn", "B": "bmn->bmn"}, noise="n"),
    built_in.DNI: Loop(loops.dni, _GUESS, constants=_RATES),
    built_in.DNIb: Loop(loops.dni_b, {**_GUESS, "jacobian": "nu->nu"}, constants=(*_RATES, "jacobian_rate")),
}
"""By exact type: a subclass may do something else."""


def supports(online: Online, memory: Memory) -> bool:
    """Return whether `run` supports this: built-in rules, without jitter, in float32 or float64 on a CPU.

    Subclasses of the classes here are not supported, as they may compute something else.
    """
    rule, readout = online.rule, online.readout
    bare = rule.rule if type(rule) is Delayed else rule
    kinds = (type(online), type(online.cell), type(readout))
    if type(bare) not in LOOPS or kinds != (Online, RNNCell, Readout):
        return False
    late = [part for part in (rule, readout) if isinstance(part, Delayed | Readout) and part.filter is not None]
    if any(type(part.filter) is not TraceFilter or part.delay.jitter for part in late):
        return False
    tensors = [*memory.named().values(), *([] if online.feedback is None else [online.feedback])]
    dtype = memory.weight.dtype
    return dtype in (torch.float32, torch.float64) and all(
        tensor.device.type == "cpu" and tensor.dtype == dtype for tensor in tensors
    )


def run(
    online: Online, memory: Memory, clock: int, x: Tensor, label: Tensor, noise: Tensor | None
) -> tuple[Memory, Tensor]:
    """Compute what `Online.run` computes, up to rounding, as one compiled loop on one core; see there.

    The first run with a rule and a type of numbers compiles its loop, which takes seconds, once on a machine. The
    executor may change at any step. Raises ValueError if `supports` is False, or if a shape does not fit.
    """
    if not supports(online, memory):
        raise ValueError(
            f"the compiled loop cannot run {type(online.rule).__name__} here: it takes the built-in rules "
            "in float32 or float64 on a CPU; use Online.run"
        )
    rule, dtype = online.rule, np.dtype(np.float32 if memory.weight.dtype == torch.float32 else np.float64)
    bare = rule.rule if isinstance(rule, Delayed) else rule
    spec, steps, sizes = LOOPS[type(bare)], len(x), _sizes(online.cell, bare, len(memory.rates))
    layouts = {**_NETWORK, **{f"rule.{name}": layout for name, layout in spec.layouts.items()}}
    hidden, output = _delay_sizes(rule), _delay_sizes(online.readout)
    if hidden:
        layouts |= {"rule.trace": "bsnm->bsmn" if "s" in hidden else "blnm->blmn", "rule.signals": "bdn->dbn"}
    if output:
        layouts |= {"readout.trace": "bse->bse" if "s" in output else "ble->ble", "readout.errors": "bdo->dbo"}
    tensors = memory.named()
    if set(tensors) != set(layouts):
        raise ValueError(f"the memory must hold {', '.join(sorted(layouts))}, got {', '.join(sorted(tensors))}")
    arrays = {
        name: _pack(name, tensors[name], layout, {**sizes, **(output if "readout." in name else hidden)})
        for name, layout in layouts.items()
    }
    feedback = arrays["weight_out"]
    if online.feedback is not None:
        feedback = _pack("feedback", online.feedback, "on->on", sizes)
    given = {"x": (x, "i"), "label": (label, "o"), **({"noise": (noise, spec.noise)} if spec.noise else {})}
    sequences = {
        name: _sequence(name, tensor, (steps, sizes["b"], sizes[axis]), dtype)
        for name, (tensor, axis) in given.items()
    }
    data = Data(**{"noise": np.zeros((0, 0, 0), dtype), **sequences}, losses=np.zeros(steps, dtype))
    numbers = [getattr(bare, name) for name in spec.constants]
    with _blas().limit(limits=1):
        spec.run(
            _network(online, arrays, feedback, sizes),
            _delay(rule, arrays.get("rule.trace"), arrays.get("rule.signals"), arrays["weight"]),
            _delay(online.readout, arrays.get("readout.trace"), arrays.get("readout.errors"), arrays["weight"]),
            data,
            clock,
            tuple(arrays[f"rule.{name}"] for name in spec.layouts),
            tuple(number if isinstance(number, int) else dtype.type(number) for number in numbers),
        )
    after = {name: _unpack(arrays[name], layout, steps) for name, layout in layouts.items()}
    return Memory.from_named(after), torch.from_numpy(data.losses)


@cache
def _blas() -> ThreadpoolController:
    # Numba's matrix products are those of scipy's BLAS, which is loaded with them; on matrices this small its
    # threads spend their time waiting for each other.
    import scipy.linalg.cython_blas  # noqa: F401

    return ThreadpoolController().select(user_api="blas")


def _sizes(cell: RNNCell, rule: Rule, batch: int) -> dict[str, int]:
    """Return the lengths of axes by letter: those of layouts, i for n_in, and 2 for KF-RTRL's signs."""
    n, outputs, window = cell.units, cell.outputs, getattr(rule, "window", 0)
    lengths = (2, batch, n + 1, cell.inputs, cell.columns, n, outputs, n + outputs + 1, window, n)
    return dict(zip("2beimnoqtu", lengths, strict=True))


def _delay_sizes(part: Rule | Readout) -> dict[str, int]:
    """Return the lengths of a delay's axes; none where there is no delay."""
    if not isinstance(part, Delayed | Readout) or part.filter is None:
        return {}
    return {"d": part.delay.delay_steps, "l" if part.filter.transition is None else "s": part.filter.kept}


def _delay(part: Rule | Readout, trace: Array | None, signals: Array | None, weight: Array) -> DelayedTrace | None:
    """Return the trace in front of W or W_out for the loop, with scratch; None where there is no delay."""
    if trace is None or signals is None or not isinstance(part, Delayed | Readout) or part.filter is None:
        return None
    taps, transition, width = part.filter.taps, part.filter.transition, int(np.prod(trace.shape[2:]))
    M, gains = np.zeros((0, 0)), np.array([[value for _, value in taps]])
    if transition is not None:
        M, gains = transition.M, np.stack([transition.K, transition.C])
    dtype = weight.dtype
    M, gains = np.array(M, dtype, order="C"), np.array(gains, dtype, order="C")
    product, recalled = np.zeros((len(M), width), dtype), np.zeros(width, dtype)
    lags, arrived = np.array([lag for lag, _ in taps], np.int64), np.zeros(signals.shape[1:], dtype)
    return DelayedTrace(trace, signals, M, gains, lags, product, recalled, arrived, np.zeros_like(weight))


def _network(online: Online, arrays: Mapping[str, Array], feedback: Array, sizes: Mapping[str, int]) -> Network:
    """Return the network for the loop, with scratch."""
    cell, number = online.cell, arrays["weight"].dtype.type
    return Network(
        **{name: arrays[name] for name in _NETWORK},
        **{name: np.zeros([sizes[axis] for axis in axes], number) for name, axes in _SCRATCH.items()},
        feedback=feedback,
        share=number(1 / sizes["b"]),
        alpha=number(cell.alpha),
        leak=number(1 - cell.alpha),
        lr=number(online.lr),
        is_tanh=cell.activation == "tanh",
        is_softmax=cell.output == "softmax",
        update_every=online.update_every,
    )


def _pack(name: str, tensor: Tensor, layout: str, sizes: Mapping[str, int]) -> Array:
    """Return a copy of a tensor as the loop has it; raise ValueError if it has another shape."""
    shape = tuple(sizes[axis] for axis in layout.partition("->")[0])
    if tensor.shape != shape:
        raise ValueError(f"{name} in the memory must have the shape {shape}, got {tuple(tensor.shape)}")
    return np.array(np.einsum(layout, tensor.detach().numpy()), order="C")


def _unpack(array: Array, layout: str, steps: int) -> Tensor:
    """Return the definition's tensor after `steps` steps."""
    axes, _, kept = layout.partition("->")
    for place, axis in enumerate(kept):
        if axis in "tdl" and array.shape[place]:
            array = np.roll(array, -(steps % array.shape[place]), place)
    return torch.from_numpy(np.ascontiguousarray(np.einsum(f"{kept}->{axes}", array)))


def _sequence(name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if tensor is None:
        raise ValueError(f"the rule needs {name}: give what its draw(batch, steps) makes")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, steps first, got {tuple(tensor.shape)}")
    return np.require(tensor.detach().numpy(), dtype, ("C", "A", "W"))
