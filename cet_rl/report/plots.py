"""Draw learning curves and alignment of runs (paper, Figs. 5 and 7 to 13), for reports and your own figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from cet_rl.report import drawing
from cet_rl.report.grouping import Arm, Comparison
from cet_rl.report.palette import FAINT, Identity, looks
from cet_rl.report.reading import ALIGNMENT, logged
from cet_rl.report.statistics import Presentation
from cet_rl.report.text import counted, in_seconds, sentence, span
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.task_kinds import RL
from cet_rl.traces.base import FloatArray

RETURN = RL.curve.key  # column of metrics.csv with the return

POINTS = 100  # of the common grid on which the seeds of an arm are averaged
BETWEEN = 15  # grid points from one marker of a curve to the next
BINS = 8  # of the score, when alignment is drawn over it
MOST_SEEDS_OF_A_RANGE = 5  # with more seeds the band is a standard error
LOGARITHMIC = 30.0  # least ratio of largest to smallest value for which an axis is logarithmic
MOST_LAYERS = 9  # whose alignment is drawn
MOST_DELAYS = 3  # whose alignment is drawn: the longest ones
MOST_LAYERS_ABREAST = 5  # with more layers there is only room for one delay

Styles = Mapping[str, Mapping[str, Any]]
"""Keyword arguments of `Axes.plot` for each arm, such as label and color."""


@dataclass(frozen=True)
class Curve:
    """Hold the logged columns of one run."""

    arm: str
    seed: int
    columns: Mapping[str, FloatArray]  # of metrics.csv by name, of equal length, nan where a row has no value

    def over(self, x: str, y: str) -> tuple[FloatArray, FloatArray]:
        """Return two columns at the rows in which both have values; empty arrays if one column is missing."""
        return logged(self.columns, x, y)


def _by_arm(curves: Iterable[Curve], styles: Styles | None) -> Iterator[tuple[dict[str, Any], list[Curve]]]:
    """Yield the style of each arm and its curves, in the order in which the arms first appear."""
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve.arm, []).append(curve)
    usual = looks({arm: Identity(arm) for arm in arms})
    for arm, seeds in arms.items():
        yield {"label": arm, **usual[arm], **(styles or {}).get(arm, {})}, seeds


def draw_curves(
    axes: Axes,
    curves: Iterable[Curve],
    column: str = RETURN,
    styles: Styles | None = None,
    *,
    band: Literal["range", "error"] = "range",
) -> dict[str, Line2D]:
    """Draw the mean over seeds of each arm as a line with a band, and return the lines by the arms' labels.

    Args:
        curves: the runs. Seeds may have logged at different steps; a line covers the steps that all of them cover.
        column: a column of metrics.csv.
        styles: how to draw each arm; by default as reports do.
        band: "range" from the lowest seed to the highest, or "error", one standard error of the mean each way.
    """
    drawn: dict[str, Line2D] = {}
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
        marked = {"markersize": 3.5, "markevery": (5 * len(drawn) % BETWEEN, BETWEEN)}
        (drawn[style["label"]],) = axes.plot(grid, mean, **{**marked, **style})
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
    """Draw the alignment of a layer over the score at the same step, as means in bins (paper, Figs. 7C-D, 8C-D).

    The score is a column of metrics.csv, times `factor`; other arguments and the result are as in `draw_curves`.
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
        (drawn[style["label"]],) = axes.plot(centres, means, **{"marker": "o", "markersize": 3.5, **style})
    return drawn


