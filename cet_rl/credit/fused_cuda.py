"""The definition as one Triton kernel on CUDA, which keeps the states of synapses in registers.

The counterpart of `cet_rl.credit.fused`, like it compiled for the trace at hand, zeros of M and C left out. A
program takes one unit and a block of its inputs through all T steps, one environment after the other: states and e
are read and written once a chunk, and ΔW grows in registers. No two programs write to the same place: sums have
one order, and the same run gives the same numbers every time.

Triton comes with torch's CUDA builds for Linux. Without it, importing this module raises ImportError.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from cet_rl.credit.chunk import StateConstants
from cet_rl.credit.signals import Decay, Signals, SynapseState

_WALKS = 1 << 18
"""Synapses that keep a large GPU busy. The environments of a layer with fewer are divided among programs, whose
ΔW are summed afterwards."""

_LARGEST_BLOCK = 128
"""Synapses of a program. Wider blocks would leave more threads idle at the end of a row of inputs."""

_BYTES_OF_A_THREAD = 8
"""Layout for one state: a thread takes two synapses in float32, which hide each other's latency, and one in
float64, since two would no longer fit its registers."""

_WARP = 32


@no_type_check  # Triton's language, in which a tuple may grow while a loop is unrolled
def _walk(
    coefficients,  # of M and C, (COUNT,)
    K,
    states,
    eligibility,
    pre,
    derivative,
    error,
    td_error,
    start,
    rates,  # γλ, (n_out, n_in)
    gradients,  # ΔW of each group of environments, (groups, n_out, n_in)
    steps,
    envs,
    n_out,
    n_in,
    cascade,  # n n_in: values of a unit's states
    group_size,  # environments of a group
    PATTERN: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ORDER: tl.constexpr = len(PATTERN) - 1
    blocks = tl.cdiv(n_in, BLOCK)
    program = tl.program_id(0)
    j = program % blocks * BLOCK + tl.arange(0, BLOCK)
    unit = program // blocks % n_out
    group = program // blocks // n_out
    inside = j < n_in
    # Offsets of a large layer take more than 32 bits.
    width, height = tl.cast(n_in, tl.int64), tl.cast(n_out, tl.int64)

    m = ()
    for index in tl.static_range(COUNT):
        m += (tl.load(coefficients + index),)
    gains = ()
    for k in tl.static_range(ORDER):
        gains += (tl.load(K + k),)
    rate = tl.load(rates + unit * width + j, mask=inside, other=0)
    gradient = tl.zeros_like(rate)

    for env in range(group * group_size, tl.minimum((group + 1) * group_size, envs)):
        row = env * height + unit
        # A pointer that moves on: were ORDER a factor of offsets, Triton might lay out states unlike x.
        states_at = states + row * cascade + j
        s = ()
        for _ in tl.static_range(ORDER):
            s += (tl.load(states_at, mask=inside, other=0),)
            states_at += width
        e = tl.load(eligibility + row * width + j, mask=inside, other=0)
        pre_at = pre + env * width + j
        derivative_at, error_at = derivative + row, error + row
        td_error_at, start_at = td_error + env, start + env

        for _ in range(steps):
            hebbian = tl.load(derivative_at) * tl.load(pre_at, mask=inside, other=0)
            new = ()
            for k in tl.static_range(ORDER):
                state = gains[k] * hebbian
                for source in tl.static_range(ORDER):
                    if PATTERN[k][source] >= 0:
                        state += m[PATTERN[k][source]] * s[source]
                new += (state,)
            s = new
            c = tl.zeros_like(e)
            for k in tl.static_range(ORDER):
                if PATTERN[ORDER][k] >= 0:
                    c += m[PATTERN[ORDER][k]] * s[k]
            e = rate * (1 - tl.load(start_at)) * e + tl.load(error_at) * c
            gradient += tl.load(td_error_at) * e
            pre_at += envs * width
            derivative_at += envs * height
            error_at += envs * height
            td_error_at += envs
            start_at += envs

        states_at = states + row * cascade + j
        for k in tl.static_range(ORDER):
            tl.store(states_at, s[k], mask=inside)
            states_at += width
        tl.store(eligibility + row * width + j, e, mask=inside)
    tl.store(gradients + (group * height + unit) * width + j, gradient, mask=inside)


# A count that happens to be 1, or a multiple of 16, is no reason to compile again.
_kernel: Any = triton.jit(_walk, do_not_specialize=["steps", "envs", "n_out", "n_in", "cascade", "group_size"])


def require_driver() -> None:
    """Raise whatever keeps Triton from working on a device: no driver, or no C compiler to reach it through."""
    triton.runtime.driver.active.get_current_target()


def fused_cuda(constants: StateConstants, state: SynapseState, signals: Signals, decay: Decay) -> Tensor:
    """Run T steps on a CUDA device, in float32 or float64, with the arguments and result of `step`."""
    assert state.states is not None
    steps, envs, n_in = signals.pre.shape
    n_out, order = signals.error.shape[2], len(constants.K)
    pattern, coefficients = constants.coefficients
    # The kernel writes to both as they lie in memory.
    state.states, state.eligibility = state.states.contiguous(), state.eligibility.contiguous()
    inputs = (signals.pre, signals.derivative, signals.error, *signals.modulation())
    rates = decay if isinstance(decay, Tensor) else torch.full_like(state.eligibility[0], decay)

    block = max(_WARP, min(_LARGEST_BLOCK, triton.next_power_of_2(n_in)))
    threads = max(_WARP, block * constants.dtype.itemsize // _BYTES_OF_A_THREAD)
    group_size = triton.cdiv(envs, min(envs, triton.cdiv(_WALKS, n_out * n_in)))
    groups = triton.cdiv(envs, group_size)
    gradients = state.eligibility.new_empty(groups, n_out, n_in)
    with torch.cuda.device(gradients.get_device()):  # Triton launches on the current device
        _kernel[(groups * n_out * triton.cdiv(n_in, block),)](
            coefficients,
            constants.K,
            state.states,
            state.eligibility,
            *(signal.contiguous() for signal in inputs),
            rates.contiguous(),
            gradients,
            steps,
            envs,
            n_out,
            n_in,
            order * n_in,
            group_size,
            PATTERN=pattern,
            COUNT=len(coefficients),
            BLOCK=block,
            num_warps=threads // _WARP,
            enable_fp_fusion=True,
        )
    return gradients[0] if groups == 1 else gradients.sum(0)
