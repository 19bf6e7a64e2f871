"""Figures of scores by arm and delay: coloured cells (paper, Figs. 3, 4, 13), and points with intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cet_rl.report import drawing
from cet_rl.report.grouping import Arm, Comparison
from cet_rl.report.palette import FAINT, PAPER
from cet_rl.report.statistics import LEAST_SEEDS, RESAMPLES, Estimate, Measure
from cet_rl.report.text import in_seconds, listed, sentence, span
from cet_rl.traces.base import FloatArray

MOST_ROWS = 60  # most arms in a heatmap; the table has all
MOST_COLUMNS = 24  # most delays in a heatmap
MOST_POINTS = 40  # most arms that are drawn as points


def heatmap(comparison: Comparison) -> list[drawing.Picture]:
    """Draw scores as cells, arms by delays; no picture with fewer than two delays or without a result.

    If some arms have a delay, those without are a single cell across all columns. A cell without a result is
    hatched. A cell shows the average score and, with several seeds, the standard deviation over seeds.
    """
    delays, score = drawing.some_delays(comparison.delays, MOST_COLUMNS), comparison.presentation.score
    rows = (*comparison.references, *comparison.best(comparison.compared, MOST_ROWS))
    if len(delays) < 2 or not rows:
        return []
    found = [
        [comparison.estimate(arm, 0.0 if arm in comparison.references else delay) for delay in delays]
        for arm in rows
    ]
    values = np.array([[each.centre if each else np.nan for each in row] for row in found])
    known = values[np.isfinite(values)]
    if not len(known):
        return []
    counts = {each.count for row in found for each in row if each}
    low, high = float(known.min()), float(known.max())
    tall = 0.4 if max(counts) > 1 else 0.3
    size = (1.4 + 0.085 * max(len(arm.label) for arm in rows) + 0.72 * len(delays), 1.0 + tall * len(rows))
    figure = Figure(figsize=(max(size[0], 5.0), max(size[1], 2.2)), layout="constrained")
    axes = figure.subplots()
    texts = [[_cell(each, score, counted=len(counts) > 1) for each in row] for row in found]
    colors = "viridis" if score.higher_is_better else "viridis_r"
    wide = [row for row, arm in enumerate(rows) if arm in comparison.references]
    drawing.draw_cells(axes, values, texts, colors, (low, high if high > low else low + 1 + abs(low)), wide)
    axes.set_xticks(range(len(delays)), [in_seconds(delay) for delay in delays])
    axes.set_yticks(range(len(rows)), [arm.label for arm in rows])
    axes.set_xlabel("credit delay")
    axes.set_title(f"{comparison.title}: {score.heading}", fontsize=9)
    caption = _heatmap_caption(comparison, counts, len(rows), delays)
    return [drawing.Picture("heatmap", figure, caption, f"Heatmap of {score.title}")]


def _cell(found: Estimate | None, score: Measure, *, counted: bool) -> str:
    if found is None:
        return "–"
    spread = "" if found.deviation is None else f"\n± {score.show(found.deviation)}"
    return score.show(found.centre) + f"  ({found.count})" * counted + spread


def _subject(comparison: Comparison) -> str:
    """Return the score's title and unit as the beginning of a sentence: "Test accuracy (%)"."""
    score = comparison.presentation.score
    return score.title[0].upper() + score.title[1:] + (f" ({score.unit})" if score.unit else "")


def _heatmap_caption(comparison: Comparison, counts: set[int], rows: int, delays: Sequence[float]) -> str:
    presentation = comparison.presentation
    seeds = f"n = {span(counts)}" + ", in brackets in each cell" * (len(counts) > 1)
    better = "" if presentation.score.higher_is_better else "; lower is better"
    average = f"{presentation.statistic_title} over the seeds of finished runs"
    parts = [f"{_subject(comparison)}: {average}, {seeds}{better}."]
    parts += ["±: standard deviation over seeds."] * (max(counts) > 1)
    parts += ["Arms without delay are drawn across all columns."] * bool(comparison.references)
    parts += sentence("Hatched, without a result", comparison.missing)
    if rows < len(comparison.arms):
        parts.append(f"The {rows} best arms of {len(comparison.arms)}; the table has them all.")
    parts += sentence("Not drawn", [in_seconds(delay) for delay in comparison.delays if delay not in delays])
    following = sorted({name.replace("_", "-") for arm in comparison.arms for name in arm.following})
    if following:
        parts.append(f"Along a row these options differ as well: {listed(following)}; see the table.")
    return " ".join([*parts, *comparison.changes])


Point = tuple[int, Estimate, FloatArray]
"""An arm in a panel: its row, the average over its seeds, and each seed's score."""


