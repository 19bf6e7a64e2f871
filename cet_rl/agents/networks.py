"""The actor, which gives its synapses the signals of every layer, and the critic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from cet_rl.agents.config import Feedback
from cet_rl.agents.distributions import Distribution
from cet_rl.credit.activations import ACTIVATIONS, Activation
from cet_rl.credit.geometry import Convolution, Dense, Geometry, matmul
from cet_rl.runs.values import unknown

CHANNELS = (16, 32, 32)
"""Channels of the three convolutions of a network for maps (paper, App. C); kernels are 3 × 3, zero padding 1."""


def split_signs(observation: Tensor) -> Tensor:
    """Return positive and negative parts side by side: (..., n) to (..., 2n), non-negative (paper, App. C)."""
    return torch.cat([observation.clamp(min=0), (-observation).clamp(min=0)], dim=-1)


class Actor(nn.Module):
    """Compute the parameters of a policy by layers without biases and a linear output.

    Weights start orthogonal with gain √2 (paper, App. C).

    Args:
        shape: Shape of one observation as the network sees it: (n,), or (channels, height, width).
        head: The distribution over actions that the outputs parametrise.
        hidden: Width of each dense hidden layer.
        activation: Activation of the hidden layers, a key of `ACTIVATIONS`.
        feedback: Route of credit to hidden layers, see `Feedback`.
        channels: Channels of the convolutions before the dense layers, for maps; if empty, maps are flattened.

    Raises:
        ValueError: for an unknown activation or feedback.
    """

    def __init__(
        self,
        shape: Sequence[int],
        head: Distribution,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        feedback: Feedback = "backprop",
        channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        if feedback not in get_args(Feedback):
            raise ValueError(f"feedback must be one of {', '.join(get_args(Feedback))}, got {feedback!r}")
        self.activation_name, self.feedback, self.head = activation, feedback, head
        layers: list[Geometry] = []
        if channels:
            before, *size = shape
            layers += [
                Convolution(n_in, n_out, 3, (size[0], size[1]), padding=1)
                for n_in, n_out in pairwise([before, *channels])
            ]
        flat = layers[-1].n_post if layers else prod(shape)
        layers += [Dense(n_in, n_out) for n_in, n_out in pairwise([flat, *hidden, head.num_outputs])]
        self.layers = layers
        self.weights = nn.ParameterList(_orthogonal(layer.weight_shape) for layer in layers)
        for number, (layer, above) in enumerate(pairwise(layers)):
            if feedback == "fa":
                self.register_buffer(f"feedback_{number}", _orthogonal(above.weight_shape))
            elif feedback == "dfa":
                self.register_buffer(f"feedback_{number}", _orthogonal((head.num_outputs, layer.n_post)))

    @property
    def activation(self) -> Activation:
        """Activation of the hidden layers. (Kept by name: a network must be picklable.)"""
        return ACTIVATIONS[self.activation_name]

    @property
    def synaptic_weights(self) -> list[nn.Parameter]:
        """Return all parameters: the layers' weights, input side first, then those of the distribution, (A, 1)."""
        return [*self.weights, *self.head.own_weights.values()]

    @property
    def geometries(self) -> list[Geometry]:
        """Geometry of each of `synaptic_weights`."""
        return [*self.layers, *[Dense(1, self.head.num_outputs)] * len(self.head.own_weights)]

    def forward(self, observation: Tensor) -> Tensor:
        """Compute the outputs with a graph: (..., n) to (..., n_out)."""
        activation, x = self.activation.function, observation.reshape(-1, *self.layers[0].pre_shape)
        for layer, weight in zip(self.layers, self.weights, strict=True):
            if isinstance(layer, Convolution):
                z = functional.conv2d(x, weight, padding=layer.padding)
            else:
                z = x.flatten(1) @ weight.T
            x = z if layer is self.layers[-1] else activation(z)
        return x.view(*observation.shape[:-1], -1)

    def numpy_forward(self) -> NumpyForward | None:
        """Return the network as a function of numpy arrays, for acting on a CPU; None if it has convolutions."""
        return NumpyForward(self) if all(isinstance(layer, Dense) for layer in self.layers) else None

    @torch.no_grad()
    def forward_layers(self, observation: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Compute the outputs, and what the synapses of each layer need, without a graph.

        The distribution's own parameters follow as layers whose input is constantly one.

        Args:
            observation: (N, n).

        Returns:
            For each of `synaptic_weights` its input x, (N, *pre_shape), and f'(W x), (N, *post_shape), one at the
            output; and the outputs, (N, n_out).
        """
        activation, pre, derivative = self.activation, [], []
        x = observation
        for layer, weight in zip(self.layers, self.weights, strict=True):
            pre.append(x.reshape(-1, *layer.pre_shape))
            z = layer.forward(weight.detach(), pre[-1])
            if layer is self.layers[-1]:
                break
            x = activation.function(z)
            derivative.append(activation.derivative(z, x))
        pre += [z.new_ones(len(z), 1)] * len(self.head.own_weights)
        derivative += [torch.ones_like(z)] * (len(pre) - len(derivative))
        return pre, derivative, z

    @torch.no_grad()
    def layer_errors(
        self, derivative: list[Tensor], scores: list[Tensor], feedback: Feedback | None = None
    ) -> list[Tensor]:
        """Return the error δ at the output of each of `synaptic_weights`.

        Args:
            derivative: f' of each layer, from `forward_layers`.
            scores: gradients with respect to the network's output, (N, n_out), and the distribution's own weights.
            feedback: route of credit; None for the actor's own. "backprop" gives the true derivatives.

        Returns:
            For each, (N, *its post_shape). Multiply by f' for the error at the pre-activation.
        """
        feedback = feedback or self.feedback
        output, *own = scores
        errors = [output]
        for number in reversed(range(len(self.layers) - 1)):
            layer, above = self.layers[number], self.layers[number + 1]
            if feedback == "dfa":
                error = matmul(output, self.get_buffer(f"feedback_{number}"))
            else:
                route = (
                    self.weights[number + 1] if feedback == "backprop" else self.get_buffer(f"feedback_{number}")
                )
                error = above.backproject(route.detach(), errors[-1] * derivative[number + 1])
            errors.append(error.reshape(-1, *layer.post_shape))
        return [*errors[::-1], *own]


def _orthogonal(shape: Sequence[int]) -> Tensor:
    return nn.init.orthogonal_(torch.empty(*shape), gain=2**0.5)


class NumpyForward:
    """Run the actor on numpy arrays that share its weights, at a third of torch's cost for a handful of rows."""

    def __init__(self, actor: Actor) -> None:
        self._weights = [weight.detach().numpy().T for weight in actor.weights]
        self._function = actor.activation.numpy_function

    def __call__(self, observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Compute the outputs: (N, n_in) to (N, n_out)."""
        x = observation
        for weight in self._weights[:-1]:
            x = self._function(x @ weight)
        logits: npt.NDArray[np.float32] = x @ self._weights[-1]
        return logits


class Critic(nn.Sequential):
    """Estimate state values by a multilayer perceptron with biases and ReLU; torch's default initialisation."""

    def __init__(self, n_in: int, hidden: Sequence[int] = (256, 256)) -> None:
        sizes = [n_in, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, observation: Tensor) -> Tensor:
        """Compute V(s): (..., n_in) to (...)."""
        values: Tensor = super().forward(observation)  # type: ignore[no-untyped-call]
        return values.squeeze(-1)


class ConvCritic(nn.Module):
    """Estimate state values of maps by three convolutions and two dense layers, all ReLU (paper, App. C).

    Torch's default initialisation.

    Args:
        shape: Shape of one observation, (channels, height, width).
        channels: Channels of the convolutions.
        hidden: Units of the dense layer.
    """

    def __init__(self, shape: Sequence[int], channels: Sequence[int] = CHANNELS, hidden: int = 512) -> None:
        super().__init__()
        self.shape = shape
        layers: list[nn.Module] = []
        for before, after in pairwise([shape[0], *channels]):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        flat = channels[-1] * shape[1] * shape[2]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, observation: Tensor) -> Tensor:
        """Compute V(s): (N, channels · height · width) to (N,)."""
        values: Tensor = self.layers(observation.view(-1, *self.shape))
        return values.squeeze(-1)
