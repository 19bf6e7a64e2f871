"""The closed form over a factored past: no states at the synapses, only the layer's inputs and derivatives.

A kernel that vanishes after L lags needs (f', x) of the last L steps and nothing else. With `chunk`'s A and B,

    p_s = f'_s ⊙ Σ_{u≥s} g_{u-s} A_u δ_u,  s = -L … T-1        ΔW = Σ_env [ Σ_s p_s x_sᵀ + γλ(1 - s_0) A_0 e⁰ ]

Exact for a delay line (perfect memory, no trace at all), and to rounding for every other kernel. Its cost in
time and memory grows with the kernel's support, but not with the number of states nor, in memory, with the
number of synapses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cet_rl.credit.blas import matmul, outer_sum, outer_sums
from cet_rl.credit.chunk import decay_eligibility, sum_weights
from cet_rl.credit.constants import HistoryConstants
from cet_rl.credit.signals import Signals, SynapseState


def history(constants: HistoryConstants, state: SynapseState, signals: Signals, decay: float) -> Tensor:
    """Run T steps at once. Same arguments and result as `step`, with one `decay` for all weights."""
    assert state.past_pre is not None
    assert state.past_derivative is not None
    steps, pre, derivative = len(signals.pre), signals.pre, signals.derivative
    if constants.past:
        pre = torch.cat([state.past_pre, pre])
        derivative = torch.cat([state.past_derivative, derivative])

        state.past_pre, state.past_derivative = pre[-constants.past :], derivative[-constants.past :]

    def due(weights: Tensor) -> Tensor:
        weighted = weights[..., None] * signals.error
        if constants.past:
            correlated = matmul(constants.correlation(steps), weighted.view(steps, -1))
            return derivative * correlated.view(derivative.shape)
        return constants.kernel * derivative * weighted

    A, B = sum_weights(signals, decay)
    gradient = outer_sum(due(A), pre)
    if B is not None:
        gradient += decay_eligibility(state, signals, decay, A, B)
        state.eligibility += outer_sums(due(B), pre)
    else:
        state.eligibility.zero_()
    return gradient