def learning_curves(comparison: Comparison) -> list[drawing.Picture]:
    """Draw learning curves, a panel for each delay; no picture if no run has logged any."""
    shows = comparison.presentation
    compared, column = comparison.compared, [shows.curve]
    delays = [each for each in comparison.delays if any(_curves(arm, each, column) for arm in compared)]
    shown = drawing.some_delays(delays or [0.0])
    size = (3.2, 2.6) if len(shown) > 1 else (6.0, 3.2)
    figure, grid = drawing.panels(len(shown), *size, sharey=True)
    arms = comparison.best(compared, drawing.MOST_ARMS, shown[-1] if delays else None)
    references = comparison.best(comparison.references, 4)
    of_references = [curve for arm in references for curve in _curves(arm, 0.0, column)]
    styles, baselines = drawing.styles(comparison), drawing.baselines_of(comparison)
    band = _band(comparison)
    curves, lines = list(of_references), dict[str, Line2D]()
    for axes, delay in zip(grid, shown, strict=True):
        here = [curve for arm in arms for curve in _curves(arm, delay, column)]
        curves += here
        with drawing.scaled_at_the_end(axes):
            lines |= draw_curves(axes, here + of_references, shows.curve, styles, band=band)
        drawing.format_steps(axes)
        axes.set_title(in_seconds(delay), fontsize=9)
        drawing.draw_baselines(axes, baselines, vertical=False, named=axes is grid[-1])
    if not curves:
        return []
    cut, beyond = _limit(grid[0], curves, shows, list(baselines.values()))
    drawing.label_outside(grid, shows.steps, shows.curve_title)
    figure.suptitle(comparison.title, fontsize=10)
    drawing.legend(figure, lines, list(styles))
    caption = [f"{shows.curve_title.capitalize()} over training. {_meaning(comparison, band)}"]
    caption += _left_out(comparison, [*arms, *references], delays, shown)
    caption += [drawing.DOTTED] * bool(baselines)
    caption += ["The axis leaves out part of the beginning."] * cut
    caption += [f"{counted(beyond, 'run')} diverged and went beyond the axis."] * bool(beyond)
    caption += comparison.changes
    return [drawing.Picture("curves", figure, " ".join(caption), f"Curves of {shows.curve_title}")]


def _curves(arm: Arm, delay: float, columns: Sequence[str]) -> list[Curve]:
    """Return the curves of an arm's runs at a delay, without runs that have no value in any of the columns."""
    return [
        Curve(arm.label, run.config.seed, run.columns)
        for run in (arm.at[delay].drawn if delay in arm.at else ())
        if run.config and any(np.isfinite(run.columns.get(column, np.empty(0))).any() for column in columns)
    ]


def _band(comparison: Comparison) -> Literal["range", "error"]:
    seeds = max(len(at_delay.drawn) for _, at_delay in comparison.all_runs)
    return "error" if seeds > MOST_SEEDS_OF_A_RANGE else "range"


def _meaning(comparison: Comparison, band: str) -> str:
    """Return a sentence on what lines and bands show."""
    counts = {len(at_delay.drawn) for _, at_delay in comparison.all_runs if at_delay.drawn}
    if counts == {1}:
        return "One seed each."
    around = {"range": "from the lowest seed to the highest", "error": "a standard error of the mean up and down"}
    return f"Lines: means of {span(counts)} seeds; bands: {around[band]}."


def _left_out(
    comparison: Comparison, drawn: Sequence[Arm], delays: Sequence[float], shown: Sequence[float]
) -> list[str]:
    """Return sentences on what is not drawn, and on what has not finished."""
    repeated = any(arm in comparison.references for arm in drawn) and bool(delays)
    sentences = ["Arms without delay are the same in each panel."] * repeated
    sentences += sentence("Not drawn", [in_seconds(delay) for delay in delays if delay not in shown])
    if hidden := len(comparison.arms) - len(drawn):
        sentences.append(f"{counted(hidden, 'arm')} with worse scores, or none, not drawn.")
    partial = [
        f"{arm.label} at {in_seconds(at_delay.delay)}"
        for arm, at_delay in comparison.all_runs
        if arm in drawn and at_delay.drawn and not at_delay.finished
    ]
    return sentences + sentence("Not finished, drawn as far as they are", partial)


def _limit(
    axes: Axes, curves: Sequence[Curve], presentation: Presentation, baselines: Sequence[float]
) -> tuple[bool, int]:
    """Fit the y axis to baselines and to the values of each run after its beginning, without diverging runs.

    Returns:
        Whether part of the beginning lies beyond the axis, and how many runs go beyond it later.
    """
    early: list[float] = []
    lows, highs = [], []
    for curve in curves:
        at, found = curve.over(MetricsTable.STEP, presentation.curve)
        settled = at >= presentation.settling * at[-1]
        early += found[~settled].tolist()
        lows.append(float(found[settled].min()))
        highs.append(float(found[settled].max()))
    top = None if presentation.score.higher_is_better else drawing.loss_limit(highs)
    low, high = min([*lows, *baselines]), max([max(highs) if top is None else top, *baselines])
    form = FuncFormatter(lambda value, _: f"{presentation.curve_factor * value:.6g}")
    axes.yaxis.set_major_formatter(form)
    if not presentation.settling or not high > low:
        return False, 0
    if low > 0 and high > LOGARITHMIC * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(form)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / 1.1, high * 1.1)
    else:
        margin = drawing.MARGIN * (high - low)
        axes.set_ylim(low - margin, high + margin)
    return bool(early) and (min(early) < low or max(early) > high), sum(each > high for each in highs)


