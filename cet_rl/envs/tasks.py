"""The environments that `cet-rl list envs` shows, and the registration of our MinAtar games with Gymnasium."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import gymnasium as gym

from cet_rl.runs.config_files import load_yaml
from cet_rl.runs.plugins import load_plugins

_ENVIRONMENTS: dict[str, str] = load_yaml(resources.files("cet_rl.envs").joinpath("tasks.yaml").read_text("utf-8"))
_GAMES = [task[len("MinAtar/") : -len("-v1")] for task in _ENVIRONMENTS if task.startswith("MinAtar/")]
_MINATAR = "cet_rl.envs.minatar:MinAtarEnv"


def register_env(task: str, summary: str, entry_point: Any = None, **options: Any) -> None:
    """Add an environment to `cet-rl list envs`, and to Gymnasium if it is not there yet.

    Args:
        task: Gymnasium id; ValueError if it is in the list already.
        summary: one line for the list.
        entry_point: "module:Class", or a function that returns an environment; None if Gymnasium knows the id.
        **options: for `gymnasium.register`, such as `max_episode_steps` and `kwargs`.
    """
    if task in _ENVIRONMENTS:
        raise ValueError(f"environment {task!r} is registered already")
    if entry_point is not None:
        gym.register(task, entry_point, **options)
    _ENVIRONMENTS[task] = summary


def environments() -> dict[str, str]:
    """Return the summary of each listed environment, plugins' included, by its Gymnasium id."""
    load_plugins()
    return dict(_ENVIRONMENTS)


def register_minatar() -> None:
    """Register our MinAtar games under MinAtar's own ids, also if MinAtar has registered its own before."""
    for name in _GAMES:
        game = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()  # MinAtar's own name: space_invaders
        for version, minimal in (("v0", False), ("v1", True)):
            task = f"MinAtar/{name}-{version}"
            known = gym.registry.get(task)
            if known is None or known.entry_point != _MINATAR:
                gym.registry.pop(task, None)  # else Gymnasium warns that the id is taken
                gym.register(task, _MINATAR, kwargs={"game": game, "use_minimal_action_set": minimal})


register_minatar()
