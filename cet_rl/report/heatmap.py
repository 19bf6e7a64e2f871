"""Scores of arms at delays as numbers in coloured cells (paper, Figs. 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cet_rl.report.arms import Study
from cet_rl.report.drawing import Picture, in_seconds, png, some_delays
from cet_rl.report.text import listed

MOST_ROWS = 60
"""Arms that are drawn; the table has them all."""

MOST_COLUMNS = 24
"""Delays that are drawn."""


def heatmap(study: Study) -> list[Picture]:
    """Rows are arms, columns delays; none unless there are two delays, none at all counted.

    An arm without delay, where others have one, is a single cell across all columns. A cell without a result is
    hatched.
    """
    delays, score = some_delays(study.delays, MOST_COLUMNS), study.presentation.score
    rows = (*study.references, *study.best(study.compared, MOST_ROWS))
    if len(delays) < 2 or not rows:
        return []
    found = [[study.estimate(arm, 0.0 if arm in study.references else delay) for delay in delays] for arm in rows]
    values = np.array([[each.centre if each else np.nan for each in row] for row in found])
    known = values[np.isfinite(values)]
    if not len(known):
        return []
    counts = {each.count for row in found for each in row if each}
    low, high = float(known.min()), float(known.max())
    size = (1.4 + 0.085 * max(len(arm.label) for arm in rows) + 0.72 * len(delays), 1.0 + 0.3 * len(rows))
    figure = Figure(figsize=(max(size[0], 5.0), max(size[1], 2.2)), layout="constrained")
    axes = figure.subplots()
    colors = mpl.colormaps["viridis" if score.higher_is_better else "viridis_r"].with_extremes(bad="white")
    high = high if high > low else low + 1 + abs(low)
    image = axes.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto")
    bright = image.to_rgba(values)[..., :3] @ [0.3, 0.59, 0.11] > 0.5
    frames = []
    for row, arm in enumerate(rows):
        reference = arm in study.references
        for column in range(1 if reference else len(delays)):
            each = found[row][column]
            place = (len(delays) - 1) / 2 if reference else column
            left, top, width = column - 0.5, row - 0.5, len(delays) if reference else 1
            frames.append([(left, top), (left + width, top), (left + width, top + 1), (left, top + 1)])
            if each is None:
                look: Any = {"fill": False, "hatch": "////", "edgecolor": "0.8", "linewidth": 0}
                axes.add_patch(Rectangle((left, top), width, 1, **look))
                text, color = "–", "0.3"
            else:
                text = score.show(each.centre) + (f"  ({each.count})" if len(counts) > 1 else "")
                color = "black" if bright[row, column] else "white"
            written = axes.text(place, row, text, ha="center", va="center", fontsize=8, color=color)
            written.set_in_layout(column in (0, len(delays) - 1))  # others do not reach beyond the axes
    # All at once: a hundred patches take their time.
    edges: Any = {"facecolors": "none", "edgecolors": "white", "linewidths": 1.5, "joinstyle": "miter"}
    axes.add_collection(PolyCollection(frames, **edges), autolim=False)
    axes.set_xticks(range(len(delays)), [in_seconds(delay) for delay in delays])
    axes.set_yticks(range(len(rows)), [arm.label for arm in rows])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("credit delay")
    axes.set_title(f"{study.title}: {score.heading}", fontsize=9)
    return [
        Picture("heatmap", png(figure), _caption(study, counts, len(rows), delays), f"Heatmap of {score.title}")
    ]


def _caption(study: Study, counts: set[int], rows: int, delays: Sequence[float]) -> str:
    presentation = study.presentation
    seeds = (
        f"n = {min(counts)}"
        if len(counts) == 1
        else f"n = {min(counts)} to {max(counts)}, in brackets in each cell"
    )
    better = "" if presentation.score.higher_is_better else "; lower is better"
    average = f"{presentation.statistic_title} over the seeds of finished runs"
    parts = [f"{presentation.score.subject}: {average}, {seeds}{better}."]
    if study.references:
        parts.append("Arms without delay are drawn across all columns.")
    if study.missing:
        names = [f"{arm.label} at {in_seconds(delay)}" for arm, delay in study.missing]
        parts.append(f"Hatched, without a result: {listed(names)}.")
    hidden = len(study.compared) + len(study.references) - rows
    if hidden:
        parts.append(f"The {rows} best arms of {rows + hidden}; the table has them all.")
    left = [in_seconds(delay) for delay in study.delays if delay not in delays]
    if left:
        parts.append(f"Not drawn: {listed(left)}.")
    following = sorted({name.replace("_", "-") for arm in study.arms for name in arm.following})
    if following:
        parts.append(f"Along a row these options differ as well: {listed(following)}; see the table.")
    parts += study.decays
    return " ".join(parts)
