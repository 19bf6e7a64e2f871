"""The agents by name, and what a run needs to know of each: `cet-rl list agents`, `--agent NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cet_rl.runs.plugins import import_named, load_plugins
from cet_rl.runs.values import unknown

if TYPE_CHECKING:
    from pathlib import Path

    from stable_baselines3.common.base_class import BaseAlgorithm

    from cet_rl.rl.config import RLConfig
    from cet_rl.runs.archive import Contents


@dataclass(frozen=True)
class AgentKind:
    """Make, save and restore one kind of agent.

    What is made has the interface of a Stable-Baselines3 algorithm as far as a run uses it: `learn`, `predict`,
    `num_timesteps`, `ep_info_buffer`, `logger`, `set_logger`.

    Attributes:
        build: from a resolved configuration to an agent with its training environments.
        contents: from an agent to what its file holds, as `cet_rl.runs.archive.write` takes it.
        load: from a configuration and a file to an agent; with its training environments if the flag is set.
        delays_credit: whether the agent bridges the delay itself, with a trace at its synapses. Others get delayed
            rewards.
        runtime_state: from an agent to whatever else a resumed run needs: environments, random numbers, counters,
            as `cet_rl.runs.typed_json` encodes it, and under "not_restored" a list of lines about what cannot be
            saved. None if nothing: such a run resumes in fresh episodes.
        restore: puts an agent into that state, after `load`.
    """

    build: Callable[[RLConfig], BaseAlgorithm]
    contents: Callable[[BaseAlgorithm], Contents]
    load: Callable[[RLConfig, Path, bool], BaseAlgorithm]
    delays_credit: bool = False
    runtime_state: Callable[[BaseAlgorithm], dict[str, Any]] | None = None
    restore: Callable[[BaseAlgorithm, dict[str, Any]], None] | None = None


@dataclass(frozen=True)
class _Entry:
    summary: str
    make: Callable[[], AgentKind]


_AGENTS: dict[str, _Entry] = {}


def register_agent(name: str, summary: str, make: Callable[[], AgentKind]) -> None:
    """Add an agent to what `--agent` takes.

    Args:
        name: of the agent, such as mine:a2c.
        summary: a line about it.
        make: called when the agent is first needed, so that its imports can wait until then.

    Raises:
        ValueError: for a name that is taken.
    """
    if name in _AGENTS:
        raise ValueError(f"agent {name!r} is registered already")
    _AGENTS[name] = _Entry(summary, make)


def agents() -> dict[str, str]:
    """Names and a line about each, plugins' own included."""
    load_plugins()
    return {name: entry.summary for name, entry in _AGENTS.items()}


def find_agent(name: str) -> AgentKind:
    """The agent of a registered name, or of "package.module:Class", a Stable-Baselines3 algorithm.

    Raises:
        ValueError: if there is none, or a package it needs is not installed.
    """
    known = agents()
    if name in known:
        return _AGENTS[name].make()
    module, colon, attribute = name.rpartition(":")
    prefixes = {each.split(":")[0] for each in known}  # sb3:… and the like are no modules
    if not colon or name.split(":")[0] in prefixes:
        raise unknown("agent", name, [*known, "package.module:Class"])
    found: Any = getattr(import_named(module, f"agent {name!r}"), attribute, None)
    if found is None:
        raise ValueError(f"agent {name!r}: module {module} has no attribute {attribute!r}")
    from cet_rl.rl.agent_kinds import kind_of

    return kind_of(found, name)


def _ours() -> AgentKind:
    from cet_rl.rl.agent_kinds import cet_kind

    return cet_kind()


def _sb3(name: str) -> AgentKind:
    import stable_baselines3

    from cet_rl.rl.agent_kinds import kind_of

    return kind_of(getattr(stable_baselines3, name), name)


register_agent(
    "cet", "actor-critic with a synaptic trace at every weight of the actor (paper, Algorithm 1)", _ours
)
register_agent("sb3:a2c", "Stable-Baselines3's A2C with Adam; rewards arrive late", lambda: _sb3("A2C"))
register_agent("sb3:ppo", "Stable-Baselines3's PPO; rewards arrive late", lambda: _sb3("PPO"))
