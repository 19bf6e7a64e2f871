"""Observations as positive and negative parts, for agents that do not split them themselves."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces


class PositiveNegativeSplit(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Doubles a vector observation: its positive part, then its negative part, both non-negative (paper, App. C).

    `CETActorCritic` splits its inputs itself, and leaves non-negative ones as they are; this is for other agents.

    Args:
        env: an environment whose observations are a `Box` of vectors.

    Raises:
        ValueError: for other observations.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"only a Box of vectors can be split by sign, this environment shows {space}")
        low = np.concatenate([np.maximum(space.low, 0), np.maximum(-space.high, 0)])
        high = np.concatenate([np.maximum(space.high, 0), np.maximum(-space.low, 0)])
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(n,) to (2n,)."""
        return np.concatenate([np.maximum(observation, 0), np.maximum(-observation, 0)])
