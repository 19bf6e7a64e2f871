"""Learning curves and alignment over training (paper, Figs. 5 and 7 to 13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from cet_rl.plots import ALIGNMENT, Curve, draw_alignment_over_return, draw_curves
from cet_rl.report.arms import Arm, Study
from cet_rl.report.drawing import (
    MOST_ARMS,
    Picture,
    count_steps,
    in_seconds,
    label_outside,
    legend,
    panels,
    png,
    scaled_at_the_end,
    some_delays,
    styles,
)
from cet_rl.report.floors import draw_floors, floors
from cet_rl.report.presentation import Presentation
from cet_rl.report.text import counted, listed
from cet_rl.runs import MetricsTable

SEEDS_OF_A_RANGE = 5
"""Up to so many seeds the band goes from the lowest to the highest; with more it is a standard error."""

MAGNITUDES = 30.0
"""Quotient of the largest and the smallest value of an axis from which on it is logarithmic."""

MOST_LAYERS = 9
"""With alignment that are drawn."""


def learning_curves(study: Study) -> list[Picture]:
    """The family's curve over training, a panel for each delay; none if nothing was logged."""
    column = study.presentation.curve
    delays = [delay for delay in study.delays if any(_curves(arm, delay, [column]) for arm in study.compared)]
    shown = some_delays(delays or [0.0])
    figure, grid = panels(len(shown), 3.2 if len(shown) > 1 else 6.0, 2.6 if len(shown) > 1 else 3.2, sharey=True)
    arms = study.best(study.compared, MOST_ARMS, shown[-1] if delays else None)
    references = study.best(study.references, 4)
    look, lines = _styles(arms, references), floors(study)
    band = _band(study)
    curves: list[Curve] = []
    for axes, delay in zip(grid, shown, strict=True):
        here = [curve for arm in arms for curve in _curves(arm, delay, [column])]
        here += [curve for arm in references for curve in _curves(arm, 0.0, [column])]
        with scaled_at_the_end(axes):
            draw_curves(axes, here, column, look, band=band)
        count_steps(axes)
        axes.set_title(in_seconds(delay), fontsize=9)
        draw_floors(axes, lines, vertical=False, named=axes is grid[-1])
        curves += here
    if not curves:
        return []
    cut = _limit(grid[0], curves, study.presentation, list(lines.values()))
    label_outside(grid, study.presentation.steps, study.presentation.curve_title)
    figure.suptitle(study.title, fontsize=10)
    legend(figure, grid)
    caption = [f"{study.presentation.curve_title.capitalize()} over training. {_meaning(study, band)}"]
    caption += _left_out(study, arms, references, delays, shown)
    caption += ["Dotted lines: floors of predictors that know only what is written there."] * bool(lines)
    caption += ["The axis leaves out part of the beginning."] * cut
    return [Picture("curves", png(figure), " ".join(caption), f"Curves of {study.presentation.curve_title}")]


def alignment(study: Study) -> list[Picture]:
    """Cosine between each layer's update and the true gradient, at the longest delay; none if none was logged.

    A picture over training and, where the family says so, one over the score.
    """
    logged = {delay: layers for delay in study.delays if (layers := _layers(study, delay))}
    if not logged:
        return []
    delay = max(logged)
    columns = {layer: f"{ALIGNMENT}{layer}" for layer in logged[delay]}
    arms = study.best(study.compared, MOST_ARMS, delay)
    curves = [curve for arm in arms for curve in _curves(arm, delay, list(columns.values()))]
    others = [in_seconds(other) for other in logged if other != delay]
    rest = f" Also logged, not drawn: {listed(others)}." if others else ""
    what = "Cosine between each layer's update and the true gradient of the same data"
    pictures: list[Picture] = []
    for over in (None, study.presentation.over_score):
        if over is None and pictures:
            break
        figure, grid = panels(len(columns), 2.9 if len(columns) > 1 else 6.0, 2.4, sharey=True)
        for axes, (layer, column) in zip(grid, columns.items(), strict=True):
            axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
            axes.set_title(f"layer {layer}" if layer.isdecimal() else layer[:20], fontsize=9)
            _draw_alignment(axes, study, arms, curves, column, over)
        label_outside(grid, "return" if over else study.presentation.steps, "cosine with the true gradient")
        figure.suptitle(f"{study.title}, {in_seconds(delay)}", fontsize=10)
        legend(figure, grid)
        if over is None:
            caption = f"{what}, {in_seconds(delay)}, over training; layer 0 is next to the input. "
            caption += f"{_meaning(study, _band(study))}{rest}"
            pictures.append(Picture("alignment", png(figure), caption, "Alignment of each layer over training"))
        else:
            caption = (
                f"{what}, {in_seconds(delay)}, over the return that went with it: means in bins, all seeds.{rest}"
            )
            pictures.append(
                Picture("alignment-return", png(figure), caption, "Alignment of each layer over return")
            )
    return pictures


