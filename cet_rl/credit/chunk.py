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
from cet_rl.credit.constants import ChunkConstants, StateConstants
from cet_rl.credit.signals import Signals, SynapseState, lambda_sums

_BLOCK = 1 << 18
"""Floats of the largest matrix of a block: one megabyte, so that all of them fit a core's own cache."""


def sum_weights(signals: Signals, decay: float) -> tuple[Tensor | None, Tensor | None]:
    """(A, B) of the module's formulas, each (T, E).

    Where γλ = 0 there is no trace to carry and B is None; so is A if all it would hold is ones.
    """
    if decay == 0:
        return signals.td_error, None
    td_error, start = signals.modulation()
    last = torch.zeros_like(td_error)
    last[-1] = 1
    both = torch.stack([td_error, last], dim=1)
    sums = lambda_sums(both, start[:, None].expand_as(both), decay)
    return sums[:, 0], sums[:, 1]


def decay_eligibility(state: SynapseState, signals: Signals, decay: float, A: Tensor, B: Tensor) -> Tensor:
    """Add what e⁰ contributes to ΔW, and shrink it to its share of the new e.

    Returns:
        γλ(1 - s_0) Σ_env A_0 e⁰, of the weight's shape.
    """
    kept = decay * (1 - signals.modulation()[1][0])
    each = state.eligibility.view(len(kept), -1)
    gain = matmul((kept * A[0])[None], each).view(state.eligibility.shape[1:])
    each *= (kept * B[0])[:, None]
    return gain


def chunk(constants: StateConstants, state: SynapseState, signals: Signals, decay: float) -> Tensor:
    """Run T steps at once. Same arguments and result as `step`, with one `decay` for all weights."""
    assert state.states is not None
    steps, envs, n_in = signals.pre.shape
    n_out, order = signals.error.shape[2], len(constants.K)
    closed = constants.chunk(steps)

    # From here time comes last: the layout in which products over it run fastest.
    A, B = sum_weights(signals, decay)
    error, derivative = _time_last(signals.error), _time_last(signals.derivative)
    weighted = error[:, None]  # (E, 1 or 2, n_out, T)
    if A is not None:
        weights = (A.T[:, None] if B is None else torch.stack([A.T, B.T], dim=1)).contiguous()
        weighted = weights[:, :, None] * weighted
    worth = matmul(weighted.view(-1, steps), closed.gains).view(*weighted.shape[:3], steps + order)
    p = torch.mul(derivative[:, None], worth[..., :steps], out=torch.empty_like(weighted))
    reads = worth[..., steps:]  # Σ_u A_u q_{u,k} δ_u

    if A is None or B is None:
        parts = [
            _without_eligibility(state, closed, derivative[env], p[env, 0], reads[env, 0], signals, env)
            for env in range(envs)
        ]
        return parts[0] if envs == 1 else torch.stack(parts).sum(0)

    gradient = decay_eligibility(state, signals, decay, A, B)
    # Units are taken in blocks that stay in a CPU's cache from one product to the next.
    on_cpu = p.device.type == "cpu"
    block = max(1, min(n_out, _BLOCK // (order * max(n_in, steps)))) if on_cpu else n_out
    operators = p.new_empty(n_out, order + weighted.shape[1], order)
    operators[:, :order] = closed.carry
    # Of the factors of a step's Hebbian term, the one with fewer entries takes the weights M^{T-1-s} K.
    inputs_take_weights = n_in <= n_out
    gated = p.new_empty((steps, order, n_in) if inputs_take_weights else (n_out, order, steps))
    for env in range(envs):
        pre = signals.pre[:, env].contiguous()
        if inputs_take_weights:
            torch.mul(pre[:, None], closed.absorb.T[:, :, None], out=gated)
        else:
            torch.mul(derivative[env][:, None], closed.absorb, out=gated)
        outer = matmul(p[env].view(-1, steps), pre).view(-1, n_out, n_in)
        operators[:, order:] = reads[env].transpose(0, 1)
        for first in range(0, n_out, block):
            units = slice(first, min(first + block, n_out))
            if inputs_take_weights:
                absorbed = matmul(derivative[env, units], gated.view(steps, -1))
            else:
                absorbed = matmul(gated[units].view(-1, steps), pre)
            states = state.states[env, units]
            # For each unit: its n states carried over, then what they add to its ΔW and e.
            from_states = matmul(operators[units], states)
            torch.add(absorbed.view(states.shape), from_states[:, :order], out=states)
            outer[:, units] += from_states[:, order:].transpose(0, 1)
        gradient += outer[0]
        state.eligibility[env] += outer[1]
    return gradient


def _time_last(signal: Tensor) -> Tensor:
    """(T, E, n) to (E, n, T)."""
    steps, envs, units = signal.shape
    # As a plain transpose, which torch does block by block.
    return signal.reshape(steps, -1).T.contiguous().view(envs, units, steps)


def _without_eligibility(
    state: SynapseState,
    closed: ChunkConstants,
    derivative: Tensor,
    p: Tensor,
    reads: Tensor,
    signals: Signals,
    env: int,
) -> Tensor:
    """One environment's ΔW where γλ = 0, and its new states.

    Args:
        state: of the layer.
        closed: the constants of T steps.
        derivative: f', (n_out, T).
        p: as in the module's formulas, (n_out, T).
        reads: Σ_u A_u q_{u,k} δ_u, (n_out, n).
        signals: of all environments.
        env: which one.
    """
    assert state.states is not None
    states, pre = state.states[env], signals.pre[:, env]
    gradient = matmul(p, pre)
    gradient[:, None].baddbmm_(reads[:, None], states)
    gated = derivative[:, None] * closed.absorb
    new = matmul(gated.reshape(-1, len(pre)), pre).view(states.shape)
    new.baddbmm_(closed.carry.expand(len(new), -1, -1), states)
    if len(state.states) == 1:
        state.states = new[None]  # one pass over memory less than to write it where it was
    else:
        state.states[env] = new
    return gradient
