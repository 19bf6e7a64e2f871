"""Learning curves and alignment over training (paper, Figs. 5 and 7 to 13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from cet_rl.report.arms import Arm, Study
from cet_rl.report.drawing import (
    ACROSS,
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
from cet_rl.report.limits import MARGIN, highest
from cet_rl.report.plots import ALIGNMENT, Curve, draw_alignment_over, draw_curves
from cet_rl.report.presentation import Presentation
from cet_rl.report.text import counted, listed
from cet_rl.runs.folder import MetricsTable

SEEDS_OF_A_RANGE = 5
"""Up to so many seeds the band goes from the lowest to the highest; with more it is a standard error."""

MAGNITUDES = 30.0
"""Quotient of the largest and the smallest value of an axis from which on it is logarithmic."""

MOST_LAYERS = 9
"""With alignment that are drawn."""

MOST_ROWS = 3
"""Delays whose alignment is drawn, the longest ones."""

MOST_LAYERS_ABREAST = 5
"""With more, there is only room for one delay."""


def learning_curves(study: Study) -> list[Picture]:
    """The task kind's curve over training, a panel for each delay; none if nothing was logged."""
    column = study.presentation.curve
    delays = [delay for delay in study.delays if any(_curves(arm, delay, [column]) for arm in study.compared)]
    shown = some_delays(delays or [0.0])
    figure, grid = panels(len(shown), 3.2 if len(shown) > 1 else 6.0, 2.6 if len(shown) > 1 else 3.2, sharey=True)
    arms = study.best(study.compared, MOST_ARMS, shown[-1] if delays else None)
    references = study.best(study.references, 4)
    look, lines = styles(study), floors(study)
    band = _band(study)
    curves: dict[int, Curve] = {}
    where: dict[int, str] = {}
    for axes, delay in zip(grid, shown, strict=True):
        here = [curve for arm in arms for curve in _curves(arm, delay, [column])]
        here += [curve for arm in references for curve in _curves(arm, 0.0, [column])]
        with scaled_at_the_end(axes):
            draw_curves(axes, here, column, look, band=band)
        count_steps(axes)
        axes.set_title(in_seconds(delay), fontsize=9)
        draw_floors(axes, lines, vertical=False, named=axes is grid[-1])
        for curve in here:  # those of references once, though they are in each panel
            curves[id(curve.columns)] = curve
            at = f" at {in_seconds(delay)}" if delay and curve.arm not in [arm.label for arm in references] else ""
            where[id(curve.columns)] = f"{curve.arm}{at}, seed {curve.seed}"
    if not curves:
        return []
    cut, beyond = _limit(grid[0], list(curves.values()), study.presentation, list(lines.values()))
    label_outside(grid, study.presentation.steps, study.presentation.curve_title)
    figure.suptitle(study.title, fontsize=10)
    legend(figure, grid, styles(study))
    caption = [f"{study.presentation.curve_title.capitalize()} over training. {_meaning(study, band)}"]
    caption += _left_out(study, arms, references, delays, shown)
    caption += ["Dotted lines: floors of predictors that know only what is written there."] * bool(lines)
    caption += ["The axis leaves out part of the beginning."] * cut
    above = [
        f"{where[id(curve.columns)]} (up to {study.presentation.curve_factor * high:.4g})"
        for curve, high in beyond
    ]
    caption += [f"The axis also leaves out what is far above all else: {listed(above, 6)}."] * bool(above)
    caption += study.decays
    return [Picture("curves", png(figure), " ".join(caption), f"Curves of {study.presentation.curve_title}")]


