"""What the loop calls for W and for W_out: a kernel bound to its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cet_rl.recurrent.compiled import late
from cet_rl.recurrent.compiled.jit import LATE_STATES, LATE_WORK, STATES, WORK, Array, Arrays
from cet_rl.recurrent.compiled.layout import Slot
from cet_rl.recurrent.compiled.table import KERNELS, Run
from cet_rl.recurrent.delayed import Delayed, Readout, TraceFilter
from cet_rl.recurrent.rules.base import Rule, State


@dataclass(frozen=True)
class Binding:
    """A kernel, and its arrays but for the states.

    Attributes:
        run: the kernel, for `jit.build`.
        slots: of its states; None for one that is not used.
        work: matrices to scribble on and constants of a trace, as many as the kernel's type says.
        constants: 1/B, 1 - α, α and those of the rule.
        whole: its whole numbers.
        sizes: of axes, by the letters of `layout`.
        noise: the axis of its noise; "0" for none.
    """

    run: Run
    slots: tuple[Slot | None, ...]
    work: tuple[Array, ...]
    constants: Array
    whole: Array
    sizes: Mapping[str, int]
    noise: str = "0"

    def pack(self, state: State) -> Arrays:
        """The kernel's arrays, with copies of the states.

        Raises:
            ValueError: for states missing, or of another shape.
        """
        names = sorted(slot.name for slot in self.slots if slot)
        if names != sorted(state):
            raise ValueError(f"the memory must hold the states {names}, got {sorted(state)}")
        unused = np.zeros((0, 0, 0), self.constants.dtype)
        states = (slot.pack(state[slot.name], self.sizes) if slot else unused for slot in self.slots)
        return tuple(states), self.work, self.constants, self.whole

    def unpack(self, arrays: Arrays, steps: int) -> State:
        """The states after `steps` steps."""
        pairs = zip(self.slots, arrays[0], strict=True)
        return {slot.name: slot.unpack(array, self.sizes, steps) for slot, array in pairs if slot}


def bind_rule(rule: Rule, sizes: Mapping[str, int], dtype: np.dtype[Any]) -> Binding:
    """For a built-in rule, with late signals if it is `Delayed`."""
    bare = rule.rule if isinstance(rule, Delayed) else rule
    kernel, alpha = KERNELS[type(bare)], bare.cell.alpha
    sizes, run, whole = {**sizes, "t": getattr(bare, "window", 0)}, kernel.run, [int(kernel.whole(bare))]
    slots, bridging = _NO_TRACE, _no_bridge(dtype)
    if isinstance(rule, Delayed):
        assert kernel.late is not None
        run, sizes = kernel.late, {**sizes, **_late_sizes(rule.filter, rule.delay_steps)}
        trace = Slot("trace", "bsnm", "b s mn") if "s" in sizes else Slot("trace", "blnm", "b l mn")
        slots = (trace, Slot("signals", "bdn", "d b n"))
        bridging = _bridge(rule.filter, sizes["m"] * sizes["n"], dtype, _zeros("bn", sizes, dtype))
        whole += _lags(rule.filter)
    own = tuple(_zeros(axes, sizes, dtype) for axes in kernel.work)
    return Binding(
        run,
        (*_fill(kernel.slots, STATES - LATE_STATES, None), *slots),
        (*_fill(own, WORK - LATE_WORK, np.zeros((0, 0), dtype)), *bridging),
        np.array([1 / sizes["b"], 1 - alpha, alpha, *kernel.constants(bare)], dtype),
        np.array(whole, np.int64),
        sizes,
        kernel.noise or "0",
    )


def bind_layer(readout: Readout, sizes: Mapping[str, int], dtype: np.dtype[Any]) -> Binding:
    """For the output layer."""
    constants, scaled, bridge = np.array([1 / sizes["b"]], dtype), _zeros("bo", sizes, dtype), readout.filter
    if bridge is None:
        work = (*_no_bridge(dtype)[:-1], scaled)
        return Binding(late.layer, _NO_TRACE, work, constants, np.zeros(1, np.int64), sizes)
    sizes = {**sizes, **_late_sizes(bridge, readout.delay_steps)}
    trace = Slot("trace", "bse", "b s e") if "s" in sizes else Slot("trace", "ble", "b l e")
    slots, whole = (trace, Slot("errors", "bdo", "d b o")), np.array([0, *_lags(bridge)], np.int64)
    return Binding(late.late_layer, slots, _bridge(bridge, sizes["e"], dtype, scaled), constants, whole, sizes)


_NO_TRACE: tuple[Slot | None, ...] = (None,) * LATE_STATES


def _no_bridge(dtype: np.dtype[Any]) -> tuple[Array, ...]:
    return (np.zeros((0, 0), dtype),) * LATE_WORK


def _fill(items: tuple[Any, ...], length: int, unused: Any) -> tuple[Any, ...]:
    return (*items, *[unused] * (length - len(items)))


def _zeros(axes: str, sizes: Mapping[str, int], dtype: np.dtype[Any]) -> Array:
    return np.zeros([sizes[axis] for axis in axes], dtype)


def _late_sizes(bridge: TraceFilter, delay_steps: int) -> dict[str, int]:
    return {"d": delay_steps, "l" if bridge.transition is None else "s": bridge.kept}


def _bridge(bridge: TraceFilter, width: int, dtype: np.dtype[Any], arrived: Array) -> tuple[Array, ...]:
    # M, gains and what to scribble on, for `width` synapses a sequence: see `late.bridge`.
    if bridge.transition is None:
        M, gains = np.zeros((0, 0)), np.array([[value for _, value in bridge.taps]])
    else:
        M, gains = bridge.transition.M, np.stack([bridge.transition.K, bridge.transition.C])
    arrays = (M, gains, np.zeros((len(M), width)), np.zeros((1, width)))
    return (*(np.array(array, dtype, order="C") for array in arrays), arrived)


def _lags(bridge: TraceFilter) -> list[int]:
    return [lag for lag, _ in bridge.taps]
