"""Figures of the arms' traces: kernels, states, and responses to a signal (paper, Figs. 1 and 2)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from matplotlib.lines import Line2D

from cet_rl.report.drawing import MOST_ARMS, Picture, label_outside, legend, panels, some_delays, styles
from cet_rl.report.grouping import Comparison
from cet_rl.report.names import trace_identity
from cet_rl.report.palette import FAINT, SOFT, looks
from cet_rl.report.text import sentence
from cet_rl.traces.base import FloatArray, Trace
from cet_rl.traces.registry import TraceConfig

MOST_PANELS = 3  # for delays: kernels of one trace look much alike at all of them
POINTS = 300  # most points of a kernel's line
LENGTH = 3  # of a kernel, in delays
PULSES = ((0.1, 0.3), (0.7, 1.3), (1.6, 1.7))  # beginning and end of each pulse of the signal, in delays
SIGNAL_LENGTH = 4  # in delays
LONGEST_DELAY = 20_000  # in steps; a longer kernel takes too long to compute
MOST_STATES = 64  # traces with more are not drawn

Described = tuple[TraceConfig, int, float]
"""A trace, its delay in steps, and the seconds that a step stands for."""


def kernels(comparison: Comparison) -> list[Picture]:
    """Draw kernels, computed from configurations, a panel for each delay of a layer; no picture without traces."""
    traces = describe_traces(comparison)
    if not traces:
        return []
    shown = some_delays(list(traces), MOST_PANELS)
    shared = {label: trace_identity(each[0]) for of_delay in traces.values() for label, each in of_delay.items()}
    looks_of = {**looks(shared), **styles(comparison)}
    labels = list(dict.fromkeys([*(arm.label for arm in comparison.compared), *shared]))
    figure, grid = panels(len(shown), 3.2 if len(shown) > 1 else 6.0, 2.3, sharey=True)
    lines: dict[str, Line2D] = {}
    refused = []
    for axes, seconds in zip(grid, shown, strict=True):
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        axes.axvline(seconds, color=SOFT, linestyle="--", linewidth=0.8, zorder=0)
        for label in sorted(traces[seconds], key=labels.index):
            trace, delay, duration = traces[seconds][label]
            if (built := _build(trace, delay)) is None:
                refused.append(f"{label} at {seconds:g} s")
                continue
            _, lags, values = built
            peak = int(values.argmax())
            look = {"label": label, "markevery": [peak], "markersize": 3.5, **looks_of[label]}
            (lines[label],) = axes.plot(lags * duration, values / values[peak], **look)
        axes.set_title(f"{seconds:g} s", fontsize=9)
    label_outside(grid, "seconds before the credit arrives", "weight in the trace")
    legend(figure, lines, labels)
    caption = [
        "Kernels of the arms' traces, computed from their configurations: the weight in the trace of each moment "
        "before the credit arrives. Each is scaled to a maximum of one. Markers: peaks; dashed: the delay."
    ]
    caption += sentence("Not drawn", [f"{seconds:g} s" for seconds in traces if seconds not in shown])
    caption += sentence("Too long or too large to draw", refused)
    return [Picture("kernels", figure, " ".join(caption), "Kernels of the arms' traces")]


def describe_traces(comparison: Comparison) -> dict[float, dict[str, Described]]:
    """Return the arms' traces by the delay of a layer, in seconds, and by name.

    The name is that of the arm that uses the trace, or the trace's own if several arms use it.
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


def _build(described: TraceConfig, delay: int) -> tuple[Trace, FloatArray, FloatArray] | None:
    """Return the trace, and lags and values of its kernel (`sampled_kernel`); None if it cannot be drawn."""
    if delay > LONGEST_DELAY or described.order_or_default > MOST_STATES:
        return None
    try:
        trace = described.build(delay)
        assert trace is not None
        lags, values = sampled_kernel(trace, delay)
    except Exception:  # such as a kernel that never decays; a trace of one's own can raise anything
        return None
    return (trace, lags, values) if np.isfinite(values).all() and values.max() > 0 else None


