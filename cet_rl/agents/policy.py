"""The actor and critic of `CETActorCritic` as a Stable-Baselines3 policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from cet_rl.agents.distributions import Categorical, DiagonalGaussian, Distribution
from cet_rl.agents.networks import CHANNELS, Actor, ConvCritic, Critic, Feedback, split_signs

ActorKind = Literal["mlp", "conv"]
CriticKind = Literal["auto", "mlp", "conv"]

Array = npt.NDArray[Any]


class CETPolicy(BasePolicy):
    """An actor without biases and a critic, on inputs split by sign.

    Args:
        observation_space: a `Box` of vectors, or of maps with the channels first; images of uint8 are scaled to
            [0, 1].
        action_space: `Discrete`, or a `Box` of vectors (the actor gives the means of a diagonal Gaussian; actions
            are clipped to the box when they are carried out).
        lr_schedule: not used here; part of the interface.
        net_arch: width of the dense hidden layers of actor and critic.
        activation: of the actor's hidden layers, a key of `cet_rl.credit.activations.ACTIVATIONS`.
        split_observations: whether observations enter as positive and negative parts (paper, App. C); None for
            only if they can be negative.
        actor: "mlp" (maps are flattened) or "conv": `CHANNELS` convolutions before the dense layers, for maps.
        critic: "mlp", "conv" (`ConvCritic`), or "auto": convolutional for maps.
        feedback: how credit reaches the actor's hidden layers: "backprop", "fa" or "dfa".
        log_std: of the Gaussian to begin with.

    Raises:
        ValueError: for spaces or sizes it cannot take.
    """

    critic: nn.Module

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: Sequence[int] = (256, 256),
        activation: str = "relu",
        split_observations: bool | None = None,
        actor: ActorKind = "mlp",
        critic: CriticKind = "auto",
        feedback: Feedback = "backprop",
        log_std: float = 0.0,
    ) -> None:
        super().__init__(observation_space, action_space, normalize_images=False)
        seen = check_observations(observation_space)
        if not all(isinstance(width, int) and width >= 1 for width in net_arch):
            raise ValueError(f"net_arch must list the widths of the hidden layers, got {net_arch!r}")
        if critic not in get_args(CriticKind):
            raise ValueError(f"critic must be one of {', '.join(get_args(CriticKind))}, got {critic!r}")
        if actor not in get_args(ActorKind):
            raise ValueError(f"actor must be one of {', '.join(get_args(ActorKind))}, got {actor!r}")
        for name, kind in {"actor": actor, "critic": critic}.items():
            if kind == "conv" and len(seen.shape) != 3:
                raise ValueError(
                    f"a convolutional {name} looks at maps, this environment shows vectors of shape {seen.shape}; "
                    f"use {name}='mlp' (--{name} mlp)"
                )
        self.splits = bool((seen.low < 0).any()) if split_observations is None else split_observations
        self._arguments = {
            "net_arch": list(net_arch),
            "activation": activation,
            "split_observations": self.splits,
            "actor": actor,
            "critic": critic,
            "feedback": feedback,
            "log_std": log_std,
        }
        self._scale = 1 / 255 if is_image_space(seen) else 1.0
        first, *rest = seen.shape
        shape = (first * (2 if self.splits else 1), *rest)  # the parts of a map are further channels
        self.num_features = int(np.prod(shape))
        channels = CHANNELS if actor == "conv" else ()
        self.actor = Actor(shape, make_head(action_space, log_std), net_arch, activation, feedback, channels)
        if len(shape) == 3 and critic != "mlp":
            self.critic = ConvCritic(shape)
        else:
            self.critic = Critic(self.num_features, net_arch)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": None,
            **self._arguments,
        }

    def features(self, observation: Tensor) -> Tensor:
        """What both networks see: float32, flat, split by sign where the policy does."""
        flat = observation.to(torch.float32).flatten(1) * self._scale
        return split_signs(flat) if self.splits else flat

    def write_features(self, observation: Array, out: npt.NDArray[np.float32]) -> None:
        """`features` on arrays: (E, *shape) into out, (E, num_features)."""
        flat = observation.reshape(len(out), -1)
        n = flat.shape[1]
        out[:, :n] = flat  # to float32 first: an unsigned integer has no negative
        if self._scale != 1:
            out[:, :n] *= self._scale
        if self.splits:
            np.negative(out[:, :n], out=out[:, n:])
            np.maximum(out, 0, out=out)

    def to_environment(self, actions: Array) -> Array:
        """Actions as the learner counts them, (N, *action_shape), as the environment takes them."""
        if isinstance(self.action_space, spaces.Discrete):
            return np.add(actions, self.action_space.start)
        assert isinstance(self.action_space, spaces.Box)
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (N, …), values and log-probabilities of the actions, (N,)."""
        features = self.features(obs)
        distribution = self._distribution(features)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions + self._first_action, self.critic(features), distribution.log_prob(actions)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        actions = self._distribution(self.features(observation)).get_actions(deterministic=deterministic)
        return actions + self._first_action

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities of given actions, and the policy's entropy, each (N,)."""
        features = self.features(obs)
        distribution = self._distribution(features)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.flatten().long() - self._first_action
        return self.critic(features), distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: Tensor) -> Tensor:
        """V(s), (N, 1), the shape Stable-Baselines3 expects."""
        values: Tensor = self.critic(self.features(obs))
        return values[:, None]

    def get_distribution(self, obs: Tensor) -> CategoricalDistribution | DiagGaussianDistribution:
        """π(· | s), over actions as the learner counts them."""
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
    """The distribution over the actions of a space.

    Raises:
        ValueError: naming what is wrong and what would be right.
    """
    if isinstance(action_space, spaces.Discrete):
        return Categorical(int(action_space.n))
    real = isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating)
    if real and len(action_space.shape or ()) == 1:
        return DiagonalGaussian(spaces.flatdim(action_space), float(log_std))
    raise ValueError(
        f"the actor needs discrete actions or a Box of real vectors, this environment has {action_space}"
    )


def check_observations(space: spaces.Space[Any]) -> spaces.Box:
    """The space, if the networks can look at it.

    Raises:
        ValueError: naming what is wrong and what would be right.
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"the networks need a Box of vectors or maps to look at, this environment shows {space}; "
            "gymnasium.wrappers.FlattenObservation makes one"
        )
    if len(space.shape) not in (1, 3):
        raise ValueError(
            f"observations must be vectors, or maps of shape (channels, height, width), not of shape "
            f"{space.shape}; gymnasium.wrappers.FlattenObservation makes vectors"
        )
    return space
