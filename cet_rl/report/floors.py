"""Floors of sequence tasks: the losses that predictors of a known weakness cannot get below."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from cet_rl.report.arms import Study

MOST_SEEDS = 5
"""Whose floors are averaged: for some tasks a seed makes a task of its own."""


def floors(study: Study) -> Mapping[str, float]:
    """Floors of a study's task by name, averaged over seeds; {} if it has none, or arms have different ones."""
    find = study.presentation.floors
    if find is None:
        return {}
    configs = [run.config for _, cell in study.cells for run in cell.runs if run.config is not None]
    seeds = sorted({config.seed for config in configs})[:MOST_SEEDS]
    values: dict[str, list[float]] = defaultdict(list)
    for seed in seeds:
        try:
            found = {tuple(find(config).items()) for config in configs if config.seed == seed}
        except (
            Exception
        ):  # of a third party's task, whatever it raises: a report without floors is one all the same
            return {}
        if len(found) > 1:
            return {}
        for name, value in found.pop():
            values[name].append(value)
    return {name: sum(each) / len(each) for name, each in values.items() if len(each) == len(seeds)}


def draw_floors(axes: Axes, lines: Mapping[str, float], *, vertical: bool, named: bool = True) -> None:
    """Dotted lines with their names, which stand outside of the axes.

    Args:
        axes: to draw on.
        lines: see `floors`.
        vertical: where the axes' scores go to the right, and not up.
        named: whether names are written as well.
    """
    for name, value in lines.items():
        draw = axes.axvline if vertical else axes.axhline
        draw(value, color="0.5", linestyle=":", linewidth=1, zorder=0)
        if not named:
            continue
        look: dict[str, Any] = {"fontsize": 7, "color": "0.4", "ha": "left"}
        if vertical:
            axes.text(value, 1.01, name, rotation=45, va="bottom", transform=axes.get_xaxis_transform(), **look)
        else:
            axes.text(1.01, value, name, va="center", transform=axes.get_yaxis_transform(), **look)
