"""Kernels of the arms' traces (paper, Figs. 1 and 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from cet_rl.report.drawing import MOST_ARMS, Picture, label_outside, legend, panels, some_delays, styles
from cet_rl.report.grouping import Comparison
from cet_rl.report.names import identity_of
from cet_rl.report.palette import FAINT, SOFT, looks
from cet_rl.report.reading import FloatArray
from cet_rl.report.text import sentence
from cet_rl.traces.base import Trace
from cet_rl.traces.registry import TraceConfig

MOST_PANELS = 3  # for delays: kernels of one trace look much alike at all of them
POINTS = 300  # of a kernel, at most
LENGTH = 3  # of a kernel, in delays
LONGEST_DELAY = 20_000  # in steps; above it a kernel takes too long to compute
MOST_STATES = 64  # of a trace that is drawn

Described = tuple[TraceConfig, int, float]
"""A trace, its delay in steps, and the seconds that a step stands for."""


def kernels(comparison: Comparison) -> list[Picture]:
    """Draw kernels, computed from configurations: a panel for each delay of a layer; nothing without traces."""
    traces = describe_traces(comparison)
    if not traces:
        return []
    shown = some_delays(list(traces), MOST_PANELS)
    shared = {label: identity_of(each[0]) for of_delay in traces.values() for label, each in of_delay.items()}
    looks_of = {**looks(shared), **styles(comparison)}
    labels = list(dict.fromkeys([*(arm.label for arm in comparison.compared), *shared]))
    figure, grid = panels(len(shown), 3.2 if len(shown) > 1 else 6.0, 2.3, sharey=True)
    lines: dict[str, Line2D] = {}
    refused = []
    for axes, seconds in zip(grid, shown, strict=True):
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        axes.axvline(seconds, color=SOFT, linestyle="--", linewidth=0.8, zorder=0)
        for label in sorted(traces[seconds], key=labels.index):
            line = _draw(axes, *traces[seconds][label], {"label": label, **looks_of[label]})
            if line is None:
                refused.append(f"{label} at {seconds:g} s")
            else:
                lines[label] = line
        axes.set_title(f"{seconds:g} s", fontsize=9)
    label_outside(grid, "seconds before the credit arrives", "weight in the trace")
    legend(figure, lines, labels)
    caption = [
        "Kernels of the arms' traces, computed from their configurations: how much each moment before the credit "
        "arrives counts. Each is scaled to a largest value of one. Markers: peaks; dashed: the delay."
    ]
    caption += sentence("Not drawn", [f"{seconds:g} s" for seconds in traces if seconds not in shown])
    caption += sentence("Too long or too large to draw", refused)
    return [Picture("kernels", figure, " ".join(caption), "Kernels of the arms' traces")]


def describe_traces(comparison: Comparison) -> dict[float, dict[str, Described]]:
    """Return the traces of the arms by the delay of a layer, in seconds, and by name.

    A trace has the name of the arm that uses it, or its own name where several arms do.
    """
    traced = [
        (arm.label, at_delay.config)
        for arm in comparison.best(comparison.compared, MOST_ARMS)
        for at_delay in arm.at.values()
        if at_delay.config.delay and at_delay.config.trace not in (None, "none")  # other agents have no traces
    ]
    users: dict[str, set[str]] = defaultdict(set)
    for arm, config in traced:
        users[config.trace_config.label].add(arm)
    found: dict[float, dict[str, Described]] = defaultdict(dict)
    for arm, config in traced:
        trace, duration = config.trace_config, config.step_duration
        label = trace.title if len(users[trace.label]) > 1 else arm
        for steps in set(config.timing.layer_delays) - {0}:
            of_delay = found[round(steps * duration, 9)]
            same = label not in of_delay or of_delay[label][0].options == trace.options
            of_delay.setdefault(label if same else trace.title, (trace, steps, duration))
    return dict(sorted(found.items()))


def _draw(
    axes: Axes, described: TraceConfig, delay: int, duration: float, look: Mapping[str, Any]
) -> Line2D | None:
    """Draw one kernel; return its line, None if it cannot be drawn."""
    if delay > LONGEST_DELAY or described.states > MOST_STATES:
        return None
    trace = described.build(delay)
    assert trace is not None
    try:
        lags, values = sampled_kernel(trace, delay)
    except (ValueError, ArithmeticError):  # such as one that never forgets
        return None
    peak = int(values.argmax())
    if not (np.isfinite(values).all() and values[peak] > 0):
        return None
    (line,) = axes.plot(lags * duration, values / values[peak], markersize=3.5, markevery=[peak], **look)
    return line


def sampled_kernel(trace: Trace, delay_steps: int) -> tuple[FloatArray, FloatArray]:
    """Return evenly spaced lags in steps, from zero to `LENGTH` delays, and the trace's kernel there.

    For a trace that recalls a single step these are the two ends of a line at it.
    """
    first, last = trace.support
    if last == first + 1:
        return np.full(2, float(first)), np.array([0.0, 1.0])
    length = max(LENGTH * delay_steps, 10)
    stride = max(1, length // POINTS)
    return np.arange(0.0, length + 1, stride), trace.kernel(length + 1).numpy()[::stride]