def alignment(study: Study) -> list[Picture]:
    """Cosine between each layer's update and the true gradient; none if none was logged.

    A panel for each layer, and a row of them for each of the longest delays. A picture over training and, where
    the task kind says so, one over the score.
    """
    logged = [delay for delay in study.delays if _layers(study, delay)]
    if not logged:
        return []
    layers = _layers(study, logged[-1])
    shown = logged[-MOST_ROWS:] if len(layers) <= MOST_LAYERS_ABREAST else logged[-1:]
    across = len(layers) if len(shown) > 1 else ACROSS
    columns = [f"{ALIGNMENT}{layer}" for layer in layers]
    arms = study.best(study.compared, MOST_ARMS, logged[-1])
    curves = {delay: [curve for arm in arms for curve in _curves(arm, delay, columns)] for delay in shown}
    left = [in_seconds(delay) for delay in logged if delay not in shown]
    rest = f" Also logged, not drawn: {listed(left)}." if left else ""
    what = f"Cosine between each layer's update and the true gradient of the same data, {_in_words(shown)}"
    presentation, score = study.presentation, study.presentation.over_score
    pictures: list[Picture] = []
    for over in dict.fromkeys((None, score)):
        count = len(shown) * len(layers)
        figure, grid = panels(count, 2.9 if count > 1 else 6.0, 2.4, across, sharey=True)
        places = [(delay, layer) for delay in shown for layer in layers]
        for axes, (delay, layer) in zip(grid, places, strict=True):
            axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
            title = f"layer {layer}" if layer.isdecimal() else layer[:20]
            axes.set_title(f"{in_seconds(delay)}, {title}" if len(shown) > 1 else title, fontsize=9)
            if over is None:
                with scaled_at_the_end(axes):
                    draw_curves(axes, curves[delay], f"{ALIGNMENT}{layer}", styles(study), band=_band(study))
                count_steps(axes)
            else:
                _draw_over_score(axes, study, arms, curves[delay], layer)
        x = presentation.curve_title if over else presentation.steps
        label_outside(grid, x, "cosine with the true gradient", across)
        one = f", {in_seconds(shown[0])}" if len(shown) == 1 else ""
        figure.suptitle(f"{study.title}{one}", fontsize=10)
        legend(figure, grid, styles(study))
        if over is None:
            caption = f"{what}, over training; layer 0 is next to the input. {_meaning(study, _band(study))}{rest}"
            pictures.append(Picture("alignment", png(figure), caption, "Alignment of each layer over training"))
        else:
            caption = f"{what}, over the {over} that went with it: means in bins, all seeds.{rest}"
            name, alternative = f"alignment-{over}", f"Alignment of each layer over {over}"
            pictures.append(Picture(name, png(figure), caption, alternative))
    return pictures


def _draw_over_score(axes: Axes, study: Study, arms: Sequence[Arm], curves: Sequence[Curve], layer: str) -> None:
    """Draw a layer's alignment over the column that learning curves show."""
    look, presentation = styles(study), study.presentation
    for arm in arms:
        of_arm = [curve for curve in curves if curve.arm == arm.label]
        factor, own = presentation.curve_factor, look[arm.label]
        draw_alignment_over(axes, of_arm, layer, presentation.curve, factor=factor, **own)


def _in_words(delays: Sequence[float]) -> str:
    """Delays in a sentence: "2 s, 8 s and 32 s"."""
    *others, last = map(in_seconds, delays)
    return f"{', '.join(others)} and {last}" if others else last


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


def _limit(
    axes: Axes, curves: Sequence[Curve], presentation: Presentation, lines: Sequence[float]
) -> tuple[bool, list[tuple[Curve, float]]]:
    """Show the values after the first share of each run, and these lines, but not all of runs that diverge.

    Returns:
        Whether part of the beginning is left out; runs that go beyond the axis later, with their highest values.
    """
    early: list[float] = []
    late = []
    for curve in curves:
        at, found = curve.over(MetricsTable.STEP, presentation.curve)
        settled = at >= presentation.settling * at[-1]
        early += found[~settled].tolist()
        late.append((float(found[settled].min()), float(found[settled].max())))
    top = None if presentation.score.higher_is_better else highest(late)
    low = min([*(least for least, _ in late), *lines])
    high = max([*(most for _, most in late if top is None or most <= top), *lines])
    beyond = [(curve, most) for curve, (_, most) in zip(curves, late, strict=True) if most > high]
    form = FuncFormatter(lambda value, _: f"{presentation.curve_factor * value:.6g}")
    axes.yaxis.set_major_formatter(form)
    if not presentation.settling or not high > low:
        return False, []
    if low > 0 and high > MAGNITUDES * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(form)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / 1.1, high * 1.1)
    else:
        margin = MARGIN * (high - low)
        axes.set_ylim(low - margin, high + margin)
    return bool(early) and (min(early) < low or max(early) > high), beyond
