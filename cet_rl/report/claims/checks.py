"""Checks: a statistic of the means of several sides, and for which of its values a claim is right.

A check is passed if the whole 95 % bootstrap interval of its statistic lies where the claim says, over at least
three seeds a side. Seeds are drawn within each side: independently, or together where the seed draws the task as
well and runs are compared seed by seed. With three seeds such an interval is narrow: it says what these runs show,
and more seeds say more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cet_rl.report.claims.measures import Measure
from cet_rl.report.claims.sides import Side
from cet_rl.report.plots import FloatArray
from cet_rl.report.statistics import LEVEL, RESAMPLES
from cet_rl.report.text import number


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        words: what the statistic is: "CET 10 at 8 s - ET at 8 s".
        sides: that it is of.
        measure: of each run.
        statistic: from means over seeds, of shape (..., sides), to numbers, of shape (...).
        above: the statistic has to be larger than this.
        below: and smaller than this.
    """

    words: str
    sides: tuple[Side, ...]
    measure: Measure
    statistic: Callable[[FloatArray], FloatArray]
    above: float = -math.inf
    below: float = math.inf

    @property
    def bound(self) -> str:
        """Where the statistic has to lie: "above 0"."""
        ends = {"above": self.above, "below": self.below}
        return " and ".join(f"{word} {_short(end)}" for word, end in ends.items() if math.isfinite(end))

    def evaluate(self, samples: Sequence[FloatArray], *, paired: bool = False, seed: int = 0) -> Outcome:
        """Evaluate it on the measure's values of each side's runs.

        Args:
            samples: a value for each seed, of shape (seeds,), for each side.
            paired: whether equal places are equal seeds, which are then drawn together.
            seed: of the resamples: the same values always have the same interval.
        """
        generator = np.random.default_rng(seed)
        means = np.array([values.mean() for values in samples])
        drawn, places = [], None
        for values in samples:
            if places is None or not paired:
                places = generator.integers(len(values), size=(RESAMPLES, len(values)))
            drawn.append(values[places].mean(-1))
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(self.statistic(np.stack(drawn, axis=-1)), [tail, 1 - tail])
        return Outcome(self, tuple(samples), float(self.statistic(means)), float(low), float(high))


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        check: that was made.
        samples: values of each side, of shape (seeds,), in the order of the check's sides.
        centre: the statistic.
        low: lower end of its interval.
        high: upper end.
    """

    check: Check
    samples: tuple[FloatArray, ...]
    centre: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the whole interval lies where the claim says."""
        return self.low > self.check.above and self.high < self.check.below

    def __str__(self) -> str:
        """The numbers: "CET 10 at 8 s - ET at 8 s: +4.20 % [+3.90, +4.60], above 0: yes"."""
        check, measure = self.check, self.check.measure
        low, high = (number(end, measure.digits) for end in (self.low, self.high))
        answer = "yes" if self.passed else "no"
        return f"{check.words}: {measure.show(self.centre)} [{low}, {high}], {check.bound}: {answer}"

    def means(self) -> dict[str, str]:
        """The mean of each side, as text, by the side's name."""
        return {
            side.name: self.check.measure.show(float(values.mean()))
            for side, values in zip(self.check.sides, self.samples, strict=True)
        }


def better(first: Side, second: Side, measure: Measure, by: float = 0.0) -> Check:
    """The first side is higher than the second by more than `by`."""
    return Check(_less(first, second), (first, second), measure, _difference, above=by)


def lower(first: Side, second: Side, measure: Measure, by: float = 0.0) -> Check:
    """The first side is lower than the second by more than `by`, as a better loss is."""
    return Check(_less(first, second), (first, second), measure, _difference, below=-by if by else 0.0)


def near(first: Side, second: Side, measure: Measure, within: float) -> Check:
    """The two sides are less than `within` apart."""
    return Check(_less(first, second), (first, second), measure, _difference, above=-within, below=within)


def loses_less(first: Side, reference: Side, measure: Measure, than: float) -> Check:
    """The first side is not as much as `than` below the reference; it may be above."""
    return Check(_less(first, reference), (first, reference), measure, _difference, above=-than)


def at_least(only: Side, measure: Measure, value: float) -> Check:
    """The side's mean is above a value."""
    return Check(only.name, (only,), measure, _only, above=value)


def at_most(only: Side, measure: Measure, value: float) -> Check:
    """The side's mean is below a value."""
    return Check(only.name, (only,), measure, _only, below=value)


def more_than_share(first: Side, reference: Side, measure: Measure, share: float) -> Check:
    """The first side is higher than a share of the reference."""
    return Check(_less(first, reference, share), (first, reference), measure, _beyond(share), above=0.0)


def less_than_share(first: Side, reference: Side, measure: Measure, share: float) -> Check:
    """The first side is lower than a share of the reference."""
    return Check(_less(first, reference, share), (first, reference), measure, _beyond(share), below=0.0)


def rises(sides: Sequence[Side], measure: Measure) -> Check:
    """From each side to the next the measure rises, on average: the slope of the line of least squares."""
    return Check(_steps(sides, measure), tuple(sides), measure, _slope, above=0.0)


def falls(sides: Sequence[Side], measure: Measure) -> Check:
    """From each side to the next the measure falls, on average."""
    return Check(_steps(sides, measure), tuple(sides), measure, _slope, below=0.0)


def _less(first: Side, second: Side, share: float = 1.0) -> str:
    return f"{first.name} - {'' if share == 1 else f'{share:g} × '}{second.name}"


def _steps(sides: Sequence[Side], measure: Measure) -> str:
    return f"{measure.title}, change a step from {sides[0].name} to {sides[-1].name}"


def _difference(means: FloatArray) -> FloatArray:
    found: FloatArray = means[..., 0] - means[..., 1]
    return found


def _only(means: FloatArray) -> FloatArray:
    return means[..., 0]


def _beyond(share: float) -> Callable[[FloatArray], FloatArray]:
    def statistic(means: FloatArray) -> FloatArray:
        found: FloatArray = means[..., 0] - share * means[..., 1]
        return found

    return statistic


def _slope(means: FloatArray) -> FloatArray:
    places = np.arange(means.shape[-1]) - (means.shape[-1] - 1) / 2
    found: FloatArray = (means * places).sum(-1) / (places**2).sum()
    return found


def _short(value: float) -> str:
    return number(value, 0) if value == int(value) else f"{value:g}"
