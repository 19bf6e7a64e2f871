"""Draw the kernels of traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cet_rl.report.palette import COLORS, FAINT, MARKERS, SOFT, Identity, looks
from cet_rl.traces.base import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_kernels(traces: Mapping[str, Trace], delay_steps: int | None = None) -> Figure:
    """Draw the kernels of traces over the lag in steps, and return the figure.

    Args:
        traces: by the names that the legend shows.
        delay_steps: position of a dashed line; None for the traces' own delay, if all have the same.

    Example:
        >>> plot_kernels({"CET": CET(10, 40), "optimal": Optimal(10, 40)}).savefig("kernels.png")
    """
    delays = {trace.made_for for trace in traces.values()} - {None}
    if delay_steps is None and len(delays) == 1:
        delay_steps = delays.pop()
    longest = max((trace.support[1] for trace in traces.values()), default=1)
    length = max(10, 4 * delay_steps if delay_steps else longest + longest // 10)
    from cet_rl.traces.registry import TRACES

    kinds = {kind.make: name for name, kind in TRACES.items()}
    known = {
        name: Identity(kinds.get(type(trace), name), getattr(trace, "order", None))
        for name, trace in traces.items()
    }
    lines = [(traces[name], length, {"label": name, **look}) for name, look in looks(known).items()]
    return _figure(lines, [] if delay_steps is None else [(delay_steps, SOFT)], 1, "steps")


def kernel_figure(traces: Sequence[Trace | None], delays: Sequence[int], step_duration: float) -> Figure:
    """Draw the kernel of each layer over the seconds before credit arrives, and its delay as a dashed line.

    Traces, which may be None, and delays in steps are those of each layer, input side first.
    """
    layers: dict[tuple[Trace, int], list[int]] = {}
    for layer, (trace, delay) in enumerate(zip(traces, delays, strict=True)):
        if trace is not None:
            layers.setdefault((trace, delay), []).append(layer)
    lines, marks = [], []
    for (trace, delay), same in layers.items():
        look = {"color": [*COLORS][same[0] % len(COLORS)], "marker": MARKERS[same[0] % len(MARKERS)]}
        look |= {"label": f"layer{'s' * (len(same) > 1)} {', '.join(map(str, same))}"}
        lines.append((trace, max(4 * delay, 10), look))
        marks.append((delay, str(look["color"])))
    return _figure(lines, marks, step_duration, "seconds")


def _figure(
    lines: Sequence[tuple[Trace, int, Mapping[str, Any]]], marks: Sequence[tuple[int, str]], step: float, unit: str
) -> Figure:
    """Draw lines (trace, lags, look) and dashed marks (lag, color), lags in units of `step`."""
    from matplotlib.figure import Figure  # matplotlib takes half a second

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for trace, length, look in lines:
        lags, kernel = [lag * step for lag in range(length)], trace.kernel_array(length)
        axes.step(lags, kernel.tolist(), where="mid", markevery=[int(kernel.argmax())], markersize=4, **look)
    for lag, color in marks:
        axes.axvline(lag * step, color=color, linestyle="--", linewidth=1)
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_xlabel(f"{unit} before the credit arrives")
    axes.set_ylabel("weight in the trace")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8, handlelength=3.6)
    return figure
