"""The networks of actor and critic. The actor also computes the signals that the synapses of each layer need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cet_rl.agents.config import ErrorAt, Feedback
from cet_rl.agents.distributions import Array, Distribution
from cet_rl.credit.activations import ACTIVATIONS, Activation
from cet_rl.credit.geometry import Convolution, Dense, Geometry, matmul
from cet_rl.runs.values import unknown

CHANNELS = (16, 32, 32)
"""Channels of the three convolutions of a network for maps (paper, App. C); kernels are 3 × 3, zero padding 1."""


def split_signs(observation: Tensor) -> Tensor:
    """Return positive and negative parts side by side: (..., n) to (..., 2n), non-negative (paper, App. C)."""
    return torch.cat([observation.clamp(min=0), (-observation).clamp(min=0)], dim=-1)


class Actor(nn.Module):
    """Map observations to the parameters of the policy's distribution, by layers without biases.

    The output layer is linear. Weights start orthogonal with gain √2 (paper, App. C).

    Args:
        shape: Shape of one observation as the network sees it: (n,), or (channels, height, width).
        head: The distribution over actions that the outputs parametrise.
        hidden: Width of each dense hidden layer.
        activation, feedback: See `NetworkConfig`.
        channels: Channels of the convolutions before the dense layers, for maps; if empty, maps are flattened.
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
        self.activation_name, self.feedback, self.head = activation, feedback, head
        layers: list[Geometry] = []
        for n_in, n_out in pairwise([shape[0], *channels]):
            layers.append(Convolution(n_in, n_out, 3, (shape[1], shape[2]), padding=1))
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
        """Return the hidden layers' activation. (Only its name is stored, so that the network can be pickled.)"""
        return ACTIVATIONS[self.activation_name]

    @property
    def synaptic_weights(self) -> list[nn.Parameter]:
        """Return all parameters: the layers' weights, input side first, then those of the distribution, (A, 1)."""
        return [*self.weights, *self.head.own_weights.values()]

    @property
    def geometries(self) -> list[Geometry]:
        """Return the geometry of each of `synaptic_weights`."""
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

    @property
    def acts_by_numpy(self) -> bool:
        """Tell whether `numpy_forward` needs no torch: all layers are dense and on a CPU."""
        return self.weights[0].is_cpu and all(isinstance(layer, Dense) for layer in self.layers)

    def numpy_forward(self) -> Callable[[Array], Array]:
        """Return the forward pass as a function of arrays, (N, n) to (N, n_out), that shares the weights.

        It is used for acting: with dense layers on a CPU and few rows it takes a third of torch's time.
        """
        weights, function = [weight.detach() for weight in self.weights], self.activation.numpy_function
        if not self.acts_by_numpy:
            inference = torch.no_grad()(self.forward)
            return lambda x: inference(torch.from_numpy(x).to(weights[0].device)).cpu().numpy()
        *hidden, last = [weight.numpy() for weight in weights]

        def forward(x: Array) -> Array:
            x = x.T  # samples as columns: the weights need no transposition, which is up to a third faster
            for weight in hidden:
                x = function(weight.dot(x))
            outputs: Array = last.dot(x).T
            return outputs

        return forward

    @torch.no_grad()
    def forward_layers(self, observation: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Compute inputs and derivatives of each layer, and the outputs, of observations (N, n), without a graph.

        The distribution's own parameters count as further layers, whose input is always one.

        Returns:
            For each of `synaptic_weights` its input x, (N, *pre_shape); for each its f'(W x), (N, *post_shape),
            which is one at the output; and the outputs, (N, n_out).
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
        self, derivative: list[Tensor], scores: list[Tensor], feedback: Feedback, error_at: ErrorAt
    ) -> list[Tensor]:
        """Return the error δ of each of `synaptic_weights`, (N, *post_shape).

        Args:
            derivative: f' of each layer, from `forward_layers`.
            scores: gradients with respect to the network's output, (N, n_out), and the distribution's own weights.
            feedback: route of credit; "backprop" gives the true derivatives.
            error_at: "activation" for δ with respect to a layer's output, "preactivation" for that times f'.
        """
        output, *of_head = scores
        inner, errors = output, [output]
        for number in reversed(range(len(self.layers) - 1)):
            layer, above = self.layers[number], self.layers[number + 1]
            backprop = feedback == "backprop"
            route = self.weights[number + 1] if backprop else self.get_buffer(f"feedback_{number}")
            error = matmul(output, route) if feedback == "dfa" else above.backproject(route.detach(), inner)
            error = error.reshape(-1, *layer.post_shape)
            at_output = error_at == "activation"
            inner = error * derivative[number] if at_output else error.mul_(derivative[number])
            errors.append(error if at_output else inner)
        return [*errors[::-1], *of_head]


