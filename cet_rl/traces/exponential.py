"""Define the traces that cascades are compared with: the classical one, and the difference of two."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cet_rl.runs.values import checked
from cet_rl.traces.base import FloatArray, Normalization, Trace, Transition, check_whole


@dataclass(frozen=True)
class ET(Trace):
    """Remember with the classical eligibility trace (paper, Eq. 2): one state that decays, largest at lag 0.

    In unit-gain form y_t = β y_{t-1} + (1 - β) h_t, so g_ℓ = (1 - β) βˡ before scaling. Raises ValueError for a
    decay outside of (0, 1).
    """

    decay: float  # β in (0, 1), per step; β = exp(-αΔt)
    normalization: Normalization = "area"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked(self.decay, float, "decay")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie strictly between 0 and 1, got {self.decay:g}")

    @classmethod
    def from_delay(cls, delay_steps: int, normalization: Normalization = "area", decay: float | None = None) -> ET:
        """Return the trace with rate α = 1/T (paper, section 3), β = exp(-1/D), unless `decay` says otherwise."""
        check_whole(delay_steps, "delay_steps of ET", at_least=1)
        return cls(math.exp(-1 / delay_steps) if decay is None else decay, normalization)

    def unscaled_kernel(self, length: int) -> FloatArray:
        """Return the kernel before normalisation, in closed form."""
        return (1 - self.decay) * self.decay ** np.arange(length, dtype=np.float64)

    def transition(self) -> Transition:
        """Return (M, K, C) of the one state."""
        return Transition(np.array([[self.decay]]), np.array([1 - self.decay]), np.ones(1))


@dataclass(frozen=True)
class LTPLTD(Trace):
    """Remember with a slow trace less a fast one (He et al. 2015, Huertas et al. 2016; paper, section 3).

    g(t) = exp(-γ_P t) - exp(-γ_D t), integrated over each step. In continuous time it peaks at
    T = ln(γ_D / γ_P) / (γ_D - γ_P). Raises ValueError for a delay below 1, or a ratio too near 1 for float64.
    """

    delay_steps: int  # D ≥ 1, where the continuous kernel peaks, in steps
    ratio: float = 2.0  # γ_D / γ_P > 1
    normalization: Normalization = "area"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.delay_steps, "delay_steps of LTPLTD", at_least=1)
        checked(self.ratio, float, "ratio of the two rates")
        if not (math.isfinite(self.ratio) and self.ratio > 1 + 1e-6):  # the nearer, the more digits cancel
            raise ValueError(f"ratio of the two rates must be finite and above 1.000001, got {self.ratio:.9g}")

    @property
    def rates(self) -> tuple[float, float]:
        """Return (γ_P, γ_D) per step."""
        potentiation = math.log(self.ratio) / ((self.ratio - 1) * self.delay_steps)
        return potentiation, self.ratio * potentiation

    def unscaled_kernel(self, length: int) -> FloatArray:
        """Return the kernel before normalisation, in closed form."""
        lags = np.arange(length, dtype=np.float64)
        slow, fast = (-math.expm1(-rate) / rate * np.exp(-rate * lags) for rate in self.rates)
        return slow - fast

    def transition(self) -> Transition:
        """Return (M, K, C): two independent unit-gain states, read with opposite signs."""
        rates = np.array(self.rates)
        return Transition(np.diag(np.exp(-rates)), -np.expm1(-rates), np.array([1.0, -1.0]) / rates)
