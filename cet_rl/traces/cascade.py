"""The cascading eligibility trace (paper, section 3 and Eq. 8), in unit-gain form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammainc, gammaincc, gammaln

from cet_rl.traces.base import FloatArray, Normalization, Trace, Transition, check_delay_steps, check_order


def cascade_transition(order: int, rate: float) -> tuple[FloatArray, FloatArray]:
    """One exact step of the cascade ẏ¹ = α(h - y¹), ẏᵏ = α(yᵏ⁻¹ - yᵏ), the input held over the step.

    These are Eq. 4's states scaled by powers of the rate, yᵏ = αᵏ xᵏ, so that each stays of the input's size
    (Eq. 4 as printed reaches 1e19 at order 10 and 800 steps). Exponential and integral of Eq. 8 have closed
    forms, with a = αΔt:

        M_ij = e^{-a} a^{i-j} / (i-j)!  for i ≥ j        K_i = P(i, a)

    where P is the regularised lower incomplete gamma function.

    Args:
        order: n, the number of stages.
        rate: a = αΔt, per step.

    Returns:
        M, shape (n, n), and K, shape (n,).
    """
    stages = np.arange(order)
    poisson = np.exp(stages * np.log(rate) - rate - gammaln(stages + 1))
    M = np.zeros((order, order))
    for stage in range(order):
        M[stage, : stage + 1] = poisson[stage::-1]
    return M, gammainc(stages + 1, rate)


@dataclass(frozen=True)
class CET(Trace):
    """Cascading eligibility trace: `order` stages in a row, read at the last.

    Its kernel g_ℓ = P(n, a(ℓ+1)) - P(n, aℓ) with a = (n-1)/D is largest at lag D, and sums to one before
    scaling (paper, Eqs. 4-8).

    Attributes:
        order: n ≥ 2.
        delay_steps: D ≥ 1, the delay in steps.
        normalization: see `Trace`.
    """

    order: int
    delay_steps: int
    normalization: Normalization = "area"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order, "CET")
        check_delay_steps(self.delay_steps, "CET")

    @property
    def rate(self) -> float:
        """a = αΔt = (n-1)/D, per step."""
        return (self.order - 1) / self.delay_steps

    @property
    def states(self) -> int:
        """n."""
        return self.order

    def _unscaled_kernel(self, length: int) -> FloatArray:
        edges = self.rate * np.arange(length + 1)
        # Past its middle P is close to one and a difference of P's loses digits; one of Q = 1 - P does not.
        left, right = edges[:-1], edges[1:]
        rising: FloatArray = gammainc(self.order, right) - gammainc(self.order, left)
        falling: FloatArray = gammaincc(self.order, left) - gammaincc(self.order, right)
        return np.where(left < self.order, rising, falling)

    def transition(self) -> Transition:
        """(M, K, C) of the cascade; C reads the last stage."""
        M, K = cascade_transition(self.order, self.rate)
        C = np.zeros(self.order)
        C[-1] = 1 / self.scale
        return Transition(M, K, C)
