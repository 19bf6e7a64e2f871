"""Credit due to past events: a correlation of the kernel with the errors, as a product over time.

An error that arrives at u is worth g_{u-s} to what happened at s, so all errors of a chunk together are worth

    p_s = f'_s ⊙ Σ_u g_{u-s} δ_u

to it. The matrix of g is Toeplitz and a band: nothing that happens after u is due any of it, and kernels forget.
Half or more of a careless product would be with zeros, and on feature maps that costs as much as a convolution.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cet_rl.traces.base import FloatArray

Times = npt.NDArray[np.int64]

_ROWS = 64
"""Events taken at once on a CPU: few enough to skip most zeros, enough to keep the product's kernels busy."""

_WORTH_BLOCKS = 1 << 22
"""Multiply-adds below which one product with the zeros is faster than several without."""


def correlation_matrix(kernel: FloatArray, rows: int, columns: int, shift: int) -> FloatArray:
    """g_{u + shift - s} at [s, u] for s = 0 … rows - 1 and u = 0 … columns - 1; zero outside the kernel."""
    return event_matrix(kernel, np.arange(rows), np.arange(columns) + shift)


def event_matrix(kernel: FloatArray, happened: Times, arrives: Times) -> FloatArray:
    """g at [a, b] of the time from event a to the arrival of error b; zero outside the kernel.

    Args:
        kernel: g_0, g_1, …
        happened: times of events, in steps, shape (A,).
        arrives: times at which errors reach the layer, shape (B,).
    """
    lag = arrives[None, :] - happened[:, None]
    return np.where((lag >= 0) & (lag < len(kernel)), kernel[np.clip(lag, 0, len(kernel) - 1)], 0.0)


class Correlation:
    """A matrix of kernel values that knows where its band is.

    Args:
        matrix: g at [event, error], shape (S, U).
        dtype: of the signals.
        device: of the signals.
    """

    def __init__(self, matrix: FloatArray, dtype: torch.dtype, device: torch.device) -> None:
        self.matrix = torch.from_numpy(np.ascontiguousarray(matrix)).to(device, dtype)
        band = matrix != 0
        filled = band.any(1)
        self._first = np.where(filled, band.argmax(1), band.shape[1])
        self._last = np.where(filled, band.shape[1] - band[:, ::-1].argmax(1), 0)
        self._blocks: dict[tuple[int, int], list[tuple[int, int, int, Tensor]]] = {}

    def __call__(self, errors: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Σ_u g_{u-s} δ_u for the events s from `first` up to `last`: (U, F) to (S, F)."""
        last = len(self.matrix) if last is None else min(last, len(self.matrix))
        work = (last - first) * errors.numel()
        if errors.device.type != "cpu" or work < _WORTH_BLOCKS:
            return self.matrix[first:last] @ errors
        due = errors.new_empty(last - first, errors.shape[1])
        for begin, end, column, block in self._band(first, last):
            if block.numel():
                torch.mm(block, errors[column : column + block.shape[1]], out=due[begin - first : end - first])
            else:
                due[begin - first : end - first] = 0
        return due

    def _band(self, first: int, last: int) -> list[tuple[int, int, int, Tensor]]:
        """(first row, last row, first column, values) of blocks that hold all of some rows that is not zero."""
        if (first, last) not in self._blocks:
            blocks = []
            for begin in range(first, last, _ROWS):
                end = min(begin + _ROWS, last)
                left, right = int(self._first[begin:end].min()), int(self._last[begin:end].max())
                blocks.append((begin, end, left, self.matrix[begin:end, left : max(left, right)].contiguous()))
            self._blocks[first, last] = blocks
        return self._blocks[first, last]
