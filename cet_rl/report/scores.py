"""Scores of arms as points: the statistic over seeds with its interval, and every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cet_rl.report.arms import Arm, Study
from cet_rl.report.drawing import MOST_PANELS, Picture, in_seconds, panels, png, some_delays
from cet_rl.report.floors import draw_floors, floors
from cet_rl.report.limits import MARGIN, highest
from cet_rl.report.plots import FloatArray
from cet_rl.report.statistics import LEAST, RESAMPLES, Estimate
from cet_rl.report.text import listed

MOST_ROWS = 40
"""Arms that are drawn; the table has them all."""


def scores(study: Study) -> list[Picture]:
    """A panel for each delay, and one for all delays together; none without any result.

    Arms without delay, where others have one, are drawn in each panel with hollow points.
    """
    rows = (*study.references, *study.best(study.compared, MOST_ROWS))
    rows = tuple(arm for arm in rows if any(study.estimate(arm, delay) for delay in arm.cells))
    if not rows:
        return []
    pooled = {arm.label: study.over_delays(arm) for arm in rows}
    together = sum(each is not None for each in pooled.values()) > 1
    found = [delay for delay in study.delays if any(study.estimate(arm, delay) for arm in study.compared)]
    delays = some_delays(found, MOST_PANELS - together) or [0.0]
    count = len(delays) + together
    labels = max(len(arm.label) for arm in rows)
    width = max(2.0 if count > 1 else 4.5, 6.5 / min(count, 3)) + 0.07 * labels / min(count, 3)
    figure, grid = panels(count, width, 0.7 + 0.2 * len(rows), sharey=True)
    lines = floors(study)
    drawn: list[list[_Marks]] = []
    for axes, delay in zip(grid, delays, strict=False):
        drawn.append([])
        for hollow in (True, False):
            marks = _marks(study, rows, delay, hollow=hollow)
            _draw(axes, marks, hollow=hollow)
            drawn[-1] += marks
        axes.set_title(in_seconds(delay), fontsize=9, pad=34 if lines else None)
    if together:
        marks = [_Marks(place, each, np.empty(0)) for place, arm in enumerate(rows) if (each := pooled[arm.label])]
        _draw(grid[-1], marks, hollow=False)
        drawn.append(marks)
        grid[-1].set_title("all delays", fontsize=9, pad=34 if lines else None)
    cut = [_limit(axes, marks, study, list(lines.values())) for axes, marks in zip(grid, drawn, strict=True)]
    for axes in grid:
        axes.set_yticks(range(len(rows)), [arm.label for arm in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        draw_floors(axes, lines, vertical=True)
    figure.supxlabel(study.presentation.score.heading, fontsize=9)
    figure.suptitle(study.title, fontsize=10)
    caption = _caption(study, rows, delays, together=together, floored=bool(lines))
    caption += " Arrows: beyond the axis, up to the number beside them." * any(cut)
    return [Picture("scores", png(figure), caption, f"{study.presentation.score.title} of each arm")]


@dataclass(frozen=True, eq=False)
class _Marks:
    """What is drawn of an arm: the place of its row, its statistic, and each seed's score."""

    place: int
    found: Estimate
    seeds: FloatArray


def _marks(study: Study, rows: Sequence[Arm], delay: float, *, hollow: bool) -> list[_Marks]:
    """Marks of the arms without delay, or of those with one, at this delay."""
    marks = []
    for place, arm in enumerate(rows):
        own = 0.0 if hollow else delay
        if (arm in study.references) == hollow and (found := study.estimate(arm, own)):
            marks.append(_Marks(place, found, arm.cells[own].scores(study.presentation.score)))
    return marks


def _draw(axes: Axes, marks: Sequence[_Marks], *, hollow: bool) -> None:
    """Draw them all at once: an artist for each mark takes its time."""
    if not marks:
        return
    color = "0.35" if hollow else "C0"
    seeds = np.concatenate([each.seeds for each in marks])
    places = np.repeat([each.place for each in marks], [len(each.seeds) for each in marks])
    axes.plot(seeds, places, "|", color=color, markersize=7, alpha=0.45, markeredgewidth=1)
    ends = [(each.place, each.found.low, each.found.high) for each in marks if each.found.low is not None]
    if ends:
        place, low, high = zip(*ends, strict=True)
        axes.hlines(place, low, high, colors=color, linewidth=1.6, capstyle="butt")
    points = [each.found.centre for each in marks], [each.place for each in marks]
    axes.plot(*points, "o", color=color, markersize=4.5, markerfacecolor="white" if hollow else color)


def _limit(axes: Axes, drawn: Sequence[_Marks], study: Study, lines: Sequence[float]) -> bool:
    """Cut the axis where few losses are far above all others, with an arrow in their rows; whether it was."""
    score = study.presentation.score
    ends: list[tuple[_Marks, list[tuple[float, float]]]] = []
    for each in drawn:
        found = each.found
        whole = (
            found.centre if found.low is None else found.low,
            found.centre if found.high is None else found.high,
        )
        ends.append((each, [(seed, seed) for seed in each.seeds.tolist()] or [whole]))
    ranges = [single for _, of_marks in ends for single in of_marks]
    top = None if score.higher_is_better else highest(ranges)
    if top is None:
        return False
    low, high = min([*(least for least, _ in ranges), *lines]), max([top, *lines])
    margin = MARGIN * (high - low)
    axes.set_xlim(low - margin, high + margin)
    cut = False
    for each, of_marks in ends:
        most = max(end for _, end in of_marks)
        if most > high + margin:
            cut = True
            place: Any = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 7}
            axes.text(1.01, each.place, f"\N{BLACK RIGHT-POINTING SMALL TRIANGLE} {score.show(most)}", **place)
    return cut


def _caption(study: Study, rows: Sequence[Arm], delays: Sequence[float], *, together: bool, floored: bool) -> str:
    presentation = study.presentation
    counts = {each.count for arm in rows for delay in arm.cells if (each := study.estimate(arm, delay))}
    seeds = str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    parts = [
        f"{presentation.score.subject}. Points: {presentation.statistic_title} over the seeds of finished runs "
        f"(n = {seeds}); ticks: single seeds."
    ]
    if max(counts) >= LEAST:
        parts.append(
            f"Lines: 95 % intervals of a bootstrap over seeds ({RESAMPLES:,} resamples"
            f"{', for all delays drawn within each' * together}); none where n is below {LEAST}."
        )
    else:
        parts.append(f"No intervals: n is too small (below {LEAST}).")
    if not presentation.score.higher_is_better:
        parts.append("Lower is better.")
    if study.references:
        parts.append("Hollow: arms without delay, the same in each panel.")
    if floored:
        parts.append("Dotted: floors of predictors that know only what is written there.")
    left = [in_seconds(delay) for delay in study.delays if delay not in delays]
    if left:
        parts.append(f"Not drawn: {listed(left)}.")
    hidden = len(study.arms) - len(rows)
    if hidden:
        parts.append(f"{hidden} of {len(study.arms)} arms have no result or are not among the {MOST_ROWS} best.")
    return " ".join(parts)
