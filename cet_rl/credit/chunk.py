"""T steps of the definition in closed form: n + 2 matrix products, whatever the delay.

Weights are fixed within a rollout, so the step recursion unrolls. With A_u = η_u + γλ(1 - s_{u+1}) A_{u+1},
B_u = Π_{v>u} γλ(1 - s_v) and q_u = C M^{u+1},

    p_s = f'_s ⊙ Σ_{u≥s} g_{u-s} A_u δ_u
    ΔW  = Σ_env [ Σ_s p_s x_sᵀ + Σ_k diag(Σ_u A_u q_{u,k} δ_u) S⁰_k + γλ(1 - s_0) A_0 e⁰ ]
    S_k = Σ_l (M^T)_{kl} S⁰_l + Σ_s (M^{T-1-s} K)_k f'_s x_sᵀ
    e   = ΔW's form per environment, with B in the place of A

which needs one γλ for all weights of the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cet_rl.credit.blas import matmul
from cet_rl.credit.constants import StateConstants
from cet_rl.credit.signals import Signals, SynapseState, lambda_sums


def sum_weights(signals: Signals, decay: float) -> tuple[Tensor, Tensor | None]:
    """(A, B) of the module's formulas, each (T, E); B is None where γλ = 0 leaves no trace to carry."""
    if decay == 0:
        return signals.td_error, None
    last = torch.zeros_like(signals.td_error)
    last[-1] = 1
    both = torch.stack([signals.td_error, last], dim=1)
    sums = lambda_sums(both, signals.start[:, None].expand_as(both), decay)
    return sums[:, 0], sums[:, 1]


def decay_eligibility(state: SynapseState, signals: Signals, decay: float, A: Tensor, B: Tensor) -> Tensor:
    """Add what e⁰ contributes to ΔW, and shrink it to its share of the new e.

    Returns:
        γλ(1 - s_0) Σ_env A_0 e⁰, shape (n_out, n_in).
    """
    kept = decay * (1 - signals.start[0])
    envs, n_out, n_in = state.eligibility.shape
    gain = matmul((kept * A[0])[None], state.eligibility.view(envs, -1)).view(n_out, n_in)
    state.eligibility *= (kept * B[0])[:, None, None]
    return gain


def chunk(constants: StateConstants, state: SynapseState, signals: Signals, decay: float) -> Tensor:
    """Run T steps at once. Same arguments and result as `step`, with one `decay` for all weights."""
    assert state.states is not None
    steps, envs, n_in = signals.pre.shape
    n_out, order = signals.error.shape[2], len(constants.K)
    closed = constants.chunk(steps)

    # From here time comes last: the layout in which products over it run fastest.
    A, B = sum_weights(signals, decay)
    weights = (A.T[:, None] if B is None else torch.stack([A.T, B.T], dim=1)).contiguous()  # (E, 1 or 2, T)
    error, derivative = (t.permute(1, 2, 0).contiguous() for t in (signals.error, signals.derivative))
    weighted = weights[:, :, None] * error[:, None]  # (E, 1 or 2, n_out, T)
    due = matmul(weighted.view(-1, steps), closed.toeplitz.T).view(weighted.shape)
    p = derivative[:, None] * due
    reads = matmul(weighted.view(-1, steps), closed.readout).view(*weighted.shape[:3], order)

    gradient = torch.zeros_like(state.eligibility[0])
    if B is not None:
        gradient += decay_eligibility(state, signals, decay, A, B)

    # All that is left is linear in x and in S⁰. For each unit the rows of `total` are its n states, its part of
    # ΔW and its part of e.
    rows = order + weighted.shape[1]
    from_inputs = p.new_empty(n_out, rows, steps)
    from_states = p.new_empty(n_out, rows, order)
    from_states[:, :order] = closed.carry
    for env in range(envs):
        torch.mul(derivative[env, :, None], closed.absorb, out=from_inputs[:, :order])
        from_inputs[:, order:] = p[env].transpose(0, 1)
        from_states[:, order:] = reads[env].transpose(0, 1)
        total = matmul(from_inputs.view(-1, steps), signals.pre[:, env]).view(n_out, rows, n_in)
        total += matmul(from_states, state.states[env])
        state.states[env] = total[:, :order]
        gradient += total[:, order]
        if B is not None:
            state.eligibility[env] += total[:, order + 1]
    return gradient
