"""The constants an executor needs of a trace, computed once in float64 and kept in the layer's type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cet_rl.credit.correlation import Correlation, correlation_matrix
from cet_rl.credit.geometry import Geometry
from cet_rl.traces.base import FloatArray, Trace, Transition

CHUNK_LENGTHS_KEPT = 4


@dataclass(frozen=True)
class ChunkConstants:
    """The closed form of T steps (see `cet_rl.credit.chunk`).

    Attributes:
        gains: what an error is worth, side by side since one product takes both: g_{u-s} at [u, s], zero for
            u < s, to the events of the chunk, and q_u = C M^{u+1} to the states before it; shape (T, T + n).
        absorb: (M^{T-1-s} K)_k at [k, s], shape (n, T).
        carry: M^T, shape (n, n).
    """

    gains: Tensor
    absorb: Tensor
    carry: Tensor


def visible_support(trace: Trace, dtype: torch.dtype) -> tuple[int, int]:
    """Lags [first, last) outside of which a kernel holds less of its area than rounding takes from a sum over it.

    That is about √L eps of `dtype` for L lags, and eps where sums are kept in a wider type. In float32 what is
    left is half of the support in float64, and so of what a factored past costs.
    """
    first, last = trace.support
    magnitude = trace.kernel(last).abs().numpy()
    roundings = 1.0 if dtype.itemsize < torch.float32.itemsize else np.sqrt(len(magnitude))
    outside = roundings * torch.finfo(dtype).eps * magnitude.sum()
    begin = int(np.searchsorted(np.cumsum(magnitude), outside, side="right"))
    end = last - int(np.searchsorted(np.cumsum(magnitude[::-1]), outside, side="right"))
    return max(first, begin), min(last, end)


def forget_oldest(cache: dict[Any, Any]) -> None:
    """Make room in a cache: a loop whose chunks have ever new lengths would collect a T × T matrix for each."""
    if len(cache) >= CHUNK_LENGTHS_KEPT:
        del cache[next(iter(cache))]


@dataclass
class StateConstants:
    """(M, K, C) of a trace with states, and the closed forms derived from it, one for each chunk length met."""

    transition: Transition
    dtype: torch.dtype
    device: torch.device
    _chunks: dict[int, ChunkConstants] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.M = self._tensor(self.transition.M)
        self.K = self._tensor(self.transition.K)
        self.C = self._tensor(self.transition.C)
        self.couplings = int(np.count_nonzero(self.transition.M))

    def _tensor(self, array: FloatArray) -> Tensor:
        return torch.from_numpy(array.copy()).to(self.device, self.dtype)

    def chunk(self, steps: int) -> ChunkConstants:
        """The closed form of `steps` steps."""
        if steps not in self._chunks:
            M, K, C = self.transition.M, self.transition.K, self.transition.C
            responses = np.empty((steps, len(K)))  # M^ℓ K
            readout = np.empty((steps, len(K)))  # C M^{ℓ+1}
            power, response, read = np.eye(len(K)), K, C
            for lag in range(steps):
                read = read @ M
                responses[lag], readout[lag] = response, read
                power, response = power @ M, M @ response
            forget_oldest(self._chunks)
            toeplitz = correlation_matrix(responses @ C, steps, steps, 0)
            self._chunks[steps] = ChunkConstants(
                gains=self._tensor(np.concatenate([toeplitz.T, readout], 1)),
                absorb=self._tensor(responses[::-1].T),
                carry=self._tensor(power),
            )
        return self._chunks[steps]


@dataclass
class HistoryConstants:
    """The kernel of a trace over its support, its correlation matrix per chunk length, and the layer's geometry.

    Attributes:
        support: lags [first, last); the layer delays (f', x) by the first before anything else.
        geometry: how the layer sums its outer products.
        past: L = last - first - 1, how many earlier steps still matter.
    """

    trace: Trace
    dtype: torch.dtype
    device: torch.device
    support: tuple[int, int]
    geometry: Geometry
    _correlations: dict[int, Correlation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first, last = self.support
        self.past = last - first - 1
        self._kernel = self.trace.kernel(last)[first:].numpy()
        self.kernel = torch.from_numpy(self._kernel).to(self.device, self.dtype)

    def correlation(self, steps: int) -> Correlation:
        """g_{first+u-s} at [s, u], s = -L … steps - 1; shape (L + steps, steps)."""
        if steps not in self._correlations:
            forget_oldest(self._correlations)
            matrix = correlation_matrix(self._kernel, self.past + steps, steps, self.past)
            self._correlations[steps] = Correlation(matrix, self.dtype, self.device)
        return self._correlations[steps]
