"""Write audits as tables: for a terminal, in Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from cet_rl.recurrent.audit import CRITERIA, OPERATIONS, Audit

Format = Literal["table", "markdown", "csv"]

TABLES: dict[str, dict[str, str]] = {
    "Rules (paper, Table 1, corrected)": {"rule": "rule", "equations": "updates and gradient of W"},
    "Tensors and operations, observed": {
        **{name: name for name in ("rule", "tensors", "memory")},
        **{"time": "time per step", "operations": "operations per step", "claims": "claims"},
    },
    "Criteria": {name: name for name in ("rule", *CRITERIA, "plausible")},
}
"""Columns of each table and what heads them, by title."""

COLUMNS = (
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
)
"""Columns of the CSV: all tables side by side, operations as numbers a step."""

WIDTH = 140
"""Columns of a table that does not go to a terminal."""

LEGEND = """\
n units, m = n + n_in + 1, T steps of a window. A Jacobian is a product with diag(D) W_rec.
e_ij = D_i r̂_j, D = α φ'(v), r̂ = [r; x; 1]; J is the Jacobian, c̄ = W_outᵀ (ŷ - y*), r̃ = [r; y*; 1].
Not judged: whether each signal is present at the synapse that uses it, whether synapses can work backwards (weight
transport), and whether two phases of computation can share the same neurons."""


def _row(audit: Audit) -> dict[str, str]:
    """Return what the tables say about a rule, by column."""
    operations = {name: audit.operations.get(name, 0) for name in OPERATIONS}
    needed = ", ".join(
        name if name in ("noise", "past activity") else f"{name} ×{number:.2g}"
        for name, number in operations.items()
        if number
    )
    window = f" (T = {audit.window})" if audit.window and needed else ""
    differences = f"differ: {'; '.join(audit.differences)}" if audit.differences else "agree"
    return {
        "rule": audit.name,
        "equations": audit.equations or "–",
        "tensors": ", ".join(map(str, audit.tensors)) or "–",
        "memory": str(audit.memory or "irregular"),
        "time": str(audit.time or "irregular"),
        "operations": (needed or "–") + window,
        "claims": differences if audit.declared_cost else "none",
        **{name: f"{number:g}" for name, number in operations.items()},
        **{verdict.criterion: "yes" if verdict.passes else "NO" for verdict in audit.verdicts},
        "plausible": "yes" if audit.plausible else "NO",
        "reasons": "; ".join(_reasons(audit)),
    }


def _reasons(audit: Audit) -> list[str]:
    return [f"{verdict.criterion}: {verdict.reason}" for verdict in audit.verdicts if not verdict.passes]


def _notes(audits: Sequence[Audit], mark: str, heading: Sequence[str]) -> list[str]:
    criteria = [f"{mark}{name}: {meaning}" for name, meaning in CRITERIA.items()]
    reasons = [f"{mark}{audit.name}, {reason}" for audit in audits for reason in _reasons(audit)]
    return [*LEGEND.splitlines(), "", *criteria, *(heading if reasons else ()), *reasons]


def print_tables(audits: Sequence[Audit], console: Console) -> None:
    """Print what rules keep and compute, the verdicts, and the reasons of those against."""
    marks = {"yes": "[green]yes[/green]", "NO": "[red]NO[/red]"}
    for title, columns in TABLES.items():
        table = Table(*columns.values(), title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
        separator = "; " if "equations" in columns else ", "  # an equation, a tensor, an operation a line
        for row in map(_row, audits):
            cells = [row[name].replace(separator, "\n") for name in columns]
            table.add_row(f"[bold]{row['rule']}[/bold]", *(marks.get(cell, cell) for cell in cells[1:]))
        console.print(table)
    for line in _notes(audits, "", [""]):
        console.print(line, highlight=False, markup=False)


def as_markdown(audits: Sequence[Audit]) -> str:
    """Write the tables in Markdown."""
    lines = []
    for columns in TABLES.values():
        rows = [[row[name] for name in columns] for row in map(_row, audits)]
        for cells in (columns.values(), ["---"] * len(columns), *rows):
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join([*lines, *_notes(audits, "- ", ["", "Against:", ""])]) + "\n"


def as_csv(audits: Sequence[Audit]) -> str:
    """Return a row for each rule."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in map(_row, audits):
        writer.writerow({name: text.lower() if text == "NO" else text for name, text in row.items()})
    return stream.getvalue()


def as_text(audits: Sequence[Audit], form: Format) -> str:
    """Write audits in one of the formats."""
    if form != "table":
        return as_markdown(audits) if form == "markdown" else as_csv(audits)
    stream = io.StringIO()
    print_tables(audits, Console(file=stream, width=WIDTH))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
