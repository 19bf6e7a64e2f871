"""Observations split into positive and negative parts, for agents that do not split them themselves."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces


class PositiveNegativeSplit(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Split an observation into its positive and its negative part, both non-negative (paper, App. C).

    Vectors (n,) become (2n,), maps (channels, height, width) get twice the channels. `CETActorCritic` splits its
    inputs itself, and leaves non-negative ones as they are; this is for other agents.

    Args:
        env: an environment whose observations are a `Box` of vectors or maps.

    Raises:
        ValueError: for other observations.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) not in (1, 3):
            raise ValueError(f"only a Box of vectors or maps can be split by sign, this environment shows {space}")
        if np.issubdtype(space.dtype, np.unsignedinteger):
            raise ValueError(f"observations of type {space.dtype} are never negative: nothing to split by sign")
        low = np.concatenate([np.maximum(space.low, 0), np.maximum(-space.high, 0)])
        high = np.concatenate([np.maximum(space.high, 0), np.maximum(-space.low, 0)])
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return both parts: (n, …) to (2n, …)."""
        return np.concatenate([np.maximum(observation, 0), np.maximum(-observation, 0)])

    def get_state(self) -> dict[str, Any]:
        """Return an empty state: nothing is kept from step to step (`cet_rl.envs.snapshot`)."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Do nothing: the state is empty."""
