"""Claims and their checks: a statistic of the means of several arms, and for which values a claim is right.

A check passes if the whole 95 % bootstrap interval of its statistic lies where the claim says, over at least three
seeds an arm. Seeds are drawn within each arm: independently, or together where the seed draws the task as well and
runs are compared seed by seed. With three seeds such an interval is narrow: it says what these runs show, and more
seeds say more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cet_rl.report.claims.model import RunFilter
from cet_rl.report.reading import FloatArray
from cet_rl.report.statistics import Measure, Statistic, bootstrap_interval
from cet_rl.report.text import number
from cet_rl.runs.config import Mark
from cet_rl.runs.task_kinds import options_marked

RATES = tuple(sorted(options_marked(Mark.TABULATED)))
"""Options that the paper's tables have for each order and delay, and that may therefore differ between arms."""


@dataclass(frozen=True)
class PaperClaim:
    """Hold a claim: what a paper, or this project, says comes out.

    Attributes:
        name: short and unique name.
        place: where it is said: "CET paper, Fig. 3".
        words: what is said, with the margins by which it is judged.
        config: name of the sweep that tests it.
        checks: checks that all have to pass.
        free: options, beside those of the checks' filters, in which runs of different arms may differ. In all
            others they have to agree.
        paired: compare seed by seed, because the seed draws the task as well as the network.
    """

    name: str
    place: str
    words: str
    config: str
    checks: tuple[Check, ...]
    free: tuple[str, ...] = ()
    paired: bool = False


@dataclass(frozen=True)
class Check:
    """Compare arms by one statistic.

    Attributes:
        words: what the statistic is: "CET 10 at 8 s - ET at 8 s".
        filters: filters of the arms' runs.
        measure: measure of each run.
        statistic: function from means over seeds, of shape (..., arms), to numbers, of shape (...).
        above: value that the statistic has to be above.
        below: value that it has to be below.
    """

    words: str
    filters: tuple[RunFilter, ...]
    measure: Measure
    statistic: Statistic
    above: float = -math.inf
    below: float = math.inf

    @property
    def bound(self) -> str:
        """Return where the statistic has to lie: "above 0"."""
        ends = {"above": self.above, "below": self.below}
        return " and ".join(
            f"{word} {number(end, 0) if end == int(end) else f'{end:g}'}"
            for word, end in ends.items()
            if math.isfinite(end)
        )

    def evaluate(self, samples: Sequence[FloatArray], *, paired: bool = False, seed: int = 0) -> CheckResult:
        """Evaluate the check on the measured values of each arm's runs.

        Args:
            samples: a value for each seed, of shape (seeds,), for each arm.
            paired: whether equal places are equal seeds, which are then drawn together.
            seed: seed of the resamples; the same values always have the same interval.
        """

        def of_means(drawn: Sequence[FloatArray]) -> FloatArray:
            return self.statistic(np.stack([values.mean(-1) for values in drawn], axis=-1))

        low, high = bootstrap_interval(samples, of_means, paired=paired, seed=seed)
        return CheckResult(self, tuple(samples), float(of_means(samples)), low, high)


@dataclass(frozen=True)
class CheckResult:
    """Hold the result of a check.

    Attributes:
        check: the check.
        samples: values of each arm, of shape (seeds,), in the order of the check's filters.
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
        """True if the whole interval lies where the claim says."""
        return self.low > self.check.above and self.high < self.check.below

    def __str__(self) -> str:
        """Return the numbers: "CET 10 at 8 s - ET at 8 s: 4.20 % [3.90, 4.60], above 0: yes"."""
        low, high = map(self.check.measure.show, (self.low, self.high))
        answer = "yes" if self.passed else "no"
        return f"{self.check.words}: {self._with_unit(self.centre)} [{low}, {high}], {self.check.bound}: {answer}"

    def means(self) -> dict[str, str]:
        """Return the mean of each arm, as text, by the arm's name."""
        return {
            each.name: self._with_unit(float(values.mean()))
            for each, values in zip(self.check.filters, self.samples, strict=True)
        }

    def _with_unit(self, value: float) -> str:
        measure = self.check.measure
        return f"{measure.show(value)} {measure.unit}".rstrip()


# -------------------- kinds of checks


def higher(first: RunFilter, second: RunFilter, measure: Measure, by: float = 0.0) -> Check:
    """Check that the first arm is higher than the second by more than `by`."""
    return Check(_minus(first, second), (first, second), measure, _minus_share(), above=by)


def lower(first: RunFilter, second: RunFilter, measure: Measure, by: float = 0.0) -> Check:
    """Check that the first arm is lower than the second by more than `by`, as a better loss is."""
    return Check(_minus(first, second), (first, second), measure, _minus_share(), below=-by if by else 0.0)


def loses_less(first: RunFilter, reference: RunFilter, measure: Measure, than: float) -> Check:
    """Check that the first arm is less than `than` below the reference; it may be above."""
    return Check(_minus(first, reference), (first, reference), measure, _minus_share(), above=-than)


def at_least(only: RunFilter, measure: Measure, value: float) -> Check:
    """Check that an arm's mean is above a value."""
    return Check(only.name, (only,), measure, _only, above=value)


def at_most(only: RunFilter, measure: Measure, value: float) -> Check:
    """Check that an arm's mean is below a value."""
    return Check(only.name, (only,), measure, _only, below=value)


def more_than_share(first: RunFilter, reference: RunFilter, measure: Measure, share: float) -> Check:
    """Check that the first arm is higher than a share of the reference."""
    return Check(_minus(first, reference, share), (first, reference), measure, _minus_share(share), above=0.0)


def less_than_share(first: RunFilter, reference: RunFilter, measure: Measure, share: float) -> Check:
    """Check that the first arm is lower than a share of the reference."""
    return Check(_minus(first, reference, share), (first, reference), measure, _minus_share(share), below=0.0)


def rises(arms: Sequence[RunFilter], measure: Measure) -> Check:
    """Check that the measure rises from arm to arm, on average: the slope of the least-squares line."""
    return Check(_change(arms, measure), tuple(arms), measure, _slope, above=0.0)


def falls(arms: Sequence[RunFilter], measure: Measure) -> Check:
    """Check that the measure falls from arm to arm, on average."""
    return Check(_change(arms, measure), tuple(arms), measure, _slope, below=0.0)


def _minus(first: RunFilter, second: RunFilter, share: float = 1.0) -> str:
    return f"{first.name} - {'' if share == 1 else f'{share:g} × '}{second.name}"


def _change(arms: Sequence[RunFilter], measure: Measure) -> str:
    return f"{measure.title}, change per step from {arms[0].name} to {arms[-1].name}"


def _only(means: FloatArray) -> FloatArray:
    return means[..., 0]


def _minus_share(share: float = 1.0) -> Callable[[FloatArray], FloatArray]:
    def statistic(means: FloatArray) -> FloatArray:
        found: FloatArray = means[..., 0] - share * means[..., 1]
        return found

    return statistic


def _slope(means: FloatArray) -> FloatArray:
    places = np.arange(means.shape[-1]) - (means.shape[-1] - 1) / 2
    found: FloatArray = (means * places).sum(-1) / (places**2).sum()
    return found
