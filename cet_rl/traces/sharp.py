"""Our own traces: given n states a synapse, the readout that remembers the delay most sharply.

For white input, the useful part of a kernel is the share of its energy that lies at the delay,

    F = g_D² / Σ_ℓ g_ℓ² = (C·b)² / (Cᵀ G C),     b = M^D K,     G = Σ_ℓ M^ℓ K Kᵀ (Mᵀ)^ℓ,

G being the Gramian, the solution of the discrete Lyapunov equation G = M G Mᵀ + K Kᵀ. The quotient is largest
for C = G⁻¹ b, where F = bᵀ C. One scalar is left, the speed of the dynamics; a search finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # whose parts are loaded on first use: they take half a second

from cet_rl.traces.base import FloatArray, Normalization, Trace, Transition, check_delay_steps, check_order
from cet_rl.traces.cascade import cascade_transition

RIDGE = 1e-9
"""Added to the Gramian's diagonal, relative to its mean: trades sharpness for a readout of bounded size."""

Dynamics = Callable[[float], tuple[FloatArray, FloatArray]]


def ridged_gramian(M: FloatArray, K: FloatArray) -> FloatArray:
    """Return G of the module's formula, shape (n, n), plus `RIDGE` times its mean diagonal entry."""
    gramian: FloatArray = scipy.linalg.solve_discrete_lyapunov(M, np.outer(K, K))
    gramian += RIDGE * np.trace(gramian) / len(K) * np.eye(len(K))
    return gramian


def sharpest_readout(M: FloatArray, K: FloatArray, delay_steps: int) -> tuple[FloatArray, float]:
    """Return the readout C, shape (n,), with the largest share F of (ridged) energy at `delay_steps`; and F."""
    at_delay = np.linalg.matrix_power(M, delay_steps) @ K
    readout: FloatArray = scipy.linalg.solve(ridged_gramian(M, K), at_delay, assume_a="pos")
    return readout, float(at_delay @ readout)


def sharpest_speed(dynamics: Dynamics, delay_steps: int, low: float, high: float) -> float:
    """Find the argument in [low, high] whose dynamics remember best: a coarse grid, then a bounded search."""

    def loss(log_speed: float) -> float:
        return -sharpest_readout(*dynamics(float(np.exp(log_speed))), delay_steps)[1]

    grid = np.linspace(np.log(low), np.log(high), 33)
    best = int(np.argmin([loss(point) for point in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


@dataclass(frozen=True)
class SharpReadout(Trace):
    """Share everything but the dynamics between the two kinds."""

    order: int
    delay_steps: int
    normalization: Normalization = "area"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order, type(self).__name__)
        check_delay_steps(self.delay_steps, type(self).__name__)

    @property
    def states(self) -> int:
        """Return n."""
        return self.order

    def _unscaled(self) -> Transition:
        raise NotImplementedError

    def _unscaled_kernel(self, length: int) -> FloatArray:
        return self._unscaled().kernel(length)

    def transition(self) -> Transition:
        """Return (M, K, C) with the sharpest readout, normalised."""
        unscaled = self._unscaled()
        return Transition(unscaled.M, unscaled.K, unscaled.C / self.scale)


@dataclass(frozen=True)
class SharpCET(SharpReadout):
    """Remember with the cascade of `CET`, but read a weighted sum of all its stages instead of the last.

    The rate is the one that remembers best: about 1.24 (n-1)/D at order 10. The kernel has negative lobes and
    peaks near the delay, not always at it. In float32 the output's relative error stays below 1e-2 at
    order 10 (1e-3 for the other kinds), since the readout weights reach 1e3.

    Attributes:
        order: n ≥ 2.
        delay_steps: D ≥ 1.
        normalization: see `Trace`.
    """

    @property
    def rate(self) -> float:
        """Return a = αΔt, per step."""
        return _sharp_cascade(self.order, self.delay_steps)[0]

    def _unscaled(self) -> Transition:
        return _sharp_cascade(self.order, self.delay_steps)[1]


def sharpest_transition(dynamics: Dynamics, delay_steps: int, low: float, high: float) -> tuple[float, Transition]:
    """Return the speed in [low, high] that remembers best, and (M, K, C) with the sharpest readout, unscaled."""
    speed = sharpest_speed(dynamics, delay_steps, low, high)
    M, K = dynamics(speed)
    return speed, Transition(M, K, sharpest_readout(M, K, delay_steps)[0])


@lru_cache(maxsize=256)
def _sharp_cascade(order: int, delay_steps: int) -> tuple[float, Transition]:
    peak_at_delay = (order - 1) / delay_steps
    return sharpest_transition(
        lambda rate: cascade_transition(order, rate), delay_steps, peak_at_delay / 3, peak_at_delay * 5
    )
