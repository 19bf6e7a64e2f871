"""The actor and critic of `CETActorCritic` as a Stable-Baselines3 policy."""

from __future__ import annotations

from dataclasses import asdict, replace
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from cet_rl.agents.config import NetworkConfig, network_keywords
from cet_rl.agents.distributions import Array, Categorical, DiagonalGaussian, Distribution
from cet_rl.agents.networks import CHANNELS, Actor, Critic, split_signs


class CETPolicy(BasePolicy):
    """Hold the actor and the critic, and turn observations into the features that both see.

    Args:
        observation_space: A `Box` of vectors, or of maps with the channels first; images of bytes become 0 … 1.
        action_space: `Discrete`, or a `Box` of vectors (the actor gives the means of a diagonal Gaussian; actions
            are clipped to the box before the environment takes them).
        lr_schedule: Part of Stable-Baselines3's interface, not used here.
        **networks: Fields of `cet_rl.agents.NetworkConfig`, such as `net_arch`.

    Raises:
        ValueError: for other spaces, or networks that do not fit them.
    """

    critic: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule | None = None,
        **networks: Any,
    ) -> None:
        super().__init__(observation_space, action_space, normalize_images=False)
        config = NetworkConfig(**network_keywords(networks, signature(NetworkConfig).parameters))
        box = check_observations(observation_space)
        maps = len(box.shape) == 3
        for name in ("actor", "critic"):
            if getattr(config, name) == "conv" and not maps:
                raise ValueError(
                    f"a convolutional {name} needs maps, this environment shows vectors of shape {box.shape}; "
                    f"use {name}='mlp' (--{name} mlp)"
                )
        conv_critic = maps and config.critic != "mlp"
        if config.actor == "conv" or conv_critic:
            _check_channels_first(box)
        splits = config.split_observations
        self.splits = bool((box.low < 0).any()) if splits is None else splits
        self.config = replace(config, split_observations=self.splits)
        self.scale = 1 / 255 if is_image_space(box) else 1.0
        first, *rest = box.shape
        shape = (first * (2 if self.splits else 1), *rest)  # splitting doubles the channels of a map
        self.num_features = int(np.prod(shape))
        head, channels = make_head(action_space, config.log_std), CHANNELS if config.actor == "conv" else ()
        self.actor = Actor(shape, head, config.net_arch, config.activation, config.feedback, channels)
        self.critic = Critic(shape, (512,), CHANNELS) if conv_critic else Critic(shape, config.net_arch)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        spaces_ = {"observation_space": self.observation_space, "action_space": self.action_space}
        return {**spaces_, "lr_schedule": None, **asdict(self.config)}

    def features(self, observation: Tensor) -> Tensor:
        """Return the networks' input, (N, num_features): flat float32, split by sign if `splits`."""
        flat = observation.to(torch.float32).flatten(1) * self.scale
        return split_signs(flat) if self.splits else flat

    def write_features(self, observation: Array, out: npt.NDArray[np.float32]) -> None:
        """Write the `features` of an array of observations, (N, *shape), into `out`, (N, num_features)."""
        n = self.num_features // (1 + self.splits)
        positive = out[:, :n]
        positive[:] = observation.reshape(len(out), n)  # float32 before negation: unsigned integers would wrap
        if self.scale != 1:
            positive *= self.scale
        if self.splits:
            out[:, n:] = -positive
            np.maximum(out, 0, out=out)

    def to_environment(self, actions: Array) -> Array:
        """Return the environment's actions for the learner's, which are counted from zero, or not clipped."""
        if isinstance(self.action_space, spaces.Discrete):
            return np.add(actions, self.action_space.start) if self.action_space.start else actions
        assert isinstance(self.action_space, spaces.Box)
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions (N, …), values (N, 1) and log-probabilities of the actions, (N,)."""
        features = self.features(obs)
        distribution = self._distribution(features)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions + self._first_action, self.critic(features)[:, None], distribution.log_prob(actions)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.get_distribution(observation).get_actions(deterministic=deterministic) + self._first_action

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return values, (N, 1), log-probabilities of the given actions, (N,), and the policy's entropy, (N,)."""
        features = self.features(obs)
        distribution = self._distribution(features)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.flatten().long() - self._first_action
        return self.critic(features)[:, None], distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: Tensor) -> Tensor:
        """Return V(s), (N, 1), the shape Stable-Baselines3 expects."""
        values: Tensor = self.critic(self.features(obs))
        return values[:, None]

    def get_distribution(self, obs: Tensor) -> CategoricalDistribution | DiagGaussianDistribution:
        """Return π(· | s) over the learner's actions: counted from zero, or reals that are not clipped."""
        return self._distribution(self.features(obs))

    @property
    def _first_action(self) -> int:
        return int(self.action_space.start) if isinstance(self.action_space, spaces.Discrete) else 0

    def _distribution(self, features: Tensor) -> CategoricalDistribution | DiagGaussianDistribution:
        outputs, head = self.actor(features), self.actor.head
        if isinstance(head, DiagonalGaussian):
            return DiagGaussianDistribution(head.num_outputs).proba_distribution(outputs, head.log_std.squeeze(1))
        return CategoricalDistribution(head.num_outputs).proba_distribution(outputs)


def make_head(action_space: spaces.Space[Any], log_std: float = 0.0) -> Distribution:
    """Return the distribution for an action space; raise ValueError for a space that the actor cannot take."""
    if isinstance(action_space, spaces.Discrete):
        return Categorical(int(action_space.n))
    real = isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating)
    if real and len(action_space.shape or ()) == 1:
        return DiagonalGaussian(spaces.flatdim(action_space), log_std)
    raise ValueError(f"the actor needs discrete actions or a Box of real vectors, got {action_space}")


def check_observations(space: spaces.Space[Any]) -> spaces.Box:
    """Return the space if the networks can take its observations; raise ValueError if not."""
    if not isinstance(space, spaces.Box) or len(space.shape) not in (1, 3):
        shown = f"those of shape {space.shape}" if isinstance(space, spaces.Box) else str(space)
        raise ValueError(
            "observations must be a Box of vectors, or of maps of shape (channels, height, width), not "
            f"{shown}; gymnasium.wrappers.FlattenObservation makes vectors"
        )
    return space


def check_spaces(observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
    """Raise ValueError for spaces that our agent or Stable-Baselines3 cannot take."""
    check_observations(observations)
    make_head(actions)
    if isinstance(actions, spaces.Box) and not actions.is_bounded():
        raise ValueError(
            f"Stable-Baselines3 needs actions with finite bounds, this environment has {actions}; "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, Box(low, high)) sets some"
        )


def _check_channels_first(space: spaces.Box) -> None:
    """Raise ValueError for maps with the channels last; Stable-Baselines3 transposes only uint8 images itself."""
    first, second, last = space.shape
    if last < min(first, second):
        raise ValueError(
            f"observations of shape {space.shape} look like maps with the channels last; convolutions need "
            "(channels, height, width): transpose them, as with gymnasium.wrappers.TransformObservation, or use "
            "actor='mlp' and critic='mlp'"
        )