def _draw_alignment(
    axes: Axes, study: Study, arms: Sequence[Arm], curves: list[Curve], column: str, over: str | None
) -> None:
    look = _styles(arms)
    if over is None:
        with scaled_at_the_end(axes):
            draw_curves(axes, curves, column, look, band=_band(study))
        count_steps(axes)
        return
    for arm in arms:
        of_arm = [curve for curve in curves if curve.arm == arm.label]
        draw_alignment_over_return(axes, of_arm, column.removeprefix(ALIGNMENT), **look[arm.label])


def _styles(arms: Sequence[Arm], references: Sequence[Arm] = ()) -> Mapping[str, Mapping[str, Any]]:
    return styles([arm.label for arm in arms], [arm.label for arm in references])


def _curves(arm: Arm, delay: float, columns: Sequence[str]) -> list[Curve]:
    """What an arm's runs at a delay have logged, those without any value in these columns left out."""
    cell = arm.cells.get(delay)
    found = []
    for run in cell.drawn if cell else ():
        if any(np.isfinite(run.columns.get(column, np.empty(0))).any() for column in columns):
            assert run.config is not None
            found.append(Curve(arm.label, run.config.seed, run.columns))
    return found


def _layers(study: Study, delay: float) -> list[str]:
    """Layers with alignment at a delay, input side first."""
    names = {
        name.removeprefix(ALIGNMENT)
        for arm in study.compared
        if delay in arm.cells
        for run in arm.cells[delay].drawn
        for name, values in run.columns.items()
        if name.startswith(ALIGNMENT) and np.isfinite(values).any()
    }
    numbered = sorted((name for name in names if name.isdecimal()), key=int)
    return [*numbered, *sorted(names - set(numbered))][:MOST_LAYERS]


def _band(study: Study) -> Literal["range", "error"]:
    seeds = max(len(cell.drawn) for _, cell in study.cells)
    return "error" if seeds > SEEDS_OF_A_RANGE else "range"


def _meaning(study: Study, band: str) -> str:
    """What lines and bands are."""
    counts = {len(cell.drawn) for _, cell in study.cells if cell.drawn}
    if counts == {1}:
        return "One seed each."
    seeds = f"{min(counts)} to {max(counts)} seeds" if len(counts) > 1 else f"{min(counts)} seeds"
    spread = (
        "from the lowest seed to the highest" if band == "range" else "a standard error of the mean up and down"
    )
    return f"Lines: means of {seeds}; bands: {spread}."


def _left_out(
    study: Study, arms: Sequence[Arm], references: Sequence[Arm], delays: Sequence[float], shown: Sequence[float]
) -> list[str]:
    """Sentences on what else there is, and on what has not finished."""
    found = []
    if references and delays:
        found.append("Grey: arms without delay, the same in each panel.")
    left = [in_seconds(delay) for delay in delays if delay not in shown]
    if left:
        found.append(f"Not drawn: {listed(left)}.")
    hidden = len(study.arms) - len(arms) - len(references)
    if hidden:
        found.append(f"{counted(hidden, 'arm')} with worse scores, or none, not drawn.")
    partial = [
        f"{arm.label} at {in_seconds(cell.delay)}"
        for arm, cell in study.cells
        if arm in (*arms, *references) and cell.drawn and not cell.finished
    ]
    if partial:
        found.append(f"Not finished, drawn as far as they are: {listed(partial)}.")
    return found


def _limit(axes: Axes, curves: Sequence[Curve], presentation: Presentation, lines: Sequence[float]) -> bool:
    """Show the values after the first share of each run, and these lines; whether others are left out."""
    values, late = [], list(lines)
    for curve in curves:
        at, found = curve.over(MetricsTable.STEP, presentation.curve)
        values += found.tolist()
        late += found[at >= presentation.settling * at[-1]].tolist()
    low, high = min(late), max(late)
    form = FuncFormatter(lambda value, _: f"{presentation.curve_factor * value:.6g}")
    axes.yaxis.set_major_formatter(form)
    if not presentation.settling or not high > low:
        return False
    if low > 0 and high > MAGNITUDES * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(form)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / 1.1, high * 1.1)
    else:
        margin = 0.04 * (high - low)
        axes.set_ylim(low - margin, high + margin)
    return bool(min(values) < low or max(values) > high)
