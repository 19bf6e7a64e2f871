"""Draw what runs have logged: learning curves and alignment."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from cet_rl.runs import folder as run_folders
from cet_rl.runs.folder import MetricsTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

RETURN = "rollout/ep_rew_mean"
ALIGNMENT = "credit/alignment/"

POINTS = 100
"""On the common grid that the seeds of an arm are brought to."""

BINS = 8
"""Of the return, when alignment is drawn over it."""


@dataclass(frozen=True)
class Curve:
    """What one run has logged.

    Attributes:
        arm: which arm of an experiment it belongs to, the run's label unless told otherwise.
        seed: of the run.
        columns: of metrics.csv by name, all of one length, nan where a row has nothing.
    """

    arm: str
    seed: int
    columns: Mapping[str, FloatArray]

    def over(self, x: str, y: str) -> tuple[FloatArray, FloatArray]:
        """Two columns where both have values; empty if either is missing."""
        nothing = np.empty(0)
        a, b = self.columns.get(x, nothing), self.columns.get(y, nothing)
        if len(a) != len(b):
            return nothing, nothing
        both = np.isfinite(a) & np.isfinite(b)
        return a[both], b[both]


def read_run(folder: str | os.PathLike[str], arm: str | None = None) -> Curve:
    """The curves of a run folder.

    Args:
        folder: as `cet-rl train` leaves it.
        arm: its name in a legend; None for the run's label, such as cet5-8s.

    Raises:
        FileNotFoundError: if there are no metrics yet.
        ValueError: if it is no run folder, or its configuration is damaged.
    """
    task_kind, run, values = run_folders.read_run(folder)
    config = task_kind.config()(**values)
    return Curve(arm or config.label, config.seed, read_columns(run.metrics_file))


def read_columns(
    file: str | os.PathLike[str], wanted: Callable[[str], bool] | None = None, most: int | None = None
) -> dict[str, FloatArray]:
    """The numbers of a metrics.csv.

    Args:
        file: to read.
        wanted: which columns; None for all.
        most: rows that are kept, evenly spaced; None for all.

    Returns:
        Columns by name, all of one length, nan where a row has nothing.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no table.
    """
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            header, *rows = csv.reader(stream.read().split("\n"))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    rows = [row for row in rows if len(row) == len(header)]  # one that is being written may be cut
    if most is not None and len(rows) > most:
        rows = [rows[place] for place in np.linspace(0, len(rows) - 1, most).astype(int)]
    if not rows:
        return {}
    places = {name: place for place, name in enumerate(header) if wanted is None or wanted(name)}
    return {name: np.array([_number(row[place]) for row in rows]) for name, place in places.items()}


def _number(text: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def draw_curves(
    axes: Axes,
    curves: Iterable[Curve],
    column: str = RETURN,
    styles: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    band: Literal["range", "error"] = "range",
) -> None:
    """One line for each arm, the mean over its seeds, in a band.

    Args:
        axes: to draw on.
        curves: in the order of the legend.
        column: of metrics.csv.
        styles: keyword arguments of `Axes.plot` for each arm, such as label and color.
        band: from the least seed to the largest, or a standard error of the mean up and down.
    """
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve.arm, []).append(curve)
    for number, (arm, seeds) in enumerate(arms.items()):
        lines = [line for seed in seeds if len((line := seed.over(MetricsTable.STEP, column))[0])]
        if not lines:
            continue
        style = {"label": arm, "color": f"C{number % 10}", **(styles or {}).get(arm, {})}
        # Seeds may have logged at other steps, and none is drawn where only some have values.
        first, last = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
        if first > last:
            continue
        grid = np.linspace(first, last, POINTS)
        values = np.array([np.interp(grid, x, y) for x, y in lines])
        mean, low, high = values.mean(0), values.min(0), values.max(0)
        if band == "error":
            spread = values.std(0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.zeros_like(mean)
            low, high = mean - spread, mean + spread
        axes.plot(grid, mean, **style)
        axes.fill_between(grid, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xlabel("samples")
    if column == RETURN:
        axes.set_ylabel("return, last 100 training episodes")


def curve_figure(folders: Iterable[str | os.PathLike[str]], column: str = RETURN) -> Figure:
    """Learning curves of run folders; those of one label are seeds of one arm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    draw_curves(axes, map(read_run, folders), column)
    if axes.lines:
        axes.legend(frameon=False)
    return figure


def draw_alignment_over(
    axes: Axes, curves: Iterable[Curve], layer: str, column: str = RETURN, *, factor: float = 1.0, **style: Any
) -> None:
    """Alignment of one layer over a score that went with it, averaged in bins (paper, Figs. 7C-D and 8C-D).

    Args:
        axes: to draw on.
        curves: of one arm.
        layer: its name.
        column: of the score.
        factor: from the column's numbers to those that are shown.
        style: keyword arguments of `Axes.plot`.
    """
    pairs = [curve.over(column, f"{ALIGNMENT}{layer}") for curve in curves]
    if not sum(len(scores) for scores, _ in pairs):
        return
    scores, alignment = (np.concatenate(side) for side in zip(*pairs, strict=True))
    scores = factor * scores
    edges = np.linspace(scores.min(), scores.max(), BINS + 1)
    index = np.clip(np.digitize(scores, edges) - 1, 0, BINS - 1)
    filled = [number for number in range(BINS) if (index == number).any()]
    centres = (edges[:-1] + edges[1:])[filled] / 2
    axes.plot(centres, [alignment[index == number].mean() for number in filled], marker="o", markersize=3, **style)


def alignment_figure(curves: Sequence[Curve], styles: Mapping[str, Mapping[str, Any]] | None = None) -> Figure:
    """How well each layer's update points along the true gradient, over training and over return (Figs. 8, 10).

    Args:
        curves: of one or more arms; see `read_run`.
        styles: keyword arguments of `Axes.plot` for each arm.

    Raises:
        ValueError: if no run has logged any alignment.
    """
    from matplotlib.figure import Figure

    names = {name for curve in curves for name in curve.columns if name.startswith(ALIGNMENT)}
    layers = sorted(name.removeprefix(ALIGNMENT) for name in names)
    if not layers:
        raise ValueError("none of these runs has logged alignment: it needs a delay, and --alignment")
    figure = Figure(figsize=(3.2 * len(layers), 5), layout="constrained")
    grid = figure.subplots(2, len(layers), squeeze=False, sharey=True)
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    for (over_training, over_return), layer in zip(grid.T, layers, strict=True):
        column = f"{ALIGNMENT}{layer}"
        logged = [curve for curve in curves if column in curve.columns]
        colors = {
            arm: {"color": f"C{number % 10}", **(styles or {}).get(arm, {})} for number, arm in enumerate(arms)
        }
        draw_curves(over_training, logged, column, colors)
        for arm in arms:
            of_arm = [curve for curve in logged if curve.arm == arm]
            draw_alignment_over(over_return, of_arm, layer, **colors[arm])
        over_training.set_title(f"layer {layer}" if layer.isdigit() else layer)
        over_return.set_xlabel("return")
        for axes in (over_training, over_return):
            axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    for axes in grid[:, 0]:
        axes.set_ylabel("cosine with the true gradient")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return figure
