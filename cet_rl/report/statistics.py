"""The measures that runs are compared on, averages over seeds, their intervals, and tests of claims.

Averages and intervals are those of Agarwal et al. (2021), "Deep reinforcement learning at the edge of the
statistical precipice": the interquartile mean, and percentile intervals of a stratified bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from cet_rl.report.reading import Run
from cet_rl.report.text import number
from cet_rl.runs.task_kinds import RECURRENT, RL, VISION, Score, TaskKind
from cet_rl.traces.base import FloatArray

Statistic = Callable[[FloatArray], FloatArray]
"""Function from values of shape (..., n) to shape (...)."""

RESAMPLES = 2_000
LEVEL = 0.95
DRAWS, BATCH = 20_000, 1_000  # random permutations, if there are ties, and how many are drawn at a time
LEAST_SEEDS = 3  # with fewer values in a stratum there is no interval

# -------------------- averages and intervals


def interquartile_mean(values: FloatArray) -> FloatArray:
    """Return the mean over the last axis without its ⌊n/4⌋ lowest and highest values.

    Values have shape (..., n), n at least 1; with fewer than four it is their mean.
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
    samples: Sequence[FloatArray], statistic: Callable[[Sequence[FloatArray]], FloatArray]
) -> tuple[float, float]:
    """Return the ends of a percentile interval from a bootstrap within each sample, with fixed random numbers.

    Samples are the values of each stratum, of shape (n,); the statistic maps as many arrays of shape
    (resamples, n) to shape (resamples,).
    """
    generator = np.random.default_rng(0)
    drawn = [values[generator.integers(len(values), size=(RESAMPLES, len(values)))] for values in samples]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(statistic(drawn), [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class Estimate:
    """Hold a statistic of some values, its bootstrap interval, their range and their standard deviation."""

    centre: float
    low: float | None  # None with too few values
    high: float | None
    count: int
    least: float
    most: float
    deviation: float | None  # None with a single value


def estimate(strata: Sequence[FloatArray], statistic: Statistic = interquartile_mean) -> Estimate:
    """Return a statistic of all values together, with a stratified bootstrap interval.

    Each stratum, of shape (n,), such as the seeds at one delay, is resampled by itself. Raises ValueError if there
    is none, or an empty one.
    """
    if not strata or not all(len(stratum) for stratum in strata):
        raise ValueError("an estimate needs at least one value in each stratum")
    pooled = np.concatenate(strata)
    low = high = None
    if min(map(len, strata)) >= LEAST_SEEDS:
        low, high = bootstrap_interval(strata, lambda drawn: statistic(np.concatenate(drawn, axis=1)))
    deviation = float(pooled.std(ddof=1)) if len(pooled) > 1 else None
    least, most = float(pooled.min()), float(pooled.max())
    return Estimate(float(statistic(pooled)), low, high, len(pooled), least, most, deviation)


# -------------------- tests of claims


class Contrast(NamedTuple):
    """Hold a weighted sum of means, its interval, and two p-values for its comparison with a bound."""

    centre: float
    low: float  # ends of the interval
    high: float
    above: float  # p-value of the hypothesis that the sum is at most the bound: small if it is above
    below: float  # p-value of the hypothesis that it is at least the bound


def contrast(
    samples: Sequence[FloatArray], weights: Sequence[float], bound: float = 0.0, *, paired: bool = False
) -> Contrast:
    """Compare a weighted sum of the samples' means with a bound by Student's t, with a two-sided interval.

    Variances may differ (Welch), and the degrees of freedom are Satterthwaite's. If no sample varies, t does not
    exist: the p-value is then the smallest that a permutation test of so many values can give. Samples have shape
    (n,), n at least 2. If paired, values with the same index belong together, and their weighted sums are tested.
    """
    from scipy.special import stdtr, stdtrit  # 0.1 s, not needed for reports without claims

    if paired:
        samples, weights = [np.asarray(weights) @ np.stack(list(samples))], [1.0]
    scale = np.array(weights)
    counts = np.array([len(values) for values in samples])
    centre = float(scale @ [values.mean() for values in samples])
    variances = scale**2 * np.array([values.var(ddof=1) for values in samples]) / counts
    if variances.sum() <= (1e-12 * max(np.abs(values).max() for values in samples)) ** 2:
        least = 0.5 ** counts[0] if len(counts) == 1 else 1 / math.comb(int(counts.sum()), int(counts[0]))
        return Contrast(centre, centre, centre, least if centre > bound else 1.0, least if centre < bound else 1.0)
    error, freedom = math.sqrt(variances.sum()), variances.sum() ** 2 / (variances**2 / (counts - 1)).sum()
    reach = error * float(stdtrit(freedom, (1 + LEVEL) / 2))
    above, below = (float(stdtr(freedom, sign * (bound - centre) / error)) for sign in (1, -1))
    return Contrast(centre, centre - reach, centre + reach, above, below)


class Trend(NamedTuple):
    """Hold the result of a test whether samples rise or fall from the first to the last."""

    share: float  # of pairs of values of two samples in which the later sample's is larger; ties count half
    rising: float  # p-value of equal distributions against rising ones
    falling: float  # p-value of equal distributions against falling ones


def trend_test(samples: Sequence[FloatArray]) -> Trend:
    """Test by permutations whether samples rise, or fall, from the first to the last (Jonckheere, Terpstra).

    The p-values are exact, over all permutations. With ties they are those of `DRAWS` random permutations, which
    are the same in every call. Samples have shape (n,).
    """
    values, arms = np.concatenate(samples), np.repeat(range(len(samples)), list(map(len, samples)))
    first, second = (arms[:, None] < arms).nonzero()
    signs = np.sign(values - values[:, None])
    excess = float(signs[first, second].sum())  # pairs that rise minus pairs that fall
    share = (1 + excess / len(first)) / 2
    if len({*values}) == len(values):
        tails, pairs = _order_tails(tuple(map(len, samples))), round((len(first) + excess) / 2)
        return Trend(share, tails[pairs], tails[len(first) - pairs])
    generator, counts = np.random.default_rng(0), np.ones(2)
    for _ in range(DRAWS // BATCH):
        drawn = generator.permuted(np.tile(range(len(values)), (BATCH, 1)), axis=1)
        by_chance = signs[drawn[:, first], drawn[:, second]].sum(1)
        counts += [(by_chance >= excess).sum(), (by_chance <= excess).sum()]
    rising, falling = (float(count) / (DRAWS + 1) for count in counts)
    return Trend(share, rising, falling)


@cache
def _order_tails(counts: tuple[int, ...]) -> tuple[float, ...]:
    """Return the probabilities that at least 0, 1, 2, … pairs rise if all permutations are equally probable.

    The numbers of permutations are the coefficients of the q-multinomial of the counts.
    """
    size = sum(first * second for first, second in combinations(counts, 2)) + 1
    ways = np.array([1] + [0] * (size - 1), dtype=object)  # Python's integers do not overflow
    before = 0
    for count in counts:
        for place in range(1, count + 1):
            if before + place < size:
                ways[before + place :] = ways[before + place :] - ways[: -(before + place)]
            for start in range(place):
                ways[start::place] = np.cumsum(ways[start::place])
        before += count
    tails = np.cumsum(ways[::-1])[::-1]
    return tuple(float(Fraction(way, tails[0])) for way in tails)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values with Holm's correction: the chance that any falls below a level is at most that level."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(scaled).clip(max=1.0)
    return [float(value) for value in corrected]


@dataclass(frozen=True)
class Measure:
    """Reduce a run to one number, such as its score."""

    title: str
    value: Callable[[Run], float | None]  # the number in `unit`; None for a run without it
    digits: int = 1  # decimals that are shown
    unit: str = ""
    higher_is_better: bool = True

    def among(self, runs: Sequence[Run]) -> Callable[[Run], float | None]:
        """Return the function that measures each of the compared runs; here it does not depend on the others."""
        return self.value

    def show(self, value: float | None) -> str:
        """Format a value without its unit."""
        return number(value, self.digits)

    @property
    def heading(self) -> str:
        """Return title and unit: "test accuracy, %"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


def measure_of(score: Score) -> Measure:
    """Return the measure that reads a score from a run's summary; shares become percentages."""
    factor, unit, digits = (100, "%", score.digits - 2) if score.percent else (1, "", score.digits)

    def value(run: Run) -> float | None:
        return factor * run.metrics[score.key] if score.key in run.metrics else None

    return Measure(score.title, value, digits, unit, score.higher_is_better)


@dataclass(frozen=True)
class Presentation:
    """Define what is drawn and tabulated for a kind of task."""

    scores: tuple[Measure, ...]  # of a run; arms are compared on the first
    curve: str  # column of metrics.csv that is drawn over training
    curve_title: str
    curve_factor: float  # from the column's numbers to those shown
    over_score: str | None  # word for the curve's score if alignment is also drawn over it, else None
    steps: str  # name of a run's steps
    statistic: Statistic  # average over seeds
    statistic_title: str
    settling: float  # first share of a run, whose values do not count for the limits of the curves' axis

    @property
    def score(self) -> Measure:
        """Return the measure that arms are compared on."""
        return self.scores[0]


@cache
def presentation(task_kind: TaskKind, tested_on: str = "") -> Presentation:
    """Return the presentation of a kind of task; `tested_on` is "test" or "validation" for images, else ""."""
    curve = task_kind.curve.on(tested_on)
    returns = task_kind.name == RL.name  # in a process that draws, `task_kind` is a copy of `RL`
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
    """Return the presentation of a run's kind of task."""
    assert run.task_kind is not None
    return presentation(run.task_kind, run.tested_on)