def scores(comparison: Comparison) -> list[drawing.Picture]:
    """Draw scores as points, in a panel for each delay and one for all delays; no picture without a result.

    If some arms have a delay, those without are drawn in each panel as hollow points.
    """
    rows = (*comparison.references, *comparison.best(comparison.compared, MOST_POINTS))
    rows = tuple(arm for arm in rows if any(comparison.estimate(arm, delay) for delay in arm.at))
    if not rows:
        return []
    pooled = {row: found for row, arm in enumerate(rows) if (found := comparison.over_delays(arm))}
    together = len(pooled) > 1
    compared = comparison.compared
    known = [each for each in comparison.delays if any(comparison.estimate(arm, each) for arm in compared)]
    delays = drawing.some_delays(known, drawing.MOST_PANELS - together) or [0.0]
    count = len(delays) + together
    references = {row: arm for row, arm in enumerate(rows) if arm in comparison.references}
    others = {row: arm for row, arm in enumerate(rows) if arm not in comparison.references}
    labels = max(len(arm.label) for arm in rows)
    width = max(2.0 if count > 1 else 4.5, 6.5 / min(count, 3)) + 0.07 * labels / min(count, 3)
    figure, grid = drawing.panels(count, width, 0.7 + 0.2 * len(rows), sharex=True, sharey=True)
    styles, drawn = drawing.styles(comparison), list[Point]()
    lines = drawing.baselines_of(comparison)
    for place, axes in enumerate(grid):
        if place < len(delays):
            hollow = _points(comparison, references, 0.0)
            points = _points(comparison, others, delays[place])
        else:
            hollow, points = [], [(row, found, np.empty(0)) for row, found in pooled.items()]
        _draw(axes, [*hollow, *points], [styles[arm.label] for arm in rows], references)
        drawn += [*hollow, *points]
        title = in_seconds(delays[place]) if place < len(delays) else "all delays"
        axes.set_title(title, fontsize=9, pad=34 if lines else None)
        axes.set_yticks(range(len(rows)), [arm.label for arm in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x", color=FAINT)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        drawing.draw_baselines(axes, lines, vertical=True)
    cut = not comparison.presentation.score.higher_is_better and _limit(grid[0], drawn, list(lines.values()))
    figure.supxlabel(comparison.presentation.score.heading, fontsize=9)
    figure.suptitle(comparison.title, fontsize=10)
    caption = _scores_caption(comparison, rows, delays, together=together, baselines=bool(lines))
    caption += " Some losses lie beyond the axis; see the table." * cut
    return [drawing.Picture("scores", figure, caption, f"{comparison.presentation.score.title} of each arm")]


def _points(comparison: Comparison, rows: Mapping[int, Arm], delay: float) -> list[Point]:
    """Return the points of those arms, given by row, that have a result at a delay."""
    estimates = [(row, arm, comparison.estimate(arm, delay)) for row, arm in rows.items()]
    score = comparison.presentation.score
    return [(row, each, arm.at[delay].scores(score)) for row, arm, each in estimates if each]


def _draw(axes: Axes, points: list[Point], styles: Sequence[Mapping[str, Any]], hollow: Collection[int]) -> None:
    """Draw points in the styles of their rows, those of `hollow` rows hollow. Few artists: each is slow."""
    for marker in dict.fromkeys(styles[row]["marker"] or "o" for row, _, _ in points):
        alike = [point for point in points if (styles[point[0]]["marker"] or "o") == marker]
        colors = [styles[row]["color"] for row, _, _ in alike]
        faces = [PAPER if row in hollow else styles[row]["color"] for row, _, _ in alike]
        seeds = [np.repeat(row, len(values)) for row, _, values in alike]
        ticks = [color for color, (_, _, values) in zip(colors, alike, strict=True) for _ in values]
        look: Any = {"marker": "|", "s": 45, "alpha": 0.5, "linewidths": 1, "zorder": 2}
        axes.scatter(np.concatenate([each for *_, each in alike]), np.concatenate(seeds), c=ticks, **look)
        ends = [
            (row, found.low, found.high, color)
            for (row, found, _), color in zip(alike, colors, strict=True)
            if found.low is not None
        ]
        if ends:
            row, low, high, shown = zip(*ends, strict=True)
            axes.hlines(row, low, high, colors=shown, linewidth=1.6, capstyle="butt")
        centres = [found.centre for _, found, _ in alike], [row for row, _, _ in alike]
        axes.scatter(*centres, s=22, marker=marker, c=faces, edgecolors=colors, zorder=3)


def _limit(axes: Axes, points: Sequence[Point], lines: Sequence[float]) -> bool:
    """Limit the x axis if a few losses diverge; return whether any lies beyond it."""
    losses = [loss for _, found, values in points for loss in values.tolist() or [found.least, found.centre]]
    top = drawing.loss_limit(losses)
    if top is None:
        return False
    low, high = min([*losses, *lines]), max([top, *lines])
    margin = drawing.MARGIN * (high - low)
    axes.set_xlim(low - margin, high + margin)
    return True


def _scores_caption(
    comparison: Comparison, rows: Sequence[Arm], delays: Sequence[float], *, together: bool, baselines: bool
) -> str:
    counts = {each.count for arm in rows for delay in arm.at if (each := comparison.estimate(arm, delay))}
    parts = [
        f"{_subject(comparison)}. Points: {comparison.presentation.statistic_title} over the seeds of finished "
        f"runs (n = {span(counts)}); ticks: single seeds."
    ]
    if max(counts) >= LEAST_SEEDS:
        parts.append(
            f"Lines: 95 % intervals of a bootstrap over seeds ({RESAMPLES:,} resamples"
            f"{', for all delays drawn within each' * together}); none where n is below {LEAST_SEEDS}."
        )
    else:
        parts.append(f"No intervals: n is too small (below {LEAST_SEEDS}).")
    parts += ["Lower is better."] * (not comparison.presentation.score.higher_is_better)
    parts += ["Hollow: arms without delay, the same in each panel."] * bool(comparison.references)
    parts += [drawing.DOTTED] * baselines
    parts += sentence("Not drawn", [in_seconds(delay) for delay in comparison.delays if delay not in delays])
    if hidden := len(comparison.arms) - len(rows):
        arms = f"{hidden} of {len(comparison.arms)} arms"
        parts.append(f"{arms} have no result or are not among the {MOST_POINTS} best.")
    return " ".join(parts)
