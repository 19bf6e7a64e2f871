"""`cet-rl traces`: compare how sharply traces remember a delay, and what happens when it is another one."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cet_rl.cli import parse
from cet_rl.runs.files import replacing
from cet_rl.runs.values import unknown
from cet_rl.traces.base import Trace
from cet_rl.traces.measures import OFFSETS, describe
from cet_rl.traces.registry import DEFAULT_ORDER, TraceConfig, find_trace, parse_trace_options, traces
from cet_rl.traces.timing import whole_steps


@dataclass(frozen=True)
class TracesArguments:
    """Compare how sharply traces remember a delay.

    Prints, for each trace, its states, the share of its kernel's energy at the delay D, the bound that no memory
    of as many states exceeds, the share if the delay is 5, 10 or 20 % off (negative where the kernel is), the last
    lag that its kernel reaches back to, and the error of a float32 recursion relative to the output's root mean
    square.
    """

    delay: float
    """Seconds until credit reaches the synapses."""
    order: int = DEFAULT_ORDER
    """States of the traces that have a choice; where no traces are named, those that cannot have as many are left
    out."""
    step_ms: float = 200.0
    """Milliseconds that one step stands for."""
    trace: tuple[str, ...] = ()
    """Names, or module:Name of your own. Default: all that `cet-rl list traces` shows."""
    trace_options: tuple[str, ...] = ()
    """NAME=VALUE ...: options for the traces that have them; a trace with one stands beside the one without."""
    format: Literal["table", "csv", "json"] = "table"
    """Form of what is printed."""
    plot: str | None = None
    """File to draw the kernels to: .png, .svg or .pdf."""


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    parsed = parse(TracesArguments, arguments, "cet-rl traces")
    delay_steps = whole_steps(parsed.delay, parsed.step_ms / 1000)
    if not delay_steps:
        raise ValueError("--delay must be at least one step: without a delay there is nothing to remember")
    picture = None if parsed.plot is None else Path(parsed.plot)
    if picture is not None and picture.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot takes a file named .png, .svg or .pdf, got {picture}")
    if picture is not None and not picture.parent.is_dir():
        raise ValueError(f"--plot: there is no folder {picture.parent}")
    chosen = choose(parsed, delay_steps)
    rows = {name: describe(trace, delay_steps) for name, trace in chosen.items()}
    if parsed.format == "json":
        print(json.dumps([{"trace": name, **row} for name, row in rows.items()], indent=2))
    elif parsed.format == "csv":
        print(as_csv(rows), end="")
    else:
        print_table(rows, delay_steps, parsed)
    if picture is not None:
        from cet_rl.traces.plot import plot_kernels

        with replacing(picture) as stream:
            plot_kernels(chosen, delay_steps).savefig(stream, format=picture.suffix[1:].lower(), dpi=200)
        print(f"drawn: {picture}", file=sys.stderr)
    return 0


def choose(parsed: TracesArguments, delay_steps: int) -> dict[str, Trace]:
    """Return the traces to compare, by label."""
    options = parse_trace_options(parsed.trace_options)
    names = parsed.trace or [name for name, kind in traces().items() if kind.make is not None]
    kinds = {name: find_trace(name) for name in names}
    for name in options:
        if all(name not in kind.options for kind in kinds.values()):
            known = {each for kind in kinds.values() for each in kind.options} - {"order", "normalization"}
            raise unknown("option of these traces", name, sorted(known))
    chosen: dict[str, Trace] = {}
    for name, kind in kinds.items():
        order = parsed.order if kind.takes_order else None
        own = {each: value for each, value in options.items() if each in kind.options}
        for given in [{}, own] if own else [{}]:
            try:
                config = TraceConfig(name, order, "peak", given)
            except ValueError:
                if parsed.trace or given or parsed.order < 1:
                    raise
                continue
            if (trace := config.build(delay_steps)) is None:
                raise ValueError(f"trace {name!r} remembers nothing: leave it out")
            chosen[config.label] = trace
    return chosen


def as_csv(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one line for each trace, after a line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trace", *next(iter(rows.values()))])
    writer.writerows([name, *row.values()] for name, row in rows.items())
    return text.getvalue()


def print_table(rows: Mapping[str, Mapping[str, Any]], delay_steps: int, parsed: TracesArguments) -> None:
    """Print a table for people, in per cent."""
    from rich.console import Console
    from rich.table import Table

    title = f"Share of the kernel's energy at a delay of {delay_steps} steps ({parsed.delay:g} s), in per cent"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    off = [f"{offset:+d}%" for offset in OFFSETS]
    for name in ("trace", "states", "at D", "bound", *off, "last lag", "float32"):
        table.add_column(name, justify="left" if name == "trace" else "right", no_wrap=True)
    for name, row in rows.items():
        shares = [row["sharpness"], row["bound"], *[row[f"share_{offset:+d}"] for offset in OFFSETS]]
        error = row["float32_error"]
        table.add_row(
            name,
            str(row["states"] or "–"),
            *["–" if share is None else f"{100 * share:.1f}" for share in shares],
            str(row["last_lag"]),
            "–" if error is None else f"{error:.0e}",
        )
    console = Console()
    console.width = max(console.width, 105)
    console.print(table)
