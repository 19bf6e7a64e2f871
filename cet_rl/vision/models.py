"""Build plain networks for images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def image_network(
    in_shape: Sequence[int],
    classes: int,
    channels: Sequence[int] = (),
    hidden: Sequence[int] = (512, 512),
    *,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build a perceptron, or with `channels` the paper's CNN: from images (B, C, H, W) to logits (B, classes).

    For each entry of `channels` a stage of Conv2d 3×3 (padding 1), ReLU, AvgPool2d(2) and
    BatchNorm2d(affine=False), which halves height and width; then Flatten, (Linear, ReLU) for each entry of
    `hidden`, and Linear. Parameters are drawn as in the authors' code: weights Xavier-uniform, and biases, too, as
    matrices of shape (1, outputs), which is uniform in ±√(6 / (1 + outputs)).

    The shape of an image is (C, H, W), and sizes of layers begin at the input side. Without a generator torch's
    global one draws the parameters. If nothing of the image is left after the last stage, that is a ValueError.
    """
    planes, height, width = in_shape
    smallest = 2 ** len(channels)
    if min(height, width) < smallest:
        raise ValueError(
            f"images of {height}×{width} pixels are too small for {len(channels)} stages that halve them: "
            f"at least {smallest}×{smallest} are needed; use fewer channels=… or the mlp"
        )

    def drawn(layer: nn.Linear | nn.Conv2d) -> nn.Module:
        layer = layer.to_empty(device="cpu")
        with torch.no_grad():
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.xavier_uniform_(layer.get_parameter("bias").unsqueeze(0), generator=generator)
        return layer

    # Layers are made without memory, because torch would draw from its global generator.
    layers: list[nn.Module] = []
    for n_out in channels:
        layers += [drawn(nn.Conv2d(planes, n_out, kernel_size=3, padding=1, device="meta")), nn.ReLU()]
        layers += [nn.AvgPool2d(2), nn.BatchNorm2d(n_out, affine=False)]
        planes = n_out
    layers.append(nn.Flatten())
    sizes = (planes * (height // smallest) * (width // smallest), *hidden)
    for n_in, n_out in zip(sizes, hidden, strict=False):
        layers += [drawn(nn.Linear(n_in, n_out, device="meta")), nn.ReLU()]
    return nn.Sequential(*layers, drawn(nn.Linear(sizes[-1], classes, device="meta")))
