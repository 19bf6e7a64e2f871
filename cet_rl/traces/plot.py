"""Draw the kernels of traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cet_rl.traces.base import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_kernels(traces: Mapping[str, Trace], delay_steps: int | None = None) -> Figure:
    """Draw what traces recall over the lag in steps, and return the figure.

    Args:
        traces: by the names that the legend shows.
        delay_steps: where a dashed line stands; None for the traces' own delay, if it is one.

    Example:
        >>> plot_kernels({"CET": CET(10, 40), "optimal": Optimal(10, 40)}).savefig("kernels.png")
    """
    delays = {getattr(trace, "delay_steps", None) for trace in traces.values()} - {None}
    if delay_steps is None and len(delays) == 1:
        delay_steps = delays.pop()
    longest = max((trace.support[1] for trace in traces.values()), default=1)
    length = max(10, 4 * delay_steps if delay_steps else longest + longest // 10)
    lines = [(name, trace, length, f"C{number}") for number, (name, trace) in enumerate(traces.items())]
    return _figure(lines, [] if delay_steps is None else [(delay_steps, "0.5")], 1, "steps")


def kernel_figure(traces: Sequence[Trace | None], delays: Sequence[int], step_duration: float) -> Figure:
    """Draw what each layer's synapses recall, over seconds before the credit arrives; the delay dashed.

    Traces and delays in steps are those of each layer, input side first; a trace may be None.
    """
    layers: dict[tuple[Trace, int], list[int]] = {}
    for layer, (trace, delay) in enumerate(zip(traces, delays, strict=True)):
        if trace is not None:
            layers.setdefault((trace, delay), []).append(layer)
    lines, marks = [], []
    for (trace, delay), same in layers.items():
        label = f"layer{'s' * (len(same) > 1)} {', '.join(map(str, same))}"
        lines.append((label, trace, max(4 * delay, 10), f"C{same[0]}"))
        marks.append((delay, f"C{same[0]}"))
    return _figure(lines, marks, step_duration, "seconds")


def _figure(
    lines: Sequence[tuple[str, Trace, int, str]], marks: Sequence[tuple[int, str]], step: float, unit: str
) -> Figure:
    """Draw lines (label, trace, lags, color) and dashed marks (lag, color), lags in units of `step`."""
    from matplotlib.figure import Figure  # matplotlib takes half a second

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for label, trace, length, color in lines:
        lags = [lag * step for lag in range(length)]
        axes.step(lags, trace.kernel(length).tolist(), where="mid", color=color, label=label)
    for lag, color in marks:
        axes.axvline(lag * step, color=color, linestyle="--", linewidth=1)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel(f"{unit} before the credit arrives")
    axes.set_ylabel("weight in the trace")
    axes.legend(frameon=False)
    return figure
