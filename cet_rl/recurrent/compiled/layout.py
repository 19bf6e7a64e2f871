"""How a tensor of the definition lies in the compiled loop: permuted, with three axes, rings as they stand.

A layout is two words, a letter an axis: "bnm" kept as "b m n" is a tensor of shape (B, n, m) whose units come last
in the loop. Letters written together are one axis there; where there are fewer than three, the first have length
one. The letters are

    b  sequences     n, u  units     m  r̂     o  outputs     e  [r; 1]     q  [r; y*; 1]
    t  window        d  delay        l  steps of a delay line              s  states of a trace

In the definition the steps along t, d and l are those past, oldest first. The loop does not move them: step
`offset` of a run takes the place of the oldest, offset modulo the length.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cet_rl.recurrent.compiled.jit import Array

_RINGS = "tdl"


class Slot(NamedTuple):
    """A state's place in a kernel's tuple.

    Attributes:
        name: in the definition's state.
        axes: of the definition's tensor.
        kept: of the loop's array.
    """

    name: str
    axes: str
    kept: str

    def pack(self, tensor: Tensor, sizes: Mapping[str, int]) -> Array:
        """A copy with three axes, C-contiguous.

        Args:
            tensor: of the definition.
            sizes: of the axes, by letter.

        Raises:
            ValueError: if the tensor has another shape; the compiled loop would not notice.
        """
        shape = tuple(sizes[axis] for axis in self.axes)
        if tensor.shape != shape:
            raise ValueError(f"{self.name} in the memory must have the shape {shape}, got {tuple(tensor.shape)}")
        array = np.array(tensor.detach().numpy().transpose(self._order), order="C")
        lengths = [prod(sizes[axis] for axis in merged) for merged in self.kept.split()]
        return array.reshape([1] * (3 - len(lengths)) + lengths)

    def unpack(self, array: Array, sizes: Mapping[str, int], steps: int) -> Tensor:
        """The definition's tensor after `steps` steps; it may share memory with the array."""
        kept = [self.axes[place] for place in self._order]
        array = array.reshape([sizes[axis] for axis in kept])
        for place, axis in enumerate(kept):
            if axis in _RINGS and sizes[axis]:
                array = np.roll(array, -(steps % sizes[axis]), place)
        return torch.from_numpy(np.ascontiguousarray(array.transpose(np.argsort(self._order))))

    @property
    def _order(self) -> list[int]:
        return [self.axes.index(axis) for axis in self.kept.replace(" ", "")]
