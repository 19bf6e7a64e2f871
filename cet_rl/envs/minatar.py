"""The five MinAtar games (Young & Tian 2019) with observations that networks and environment checkers accept."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from minatar.gym import BaseEnv

from cet_rl.runs.process import generator_state

_CONSTANT = ("channels", "action_map", "ramping", "random")
"""Attributes of a game that no step changes, and its generator."""


class MinAtarEnv(BaseEnv):  # type: ignore[misc]  # minatar has no types
    """Play a MinAtar game with float32 maps, channels first, as observations and plain floats as rewards.

    MinAtar itself gives bool arrays of shape (10, 10, channels) and rewards of numpy's integer type, which
    neither networks nor environment checkers accept.

    Args:
        game: asterix, breakout, freeway, seaquest or space_invaders.
        use_minimal_action_set: only the actions that do something in this game ("-v1"), or all six ("-v0").
        render_mode: None, "human", "array" or "rgb_array".
        **kwargs: for `minatar.Environment`: `sticky_action_prob` (0.1 there), `difficulty_ramping` (True there).
    """

    def __init__(
        self, game: str, use_minimal_action_set: bool = True, render_mode: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(game, render_mode, use_minimal_action_set=use_minimal_action_set, **kwargs)
        self.game.env.random = self.game.random  # one generator, also where none is ever seeded
        height, width, channels = self.game.state_shape()
        self.observation_space = spaces.Box(0.0, 1.0, (channels, height, width), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode; the observation has shape (channels, 10, 10)."""
        gym.Env.reset(self, seed=seed)
        self.game.last_action = 0  # MinAtar would let a sticky action stick across episodes
        observation, info = super().reset(seed, options)
        return _maps(observation), info

    def step(self, action: int) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play one frame. There is no time limit."""
        observation, reward, terminated, truncated, info = super().step(action)
        return _maps(observation), float(reward), bool(terminated), truncated, info

    def get_state(self) -> dict[str, Any]:
        """Return the game and its generators as plain data (`cet_rl.envs.snapshot`)."""
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


def _maps(observation: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    return observation.transpose(2, 0, 1).astype(np.float32, order="C")
