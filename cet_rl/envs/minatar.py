"""The five MinAtar games (Young & Tian 2019), with observations that networks and environment checkers accept."""

from __future__ import annotations

from functools import cache
from importlib import util
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from minatar.gym import BaseEnv

from cet_rl.runs.process import generator_state

_CONSTANT = ("channels", "action_map", "ramping", "random")
"""Attributes of a game that no step changes; its generator is saved by itself."""

CELL = 32  # width and height of a cell of the rendered picture, in pixels

_BACKGROUND, _GRID = (24, 24, 32), (44, 44, 56)
_COLOURS = np.array(
    [
        _BACKGROUND,
        *((86, 180, 233), (230, 159, 0), (0, 158, 115), (213, 94, 0), (240, 228, 66), (204, 121, 167)),
        *((0, 114, 178), (170, 170, 170), (148, 103, 220), (255, 255, 255)),
    ],
    np.uint8,
)
"""Colours of an empty cell and of each channel: those of Okabe and Ito (2008), and three more."""


class MinAtarEnv(BaseEnv):  # type: ignore[misc]  # minatar has no types
    """Play a MinAtar game with float32 maps, channels first, as observations and plain floats as rewards.

    MinAtar itself gives bool arrays of shape (10, 10, channels) and rewards of numpy's integer type, which
    neither networks nor environment checkers accept.

    Args:
        game: asterix, breakout, freeway, seaquest or space_invaders.
        use_minimal_action_set: only the actions that do something in this game ("-v1"), or all six ("-v0").
        render_mode: None, "rgb_array" for pictures in colour, or "array" for MinAtar's own bool arrays.
            (`gymnasium.make` also takes "human", and shows the pictures in a window.)
        **kwargs: for `minatar.Environment`: `sticky_action_prob` (default 0.1), `difficulty_ramping` (True).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "array"], "render_fps": 15}

    def __init__(
        self, game: str, use_minimal_action_set: bool = True, render_mode: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(game, render_mode, use_minimal_action_set=use_minimal_action_set, **kwargs)
        self.game.env = _rules(game).Env(ramping=kwargs.get("difficulty_ramping", True))
        self.game.env.random = self.game.random  # both use one generator, even before the first seed
        height, width, channels = self.game.state_shape()
        self.observation_space = spaces.Box(0.0, 1.0, (channels, height, width), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode; the observation has shape (channels, 10, 10)."""
        gym.Env.reset(self, seed=seed)
        self.game.last_action = 0  # in MinAtar a sticky action can repeat one of the last episode
        observation, info = super().reset(seed, options)
        return _maps(observation), info

    def step(self, action: int) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play one frame. There is no time limit."""
        observation, reward, terminated, truncated, info = super().step(action)
        return _maps(observation), float(reward), bool(terminated), truncated, info

    def render(self) -> Any:
        """Return a picture, uint8 (height, width, 3), in which a cell has the colour of its highest channel."""
        if self.render_mode != "rgb_array":
            return super().render()
        cells = self.game.state()
        top = (cells * np.arange(1, cells.shape[2] + 1)).max(-1)
        picture = _COLOURS[top].repeat(CELL, 0).repeat(CELL, 1)
        picture[::CELL] = picture[:, ::CELL] = _GRID
        return picture

    def get_state(self) -> dict[str, Any]:
        """Return the state of the game and of its generator as plain data (`cet_rl.envs.snapshot`)."""
        return {
            "game": {name: value for name, value in vars(self.game.env).items() if name not in _CONSTANT},
            "last_action": self.game.last_action,
            "random": generator_state(self.game.random),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned; raise ValueError if it is of another game."""
        rules, game = self.game.env, state["game"]
        if {name for name in vars(rules) if name not in _CONSTANT} != set(game):
            raise ValueError(f"the state is of another game than {self.game.env_name}")
        for name, value in game.items():
            setattr(rules, name, value)
        self.game.last_action = state["last_action"]
        self.game.random = rules.random = np.random.RandomState()
        self.game.random.set_state(state["random"])


@cache
def _rules(game: str) -> Any:
    """Return a copy of a game's module that uses `_roll`, as `np.roll` takes half of a step's time."""
    spec: Any = util.find_spec(f"minatar.environments.{game}")
    module: Any = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.np = SimpleNamespace(**{**vars(np), "roll": _roll})
    return module


def _roll(cells: npt.NDArray[Any], shift: int, axis: int) -> npt.NDArray[Any]:
    """Return `np.roll` of a two-dimensional map along one axis, in a fifth of the time."""
    parts = (cells[:, -shift:], cells[:, :-shift]) if axis else (cells[-shift:], cells[:-shift])
    return np.concatenate(parts, axis)


def _maps(observation: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    return observation.transpose(2, 0, 1).astype(np.float32, order="C")