def alignment(comparison: Comparison) -> list[drawing.Picture]:
    """Draw the cosine between each layer's update and the true gradient; no picture if none was logged.

    There is a column of panels for each layer, and a row for each of the longest delays. One picture is over
    training; another is over the score, for kinds of tasks whose score rises.
    """
    logged = [delay for delay in comparison.delays if _layers(comparison, delay)]
    if not logged:
        return []
    layers = _layers(comparison, logged[-1])
    shown = logged[-MOST_DELAYS:] if len(layers) <= MOST_LAYERS_ABREAST else logged[-1:]
    across = len(layers) if len(shown) > 1 else drawing.ACROSS
    columns = [f"{ALIGNMENT}{layer}" for layer in layers]
    arms = comparison.best(comparison.compared, drawing.MOST_ARMS, logged[-1])
    curves = {delay: [curve for arm in arms for curve in _curves(arm, delay, columns)] for delay in shown}
    *others, last = map(in_seconds, shown)
    delays = f"{', '.join(others)} and {last}" if others else last
    what = f"Cosine between each layer's update and the true gradient of the same data, {delays}"
    rest = sentence("Also logged, not drawn", [in_seconds(delay) for delay in logged if delay not in shown])
    shows, styles, band = comparison.presentation, drawing.styles(comparison), _band(comparison)
    pictures = []
    for over in dict.fromkeys((None, shows.over_score)):
        count = len(shown) * len(layers)
        figure, grid = drawing.panels(count, 2.9 if count > 1 else 6.0, 2.4, across, sharey=True)
        lines: dict[str, Line2D] = {}
        for axes, (delay, layer) in zip(grid, [(d, layer) for d in shown for layer in layers], strict=True):
            axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
            title = f"layer {layer}" if layer.isdecimal() else layer[:20]
            axes.set_title(f"{in_seconds(delay)}, {title}" if len(shown) > 1 else title, fontsize=9)
            if over is None:
                with drawing.scaled_at_the_end(axes):
                    lines |= draw_curves(axes, curves[delay], f"{ALIGNMENT}{layer}", styles, band=band)
                drawing.format_steps(axes)
            else:
                factor = shows.curve_factor
                lines |= draw_alignment_over(axes, curves[delay], layer, shows.curve, styles, factor=factor)
        x = shows.curve_title if over else shows.steps
        drawing.label_outside(grid, x, "cosine with the true gradient", across)
        one = f", {in_seconds(shown[0])}" if len(shown) == 1 else ""
        figure.suptitle(f"{comparison.title}{one}", fontsize=10)
        drawing.legend(figure, lines, list(styles))
        name, title = ("alignment", "over training") if over is None else (f"alignment-{over}", f"over {over}")
        caption = f"{what}, over the {over} that went with it: means in bins, all seeds."
        if over is None:
            caption = f"{what}, over training; layer 0 is next to the input. {_meaning(comparison, band)}"
        described = f"Alignment of each layer {title}"
        pictures.append(drawing.Picture(name, figure, " ".join([caption, *rest]), described))
    return pictures


def _layers(comparison: Comparison, delay: float) -> list[str]:
    """Return the layers with alignment at a delay, input side first."""
    names = {
        name.removeprefix(ALIGNMENT)
        for arm in comparison.compared
        if delay in arm.at
        for run in arm.at[delay].drawn
        for name, values in run.columns.items()
        if name.startswith(ALIGNMENT) and np.isfinite(values).any()
    }
    return sorted(names, key=lambda name: (not name.isdecimal(), len(name) * name.isdecimal(), name))[:MOST_LAYERS]
