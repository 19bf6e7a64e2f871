"""The Legendre delay network (Voelker, Kajić & Eliasmith 2019) as a synaptic trace, with the sharpest readout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # whose parts are loaded on first use: they take half a second

from cet_rl.traces.base import FloatArray, Transition
from cet_rl.traces.sharp import SharpReadout, sharpest_transition


def legendre_transition(order: int, window: float) -> tuple[FloatArray, FloatArray]:
    """Return one step of a Legendre delay network (Voelker, Kajić & Eliasmith 2019), the input held over the step.

    θ ẋ = A x + B h with A_ij = (2i+1) (-1 if i < j else (-1)^{i-j+1}), B_i = (2i+1) (-1)^i.

    Args:
        order: n, the number of Legendre polynomials.
        window: θ in steps.

    Returns:
        M, shape (n, n), and K, shape (n,).
    """
    i, j = np.indices((order, order))
    A = (2 * i + 1) * np.where(i < j, -1.0, (-1.0) ** (i - j + 1)) / window
    B = (2 * np.arange(order) + 1) * (-1.0) ** np.arange(order) / window
    M: FloatArray = scipy.linalg.expm(A)
    K: FloatArray = scipy.linalg.solve(A, (M - np.eye(order)) @ B)
    return M, K


@dataclass(frozen=True)
class Legendre(SharpReadout):
    """Remember with the states of a Legendre delay network in the place of the cascade, read as `SharpCET` is.

    The window is the one that remembers best: about 1.09 D at order 10.

    Attributes:
        order: n ≥ 2.
        delay_steps: D ≥ 1.
        normalization: see `Trace`.
    """

    @property
    def window(self) -> float:
        """θ, in steps."""
        return _sharp_legendre(self.order, self.delay_steps)[0]

    def _unscaled(self) -> Transition:
        return _sharp_legendre(self.order, self.delay_steps)[1]


@lru_cache(maxsize=256)
def _sharp_legendre(order: int, delay_steps: int) -> tuple[float, Transition]:
    return sharpest_transition(
        lambda window: legendre_transition(order, window), delay_steps, delay_steps / 3, delay_steps * 5
    )
