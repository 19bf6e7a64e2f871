"""Estimate the probability that a run of one arm beats a run of another.

This is the probability of improvement P(X > Y) of Agarwal et al. (2021), "Deep reinforcement learning at the
edge of the statistical precipice", with delays in place of tasks. At each delay it is the share of pairs of runs,
one of arm X and one of arm Y, in which X has the better score; a tie counts half. P is the mean over delays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from cet_rl.report import drawing
from cet_rl.report.grouping import Arm, Comparison
from cet_rl.report.statistics import LEAST_SEEDS, bootstrap_interval
from cet_rl.report.text import counted
from cet_rl.traces.base import FloatArray

MOST_ARMS = 12  # compared in pairs: the best ones


@dataclass(frozen=True)
class Improvement:
    """Hold P(X > Y) of two arms and its bootstrap interval."""

    first: str  # label of X
    second: str  # label of Y
    probability: float
    low: float | None  # None with too few seeds
    high: float | None
    delays: int  # number of delays that it is the mean over

    @property
    def decided(self) -> bool:
        """Tell whether the whole interval lies on one side of one half."""
        return self.low is not None and self.high is not None and not self.low <= 0.5 <= self.high


def probability(first: Sequence[FloatArray], second: Sequence[FloatArray]) -> FloatArray:
    """Return P(X > Y), of shape (...), from two arms' scores at each delay, of shape (..., runs)."""
    wins = []
    for x, y in zip(first, second, strict=True):
        beaten = [np.sign(x - y[..., place, None]).mean(-1) for place in range(y.shape[-1])]
        wins.append(0.5 + 0.5 * np.mean(beaten, axis=0))
    average: FloatArray = np.mean(wins, axis=0)
    return average


def improvement(comparison: Comparison, first: Arm, second: Arm, delay: float | None = None) -> Improvement | None:
    """Return P(first > second) at one delay, or over all that both arms have; None without a result.

    The interval is that of a stratified bootstrap: runs are resampled within each arm and delay.
    """
    score = comparison.presentation.score
    shared = [each for each in first.at if each in second.at and delay in (None, each)]
    scores = [[arm.at[each].scores(score) for each in shared] for arm in (first, second)]
    both = [(x, y) for x, y in zip(*scores, strict=True) if len(x) and len(y)]
    if not both:
        return None
    sign = 1 if score.higher_is_better else -1
    x, y = ([sign * values for values in arm] for arm in zip(*both, strict=True))
    low = high = None
    if min(map(len, [*x, *y])) >= LEAST_SEEDS:
        low, high = bootstrap_interval([*x, *y], lambda drawn: probability(drawn[: len(x)], drawn[len(x) :]))
    return Improvement(first.label, second.label, float(probability(x, y)), low, high, len(both))


@lru_cache(maxsize=8)
def improvements(comparison: Comparison) -> list[Improvement]:
    """Return the probability for each pair of the best arms."""
    arms = comparison.best(comparison.compared, MOST_ARMS)
    return [each for pair in combinations(arms, 2) if (each := improvement(comparison, *pair))]


def improvement_matrix(comparison: Comparison) -> list[drawing.Picture]:
    """Draw P(X > Y) for each pair of arms; no picture with fewer than three arms."""
    found = improvements(comparison)
    labels = list(dict.fromkeys(label for each in found for label in (each.first, each.second)))
    if (count := len(labels)) < 3:
        return []
    margin = 0.085 * max(map(len, labels))
    figure, (axes,) = drawing.panels(1, 1.0 + margin + 0.5 * count, 1.2 + 0.6 * margin + 0.3 * count)
    values, texts, decided = np.full((count, count), np.nan), [[""] * count for _ in labels], []
    for each in found:
        place = labels.index(each.first), labels.index(each.second)
        for (row, column), value in ((place, each.probability), (place[::-1], 1 - each.probability)):
            values[row, column], texts[row][column] = value, f"{value:.2f}"
            decided += [(row, column)] * each.decided
    drawing.draw_cells(axes, values, texts, "PuOr", (0.0, 1.0), bold=decided)
    axes.set_xticks(range(count), labels, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), labels)
    axes.set_ylabel("arm X")
    axes.set_xlabel("arm Y")
    axes.set_title(f"{comparison.title}: probability that X beats Y", fontsize=9)
    caption = (
        f"Probability of improvement (Agarwal et al. 2021) in {comparison.presentation.score.title}: the "
        "probability that a run of the row's arm is better than one of the column's, mean over the delays that "
        "both have. Bold: the whole 95 % interval, of a bootstrap within each arm and delay, lies on one side of "
        f"one half. There is no interval with fewer than {LEAST_SEEDS} seeds; with few seeds it is too narrow."
    )
    hidden = len(comparison.compared) - count
    caption += f" {counted(hidden, 'arm')} with worse scores, or none, not drawn." * bool(hidden)
    return [drawing.Picture("improvement", figure, caption, "Matrix of probabilities of improvement")]
