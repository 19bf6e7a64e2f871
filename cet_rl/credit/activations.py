"""Activation functions and their derivatives, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """Hold an activation f, on tensors and on arrays, and its derivative."""

    function: Callable[[Tensor], Tensor]
    numpy_function: Callable[[Any], Any]
    derivative: Callable[[Tensor, Tensor], Tensor]  # f'(z), given z and f(z)
    times_derivative: Callable[[Tensor, Tensor], Tensor]  # f'(z) ⊙ signal, given the signal and f(z), in one pass
    binary: bool  # whether f' is 0 or 1 everywhere, so that f'² = f'


_aten = torch.ops.aten

ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        torch.relu,
        lambda z: np.maximum(z, 0),
        lambda z, y: y.sign(),  # of max(z, 0): one pass, where a comparison and a conversion are two
        lambda signal, y: _aten.threshold_backward(signal, y, 0),
        True,
    ),
    "identity": Activation(
        lambda z: z, lambda z: z, lambda z, y: torch.ones_like(z), lambda signal, y: signal, True
    ),
    "tanh": Activation(torch.tanh, np.tanh, lambda z, y: 1 - y * y, _aten.tanh_backward, False),
    "sigmoid": Activation(
        torch.sigmoid, lambda z: 1 / (1 + np.exp(-z)), lambda z, y: y * (1 - y), _aten.sigmoid_backward, False
    ),
}
