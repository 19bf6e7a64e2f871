"""The closed form over a factored past: no states at the synapses, only the layer's inputs and derivatives.

A kernel that vanishes after L lags needs (f', x) of the last L steps and nothing else. With `chunk`'s A and B,

    p_s = f'_s ⊙ Σ_{u≥s} g_{u-s} A_u δ_u,  s = -L … T-1        ΔW = Σ_env [ Σ_s p_s x_sᵀ + γλ(1 - s_0) A_0 e⁰ ]

Exact for a delay line (perfect memory, no trace at all), and to rounding for every other kernel. Its cost in
time and memory grows with the kernel's support, but not with the number of states nor, in memory, with the
number of synapses. For a convolution, whose outer products are sums over positions too, f', x and δ are maps and
p_s of a position is that of its own f' and δ: the sum over s is one gradient of convolution weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cet_rl.credit.chunk import decay_eligibility, sum_weights
from cet_rl.credit.constants import HistoryConstants
from cet_rl.credit.geometry import Dense, Parts
from cet_rl.credit.signals import Signals, SynapseState

_BLOCK = 1 << 20
"""Floats of a convolution's postsynaptic maps taken at once on a CPU: four megabytes, which stay in its cache."""

_BLOCK_ON_DEVICE = 1 << 24
"""The same elsewhere, where only memory counts."""


def history(constants: HistoryConstants, state: SynapseState, signals: Signals, decay: float) -> Parts:
    """Run T steps at once. Same arguments as `step`, with one `decay` for all weights, and its result in parts."""
    assert state.past_pre is not None
    assert state.past_derivative is not None
    steps, num_envs, n_post = signals.error.shape
    geometry, total = constants.geometry, constants.past + steps

    A, B = sum_weights(signals, decay)
    gradient: Parts | None = None
    if A is not None and B is not None:
        gradient = geometry.split(decay_eligibility(state, signals, decay, A, B))

    # Maps are many times larger than a dense layer's units: environments and steps are taken in blocks.
    at_once, rows_at_once = num_envs, total
    if not isinstance(geometry, Dense):
        limit = _BLOCK if signals.error.device.type == "cpu" else _BLOCK_ON_DEVICE
        at_once = min(num_envs, max(1, limit // (total * n_post)))
        rows_at_once = max(1, limit // (at_once * n_post))
    for first in range(0, num_envs, at_once):
        envs = slice(first, first + at_once)
        pre, derivative, error = signals.pre[:, envs], signals.derivative[:, envs], signals.error[:, envs]
        if constants.past:
            # Anew each time: where memory lies decides how products round, and resumed runs must not know.
            pre = torch.cat([state.past_pre[:, envs], pre])
            derivative = torch.cat([state.past_derivative[:, envs], derivative])
            if at_once == num_envs:  # the new past is the end of what has just been put together
                state.past_pre, state.past_derivative = pre[steps:], derivative[steps:]
            else:
                state.past_pre[:, envs], state.past_derivative[:, envs] = pre[steps:], derivative[steps:]
        to_gradient = error if A is None else A[:, envs, None] * error
        to_eligibility = None if B is None else B[:, envs, None] * error
        for row in range(0, total, rows_at_once):
            rows = slice(row, row + rows_at_once)
            x, active = geometry.pre(pre[rows]), derivative[rows]
            p = geometry.post(_due(constants, to_gradient, rows).mul_(active))
            part = geometry.outer_parts(p, x)
            gradient = part if gradient is None else _add(gradient, part)
            if to_eligibility is not None:
                p = geometry.post(_due(constants, to_eligibility, rows).mul_(active))
                state.eligibility[envs] += geometry.outer_sums(p, x)
    assert gradient is not None
    return gradient


def _add(gradient: Parts, part: Parts) -> Parts:
    for total, more in zip(gradient, part, strict=True):
        if total is not None and more is not None:
            total += more
    return gradient


def _due(constants: HistoryConstants, weighted: Tensor, rows: slice) -> Tensor:
    """Σ_u g_{u-s} weighted_u for some of the s = -L … T-1, shape (S, E, n_post); weighted (T, E, n_post)."""
    if not constants.past:
        return constants.kernel * weighted[rows]
    due = constants.correlation(len(weighted))(weighted.flatten(1), rows.start, rows.stop)
    return due.view(len(due), *weighted.shape[1:])
