"""The actor, whose every layer shows what its synapses need to know, and the critic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from cet_rl.agents.distributions import Distribution
from cet_rl.credit.activations import ACTIVATIONS
from cet_rl.credit.blas import matmul
from cet_rl.credit.geometry import Convolution, Dense, Geometry
from cet_rl.runs.values import unknown

Feedback = Literal["backprop", "fa", "dfa"]
"""How credit reaches a hidden layer: "backprop" through the transposed forward weights (weight transport), "fa"
through fixed random matrices from layer to layer (feedback alignment, Lillicrap et al. 2016), "dfa" through fixed
random matrices straight from the output (direct feedback alignment, Nøkland 2016)."""


def split_signs(observation: Tensor) -> Tensor:
    """Positive and negative parts side by side: (..., n) to (..., 2n), all non-negative (paper, App. C)."""
    return torch.cat([observation.clamp(min=0), (-observation).clamp(min=0)], dim=-1)


CHANNELS = (16, 32, 32)
"""Of the three convolutions of a network that looks at maps (paper, App. C); kernels are 3 × 3, zero padding 1."""


@dataclass
class Activity:
    """What a forward pass of N samples leaves at each layer, input side first.

    What the distribution over actions has of its own follows as layers with a constant input of one.

    Attributes:
        pre: x, each (N, *pre_shape).
        derivative: f'(W x), each (N, *post_shape); ones at the output.
        output: of the last layer, (N, n_out).
    """

    pre: list[Tensor]
    derivative: list[Tensor]
    output: Tensor


class Actor(nn.Module):
    """Layers without biases, orthogonally initialised with gain √2 (paper's RL actor); linear output.

    Args:
        shape: of one observation as the network sees it: (n,), or (channels, height, width).
        head: what the outputs mean.
        hidden: width of each dense hidden layer.
        activation: of the hidden layers, a key of `ACTIVATIONS`.
        feedback: how credit reaches hidden layers, see `Feedback`.
        channels: of convolutions before the dense layers, which need maps to look at; empty for none: maps are
            flattened.
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
        self.activation, self.feedback, self.head = ACTIVATIONS[activation], feedback, head
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
    def synaptic_weights(self) -> list[nn.Parameter]:
        """All parameters: the layers' weights, input side first, then the distribution's own, (A, 1) each."""
        return [*self.weights, *self.head.own_weights.values()]

    @property
    def geometries(self) -> list[Geometry]:
        """Of each of `synaptic_weights`."""
        return [*self.layers, *[Dense(1, self.head.num_outputs)] * len(self.head.own_weights)]

    def forward(self, observation: Tensor) -> Tensor:
        """(..., n) to (..., n_out), differentiable."""
        x = observation.reshape(-1, *self.layers[0].pre_shape)
        for layer, weight in zip(self.layers, self.weights, strict=True):
            if isinstance(layer, Convolution):
                z = functional.conv2d(x, weight, padding=layer.padding)
            else:
                z = x.flatten(1) @ weight.T
            x = z if layer is self.layers[-1] else self.activation.function(z)
        return x.view(*observation.shape[:-1], -1)

    def numpy_forward(self) -> NumpyForward | None:
        """The same function on numpy arrays, for acting on a CPU (`NumpyForward`); None with convolutions."""
        return NumpyForward(self) if all(isinstance(layer, Dense) for layer in self.layers) else None

    @torch.no_grad()
    def activity(self, observation: Tensor) -> Activity:
        """The forward pass with everything the synapses need; (N, n), no graph."""
        pre, derivative = [], []
        x = observation
        for layer, weight in zip(self.layers, self.weights, strict=True):
            pre.append(x.reshape(-1, *layer.pre_shape))
            z = layer.drive(weight.detach(), pre[-1])
            if layer is self.layers[-1]:
                break
            x = self.activation.function(z)
            derivative.append(self.activation.derivative(z, x))
        pre += [z.new_ones(len(z), 1)] * len(self.head.own_weights)
        derivative += [torch.ones_like(z)] * (len(pre) - len(derivative))
        return Activity(pre, derivative, z)

    @torch.no_grad()
    def assign(
        self, activity: Activity, gradients: list[Tensor], feedback: Feedback | None = None
    ) -> list[Tensor]:
        """The error of each of `synaptic_weights`, with respect to what it gives out.

        Args:
            activity: of the N samples.
            gradients: with respect to the network's output, (N, n_out), and to the distribution's own weights.
            feedback: the route; None for the actor's own. "backprop" gives the true derivatives.

        Returns:
            For each, (N, *its post_shape). With respect to pre-activations: times f'.
        """
        feedback = feedback or self.feedback
        output, *own = gradients
        errors = [output]
        for number in reversed(range(len(self.layers) - 1)):
            layer, above = self.layers[number], self.layers[number + 1]
            if feedback == "dfa":
                error = matmul(output, self.get_buffer(f"feedback_{number}"))
            else:
                route = (
                    self.weights[number + 1] if feedback == "backprop" else self.get_buffer(f"feedback_{number}")
                )
                error = above.pull(route.detach(), errors[-1] * activity.derivative[number + 1])
            errors.append(error.reshape(-1, *layer.post_shape))
        return [*errors[::-1], *own]


def _orthogonal(shape: Sequence[int]) -> Tensor:
    return nn.init.orthogonal_(torch.empty(*shape), gain=2**0.5)


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


class ConvCritic(nn.Module):
    """State values of maps: three convolutions and two dense layers, all ReLU (paper, App. C).

    Torch's default initialisation.

    Args:
        shape: of one observation, (channels, height, width).
        channels: of the convolutions.
        hidden: units of the dense layer.
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
        """(N, channels · height · width) to (N,)."""
        values: Tensor = self.layers(observation.view(-1, *self.shape))
        return values.squeeze(-1)
