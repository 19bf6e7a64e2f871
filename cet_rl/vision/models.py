"""Build plain networks for images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn


def mlp(
    in_shape: Sequence[int],
    classes: int,
    hidden: Sequence[int] = (512, 512),
    *,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build a multilayer perceptron: Flatten, (Linear, ReLU) for each hidden layer, Linear.

    Args:
        in_shape: shape of one image, (C, H, W).
        classes: number of outputs, at least 2.
        hidden: units of each hidden layer, the input side first; may be empty.
        generator: draws the parameters, Xavier-uniform; None for torch's global one.

    Returns:
        A network from (B, C, H, W) to logits (B, classes).

    Raises:
        ValueError: if a size is not positive.
    """
    _check(in_shape, classes, hidden)
    sizes = (math.prod(in_shape), *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in zip(sizes, hidden, strict=False):
        layers += [_linear(n_in, n_out, generator), nn.ReLU()]
    return nn.Sequential(*layers, _linear(sizes[-1], classes, generator))


def cnn(
    in_shape: Sequence[int],
    classes: int,
    channels: Sequence[int] = (32, 64, 128),
    hidden: int = 512,
    *,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build the paper's convolutional network.

    For each entry of `channels` a stage of Conv2d 3×3 (padding 1), ReLU, AvgPool2d(2) and
    BatchNorm2d(affine=False), which halves height and width; then Flatten, Linear, ReLU, Linear.

    Args:
        in_shape: as for `mlp`.
        classes: as for `mlp`.
        channels: output channels of each stage, the input side first.
        hidden: units of the dense layer.
        generator: as for `mlp`.

    Raises:
        ValueError: if a size is not positive, or nothing of the image is left after the last stage.
    """
    _check(in_shape, classes, (*channels, hidden))
    n_in, height, width = in_shape
    smallest = 2 ** len(channels)
    if min(height, width) < smallest:
        raise ValueError(
            f"images of {height}×{width} pixels are too small for {len(channels)} stages that halve them: "
            f"at least {smallest}×{smallest} are needed; use fewer channels=… or the mlp"
        )
    layers: list[nn.Module] = []
    for n_out in channels:
        layers += [_made(nn.Conv2d(n_in, n_out, kernel_size=3, padding=1, device="meta"), generator), nn.ReLU()]
        layers += [nn.AvgPool2d(2), nn.BatchNorm2d(n_out, affine=False)]
        n_in, height, width = n_out, height // 2, width // 2
    layers += [nn.Flatten(), _linear(n_in * height * width, hidden, generator), nn.ReLU()]
    return nn.Sequential(*layers, _linear(hidden, classes, generator))


MODELS: dict[str, Callable[..., nn.Sequential]] = {"mlp": mlp, "cnn": cnn}
"""Networks by name: each takes in_shape, classes, its own sizes and a generator."""


def _linear(n_in: int, n_out: int, generator: torch.Generator | None) -> nn.Module:
    return _made(nn.Linear(n_in, n_out, device="meta"), generator)


@torch.no_grad()
def _made(layer: nn.Linear | nn.Conv2d, generator: torch.Generator | None) -> nn.Module:
    """Return a "meta" layer on the CPU, with parameters drawn as in the authors' code.

    Weights are Xavier-uniform. Biases too, as matrices of shape (1, outputs): uniform in ±√(6 / (1 + outputs)).
    A layer made on the CPU at once would draw from the global generator.
    """
    layer = layer.to_empty(device="cpu")
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    if layer.bias is not None:
        nn.init.xavier_uniform_(layer.bias.unsqueeze(0), generator=generator)
    return layer


def _check(in_shape: Sequence[int], classes: int, widths: Sequence[int]) -> None:
    if len(in_shape) != 3 or min(in_shape) < 1:
        raise ValueError(f"in_shape must be (channels, height, width), all at least 1, got {tuple(in_shape)}")
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}")
    if any(width < 1 for width in widths):
        raise ValueError(f"every layer needs at least one unit or channel, got {tuple(widths)}")
