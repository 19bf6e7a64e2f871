"""What the synapses of each arm recall (paper, Figs. 1 and 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cet_rl.report.arms import Study
from cet_rl.report.drawing import MOST_ARMS, Picture, arm_style, label_outside, legend, panels, png, some_delays
from cet_rl.report.plots import FloatArray
from cet_rl.report.text import listed
from cet_rl.traces.base import Trace
from cet_rl.traces.registry import TraceConfig

MOST_PANELS = 3
"""One for each delay: kernels of one trace look much alike at all."""

POINTS = 300
"""At most, of a kernel."""

SHOWN = 3
"""Times the delay that is drawn."""

LONGEST = 20_000
"""Steps of a delay whose kernels are drawn; those of longer ones take too long to compute."""

MOST_STATES = 64
"""Of a trace that is drawn."""

Described = tuple[TraceConfig, int, float]
"""A trace, for how many steps, of how many seconds each."""


def kernels(study: Study) -> list[Picture]:
    """A panel for each delay of a layer, computed from the configurations; none if no arm has a trace."""
    found = tuple((seconds, tuple(of.items())) for seconds, of in sorted(_described(study).items()))
    if not found:
        return []
    labels = dict.fromkeys(label for _, of in found for label, _ in of)
    arms = [arm.label for arm in study.compared]
    places = [*arms, *(label for label in labels if label not in arms)]
    return [_picture(found, tuple((label, places.index(label)) for label in labels))]


@lru_cache(maxsize=16)
def _picture(
    described: tuple[tuple[float, tuple[tuple[str, Described], ...]], ...], places: tuple[tuple[str, int], ...]
) -> Picture:
    """The same of traces by delay and by name: studies of other tasks often compare the same ones.

    Args:
        described: traces by name, by delay.
        places: number of each name's line, as other figures have it.
    """
    found = {seconds: dict(of) for seconds, of in described}
    shown = some_delays(list(found), MOST_PANELS)
    labels = [label for label, _ in sorted(places, key=itemgetter(1))]
    look, refused = {label: arm_style(label, place) for label, place in places}, []
    figure, grid = panels(len(shown), 3.2 if len(shown) > 1 else 6.0, 2.3, sharey=True)
    for axes, seconds in zip(grid, shown, strict=True):
        axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.axvline(seconds, color="0.6", linestyle="--", linewidth=0.8, zorder=0)
        for label in sorted(found[seconds], key=labels.index):
            if not _draw(axes, *found[seconds][label], look[label]):
                refused.append(f"{label} at {seconds:g} s")
        axes.set_title(f"{seconds:g} s", fontsize=9)
    label_outside(grid, "seconds before the credit arrives", "weight in the trace")
    legend(figure, grid, labels)
    caption = (
        "What the arms' synapses recall when credit arrives, from their configurations; each kernel is scaled to "
        "a largest value of one. Dots: peaks; dashed: the delay."
    )
    left = [f"{seconds:g} s" for seconds in found if seconds not in shown]
    caption += f" Not drawn: {listed(left)}." if left else ""
    caption += f" Too long or too large to draw: {listed(refused)}." if refused else ""
    return Picture("kernels", png(figure), caption, "Kernels of the arms' traces")


def _described(study: Study) -> dict[float, dict[str, Described]]:
    """Traces of the arms by the delay of a layer, in seconds, and by name.

    A trace has the name of the arm that has it, or its own where several have it.
    """
    traced = [
        (arm.label, cell.config)
        for arm in study.best(study.compared, MOST_ARMS)
        for cell in arm.cells.values()
        if cell.config.delay and cell.config.trace not in (None, "none")  # as for agents without synaptic traces
    ]
    users: dict[str, set[str]] = defaultdict(set)
    for arm, config in traced:
        users[config.trace_config.label].add(arm)
    found: dict[float, dict[str, Described]] = defaultdict(dict)
    for arm, config in traced:
        trace, duration = config.trace_config, config.step_duration
        label = trace.label if len(users[trace.label]) > 1 else arm
        for steps in set(config.timing.layer_delays) - {0}:
            of_delay = found[round(steps * duration, 9)]
            same = label not in of_delay or of_delay[label][0].options == trace.options
            of_delay.setdefault(label if same else trace.label, (trace, steps, duration))
    return found


def _draw(axes: Axes, described: TraceConfig, delay: int, duration: float, look: Mapping[str, Any]) -> bool:
    """Draw one kernel; whether that was possible."""
    if delay > LONGEST or described.states > MOST_STATES:
        return False
    trace = described.build(delay)
    assert trace is not None
    try:
        sampled = sampled_kernel(trace, delay)
    except (ValueError, ArithmeticError):  # such as one that never forgets
        return False
    if sampled is None:
        seconds, values = np.array([delay * duration] * 2), np.array([0.0, 1.0])
    else:
        seconds, values = sampled[0] * duration, sampled[1]
    peak = int(values.argmax())
    if not (np.isfinite(values).all() and values[peak] > 0):
        return False
    axes.plot(seconds, values / values[peak], **look)
    axes.plot(seconds[peak], 1.0, "o", color=look["color"], markersize=4)
    return True


def sampled_kernel(trace: Trace, delay_steps: int) -> tuple[FloatArray, FloatArray] | None:
    """Some lags of a trace's kernel, evenly spaced, whatever the delay.

    Args:
        trace: any.
        delay_steps: that it is made for.

    Returns:
        Lags in steps, from zero to `SHOWN` delays, and the kernel there; None for a trace without states, which
        recalls one step only.
    """
    transition = trace.transition()
    if transition is None:
        return None
    length = max(SHOWN * delay_steps, 10)
    stride = max(1, length // POINTS)
    leap = np.linalg.matrix_power(transition.M, stride)
    lags = np.arange(0, length + 1, stride)
    values, state = np.empty(len(lags)), transition.K.copy()
    for place in range(len(lags)):
        values[place] = transition.C @ state
        state = leap @ state
    return lags.astype(float), values
