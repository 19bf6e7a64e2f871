"""The actor-critic that learns from delayed credit, with interfaces to Stable-Baselines3 and Tianshou."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cet_rl.runs.plugins import import_on_use

if TYPE_CHECKING:
    from cet_rl.agents.config import LearnerConfig, NetworkConfig
    from cet_rl.agents.policy import CETPolicy
    from cet_rl.agents.sb3 import CETActorCritic

__all__ = ["CETActorCritic", "CETPolicy", "LearnerConfig", "NetworkConfig"]

__getattr__, __dir__ = import_on_use(__name__, __all__, ("config", "policy", "sb3"))
