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
    from matplotlib.figure import Figure  # matplotlib takes half a second

    delays = {getattr(trace, "delay_steps", None) for trace in traces.values()} - {None}
    if delay_steps is None and len(delays) == 1:
        delay_steps = delays.pop()
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    longest = max((trace.support[1] for trace in traces.values()), default=1)
    length = max(10, 4 * delay_steps if delay_steps else longest + longest // 10)
    for name, trace in traces.items():
        axes.step(range(length), trace.kernel(length).tolist(), where="mid", label=name)
    if delay_steps is not None:
        axes.axvline(delay_steps, color="0.5", linestyle="--", linewidth=1)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel("steps before the credit arrives")
    axes.set_ylabel("weight in the trace")
    axes.legend(frameon=False)
    return figure


def kernel_figure(traces: Sequence[Trace | None], delays: Sequence[int], step_duration: float) -> Figure:
    """Draw what each layer's synapses recall, over time before the credit arrives; the delay dashed.

    Args:
        traces: of each layer, input side first; None for no trace.
        delays: of each layer, in steps.
        step_duration: seconds a step stands for.
    """
    from matplotlib.figure import Figure  # matplotlib takes half a second

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    drawn = set()
    for layer, (trace, delay) in enumerate(zip(traces, delays, strict=True)):
        if trace is None or (trace, delay) in drawn:
            continue
        drawn.add((trace, delay))
        length = max(4 * delay, 10)
        same = [str(other) for other, t in enumerate(traces) if t == trace and delays[other] == delay]
        label = f"layer{'s' * (len(same) > 1)} {', '.join(same)}"
        color = f"C{layer}"
        seconds = [lag * step_duration for lag in range(length)]
        axes.step(seconds, trace.kernel(length).tolist(), where="mid", color=color, label=label)
        axes.axvline(delay * step_duration, color=color, linestyle="--", linewidth=1)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel("seconds before the credit arrives")
    axes.set_ylabel("weight in the trace")
    axes.legend(frameon=False)
    return figure
