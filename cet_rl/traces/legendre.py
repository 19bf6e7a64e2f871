"""Make the Legendre delay network (Voelker, Kajić & Eliasmith 2019) a synaptic trace with the sharpest readout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # whose parts are loaded on first use: they take half a second

from cet_rl.traces.base import FloatArray, OrderedTrace, Transition
from cet_rl.traces.sharp import sharpest

RIDGE = 1e-9
"""Added to the Gramian's diagonal, relative to its mean: trades sharpness for a readout of bounded size."""


def legendre_transition(order: int, window: float) -> tuple[FloatArray, FloatArray]:
    """Return one step of a Legendre delay network (Voelker, Kajić & Eliasmith 2019), the input held over the step.

    θ ẋ = A x + B h with A_ij = (2i+1) (-1 if i < j else (-1)^{i-j+1}), B_i = (2i+1) (-1)^i, for n = `order`
    polynomials and a window θ in steps. M has shape (n, n), and K (n,).
    """
    i, j = np.indices((order, order))
    A = (2 * i + 1) * np.where(i < j, -1.0, (-1.0) ** (i - j + 1)) / window
    B = (2 * np.arange(order) + 1) * (-1.0) ** np.arange(order) / window
    M: FloatArray = scipy.linalg.expm(A)
    K: FloatArray = scipy.linalg.solve(A, (M - np.eye(order)) @ B)
    return M, K


def sharpest_readout(M: FloatArray, K: FloatArray, delay_steps: int) -> tuple[FloatArray, float]:
    """Return the readout C, shape (n,), with the largest share F of (ridged) energy at `delay_steps`; and F.

    See `cet_rl.traces.sharp`; the Gramian solves the discrete Lyapunov equation G = M G Mᵀ + K Kᵀ.
    """
    gramian: FloatArray = scipy.linalg.solve_discrete_lyapunov(M, np.outer(K, K))
    gramian += RIDGE * np.trace(gramian) / len(K) * np.eye(len(K))
    at_delay = np.linalg.matrix_power(M, delay_steps) @ K
    readout: FloatArray = scipy.linalg.solve(gramian, at_delay, assume_a="pos")
    return readout, float(at_delay @ readout)


@dataclass(frozen=True)
class Legendre(OrderedTrace):
    """Remember with the states of a Legendre delay network, of which the sharpest weighted sum is read.

    The window is that of the sharpest kernel: for long delays about 1.08 D at order 10. The order is at least 2.
    """

    @property
    def window(self) -> float:
        """Return θ, in steps."""
        return _best_window(self.order, self.delay_steps)

    def transition(self) -> Transition:
        """Return (M, K, C) with the sharpest readout, normalised."""
        M, K = legendre_transition(self.order, self.window)
        return Transition(M, K, sharpest_readout(M, K, self.delay_steps)[0])


@lru_cache(maxsize=256)
def _best_window(order: int, delay_steps: int) -> float:
    def share(window: float) -> float:
        return sharpest_readout(*legendre_transition(order, window), delay_steps)[1]

    return sharpest(share, delay_steps / 3, delay_steps * 5, points=33)
