"""Scores of arms as points: the statistic over seeds with its interval, and every seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cet_rl.plots import FloatArray
from cet_rl.report.arms import Arm, Study
from cet_rl.report.drawing import MOST_PANELS, Picture, in_seconds, panels, png, some_delays
from cet_rl.report.floors import draw_floors, floors
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
    for axes, delay in zip(grid, delays, strict=False):
        for place, arm in enumerate(rows):
            reference = arm in study.references
            own = 0.0 if reference else delay
            _draw(axes, place, study.estimate(arm, own), _seeds(study, arm, own), hollow=reference)
        axes.set_title(in_seconds(delay), fontsize=9, pad=34 if lines else None)
    if together:
        for place, arm in enumerate(rows):
            _draw(grid[-1], place, pooled[arm.label], np.empty(0), hollow=False)
        grid[-1].set_title("all delays", fontsize=9, pad=34 if lines else None)
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
    return [Picture("scores", png(figure), caption, f"{study.presentation.score.title} of each arm")]


def _seeds(study: Study, arm: Arm, delay: float) -> FloatArray:
    cell = arm.cells.get(delay)
    return np.empty(0) if cell is None else cell.scores(study.presentation.score)


def _draw(axes: Axes, place: int, found: Estimate | None, seeds: FloatArray, *, hollow: bool) -> None:
    if found is None:
        return
    color = "0.35" if hollow else "C0"
    axes.plot(seeds, np.full(len(seeds), place), "|", color=color, markersize=7, alpha=0.45, markeredgewidth=1)
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [place, place], color=color, linewidth=1.6, solid_capstyle="butt")
    axes.plot(found.centre, place, "o", color=color, markersize=4.5, markerfacecolor="white" if hollow else color)


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
