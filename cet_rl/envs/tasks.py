"""The environments that are ready to use: `cet-rl list envs`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from cet_rl.runs.plugins import load_plugins

_GAMES = {
    "Asterix": ("asterix", "collect treasure, avoid enemies; 4 maps of 10 × 10, 5 actions"),
    "Breakout": ("breakout", "keep the ball up, break bricks; 4 maps of 10 × 10, 3 actions"),
    "Freeway": ("freeway", "cross a road, 2500 steps; 7 maps of 10 × 10, 3 actions"),
    "Seaquest": ("seaquest", "rescue divers, mind the oxygen; 10 maps of 10 × 10, 6 actions"),
    "SpaceInvaders": ("space_invaders", "shoot down rows of aliens; 6 maps of 10 × 10, 4 actions"),
}
"""MinAtar's games by the name in their ids: MinAtar's own name, and a summary with the actions of -v1."""

_READY = {
    "CartPole-v1": "hold a pole up; 4 numbers, 2 actions, at most 500 steps",
    "Acrobot-v1": "swing two links up; 6 numbers, 3 actions, at most 500 steps",
    "MountainCar-v0": "drive out of a valley; 2 numbers, 3 actions, at most 200 steps",
    "LunarLander-v3": "land between two flags; 8 numbers, 4 actions, at most 1000 steps",
    "LunarLanderContinuous-v3": "land between two flags; 8 numbers, 2 real actions, at most 1000 steps",
    "Pendulum-v1": "swing a pendulum up; 3 numbers, 1 real action, 200 steps",
    **{f"MinAtar/{name}-v1": summary for name, (_, summary) in _GAMES.items()},
}

_MINATAR = "cet_rl.envs.minatar:MinAtarEnv"


def register_env(task: str, summary: str, entry_point: Any = None, **options: Any) -> None:
    """Add an environment to `cet-rl list envs`, and to Gymnasium if it is not there yet.

    Args:
        task: Gymnasium id; ValueError if it is in the list already.
        summary: one line for the list.
        entry_point: "module:Class", or a function that returns one; None if the id is registered with Gymnasium.
        **options: for `gymnasium.register`, such as `max_episode_steps` and `kwargs`.
    """
    if task in _READY:
        raise ValueError(f"environment {task!r} is registered already")
    if entry_point is not None:
        gym.register(task, entry_point, **options)
    _READY[task] = summary


def ready() -> dict[str, str]:
    """Return Gymnasium ids and a summary of each, plugins' included. Others work as well: see `make_env`."""
    load_plugins()
    return dict(_READY)


def register_minatar() -> None:
    """Register our form of the MinAtar games under their ids, replacing MinAtar's own if those came first."""
    for name, (game, _) in _GAMES.items():
        for version, minimal in (("v0", False), ("v1", True)):
            task = f"MinAtar/{name}-{version}"
            known = gym.registry.get(task)
            if known is None or known.entry_point != _MINATAR:
                gym.registry.pop(task, None)  # without Gymnasium's warning
                gym.register(task, _MINATAR, kwargs={"game": game, "use_minimal_action_set": minimal})


register_minatar()
