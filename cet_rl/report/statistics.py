"""Averages over seeds, and how sure one can be of them.

After Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical precipice": the
interquartile mean, and percentile intervals of a bootstrap that draws within each stratum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Statistic = Callable[[FloatArray], FloatArray]
"""From values of shape (..., n) to shape (...)."""

RESAMPLES = 2_000
LEVEL = 0.95
LEAST = 3
"""Values in every stratum, below which no interval is claimed."""


def interquartile_mean(values: FloatArray) -> FloatArray:
    """The mean of what is left without the lowest and the highest quarter, each rounded down to whole values.

    With fewer than four values it is their mean.

    Args:
        values: of shape (..., n), n at least 1.
    """
    count = values.shape[-1]
    cut = count // 4
    middle: FloatArray = np.sort(values, axis=-1)[..., cut : count - cut].mean(-1)
    return middle


def mean(values: FloatArray) -> FloatArray:
    """The arithmetic mean.

    Args:
        values: of shape (..., n), n at least 1.
    """
    average: FloatArray = values.mean(-1)
    return average


@dataclass(frozen=True)
class Estimate:
    """A statistic of some values.

    Attributes:
        centre: the statistic.
        low: lower end of its bootstrap interval; None where there are too few values.
        high: upper end.
        count: of values.
        least: of the values.
        most: of the values.
    """

    centre: float
    low: float | None
    high: float | None
    count: int
    least: float
    most: float


def estimate(strata: Sequence[FloatArray], statistic: Statistic = interquartile_mean, seed: int = 0) -> Estimate:
    """A statistic of all values together, with a stratified bootstrap interval.

    Args:
        strata: values that are drawn from separately, such as the seeds at one delay; each of shape (n,).
        statistic: of the pooled values.
        seed: of the resamples: the same values always have the same interval.

    Raises:
        ValueError: if a stratum, or all of them, is missing.
    """
    if not strata or not all(len(stratum) for stratum in strata):
        raise ValueError("an estimate needs at least one value in each stratum")
    pooled = np.concatenate(strata)
    low = high = None
    if min(map(len, strata)) >= LEAST:
        generator = np.random.default_rng(seed)
        drawn = [stratum[generator.integers(len(stratum), size=(RESAMPLES, len(stratum)))] for stratum in strata]
        tail = (1 - LEVEL) / 2
        low, high = map(float, np.quantile(statistic(np.concatenate(drawn, axis=1)), [tail, 1 - tail]))
    return Estimate(float(statistic(pooled)), low, high, len(pooled), float(pooled.min()), float(pooled.max()))
