"""`cet-rl traces`: compare how sharply traces remember a delay, also if the true delay is another one."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cet_rl.cli import parse
from cet_rl.runs.files import check_file, csv_text, replacing
from cet_rl.runs.values import unknown
from cet_rl.traces.base import Trace, largest_share
from cet_rl.traces.registry import TraceConfig, find_trace, parse_trace_options, traces
from cet_rl.traces.timing import whole_steps

OFFSETS = (-20, -10, -5, 5, 10, 20)  # per cent from the delay that a trace is made for to the true one


@dataclass(frozen=True)
class TracesArguments:
    """Compare how sharply traces remember a delay.

    Prints for each trace: its states; the share of its kernel's energy at the delay D; the bound on that share
    for any memory with as many states; the share if the true delay is 5, 10 or 20 % off (negative where the kernel
    is); the last lag of its kernel; and the error of a float32 recursion over the root mean square of its output.

    Examples:
      cet-rl traces --delay 8 --order 10
      cet-rl traces --delay 8 --trace optimal legendre --trace-options tolerance=0.1
    """

    delay: float
    """Seconds until credit reaches the synapses."""
    order: int | None = None
    """States, where there is a choice; default 5. Those that cannot have as many are left out without --trace."""
    step_ms: float = 200.0
    """Milliseconds that one step stands for."""
    trace: tuple[str, ...] = ()
    """Names, or module:Name of your own. Default: all that `cet-rl list traces` shows."""
    trace_options: tuple[str, ...] = ()
    """NAME=VALUE ...: options of traces. Traces that have one of them are shown with and without it."""
    format: Literal["table", "csv", "json"] = "table"
    """Form of the output."""
    plot: str | None = None
    """File for a plot of the kernels: .png, .svg or .pdf."""


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    parsed = parse(TracesArguments, arguments, "cet-rl traces")
    delay_steps = whole_steps(parsed.delay, parsed.step_ms / 1000)
    if not delay_steps:
        raise ValueError("--delay must be at least one step: without a delay there is nothing to remember")
    picture = None if parsed.plot is None else check_file("--plot", Path(parsed.plot), ".png", ".svg", ".pdf")
    chosen = choose(parsed, delay_steps)
    rows = [{"trace": config.label, **measures(trace, delay_steps)} for config, trace in chosen]
    if parsed.format == "json":
        print(json.dumps(rows, indent=2))
    elif parsed.format == "csv":
        print(csv_text(rows[0], rows), end="")
    else:
        print_table(rows, f"a delay of {delay_steps} steps ({parsed.delay:g} s)")
    if picture is not None:
        from cet_rl.traces.plot import plot_kernels

        with replacing(picture) as stream:
            plot_kernels({config.title: trace for config, trace in chosen}, delay_steps).savefig(
                stream, format=picture.suffix[1:].lower(), dpi=200
            )
        print(f"drawn: {picture}", file=sys.stderr)
    return 0


def choose(parsed: TracesArguments, delay_steps: int) -> list[tuple[TraceConfig, Trace]]:
    """Return the traces to compare, as pairs of configuration and trace."""
    options = parse_trace_options(parsed.trace_options)
    names = parsed.trace or [name for name, kind in traces().items() if kind.make is not None]
    kinds = {name: find_trace(name) for name in names}
    for name in options:
        if all(name not in kind.options for kind in kinds.values()):
            known = {each for kind in kinds.values() for each in kind.options} - {"order", "normalization"}
            raise unknown("option of these traces", name, sorted(known))
    chosen: list[tuple[TraceConfig, Trace]] = []
    for name, kind in kinds.items():
        order = parsed.order if "order" in kind.options else None
        own = {each: value for each, value in options.items() if each in kind.options}
        for given in [{}, own] if own else [{}]:
            try:
                config = TraceConfig(name, order, "peak", given)
            except ValueError:
                if parsed.trace or given or (parsed.order is not None and parsed.order < 1):
                    raise
                continue
            if (trace := config.build(delay_steps)) is None:
                raise ValueError(f"trace {name!r} remembers nothing: leave it out")
            if config.label not in (other.label for other, _ in chosen):  # one state of cet is et
                chosen.append((config, trace))
    return chosen


def measures(trace: Trace, delay_steps: int) -> dict[str, Any]:
    """Return the columns of the comparison for one trace.

    `share_+5` is the share of energy at a delay that is 5 % longer, and so on; it has a minus sign where the
    kernel is negative, so that credit has the wrong sign. `bound` and `float32_error` are None without states.
    """
    bound = largest_share(trace.states, delay_steps)
    found: dict[str, Any] = {"states": trace.states, "sharpness": trace.share(delay_steps), "bound": bound}
    for offset in OFFSETS:
        lag = round(delay_steps * (1 + offset / 100))
        sign = -1 if trace.unscaled_kernel(lag + 1)[lag] < 0 else 1
        found[f"share_{offset:+d}"] = sign * trace.share(lag)
    first, last = trace.support
    return {**found, "first_lag": first, "last_lag": last - 1, "float32_error": float32_error(trace)}


def float32_error(trace: Trace, steps: int = 4000) -> float | None:
    """Return the largest error of a float32 recursion driven by noise, relative to its output's root mean square.

    None for a trace without states.
    """
    transition = trace.transition()
    if transition is None:
        return None
    inputs = np.random.default_rng(0).standard_normal(steps) + 0.5
    M, K, C = transition.M, transition.K, transition.C
    single = [part.astype(np.float32) for part in (M, K, C)]
    exact, rounded = np.zeros_like(K), np.zeros_like(single[1])
    outputs, errors = np.empty(steps), np.empty(steps)
    for t, h in enumerate(inputs):
        exact = M @ exact + K * h
        rounded = single[0] @ rounded + single[1] * np.float32(h)
        outputs[t] = C @ exact
        errors[t] = abs(outputs[t] - single[2] @ rounded)
    return float(errors.max() / np.sqrt((outputs**2).mean()))


def print_table(rows: Sequence[dict[str, Any]], delay: str) -> None:
    """Print the comparison as a table, with shares in per cent."""
    from rich.console import Console
    from rich.table import Table

    off = {f"share_{offset:+d}": f"{offset:+d}%" for offset in OFFSETS}
    shares = {"sharpness": "at D", "bound": "bound", **off}
    heads = {"trace": "trace", "states": "states", **shares, "last_lag": "last lag", "float32_error": "float32"}
    forms = dict.fromkeys(shares, lambda share: f"{100 * share:.1f}") | {
        "states": lambda states: str(states or "–"),
        "float32_error": lambda error: f"{error:.0e}",
    }
    title = f"Share of the kernel's energy at {delay}, in per cent"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name, head in heads.items():
        table.add_column(head, justify="left" if name == "trace" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*("–" if row[name] is None else forms.get(name, str)(row[name]) for name in heads))
    console = Console()
    console.width = max(console.width, 105)
    console.print(table)
