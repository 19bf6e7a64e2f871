"""The agents by name, as `--agent` takes and `cet-rl list agents` shows them, each with its `AgentKind`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cet_rl.runs.plugins import import_attribute, load_plugins
from cet_rl.runs.values import unknown

if TYPE_CHECKING:
    from pathlib import Path

    from stable_baselines3.common.base_class import BaseAlgorithm

    from cet_rl.rl.config import RLConfig


@dataclass(frozen=True)
class AgentKind:
    """Make, save and restore one kind of agent.

    `build` and `load` take a resolved configuration and return an agent with its training environments. The agent
    has those parts of a Stable-Baselines3 algorithm that a run uses: `learn`, `predict`, `num_timesteps`,
    `ep_info_buffer`, `logger`, `set_logger`.

    `state` returns what an agent's file holds, in the form that `cet_rl.runs.archive.write` takes.
    `runtime_state` returns what else a resumed run needs: environments, random numbers, counters and, under
    "not_restored", a list of lines on what cannot be saved. `restore` sets a loaded agent to that state. Where
    both are None, a resumed run starts fresh episodes.
    """

    build: Callable[[RLConfig], BaseAlgorithm]
    state: Callable[[BaseAlgorithm], dict[str, Any]]
    load: Callable[[RLConfig, Path], BaseAlgorithm]
    delays_credit: bool = False  # with a trace at its synapses; others get delayed rewards
    runtime_state: Callable[[BaseAlgorithm], dict[str, Any]] | None = None
    restore: Callable[[BaseAlgorithm, dict[str, Any]], None] | None = None


_AGENTS = {
    "cet": (
        "actor-critic with a synaptic trace at every weight of the actor (paper, Algorithm 1)",
        "cet_rl.agents:CETActorCritic",
    ),
    "sb3:a2c": ("Stable-Baselines3's A2C with Adam; rewards arrive late", "stable_baselines3:A2C"),
    "sb3:ppo": ("Stable-Baselines3's PPO; rewards arrive late", "stable_baselines3:PPO"),
}
"""By name: a summary of each agent, and where to import it from."""


def register_agent(name: str, summary: str, place: str) -> None:
    """Add an agent to the names that `--agent` takes.

    Args:
        name: such as mine:a2c.
        summary: one line for `cet-rl list agents`.
        place: "module:Class" of a Stable-Baselines3 algorithm, or "module:name" of an `AgentKind`.

    Raises:
        ValueError: if the name is taken.
    """
    if name in _AGENTS:
        raise ValueError(f"agent {name!r} is registered already")
    _AGENTS[name] = summary, place


def agents() -> dict[str, str]:
    """Return the summary of each agent, plugins' included, by name."""
    load_plugins()
    return {name: summary for name, (summary, _) in _AGENTS.items()}


def find_agent(name: str) -> AgentKind:
    """Return the kind of a registered agent, or of "package.module:Class"; raise ValueError if there is none."""
    known = agents()
    prefixes = {each.split(":")[0] for each in known}  # sb3 in sb3:ppo is a prefix, not a module
    if name not in known and (":" not in name or name.split(":")[0] in prefixes):
        raise unknown("agent", name, [*known, "package.module:Class"])
    found = import_attribute(_AGENTS.get(name, ("", name))[1], f"agent {name!r}")
    if isinstance(found, AgentKind):
        return found
    from cet_rl.rl.agent_kinds import kind_of

    return kind_of(found, name)
