"""The actor, whose every layer shows what its synapses need to know, and the critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cet_rl.activations import ACTIVATIONS
from cet_rl.credit.blas import matmul


def split_signs(observation: Tensor) -> Tensor:
    """Positive and negative parts side by side: (..., n) to (..., 2n), all non-negative (paper, App. C)."""
    return torch.cat([observation.clamp(min=0), (-observation).clamp(min=0)], dim=-1)


@dataclass
class Activity:
    """What a forward pass of N samples leaves at each layer, input side first.

    Attributes:
        pre: x, each (N, n_in).
        derivative: f'(W x), each (N, n_out); ones at the output.
        output: of the last layer, (N, n_out).
    """

    pre: list[Tensor]
    derivative: list[Tensor]
    output: Tensor


class Actor(nn.Module):
    """Layers without biases, orthogonally initialised with gain √2 (paper's RL actor); linear output.

    Args:
        n_in: inputs.
        n_out: outputs.
        hidden: width of each hidden layer.
        activation: of the hidden layers, a key of `ACTIVATIONS`.
    """

    def __init__(
        self, n_in: int, n_out: int, hidden: Sequence[int] = (256, 256), activation: str = "relu"
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}: choose from {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        sizes = [n_in, *hidden, n_out]
        self.weights = nn.ParameterList(
            nn.init.orthogonal_(torch.empty(after, before), gain=2**0.5) for before, after in pairwise(sizes)
        )

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(n_in, n_out) of each layer."""
        return [(weight.shape[1], weight.shape[0]) for weight in self.weights]

    def forward(self, observation: Tensor) -> Tensor:
        """(N, n_in) to (N, n_out), differentiable."""
        x = observation
        for weight in self.weights[:-1]:
            x = self.activation.function(x @ weight.T)
        output: Tensor = x @ self.weights[-1].T
        return output

    def numpy_forward(self) -> NumpyForward:
        """The same function on numpy arrays, for acting on a CPU: see `NumpyForward`."""
        return NumpyForward(self)

    @torch.no_grad()
    def activity(self, observation: Tensor) -> Activity:
        """The forward pass with everything the synapses need; no graph."""
        pre, derivative = [observation], []
        for weight in self.weights[:-1]:
            z = matmul(pre[-1], weight.detach().T)
            x = self.activation.function(z)
            derivative.append(self.activation.derivative(z, x))
            pre.append(x)
        output = matmul(pre[-1], self.weights[-1].detach().T)
        derivative.append(torch.ones_like(output))
        return Activity(pre, derivative, output)

    @torch.no_grad()
    def backpropagate(self, activity: Activity, gradient: Tensor) -> list[Tensor]:
        """Derivatives with respect to each layer's output, given those with respect to the network's.

        Args:
            activity: of the N samples.
            gradient: (N, n_out).

        Returns:
            For each layer, input side first, (N, its n_out). With respect to pre-activations: times f'.
        """
        errors = [gradient]
        for weight, derivative in zip(reversed(self.weights[1:]), reversed(activity.derivative[1:]), strict=True):
            errors.append(matmul(errors[-1] * derivative, weight.detach()))
        return errors[::-1]


class NumpyForward:
    """The actor on numpy arrays that share its weights: a third of torch's cost for a handful of rows."""

    def __init__(self, actor: Actor) -> None:
        self._weights = [weight.detach().numpy().T for weight in actor.weights]
        self._function = actor.activation.numpy_function

    def __call__(self, observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(N, n_in) to (N, n_out)."""
        x = observation
        for weight in self._weights[:-1]:
            x = self._function(x @ weight)
        logits: npt.NDArray[np.float32] = x @ self._weights[-1]
        return logits


class Critic(nn.Sequential):
    """State values: a multilayer perceptron with biases and ReLU, torch's default initialisation."""

    def __init__(self, n_in: int, hidden: Sequence[int] = (256, 256)) -> None:
        sizes = [n_in, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, observation: Tensor) -> Tensor:
        """(..., n_in) to (...)."""
        values: Tensor = super().forward(observation)  # type: ignore[no-untyped-call]
        return values.squeeze(-1)
