"""One reinforcement-learning run: configuration, training, evaluation, log and the registry of agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cet_rl.runs.plugins import import_on_use

if TYPE_CHECKING:
    from cet_rl.rl.agent_registry import AgentKind, register_agent
    from cet_rl.rl.config import RLConfig
    from cet_rl.rl.training import train, train_batch

__all__ = ["AgentKind", "RLConfig", "register_agent", "train", "train_batch"]

__getattr__, __dir__ = import_on_use(__name__, __all__, ("config", "agent_registry", "training"))
