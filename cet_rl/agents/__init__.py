"""Agents that learn from delayed credit."""

from cet_rl.agents.cet_actor_critic import CETActorCritic
from cet_rl.agents.policy import CETPolicy

__all__ = ["CETActorCritic", "CETPolicy"]
