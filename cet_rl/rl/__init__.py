"""One reinforcement-learning run: configuration, training, evaluation, callbacks and the registry of agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cet_rl.runs.lazy import lazy_names

if TYPE_CHECKING:
    from cet_rl.rl.agent_registry import AgentKind as AgentKind
    from cet_rl.rl.agent_registry import register_agent as register_agent
    from cet_rl.rl.config import RLConfig as RLConfig
    from cet_rl.rl.training import train as train

_HOME = {
    "AgentKind": "agent_registry",
    "RLConfig": "config",
    "register_agent": "agent_registry",
    "train": "training",
}

__all__ = ["AgentKind", "RLConfig", "register_agent", "train"]

__getattr__ = lazy_names(__name__, _HOME)
