"""Define the cascading eligibility trace (paper, section 3 and Eq. 8), in unit-gain form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # whose parts are loaded on first use: they take half a second

from cet_rl.runs.values import checked
from cet_rl.traces.base import FloatArray, Normalization, OrderedTrace, Trace, Transition
from cet_rl.traces.exponential import ET

Discretization = Literal["exact", "official", "official-images"]


def cascade_transition(order: int, rate: float) -> tuple[FloatArray, FloatArray]:
    """Return one exact step of the cascade ẏ¹ = α(h - y¹), ẏᵏ = α(yᵏ⁻¹ - yᵏ), the input held over the step.

    These are Eq. 4's states scaled by powers of the rate, yᵏ = αᵏ xᵏ, so that each stays of the input's size
    (Eq. 4 as printed reaches 1e19 at order 10 and 800 steps). Exponential and integral of Eq. 8 have closed
    forms, with a = αΔt:

        M_ij = e^{-a} a^{i-j} / (i-j)!  for i ≥ j        K_i = P(i, a)

    where P is the regularised lower incomplete gamma function. M has shape (n, n) for `order` n, and K (n,).
    """
    stages = np.arange(order)
    poisson = np.exp(stages * np.log(rate) - rate - scipy.special.gammaln(stages + 1))
    M = np.tril(poisson[stages[:, None] - stages])
    return M, scipy.special.gammainc(stages + 1, rate)


@dataclass(frozen=True)
class CET(OrderedTrace):
    """Remember with a cascading eligibility trace: `order` stages in a row, of which the last is read.

    The paper and its authors' code use three kernels, which differ in how the input is held over a step. Here a is
    the rate per step and P the regularised lower incomplete gamma function.

    - "exact": over the step itself, [ℓ, ℓ+1] steps before it is read, with a = (n-1)/D:
      g_ℓ = P(n, a(ℓ+1)) - P(n, aℓ), largest at lag D (paper, Eqs. 4-9).
    - "official": the authors' code for reinforcement learning. The integral of Eq. 8 enters through its first row
      in the place of its first column, so that the input reaches the first stage only, and
      g_ℓ = P(1, a) e^{-aℓ} (aℓ)^{n-1} / (n-1)!. Largest at lag D as well.
    - "official-images": the authors' code for images. The step before is what is held, [ℓ-1, ℓ], and
      a = (n-1)/(D-½), which centres the kernel on D: g_ℓ = P(n, aℓ) - P(n, a(ℓ-1)), g_0 = 0. At short delays it is
      sharper than "exact" (order 10 at D = 3: .64 of its energy at the delay, not .45).

    (Eq. 10 as printed holds the step before, too, with the rate of "exact": it is largest at D + 1.)

    Attributes:
        order: n ≥ 2.
        discretization: see above; the official ones are for comparisons with the authors' code, and
            "official-images" takes one state more.
    """

    discretization: Discretization = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked(self.discretization, Discretization, "discretization")

    @classmethod
    def from_delay(
        cls,
        delay_steps: int,
        order: int,
        normalization: Normalization = "area",
        discretization: Discretization = "exact",
        decay: float | None = None,
    ) -> Trace:
        """Return the cascade of `order` stages; one stage is the classical trace, which has a `decay`."""
        if order == 1:
            if discretization != "exact":
                raise ValueError(f"discretization {discretization!r} is for cascades of order 2 or more")
            return ET.from_delay(delay_steps, normalization, decay)
        if decay is not None:
            raise ValueError(f"decay {decay!r} has no meaning for a cascade of order {order}: only 'et' takes one")
        return cls(order, delay_steps, normalization, discretization)

    @property
    def rate(self) -> float:
        """Return a = αΔt, per step: (n-1)/D, or (n-1)/(D-½) for "official-images"."""
        return (self.order - 1) / (self.delay_steps - 0.5 * (self.discretization == "official-images"))

    def unscaled_kernel(self, length: int) -> FloatArray:
        """Return the kernel before normalisation, in closed form."""
        special = scipy.special
        if self.discretization == "official":
            lags, stage = np.arange(length), self.order - 1
            exponent = special.xlogy(stage, self.rate * lags) - self.rate * lags - special.gammaln(self.order)
            kernel: FloatArray = special.gammainc(1, self.rate) * np.exp(exponent)
            return kernel
        edges = self.rate * np.arange(length + 1)
        if self.discretization == "official-images":
            edges = np.maximum(edges - self.rate, 0)
        # Past its middle P is close to one and a difference of P's loses digits; one of Q = 1 - P does not.
        left, right = edges[:-1], edges[1:]
        P, Q = special.gammainc, special.gammaincc
        rising: FloatArray = P(self.order, right) - P(self.order, left)
        falling: FloatArray = Q(self.order, left) - Q(self.order, right)
        return np.where(left < self.order, rising, falling)

    def transition(self) -> Transition:
        """Return (M, K, C) of the cascade; C reads the last stage."""
        M, K = cascade_transition(self.order, self.rate)
        if self.discretization == "official":
            K[1:] = 0
        elif self.discretization == "official-images":  # one state keeps the step before, and feeds the cascade
            M = np.block([[np.zeros((1, 1)), np.zeros((1, self.order))], [K[:, None], M]])
            K = np.eye(self.order + 1)[0]
        return Transition(M, K, np.eye(len(K))[-1])
