"""Read all stages of a cascade in the weighted sum that recalls the delay most sharply: a trace of our own.

For white input, the useful part of a kernel is the share of its energy that lies at the delay,

    F = g_D² / Σ_ℓ g_ℓ² = (C·b)² / (Cᵀ G C),     b = M^D K,     G = Σ_ℓ M^ℓ K Kᵀ (Mᵀ)^ℓ,

G being the Gramian. The quotient is largest for C = G⁻¹ b, where F = bᵀ C. It depends on the span of the states'
responses alone, so the states may be chosen such that G is the identity: then C = b and F = bᵀ b.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # whose parts are loaded on first use: they take half a second

from cet_rl.traces.base import FloatArray, OrderedTrace, Transition


def shift_register(length: int) -> tuple[FloatArray, FloatArray]:
    """Return M, (length, length), and K, (length,), of states that hold the last `length` inputs."""
    return np.eye(length, k=-1), np.eye(length)[0]


def laguerre_transition(order: int, rate: float) -> tuple[FloatArray, FloatArray]:
    """Return one step of a chain of equal all-pass stages, whose states have the Gramian G = I.

    Their responses are the discrete Laguerre functions, which span what the stages of a cascade of that rate span.
    With p = e^{-a}, a being the rate per step,

        M_kk = p        M_kj = (1 - p²) (-p)^{k-j-1} for j < k        K_k = √(1 - p²) (-p)^k

    M has shape (n, n), and K (n,).
    """
    pole, gain = np.exp(-rate), np.sqrt(-np.expm1(-2 * rate))
    powers = np.cumprod([1.0] + [-pole] * (order - 1))
    M: FloatArray = scipy.linalg.toeplitz([pole, *powers[:-1] * gain * gain], np.zeros(order))
    return M, powers * gain


def laguerre_share(order: int, rate: float, delay_steps: int) -> float:
    """Return F of the best readout of the chain."""
    M, K = laguerre_transition(order, rate)
    at_delay = np.linalg.matrix_power(M, delay_steps) @ K
    return float(at_delay @ at_delay)


def sharpest(share: Callable[[float], float], low: float, high: float, points: int) -> float:
    """Return the value in [low, high] with the largest share: a grid of so many points, then a bounded search."""

    def loss(log_value: float) -> float:
        return -share(float(np.exp(log_value)))

    grid = np.linspace(np.log(low), np.log(high), points)
    best = int(np.argmin([loss(point) for point in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


@dataclass(frozen=True)
class SharpCET(OrderedTrace):
    """Remember with the cascade of `CET`, but read a weighted sum of all its stages instead of the last.

    The rate is the one with the sharpest kernel: about 1.2 (n-1)/D at order 10. The kernel has negative lobes and
    peaks near the delay, not always at it. The states are Laguerre functions, which span the same space as the
    stages and need no regularisation at any order (`laguerre_transition`).

    Attributes:
        order: n ≥ 2. With more than `delay_steps` of them the cascade becomes a shift register, which is perfect.
    """

    @property
    def rate(self) -> float:
        """Return a = αΔt, per step; infinite for a shift register."""
        return _sharpest_rate(self.order, self.delay_steps)

    def transition(self) -> Transition:
        """Return (M, K, C) with the sharpest readout, normalised."""
        if self.order > self.delay_steps:
            M, K = shift_register(self.order)
        else:
            M, K = laguerre_transition(self.order, self.rate)
        return Transition(M, K, np.linalg.matrix_power(M, self.delay_steps) @ K)


@lru_cache(maxsize=256)
def _sharpest_rate(order: int, delay_steps: int) -> float:
    if order > delay_steps:
        return np.inf
    peak_at_delay = (order - 1) / delay_steps
    return sharpest(  # the share has up to n/2 maxima over the rate
        lambda rate: laguerre_share(order, rate, delay_steps), peak_at_delay / 3, peak_at_delay * 5, points=300
    )
