"""Distributions over actions, parametrised by the actor's outputs, with their derivatives written out.

The policy gradient enters the synapses as ∂ log π(a) / ∂ outputs; a distribution computes it without a graph.
Shapes: N samples, A outputs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Array = npt.NDArray[Any]


class Distribution(nn.Module, ABC):
    """Define a distribution over actions, π(a | s), whose A = `num_outputs` parameters the actor computes."""

    num_outputs: int
    action_shape: tuple[int, ...]
    action_dtype: type[np.generic]

    @property
    def own_weights(self) -> dict[str, nn.Parameter]:
        """Return the parameters that no state changes, by name, (A, 1): weights of an input that is always one."""
        return {}

    @abstractmethod
    def scores(self, outputs: Tensor, actions: Tensor) -> list[Tensor]:
        """Return ∂ log π(a) / ∂ outputs, then the same with respect to each of `own_weights`, (N, A).

        Args:
            outputs: (N, A).
            actions: (N, *action_shape).
        """

    @abstractmethod
    def entropy(self, outputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the entropy H of each sample, (N,), and its derivatives, ordered as in `scores`."""

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Array:
        """Draw the random numbers that `sample` needs for `shape` samples: (*shape, A), float32."""

    @abstractmethod
    def sample(self, outputs: Array, noise: Array) -> Array:
        """Compute actions, (N, *action_shape), from outputs, (N, A), and noise, (N, A), without parameters."""


class Categorical(Distribution):
    """Define a categorical distribution over A actions, counted from zero; the outputs are logits."""

    action_shape = ()
    action_dtype = np.int64

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_outputs = num_actions

    def scores(self, outputs: Tensor, actions: Tensor) -> list[Tensor]:
        """Return onehot(a) - π."""
        gradient = torch.softmax(outputs, dim=-1).neg_()
        return [gradient.scatter_add_(1, actions[:, None], torch.ones_like(gradient[:, :1]))]

    def entropy(self, outputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return H = -Σ π log π and ∂H / ∂ logits = -π (log π + H)."""
        log_probabilities = torch.log_softmax(outputs, dim=-1)
        probabilities = log_probabilities.exp()
        each = -(probabilities * log_probabilities).sum(-1)
        return each, [-probabilities * (log_probabilities + each[:, None])]

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Array:
        """Draw Gumbel noise; `argmax(logits + noise)` is then a sample."""
        noise = -torch.empty((*shape, self.num_outputs)).exponential_(generator=generator).log_()
        return noise.numpy()

    def sample(self, outputs: Array, noise: Array) -> Array:
        """Return the actions, (N,)."""
        actions: Array = (outputs + noise).argmax(-1)
        return actions


class DiagonalGaussian(Distribution):
    """Define a Gaussian distribution over A independent real numbers; the outputs are their means.

    log σ is a parameter that does not depend on the state. It learns like a bias: a weight whose input is one.
    """

    action_dtype = np.float32

    def __init__(self, num_actions: int, log_std: float = 0.0) -> None:
        super().__init__()
        self.num_outputs, self.action_shape = num_actions, (num_actions,)
        self.log_std = nn.Parameter(torch.full((num_actions, 1), log_std))

    @property
    def own_weights(self) -> dict[str, nn.Parameter]:
        """Return log σ."""
        return {"log_std": self.log_std}

    @property
    def std(self) -> Tensor:
        """Return the standard deviation σ, (A,)."""
        return self.log_std.detach().squeeze(1).exp()

    def scores(self, outputs: Tensor, actions: Tensor) -> list[Tensor]:
        """Return (a - μ) / σ² and, with respect to log σ, ((a - μ) / σ)² - 1."""
        deviation = (actions - outputs) / self.std
        return [deviation / self.std, deviation**2 - 1]

    def entropy(self, outputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return H = Σ log σ + A/2 · log 2πe, ∂H / ∂ means = 0 and ∂H / ∂ log σ = 1."""
        each = self.log_std.detach().sum() + self.num_outputs / 2 * math.log(2 * math.pi * math.e)
        return each.expand(len(outputs)), [torch.zeros_like(outputs), torch.ones_like(outputs)]

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Array:
        """Draw normal noise with standard deviation σ."""
        drawn = torch.randn((*shape, self.num_outputs), generator=generator).numpy()
        noise: Array = self.std.cpu().numpy() * drawn
        return noise

    def sample(self, outputs: Array, noise: Array) -> Array:
        """Return μ + noise, not yet clipped to the environment's bounds."""
        return np.add(outputs, noise)
