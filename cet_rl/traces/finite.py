"""Define kernels by their values at finitely many lags, without states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cet_rl.traces.base import FloatArray, Normalization, Trace, check_whole, real_numbers


@dataclass(frozen=True)
class FiniteKernel(Trace):
    """Remember with a kernel that is given lag by lag.

    It has no states: a layer keeps its inputs and derivatives for as many steps as there are values, and executors
    that need states keep one for each lag. Raises ValueError if a value is not finite, or all are zero.
    """

    values: Sequence[float]  # g_0, g_1, … before scaling; kept as a tuple
    delay_steps: int | None = None  # D ≥ 0 in steps, the delay that it is made for; None for any delay
    normalization: Normalization = "area"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay_steps is not None:
            check_whole(self.delay_steps, "delay_steps of FiniteKernel", at_least=0)
        try:
            values = real_numbers(self.values)
        except (TypeError, ValueError):
            raise ValueError(f"FiniteKernel needs numbers that are real, one a lag, got {self.values!r}") from None
        if values.ndim != 1 or not values.size:
            raise ValueError(f"FiniteKernel needs a row of numbers, one a lag, got shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("FiniteKernel needs finite numbers")
        if not values.any():
            raise ValueError("FiniteKernel remembers nothing: all of its values are zero")
        object.__setattr__(self, "values", tuple(values.tolist()))

    @property
    def support(self) -> tuple[int, int]:
        """Return the lags from the first value that is not zero to the one after the last."""
        lags = np.flatnonzero(self.values)
        return int(lags[0]), int(lags[-1]) + 1

    def unscaled_kernel(self, length: int) -> FloatArray:
        """Return the values, followed by zeros."""
        return np.pad(self.values, (0, max(length - len(self.values), 0)))[:length]

    def transition(self) -> None:
        """Return nothing: a kernel of finitely many lags needs no states."""


@dataclass(frozen=True)
class PerfectMemory(Trace):
    """Recall exactly what happened D steps ago: a unit impulse at the delay, the reference for all other traces.

    With a delay of zero it is no trace at all: the Hebbian term itself. Kept as a delay line of the factors
    (f', x), never as states of a synapse.
    """

    delay_steps: int  # D ≥ 0
    normalization: Normalization = "area"  # without effect: area and peak are both one

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.delay_steps, "delay_steps of PerfectMemory", at_least=0)

    @property
    def support(self) -> tuple[int, int]:
        """Return the one lag at the delay."""
        return self.delay_steps, self.delay_steps + 1

    def unscaled_kernel(self, length: int) -> FloatArray:
        """Return one at the delay, and zero elsewhere."""
        kernel: FloatArray = (np.arange(length) == self.delay_steps).astype(np.float64)
        return kernel

    def transition(self) -> None:
        """Return nothing: a delay line needs no states."""
