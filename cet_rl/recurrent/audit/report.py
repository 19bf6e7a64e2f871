"""Audits as tables: for a terminal, in Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from cet_rl.recurrent.audit.audit import Audit
from cet_rl.recurrent.audit.verdicts import CRITERIA, OPERATIONS

Format = Literal["table", "markdown", "csv"]

EQUATIONS = ("rule", "updates and gradient of W")
TENSORS = ("rule", "tensors", "memory", "time per step", "operations per step", "claims")
VERDICTS = ("rule", *CRITERIA, "plausible")

WIDTH = 140
"""Columns of a table that does not go to a terminal."""

LEGEND = """\
n units, m = n + n_in + 1, T steps of a window. A Jacobian is a product with diag(D) W_rec.
e_ij = D_i r̂_j, D = α φ'(v), r̂ = [r; x; 1]; J is the Jacobian, c̄ = W_outᵀ (ŷ - y*), r̃ = [r; y*; 1].
Not judged: whether each signal is present at the synapse that uses it, and whether synapses can work backwards."""


def _operations(audit: Audit) -> str:
    counted = {"noise", "past activity"} ^ set(OPERATIONS)
    words = [
        f"{name} ×{audit.operations[name]:.2g}" if name in counted else name
        for name in OPERATIONS
        if name in audit.operations
    ]
    return (", ".join(words) or "–") + (f" (T = {audit.window})" if audit.window and words else "")


def _claims(audit: Audit) -> str:
    if audit.declared_cost is None:
        return "none"
    return "agree" if not audit.differences else "differ: " + "; ".join(audit.differences)


def _tensor_row(audit: Audit) -> tuple[str, ...]:
    tensors = ", ".join(map(str, audit.tensors)) or "–"
    time = str(audit.time or "irregular")
    return audit.name, tensors, str(audit.memory), time, _operations(audit), _claims(audit)


def _equation_rows(audits: Sequence[Audit]) -> list[tuple[str, ...]]:
    return [(audit.name, audit.equations or "–") for audit in audits]


def _verdict_row(audit: Audit) -> tuple[str, ...]:
    marks = ["yes" if verdict.passes else "NO" for verdict in audit.verdicts]
    return audit.name, *marks, "yes" if audit.plausible else "NO"


def _reasons(audit: Audit) -> list[str]:
    return [
        f"{audit.name}, {verdict.criterion}: {verdict.reason}" for verdict in audit.verdicts if not verdict.passes
    ]


def print_tables(audits: Sequence[Audit], console: Console) -> None:
    """Print what rules keep and compute, the verdicts, and the reasons of those against."""
    marks = {"yes": "[green]yes[/green]", "NO": "[red]NO[/red]"}
    for title, header, rows in (
        ("Rules (paper, Table 1, corrected)", EQUATIONS, _equation_rows(audits)),
        ("Tensors and operations, observed", TENSORS, [_tensor_row(audit) for audit in audits]),
        ("Criteria", VERDICTS, [_verdict_row(audit) for audit in audits]),
    ):
        table = Table(*header, title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
        for name, *cells in rows:
            # An equation a line, a tensor a line, an operation a line.
            lines = [cell.replace("; " if header is EQUATIONS else ", ", "\n") for cell in cells]
            table.add_row(f"[bold]{name}[/bold]", *(marks.get(cell, cell) for cell in lines))
        console.print(table)
    for line in _notes(audits):
        console.print(line, highlight=False, markup=False)


def _notes(audits: Sequence[Audit]) -> list[str]:
    criteria = [f"{name}: {meaning}" for name, meaning in CRITERIA.items()]
    reasons = [reason for audit in audits for reason in _reasons(audit)]
    return [*LEGEND.splitlines(), "", *criteria, *([""] * bool(reasons)), *reasons]


def as_markdown(audits: Sequence[Audit]) -> str:
    """Write the tables in Markdown."""

    def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        lines = [header, ["---"] * len(header), *rows]
        return ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]

    lines = [
        *table(EQUATIONS, _equation_rows(audits)),
        "",
        *table(TENSORS, [_tensor_row(audit) for audit in audits]),
        "",
        *table(VERDICTS, [_verdict_row(audit) for audit in audits]),
        "",
        *LEGEND.splitlines(),
        "",
        *(f"- {name}: {meaning}" for name, meaning in CRITERIA.items()),
    ]
    reasons = [f"- {reason}" for audit in audits for reason in _reasons(audit)]
    if reasons:
        lines += ["", "Against:", "", *reasons]
    return "\n".join(lines) + "\n"


def as_csv(audits: Sequence[Audit]) -> str:
    """Return a row for each rule: all tables side by side, operations as numbers a step, reasons last."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "rule",
            "equations",
            "tensors",
            "memory",
            "time",
            *OPERATIONS,
            *CRITERIA,
            "plausible",
            "claims",
            "reasons",
        ]
    )
    for audit in audits:
        name, tensors, memory, time, _, claims = _tensor_row(audit)
        counts = [f"{audit.operations.get(operation, 0):g}" for operation in OPERATIONS]
        marks = [mark.lower() for mark in _verdict_row(audit)[1:]]
        reasons = "; ".join(reason.removeprefix(f"{name}, ") for reason in _reasons(audit))
        writer.writerow([name, audit.equations, tensors, memory, time, *counts, *marks, claims, reasons])
    return stream.getvalue()


def as_text(audits: Sequence[Audit], form: Format) -> str:
    """Audits in one of the formats."""
    if form == "markdown":
        return as_markdown(audits)
    if form == "csv":
        return as_csv(audits)
    stream = io.StringIO()
    print_tables(audits, Console(file=stream, width=WIDTH))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
