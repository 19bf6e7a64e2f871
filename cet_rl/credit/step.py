"""The definition of late credit at a synapse, one step at a time. All executors equal it.

For every synapse, every environment and every step,

    S ← M S + K f' x        c = C · S        e ← γλ (1 - s) e + δ c        ΔW += η e

with δ, η and s already delayed to when they arrive at this layer (letters: `cet_rl.credit`). The states S are not
reset at episode ends: credit for the last D steps is still on its way. The RL trace e is cut where the (delayed)
next episode starts, before that episode's first contribution. Where positions share a weight, as in a convolution,
δ c is the sum over them; everything from there on is linear.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cet_rl.credit.chunk import StateConstants
from cet_rl.credit.factored import HistoryConstants
from cet_rl.credit.signals import Decay, Signals, SynapseState


def step(
    constants: StateConstants | HistoryConstants, state: SynapseState, signals: Signals, decay: Decay
) -> Tensor:
    """Run the definition over T steps.

    Args:
        constants: of the layer's trace; their class says whether synapses hold states or their past.
        state: carried over; updated.
        signals: T steps of inputs; T = 1 is an update after every step.
        decay: γλ, one number or one per weight.

    Returns:
        ΔW summed over steps and environments, of the weight's shape.
    """
    total = torch.zeros_like(state.eligibility[0])
    for pre, derivative, error, td_error, start in zip(
        signals.pre, signals.derivative, signals.error, *signals.modulation(), strict=True
    ):
        if isinstance(constants, StateConstants):
            credited = _advance_states(constants, state, pre, derivative, error)
        else:
            credited = _advance_past(constants, state, pre, derivative, error)
        axes = (-1, *(1 for _ in total.shape))
        state.eligibility = decay * (1 - start).view(axes) * state.eligibility + credited
        total += (td_error.view(axes) * state.eligibility).sum(0)
    return total


def _advance_states(
    constants: StateConstants, state: SynapseState, pre: Tensor, derivative: Tensor, error: Tensor
) -> Tensor:
    """Advance S by one step and return δ c, shape (E, n_out, n_in)."""
    assert state.states is not None
    hebbian = derivative[:, :, None] * pre[:, None, :]
    state.states = constants.M @ state.states + constants.K[:, None] * hebbian[:, :, None, :]
    return error[:, :, None] * torch.einsum("k,eokj->eoj", constants.C, state.states)


def _advance_past(
    constants: HistoryConstants, state: SynapseState, pre: Tensor, derivative: Tensor, error: Tensor
) -> Tensor:
    """Advance the past by one step and return δ c = Σ_l g_l δ f'_{t-l} x_{t-l}, shape (E, *weight_shape)."""
    assert state.past_pre is not None
    assert state.past_derivative is not None
    pres = torch.cat([state.past_pre, pre[None]])
    derivatives = torch.cat([state.past_derivative, derivative[None]])
    state.past_pre, state.past_derivative = pres[1:], derivatives[1:]
    weighted = constants.kernel.flip(0)[:, None, None] * derivatives * error
    geometry = constants.geometry
    return geometry.outer_sum_by_env(geometry.unflatten_post(weighted), geometry.unflatten_pre(pres))
