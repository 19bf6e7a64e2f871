"""The actor-critic that learns from delayed credit, as a Stable-Baselines3 algorithm."""

from cet_rl.agents.policy import CETPolicy
from cet_rl.agents.sb3 import CETActorCritic

__all__ = ["CETActorCritic", "CETPolicy"]
