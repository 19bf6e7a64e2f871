"""A rollout while it is being collected: numpy arrays that turn into the learner's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cet_rl.agents.distributions import Distribution
from cet_rl.agents.learner import Rollout


class Recording:
    """Room for T steps of E environments.

    Attributes:
        features: what the networks see at each step and after the last, (T + 1, E, n), float32.
        actions: as the learner counts them, (T, E, *action_shape).
        rewards, starts, terminated, truncated, valid: (T, E), float32.
        finals: (step, environment, features) of each episode that was cut off.
    """

    def __init__(self, steps: int, envs: int, features: int, head: Distribution) -> None:
        self.features = np.zeros((steps + 1, envs, features), np.float32)
        self.actions: npt.NDArray[Any] = np.zeros((steps, envs, *head.action_shape), head.action_dtype)
        self.rewards, self.starts, self.terminated, self.truncated = np.zeros((4, steps, envs), np.float32)
        self.valid = np.ones((steps, envs), np.float32)
        self.finals: list[tuple[int, int, npt.NDArray[np.float32]]] = []

    def begin(self) -> None:
        """Forget what the last rollout marked; every other entry is overwritten."""
        self.valid[:] = 1
        self.terminated[:] = 0
        self.truncated[:] = 0
        self.finals.clear()

    def check(self, first_step: int) -> None:
        """Refuse what would poison the weights.

        Args:
            first_step: steps each environment had made before this rollout.

        Raises:
            FloatingPointError: naming the environment and the step of the first reward or observation that is
                not finite.
        """
        for name, values in {
            "observation": self.features,
            "reward": self.rewards[:, :, None],
        }.items():
            if not np.isfinite(values).all():
                step, env = np.argwhere(~np.isfinite(values).all(-1))[0]
                raise FloatingPointError(
                    f"environment {env} gave a {name} that is not finite at its step {first_step + step}"
                )
        for step, env, final in self.finals:
            if not np.isfinite(final).all():
                raise FloatingPointError(
                    f"environment {env} gave an observation that is not finite at its step {first_step + step + 1}"
                )

    def rollout(self, device: torch.device) -> Rollout:
        """The recorded steps for the learner. Shares memory with this object on a CPU."""

        def tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        ordered = [final for _, _, final in sorted(self.finals, key=lambda final: final[:2])]
        finals = np.stack(ordered) if ordered else np.zeros((0, self.features.shape[2]), np.float32)
        return Rollout(
            observations=tensor(self.features[:-1]),
            actions=tensor(self.actions),
            rewards=tensor(self.rewards),
            starts=tensor(self.starts),
            terminated=tensor(self.terminated),
            truncated=tensor(self.truncated),
            last_observations=tensor(self.features[-1]),
            final_observations=tensor(finals),
            valid=None if self.valid.all() else tensor(self.valid),
        )
