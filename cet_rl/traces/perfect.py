"""Perfect memory: the limit of infinitely many stages, and the bound every plot compares with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cet_rl.traces.base import FloatArray, Normalization, Trace, check_delay_steps


@dataclass(frozen=True)
class PerfectMemory(Trace):
    """Recall exactly what happened D steps ago: a unit impulse at the delay.

    With a delay of zero it is no trace at all: the Hebbian term itself. Kept as a delay line of the factors
    (f', x), never as states of a synapse.

    Attributes:
        delay_steps: D ≥ 0.
        normalization: has no effect, area and peak are both one; present so that all traces read alike.
    """

    delay_steps: int
    normalization: Normalization = "area"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_delay_steps(self.delay_steps, "PerfectMemory", at_least=0)

    @property
    def states(self) -> int:
        """None: a delay line."""
        return 0

    @property
    def support(self) -> tuple[int, int]:
        """Return the one lag at the delay."""
        return self.delay_steps, self.delay_steps + 1

    def _unscaled_kernel(self, length: int) -> FloatArray:
        kernel: FloatArray = (np.arange(length) == self.delay_steps).astype(np.float64)
        return kernel

    def transition(self) -> None:
        """None: a delay line needs no states."""
        return None
