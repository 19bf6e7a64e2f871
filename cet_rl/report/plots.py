"""Draws what runs have logged: learning curves, and alignment with the true gradient."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cet_rl.report.reading import ALIGNMENT, FloatArray, logged, read_columns
from cet_rl.runs import folder as run_folders
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.task_kinds import RL

RETURN = RL.curve.key
"""Column of the return."""

POINTS = 100  # of the common grid on which the seeds of an arm are averaged
BINS = 8  # of the score when alignment is drawn over it

Styles = Mapping[str, Mapping[str, Any]]
"""Keyword arguments of `Axes.plot` for each arm, such as label and color."""


@dataclass(frozen=True)
class Curve:
    """Hold what one run has logged.

    Attributes:
        arm: name of the arm that the run belongs to; runs of one name are seeds of one arm.
        columns: columns of metrics.csv by name, all of one length, nan where a row has nothing.
    """

    arm: str
    seed: int
    columns: Mapping[str, FloatArray]

    def over(self, x: str, y: str) -> tuple[FloatArray, FloatArray]:
        """Return two columns where both have values; empty arrays if either column is missing."""
        return logged(self.columns, x, y)


def read_run(folder: str | os.PathLike[str], arm: str | None = None) -> Curve:
    """Read the curves of a run folder.

    The arm's name in a legend is the run's label, such as cet5-8s, if none is given.

    Raises:
        FileNotFoundError: if there are no metrics yet.
        ValueError: if it is no run folder, or its configuration is damaged.
    """
    task_kind, run, values = run_folders.read_run(folder)
    config = task_kind.config()(**values)
    return Curve(arm or config.label, config.seed, read_columns(run.metrics_file))


def _by_arm(curves: Iterable[Curve], styles: Styles | None) -> Iterator[tuple[dict[str, Any], list[Curve]]]:
    """Yield the style of each arm, and its curves, in the order in which arms are met."""
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve.arm, []).append(curve)
    for number, (arm, seeds) in enumerate(arms.items()):
        yield {"label": arm, "color": f"C{number % 10}", **(styles or {}).get(arm, {})}, seeds


def draw_curves(
    axes: Axes,
    curves: Iterable[Curve],
    column: str = RETURN,
    styles: Styles | None = None,
    *,
    band: Literal["range", "error"] = "range",
) -> dict[str, Line2D]:
    """Draw one line for each arm, the mean over its seeds, in a band.

    Seeds may have logged at other steps; nothing is drawn where only some of them have values.

    Args:
        axes: axes to draw on.
        curves: curves in the order of the legend.
        column: column of metrics.csv.
        styles: see `Styles`.
        band: "range" from the lowest seed to the highest, or "error", a standard error of the mean up and down.

    Returns:
        The line of each arm that is drawn, by its label.
    """
    drawn = {}
    for style, seeds in _by_arm(curves, styles):
        lines = [line for seed in seeds if len((line := seed.over(MetricsTable.STEP, column))[0])]
        first, last = max((x[0] for x, _ in lines), default=1), min((x[-1] for x, _ in lines), default=0)
        if first > last:
            continue
        grid = np.linspace(first, last, POINTS)
        values = np.array([np.interp(grid, x, y) for x, y in lines])
        mean, low, high = values.mean(0), values.min(0), values.max(0)
        if band == "error":
            spread = values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.zeros_like(mean)
            low, high = mean - spread, mean + spread
        (drawn[style["label"]],) = axes.plot(grid, mean, **style)
        axes.fill_between(grid, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xlabel("samples")
    if column == RETURN:
        axes.set_ylabel("return, last 100 training episodes")
    return drawn


def draw_alignment_over(
    axes: Axes,
    curves: Iterable[Curve],
    layer: str,
    column: str = RETURN,
    styles: Styles | None = None,
    *,
    factor: float = 1.0,
) -> dict[str, Line2D]:
    """Draw the alignment of a layer over the score that went with it, as means in bins (paper, Figs. 7C-D, 8C-D).

    Args:
        axes, curves, styles: as in `draw_curves`, and so is what is returned.
        layer: name of the layer.
        column: column of the score.
        factor: from the column's numbers to those shown.
    """
    drawn = {}
    for style, seeds in _by_arm(curves, styles):
        pairs = [seed.over(column, f"{ALIGNMENT}{layer}") for seed in seeds]
        scores, alignment = (np.concatenate(both) for both in zip(*pairs, strict=True))
        if not len(scores):
            continue
        scores = factor * scores
        edges = np.linspace(scores.min(), scores.max(), BINS + 1)
        index = np.clip(np.digitize(scores, edges) - 1, 0, BINS - 1)
        filled = np.unique(index)
        means = [alignment[index == number].mean() for number in filled]
        centres = (edges[:-1] + edges[1:])[filled] / 2
        (drawn[style["label"]],) = axes.plot(centres, means, marker="o", markersize=3, **style)
    return drawn


def curve_figure(folders: Iterable[str | os.PathLike[str]], column: str = RETURN) -> Figure:
    """Draw the learning curves of run folders; those of one label are seeds of one arm."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lines = draw_curves(axes, map(read_run, folders), column)
    if lines:
        axes.legend(lines.values(), lines, frameon=False)
    return figure


def alignment_figure(curves: Sequence[Curve], styles: Styles | None = None) -> Figure:
    """Draw the cosine of each layer's update with the true gradient, over training and return (Figs. 8, 10).

    Raises:
        ValueError: if no run has logged any alignment.
    """
    names = {name for curve in curves for name in curve.columns if name.startswith(ALIGNMENT)}
    layers = sorted(name.removeprefix(ALIGNMENT) for name in names)
    if not layers:
        raise ValueError("none of these runs has logged alignment: it needs a delay, and --alignment")
    figure = Figure(figsize=(3.2 * len(layers), 5), layout="constrained")
    grid = figure.subplots(2, len(layers), squeeze=False, sharey=True)
    lines: dict[str, Line2D] = {}
    for (over_training, over_return), layer in zip(grid.T, layers, strict=True):
        lines |= draw_curves(over_training, curves, f"{ALIGNMENT}{layer}", styles)
        draw_alignment_over(over_return, curves, layer, styles=styles)
        over_training.set_title(f"layer {layer}" if layer.isdigit() else layer)
        over_return.set_xlabel("return")
        for axes in (over_training, over_return):
            axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    for axes in grid[:, 0]:
        axes.set_ylabel("cosine with the true gradient")
    grid[0, 0].legend(lines.values(), lines, frameon=False, fontsize=8)
    return figure