def memory(comparison: Comparison) -> list[Picture]:
    """Draw the states of a trace after one event, and the response of each trace to a signal (Figs. 1B and 2).

    The delay is the longest at which a trace can be drawn. The states are those of the cascade with most states,
    or of another trace if there is no cascade. There is no picture without traces.
    """
    traces = describe_traces(comparison)
    for seconds in reversed(traces):
        described = traces[seconds]
        found = ((label, _build(kind, delay)) for label, (kind, delay, _) in described.items())
        if built := {label: drawn[0] for label, drawn in found if drawn}:
            break
    else:
        return []
    looks_of = {**looks({label: trace_identity(described[label][0]) for label in built}), **styles(comparison)}
    labels = [label for label in looks_of if label in built]
    ranked = sorted(built, key=lambda arm: (described[arm][0].kind == "cet", described[arm][0].order_or_default))
    shown = next((label for label in reversed(ranked) if built[label].transition() is not None), None)
    figure, grid = panels(1 if shown is None else 2, 3.6, 2.6)
    lines: dict[str, Line2D] = {}
    caption = [
        f"At {seconds:g} s: a signal (grey), the same signal that much later (dashed), and the response of each "
        "arm's trace to it, computed from the configurations and scaled to a maximum of one."
    ]
    if shown is not None:
        delay, duration = described[shown][1:]
        lags, states = sampled_states(built[shown], delay)
        for alpha, values in zip(np.linspace(0.25, 1, len(states)), states, strict=True):
            grid[0].plot(lags * duration, values, color=looks_of[shown]["color"], alpha=alpha, linewidth=1.0)
        grid[0].axvline(seconds, color=SOFT, linestyle="--", linewidth=0.8, zorder=0)
        grid[0].set_title(f"states of {shown}", fontsize=9)
        grid[0].set(xlabel="seconds after an event", ylabel="state")
        caption.append("Left: the states of a trace after one event, the first state palest.")
    for label in labels:
        delay, duration = described[label][1:]  # arms may differ in what a step stands for
        times, signal = pulses(delay)
        if not lines:
            grid[-1].fill_between(times * duration, signal, color=FAINT, linewidth=0)
            late = np.interp(times - delay, times, signal)
            grid[-1].plot(times * duration, late, color=SOFT, linestyle="--", linewidth=0.8)
        response = filtered(signal, built[label])
        look = {"label": label, "markevery": [int(response.argmax())], "markersize": 3.5, **looks_of[label]}
        (lines[label],) = grid[-1].plot(times * duration, response / response.max(), **look)
    grid[-1].set_title("responses to a signal", fontsize=9)
    grid[-1].set(xlabel="seconds", ylabel="output of the trace")
    legend(figure, lines, labels)
    return [Picture("memory", figure, " ".join(caption), "Responses of the arms' traces to a signal")]


def sampled_states(trace: Trace, delay_steps: int) -> tuple[FloatArray, FloatArray]:
    """Return evenly spaced lags up to `LENGTH` delays, in steps, (L,), and the n states after an event, (n, L).

    They are scaled so that the largest value of all is one. The trace must have a transition.
    """
    transition = trace.transition()
    assert transition is not None
    length = max(LENGTH * delay_steps, 10)
    stride = max(1, length // POINTS)
    jump = np.linalg.matrix_power(transition.M, stride)
    states = [transition.K]
    while len(states) <= length // stride:
        states.append(jump @ states[-1])
    values = np.array(states).T
    return np.arange(0.0, length + 1, stride), values / np.abs(values).max()


def pulses(delay_steps: int) -> tuple[FloatArray, FloatArray]:
    """Return the times of a signal, in steps, (T,), and the signal, (T,): one within `PULSES`, else zero."""
    times = np.arange(float(max(SIGNAL_LENGTH * delay_steps, 10)))
    on = [(first * delay_steps <= times) & (times <= last * delay_steps) for first, last in PULSES]
    return times, np.any(on, axis=0).astype(float)


def filtered(signal: FloatArray, trace: Trace) -> FloatArray:
    """Return the output of the trace at each step of a signal, c_t = Σ_ℓ g_ℓ h_{t-ℓ}, shape (T,)."""
    size, kernel = 2 * len(signal), trace.kernel_array(len(signal))
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(kernel, size), size)[: len(signal)]


def sampled_kernel(trace: Trace, delay_steps: int) -> tuple[FloatArray, FloatArray]:
    """Return evenly spaced lags from zero to `LENGTH` delays, in steps, (L,), and the trace's kernel there, (L,).

    For a kernel of a single lag these are the two ends of a vertical line at it.
    """
    first, last = trace.support
    if last == first + 1:
        return np.full(2, float(first)), np.array([0.0, 1.0])
    length = max(LENGTH * delay_steps, 10)
    stride = max(1, length // POINTS)
    return np.arange(0.0, length + 1, stride), trace.kernel_array(length + 1)[::stride]
