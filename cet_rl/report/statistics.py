"""The numbers that runs are compared on, their averages over seeds, and how sure one can be of these.

After Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical precipice": the
interquartile mean, and percentile intervals of a bootstrap that draws within each stratum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from cet_rl.report.reading import FloatArray, Run
from cet_rl.report.text import number
from cet_rl.runs.task_kinds import RECURRENT, RL, VISION, Score, TaskKind

Statistic = Callable[[FloatArray], FloatArray]
"""Function from values of shape (..., n) to shape (...)."""

RESAMPLES = 2_000
LEVEL = 0.95
LEAST_SEEDS = 3  # values per stratum below which no interval is given

# -------------------- averages and intervals


def interquartile_mean(values: FloatArray) -> FloatArray:
    """Return the mean over the last axis without the lowest and the highest quarter of values, rounded down.

    Values have shape (..., n), n at least 1; of fewer than four values it is their mean.
    """
    count = values.shape[-1]
    cut = count // 4
    middle: FloatArray = np.sort(values, axis=-1)[..., cut : count - cut].mean(-1)
    return middle


def mean(values: FloatArray) -> FloatArray:
    """Return the arithmetic mean over the last axis of values of shape (..., n), n at least 1."""
    average: FloatArray = values.mean(-1)
    return average


def bootstrap_interval(
    samples: Sequence[FloatArray], statistic: Callable[[Sequence[FloatArray]], FloatArray], *, paired: bool = False
) -> tuple[float, float]:
    """Return the ends of a percentile interval from a bootstrap that draws within each sample, always the same.

    Samples are the values of each stratum, of shape (n,); the statistic maps as many arrays of shape
    (resamples, n) to shape (resamples,). If paired, the same places are drawn in every sample.
    """
    generator = np.random.default_rng(0)
    drawn: list[FloatArray] = []
    places = None
    for values in samples:
        if places is None or not paired:
            places = generator.integers(len(values), size=(RESAMPLES, len(values)))
        drawn.append(values[places])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(statistic(drawn), [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Estimate:
    """Hold a statistic of some values, its bootstrap interval, None where there are too few, and their range."""

    centre: float
    low: float | None
    high: float | None
    count: int
    least: float
    most: float


def estimate(strata: Sequence[FloatArray], statistic: Statistic = interquartile_mean) -> Estimate:
    """Return a statistic of all values together, with a stratified bootstrap interval.

    Strata, each of shape (n,), are resampled separately, such as the seeds at one delay; ValueError if there is
    none, or an empty one.
    """
    if not strata or not all(len(stratum) for stratum in strata):
        raise ValueError("an estimate needs at least one value in each stratum")
    pooled = np.concatenate(strata)
    low = high = None
    if min(map(len, strata)) >= LEAST_SEEDS:
        low, high = bootstrap_interval(strata, lambda drawn: statistic(np.concatenate(drawn, axis=1)))
    return Estimate(float(statistic(pooled)), low, high, len(pooled), float(pooled.min()), float(pooled.max()))


# -------------------- what runs are compared on


@dataclass(frozen=True)
class Measure:
    """Reduce a run to one number that says how well, how fast or how truly it has learned."""

    title: str  # the number's name
    value: Callable[[Run], float | None]  # the number in the unit that is shown; None for a run without it
    digits: int = 1  # decimals that are shown
    unit: str = ""
    higher_is_better: bool = True

    def show(self, value: float | None) -> str:
        """Format a value without its unit."""
        return number(value, self.digits)

    @property
    def heading(self) -> str:
        """Title and unit for a table: "test accuracy, %"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


def measure_of(score: Score) -> Measure:
    """Return the measure that reads a score of a kind of task from a run's summary, shares as percentages."""
    factor, unit, digits = (100, "%", score.digits - 2) if score.percent else (1, "", score.digits)

    def value(run: Run) -> float | None:
        return factor * run.metrics[score.key] if score.key in run.metrics else None

    return Measure(score.title, value, digits, unit, score.higher_is_better)


@dataclass(frozen=True)
class Presentation:
    """Say what is drawn and tabulated for a kind of task."""

    scores: tuple[Measure, ...]  # of a run; arms are compared on the first
    curve: str  # column of metrics.csv that is drawn over training
    curve_title: str
    curve_factor: float  # from the column's numbers to those shown
    over_score: str | None  # what the curve shows, in one word, where alignment is drawn over it as well
    steps: str  # name of a run's steps
    statistic: Statistic  # average over seeds
    statistic_title: str
    settling: float  # share of a run whose values do not decide how much of the curves' axis is shown

    @property
    def score(self) -> Measure:
        """Return the measure that arms are compared on."""
        return self.scores[0]


@cache
def presentation(task_kind: TaskKind, tested_on: str = "") -> Presentation:
    """Return what is shown of a kind of task whose images, if any, are tested on "test" or "validation" data."""
    curve = task_kind.curve.on(tested_on)
    returns = task_kind.name == RL.name  # not the same object where another process draws
    return Presentation(
        scores=tuple(measure_of(score.on(tested_on)) for score in task_kind.scores),
        curve=curve.key,
        curve_title=measure_of(curve).heading,
        curve_factor=100 if curve.percent else 1,
        over_score=curve.word if curve.higher_is_better else None,
        steps=task_kind.unit,
        statistic=interquartile_mean if returns else mean,
        statistic_title="interquartile mean" if returns else "mean",
        settling={VISION.name: 0.1, RECURRENT.name: 0.05}.get(task_kind.name, 0.0),
    )


def presentation_of(run: Run) -> Presentation:
    """Return what is shown of a run's kind of task."""
    assert run.task_kind is not None
    return presentation(run.task_kind, run.tested_on)
