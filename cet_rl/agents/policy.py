"""The actor and critic of `CETActorCritic` as a Stable-Baselines3 policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from cet_rl.networks import Actor, Critic, split_signs


class CETPolicy(BasePolicy):
    """Two multilayer perceptrons: an actor without biases and a critic, on inputs split by sign.

    Args:
        observation_space: a `Box` of vectors.
        action_space: `Discrete`.
        lr_schedule: not used here; part of the interface.
        net_arch: width of the hidden layers of actor and critic.
        activation: of the actor's hidden layers, a key of `cet_rl.activations.ACTIVATIONS`.
        split_observations: whether observations enter as positive and negative parts (paper, App. C); None for
            only if they can be negative.

    Raises:
        ValueError: for spaces or sizes it cannot take.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: Sequence[int] = (256, 256),
        activation: str = "relu",
        split_observations: bool | None = None,
    ) -> None:
        super().__init__(observation_space, action_space, normalize_images=False)
        vectors, actions = check_spaces(observation_space, action_space)
        if not all(isinstance(width, int) and width >= 1 for width in net_arch):
            raise ValueError(f"net_arch must list the widths of the hidden layers, got {net_arch!r}")
        self.net_arch, self.activation = list(net_arch), activation
        self.splits = bool((vectors.low < 0).any()) if split_observations is None else split_observations
        self.num_actions, self.first_action = int(actions.n), int(actions.start)
        n_in = vectors.shape[0] * (2 if self.splits else 1)
        self.num_features = n_in
        self.actor = Actor(n_in, self.num_actions, net_arch, activation)
        self.critic = Critic(n_in, net_arch)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": None,
            "net_arch": self.net_arch,
            "activation": self.activation,
            "split_observations": self.splits,
        }

    def features(self, observation: Tensor) -> Tensor:
        """What both networks see: float32, split by sign where the policy does."""
        observation = observation.to(torch.float32)
        return split_signs(observation) if self.splits else observation

    def write_features(self, observation: npt.NDArray[Any], out: npt.NDArray[np.float32]) -> None:
        """`features` on arrays: (E, n) into out, (E, num_features)."""
        n = observation.shape[-1]
        out[..., :n] = observation  # to float32 first: an unsigned integer has no negative
        if self.splits:
            np.negative(out[..., :n], out=out[..., n:])
            np.maximum(out, 0, out=out)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log-probabilities of the actions, each (N,)."""
        features = self.features(obs)
        distribution = self._distribution(features)
        index = distribution.get_actions(deterministic=deterministic)
        return index + self.first_action, self.critic(features), distribution.log_prob(index)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        index = self._distribution(self.features(observation)).get_actions(deterministic=deterministic)
        return index + self.first_action

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities of given actions, and the policy's entropy, each (N,)."""
        features = self.features(obs)
        distribution = self._distribution(features)
        log_probability = distribution.log_prob(actions.flatten().long() - self.first_action)
        return self.critic(features), log_probability, distribution.entropy()

    def predict_values(self, obs: Tensor) -> Tensor:
        """V(s), (N, 1), the shape Stable-Baselines3 expects."""
        values: Tensor = self.critic(self.features(obs))
        return values[:, None]

    def get_distribution(self, obs: Tensor) -> CategoricalDistribution:
        """π(· | s), over actions counted from zero."""
        return self._distribution(self.features(obs))

    def _distribution(self, features: Tensor) -> CategoricalDistribution:
        return CategoricalDistribution(self.num_actions).proba_distribution(self.actor(features))


def check_spaces(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> tuple[spaces.Box, spaces.Discrete]:
    """Both spaces, if the policy can take them.

    Raises:
        ValueError: naming what is wrong and what would be right.
    """
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(f"the actor needs discrete actions, this environment has {action_space}")
    if not isinstance(observation_space, spaces.Box):
        raise ValueError(
            f"the networks need a Box of vectors to look at, this environment shows {observation_space}; "
            "gymnasium.wrappers.FlattenObservation makes one"
        )
    if len(observation_space.shape) != 1:
        raise ValueError(
            f"observations of shape {observation_space.shape} need a convolutional network, which this policy "
            "has not; flatten them with gymnasium.wrappers.FlattenObservation"
        )
    return observation_space, action_space
