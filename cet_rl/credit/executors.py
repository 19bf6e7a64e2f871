"""Which executor runs a layer: the fastest exact one, by the shapes at hand (`benchmarks/executors.py`)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from cet_rl.credit.chunk import chunk
from cet_rl.credit.constants import HistoryConstants, StateConstants
from cet_rl.credit.history import history
from cet_rl.credit.signals import Decay, Signals, SynapseState
from cet_rl.credit.step import step
from cet_rl.traces.base import Trace, Transition

Executor = Literal["auto", "step", "chunk", "fused", "history"]

MANY_STATES = 1 << 24
"""State variables of a layer, all environments counted, from which on memory traffic dominates its products."""

SHORT_CHUNK = 700
"""Up to this many steps × couplings between states, one pass over them beats preparing matrix products."""

IMPULSE = Transition(np.zeros((1, 1)), np.ones(1), np.ones(1))
"""No memory at all as a state space, for executors that want states: the state is the step's input."""


def uses_history(trace: Trace, executor: Executor, *, synapses: int, rollout: int, per_weight: bool) -> bool:
    """Whether a layer keeps its factored past (f', x) instead of states at every synapse.

    A delay line always does, unless one γλ per weight rules its closed form out. Other traces do where a layer
    would have more than `MANY_STATES` states and the kernel is short enough for the longer products to pay.

    Args:
        trace: of the layer.
        executor: what was asked for.
        synapses: of the layer, all environments counted.
        rollout: steps of a usual chunk.
        per_weight: whether every weight has a γλ of its own.
    """
    if executor == "history":
        return True
    if executor in ("chunk", "fused") or per_weight:
        return False
    if trace.states == 0:
        return True
    if executor == "step":
        return False
    first, last = trace.support
    longer_products = 2 * (rollout + last - first - 1) / rollout
    return trace.states * synapses > MANY_STATES and longer_products < trace.states + 2


def run(
    executor: Executor,
    constants: StateConstants | HistoryConstants,
    state: SynapseState,
    signals: Signals,
    decay: Decay,
) -> torch.Tensor:
    """Run one chunk by `executor`, or by the fastest that fits."""
    if executor == "step":
        return step(constants, state, signals, decay)
    if isinstance(constants, HistoryConstants):
        assert not isinstance(decay, torch.Tensor)
        return history(constants, state, signals, decay)
    on_cpu = signals.pre.device.type == "cpu"
    per_weight = isinstance(decay, torch.Tensor)
    wants_fused = per_weight or len(signals.pre) * constants.couplings <= SHORT_CHUNK
    if executor == "fused" or (executor == "auto" and wants_fused and on_cpu):
        # Imported here: numba takes a second to load and many runs never need it.
        from cet_rl.credit.fused import fused

        return fused(constants, state, signals, decay)
    if isinstance(decay, torch.Tensor):
        return step(constants, state, signals, decay)
    return chunk(constants, state, signals, decay)
