"""Export an agent's policy as a plain torch module, or as a file that needs no cet-rl: torch.export or ONNX."""

from __future__ import annotations

import logging
import warnings
from typing import IO, Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from cet_rl.agents.networks import split_signs
from cet_rl.agents.policy import CETPolicy
from cet_rl.credit.geometry import Convolution

TORCH_ACTIVATIONS = {kind.__name__.lower(): kind for kind in (nn.ReLU, nn.Identity, nn.Tanh, nn.Sigmoid)}
"""Torch's module of each activation in `cet_rl.credit.activations`, by name."""


class TorchPolicy(nn.Module):
    """Map observations to deterministic actions by torch's own layers, with copies of an actor's weights.

    Observations are those of the environment, images with their channels first, or those of `VecNormalize` if the
    agent was trained with it: the module scales images and splits signs as the policy does. Actions equal those of
    `model.predict(observation, deterministic=True)`.

    Attributes:
        network: layers without biases, from features of shape `inputs` to the logits.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: CETPolicy) -> None:
        super().__init__()
        actor, space = policy.actor, policy.action_space
        layers: list[nn.Module] = []
        for geometry, weight in zip(actor.layers, actor.weights, strict=True):
            layer: nn.Module
            if isinstance(geometry, Convolution):
                channels = geometry.in_channels, geometry.out_channels
                layer = nn.Conv2d(*channels, geometry.kernel_size, padding=geometry.padding, bias=False)
            else:
                layer = nn.Linear(geometry.n_pre, geometry.n_post, bias=False)
            layer.weight = nn.Parameter(weight.detach().cpu().clone())
            maps = not isinstance(geometry, Convolution) and len(layers) > 0 and isinstance(layers[-2], nn.Conv2d)
            layers += [*[nn.Flatten()] * maps, layer, TORCH_ACTIVATIONS[actor.activation_name]()]
        self.network = nn.Sequential(*layers[:-1])
        self.inputs, self.scale, self.splits = actor.layers[0].pre_shape, policy.scale, policy.splits
        self.shape = policy.observation_space.shape or ()
        self.first_action = int(space.start) if isinstance(space, spaces.Discrete) else None
        bounds = (space.low, space.high) if isinstance(space, spaces.Box) else ((), ())
        for name, bound in zip(("low", "high"), bounds, strict=True):
            self.register_buffer(name, torch.as_tensor(bound, dtype=torch.float32))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions and logits for observations (N, *shape).

        With A discrete actions their shapes are (N,) and (N, A). With A real ones, (N, A) both, the actions are
        the means clipped to the action space, and the logits are the means. Raises ValueError for other shapes.
        """
        if observation.shape[1:] != self.shape:
            wanted = f"(N, {', '.join(map(str, self.shape))}){', channels first' * (len(self.shape) == 3)}"
            raise ValueError(f"observations must be {wanted}, got {tuple(observation.shape)}")
        flat = observation.to(torch.float32).flatten(1) * self.scale
        features = split_signs(flat) if self.splits else flat
        logits: Tensor = self.network(features.reshape(-1, *self.inputs))
        if self.first_action is None:
            return logits.clamp(self.low, self.high), logits
        return logits.argmax(-1) + self.first_action, logits


def write_policy(module: TorchPolicy, space: spaces.Space[Any], file: IO[bytes], form: str) -> None:
    """Write a policy to a file of the form "torch", an archive of torch.export, or "onnx".

    The graph takes `observation`, (N, *shape) with any N, and returns `action` and `logits`. Read an archive by
    `torch.export.load(file).module()`; ONNX needs the extra `onnx`.
    """
    assert isinstance(space, spaces.Box)
    example = (torch.as_tensor(space.low).expand(2, *space.shape).contiguous(),)
    if form == "torch":
        shapes: Any = {"observation": {0: torch.export.Dim("N")}}
        torch.export.save(torch.export.export(module.eval(), example, dynamic_shapes=shapes), file)
        return
    names: Any = {"input_names": ["observation"], "output_names": ["action", "logits"]}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised within torch
        shapes = {"observation": {0: "N"}}
        program = torch.onnx.export(module.eval(), example, dynamic_shapes=shapes, verbose=False, **names)
    assert program is not None
    file.write(program.model_proto.SerializeToString())
