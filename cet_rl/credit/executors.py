"""Which executor runs a layer: the fastest exact one, by the shapes at hand (`benchmarks/executors.py`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Literal

import numpy as np
import torch

from cet_rl.credit.chunk import chunk
from cet_rl.credit.constants import HistoryConstants, StateConstants
from cet_rl.credit.geometry import Convolution, Geometry, Parts
from cet_rl.credit.history import history
from cet_rl.credit.signals import Decay, Signals, SynapseState
from cet_rl.credit.step import step
from cet_rl.traces.base import Trace, Transition

Executor = Literal["auto", "step", "chunk", "fused", "history"]

MANY_STATES = 1 << 24
"""State variables of a layer, all environments counted, from which on memory traffic dominates its products."""

SHORT_CHUNK = 700
"""Up to this many steps × couplings between states, one pass over them beats preparing matrix products."""

Loop = Callable[[StateConstants, SynapseState, Signals, Decay], torch.Tensor]

IMPULSE = Transition(np.zeros((1, 1)), np.ones(1), np.ones(1))
"""No memory at all as a state space, for executors that want states: the state is the step's input."""


def uses_history(
    trace: Trace, geometry: Geometry, executor: Executor, *, num_envs: int, rollout: int, per_weight: bool
) -> bool:
    """Whether a layer keeps its factored past (f', x) instead of states at every synapse.

    A convolution always does: it would have states for every position of its output. So does a delay line, unless
    one γλ per weight rules its closed form out. Other traces do where a layer would have more than `MANY_STATES`
    states and the kernel is short enough for the longer products to pay.

    Args:
        trace: of the layer.
        geometry: of the layer.
        executor: what was asked for.
        num_envs: environments that share the weights.
        rollout: steps of a usual chunk.
        per_weight: whether every weight has a γλ of its own.
    """
    if executor == "history" or isinstance(geometry, Convolution):
        return True
    if executor in ("chunk", "fused") or per_weight:
        return False
    if trace.states == 0:
        return True
    if executor == "step":
        return False
    first, last = trace.support
    longer_products = 2 * (rollout + last - first - 1) / rollout
    states = trace.states * num_envs * prod(geometry.weight_shape)
    return states > MANY_STATES and longer_products < trace.states + 2


@lru_cache
def compiled_loop(device_type: str) -> Loop | None:
    """The form that `fused` takes on a kind of device; None where there is none.

    On CUDA it is compiled by Triton, which torch's builds for Windows do not bring along and which needs a C
    compiler. A warning says what is missing, once.
    """
    # Imported here: numba and Triton take a second to load and many runs never need them.
    if device_type == "cpu":
        from cet_rl.credit.fused import fused

        return fused
    if device_type != "cuda":
        return None
    try:
        from cet_rl.credit.fused_cuda import fused_cuda, require_driver

        require_driver()
    except Exception as problem:  # whatever it is: the other executors are as exact
        warnings.warn(
            f"no compiled loop on CUDA ({problem}): layers with one gamma_lam per weight take the slow definition",
            stacklevel=2,
        )
        return None
    return fused_cuda


def run(
    executor: Executor,
    constants: StateConstants | HistoryConstants,
    state: SynapseState,
    signals: Signals,
    decay: Decay,
    geometry: Geometry,
) -> Parts:
    """ΔW of one chunk, by `executor` or by the fastest that fits; that of a bias is its second part.

    Where no loop can be compiled, `fused` gives way to the others.
    """
    per_weight = isinstance(decay, torch.Tensor)
    if executor == "step" or (per_weight and isinstance(constants, HistoryConstants)):
        return geometry.split(step(constants, state, signals, decay))
    if isinstance(constants, HistoryConstants):
        assert not isinstance(decay, torch.Tensor)
        return history(constants, state, signals, decay)
    return geometry.split(_with_states(executor, constants, state, signals, decay))


def _with_states(
    executor: Executor, constants: StateConstants, state: SynapseState, signals: Signals, decay: Decay
) -> torch.Tensor:
    per_weight = isinstance(decay, torch.Tensor)
    device_type = signals.pre.device.type
    wants_fused = executor == "fused" or (
        executor == "auto"
        # Short chunks were measured on a CPU only.
        and (per_weight or (device_type == "cpu" and len(signals.pre) * constants.couplings <= SHORT_CHUNK))
    )
    loop = compiled_loop(device_type) if wants_fused else None
    if loop is not None:
        return loop(constants, state, signals, decay)
    if isinstance(decay, torch.Tensor):
        return step(constants, state, signals, decay)
    return chunk(constants, state, signals, decay)