def joint_forward(actors: Sequence[Actor]) -> Callable[[Array], Array]:
    """Return one forward pass of C actors of equal shape, (C · N, n) to (C · N, n_out), actor after actor.

    Dense weights on a CPU are copied, so that later updates do not show; others are shared, as in `numpy_forward`.
    """
    first, count = actors[0], len(actors)
    if count == 1:
        return first.numpy_forward()
    if not first.acts_by_numpy:
        each = [actor.numpy_forward() for actor in actors]
        return lambda x: np.concatenate([f(rows) for f, rows in zip(each, np.split(x, count), strict=True)])
    layers = zip(*(actor.weights for actor in actors), strict=True)
    *hidden, last = [torch.stack([weight.detach() for weight in layer]).numpy() for layer in layers]
    function = first.activation.numpy_function

    def forward(x: Array) -> Array:
        x = x.reshape(count, -1, x.shape[1]).swapaxes(1, 2)
        for weight in hidden:
            x = function(np.matmul(weight, x))
        outputs: Array = np.matmul(last, x).swapaxes(1, 2)
        return outputs.reshape(-1, outputs.shape[2])

    return forward


def _orthogonal(shape: Sequence[int]) -> Tensor:
    return nn.init.orthogonal_(torch.empty(*shape), gain=2**0.5)


class Critic(nn.Sequential):
    """Estimate state values by layers with biases and ReLU, initialised as torch does by default.

    Args:
        shape, hidden, channels: See `Actor`.
    """

    def __init__(
        self, shape: Sequence[int], hidden: Sequence[int] = (256, 256), channels: Sequence[int] = ()
    ) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise([shape[0], *channels]):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        if channels:
            layers.append(nn.Flatten())
        flat = channels[-1] * prod(shape[1:]) if channels else prod(shape)
        for before, after in pairwise([flat, *hidden]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear([flat, *hidden][-1], 1))
        self.shape = tuple(shape) if channels else (flat,)

    def forward(self, observation: Tensor) -> Tensor:
        """Compute V(s), shape (...), of observations (..., n), in which maps are flattened."""
        values: Tensor = super().forward(observation.reshape(-1, *self.shape))  # type: ignore[no-untyped-call]
        return values.view(observation.shape[:-1])

    @torch.no_grad()
    def forward_layers(self, observation: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute V(s), (N,), of observations (N, n), and the input of each layer for `backward`, without a graph.

        Dense products go to the fastest library (`cet_rl.credit.geometry.matmul`). A ReLU overwrites its input.
        """
        x, inputs = observation.reshape(-1, *self.shape), []
        for layer in self:
            inputs.append(x)
            if isinstance(layer, nn.Linear):
                x = matmul(x, layer.weight.T).add_(layer.bias)
            else:
                x = x.relu_() if isinstance(layer, nn.ReLU) else layer(x)
        return x.flatten(), inputs

    @torch.no_grad()
    def backward(self, inputs: list[Tensor], gradient: Tensor) -> None:
        """Set `.grad` of each parameter that requires one, from ∂ loss / ∂ V, (N,), and the layers' `inputs`."""
        error = gradient[:, None]
        for number, (layer, x) in reversed(list(enumerate(zip(self, inputs, strict=True)))):
            if isinstance(layer, nn.ReLU):
                error = ACTIVATIONS["relu"].times_derivative(error, x)
            elif isinstance(layer, nn.Flatten):
                error = error.view(x.shape)
            else:
                error, *gradients = _gradients(layer, x, error, number > 0)
                for parameter, gradient in zip((layer.weight, layer.bias), gradients, strict=True):
                    parameter.grad = gradient if parameter.requires_grad else None


def _gradients(layer: nn.Module, x: Tensor, error: Tensor, to_input: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a layer's input x (meaningless unless `to_input`), weight and bias."""
    if isinstance(layer, nn.Linear):
        down = error
        if to_input:  # for one output, an outer product takes a tenth of the time of a matrix product
            down = error * layer.weight if layer.out_features == 1 else matmul(error, layer.weight)
        return down, matmul(error.T, x), error.sum(0)
    assert isinstance(layer, nn.Conv2d)
    where = [layer.out_channels], layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups
    wanted = [to_input, True, True]
    return torch.ops.aten.convolution_backward(error, x, layer.weight, *where, wanted)  # type: ignore[no-any-return]
