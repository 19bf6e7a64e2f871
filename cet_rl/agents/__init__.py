"""Agents that learn from delayed credit, and those they are compared with."""

from cet_rl.agents.cet_actor_critic import CETActorCritic
from cet_rl.agents.policy import CETPolicy
from cet_rl.agents.registry import AgentKind, register_agent

__all__ = ["AgentKind", "CETActorCritic", "CETPolicy", "register_agent"]
