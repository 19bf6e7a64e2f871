"""Check a learning rule for biological plausibility: what it keeps and computes, as observed in small networks.

    found = audit_rule(RFLO)
    found.memory, found.time, found.operations      # nm, nm, {}
    found.plausible                                 # True

It works on any `Rule`, a user's own too, and knows no rule by name: shapes and orders come from networks of
several sizes, operations from what torch dispatches in a step.

Source of the criteria: Marschall, Cho, Savin, "Evaluating biological plausibility of learning algorithms the lazy
way" (2019), i to vi, and its argument against backpropagation through time.

Of the locality that criterion ii asks for, two violations are seen: more than two units sharing a number, and a
number that all entries of a matrix go into. What is not judged stands in `LEGEND`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cet_rl.recurrent.audit.probes import Order, Subject, find_axes, jumps, memory_order, observe, time_order
from cet_rl.recurrent.rules.base import DeclaredCost, Rule
from cet_rl.runs.files import csv_text
from cet_rl.runs.plugins import naming

CRITERIA = {
    "i": "vectors are rates, voltages or other variables of a cell",
    "ii": "matrices are synapses: they change continuously, by a local rule",
    "iii": "what enters a matrix-vector product is a firing rate",
    "iv": "no matrix-matrix products",
    "v": "independent noise is allowed",
    "vi": "no perturbed copy of the network",
    "online": "no activity is kept of steps before the last",
}
"""Those of the paper by number, and the one that backpropagation through time fails."""

JUMP = 0.1
"""Share of its size that a matrix may move in a step while input, label and rates of the network rest.

What follows the network continuously comes to rest with it, but for slow learning: at most 0.006 for the rules
here that do. What is driven by random signs moves by 0.9 or more. The bound lies between, at α = 0.5.
"""

OPERATIONS = ("matrix-vector", "matrix-matrix", "Jacobian", "noise", "perturbed copy", "past activity")
"""Kinds of operation that a rule may need beyond elementwise ones, pre times post among them.

A Jacobian is a product with diag(D) W_rec, a perturbed copy a pass through the network from other rates.
"""


class StateTensor(NamedTuple):
    """Describe a tensor of a rule's state."""

    name: str
    axes: tuple[str, ...]  # length of each axis, such as "n" and "n+n_out+1"; that of sequences is left out
    size: Order | None  # of the number of its elements
    past: bool  # whether it holds activity of steps before the last one
    jump: float  # how far it moves in a step at most, relative to its size, while the network rests

    @property
    def degree(self) -> int:
        """Return the number of axes of units: 0 a number, 1 a vector, 2 a matrix, 3 more than synapses hold."""
        return self.size.degree if self.size else 0

    def __str__(self) -> str:
        lengths = [f"({axis})" if "+" in axis else axis for axis in self.axes]
        return f"{self.name}: {self.size if '?' in lengths else ' × '.join(lengths) or '1'}"


class Verdict(NamedTuple):
    """Judge whether a rule meets a criterion of `CRITERIA`."""

    criterion: str
    reason: str  # why it does not; empty if it does

    @property
    def passes(self) -> bool:
        """Tell whether the rule meets the criterion."""
        return not self.reason


@dataclass(frozen=True)
class Audit:
    """Hold what a rule keeps and computes, as observed at batch 1; orders are None if they are no polynomials."""

    name: str  # of the rule
    tensors: tuple[StateTensor, ...]  # of its state
    memory: Order | None  # of the number of their elements
    time: Order | None  # of its multiplications in a step
    operations: dict[str, float]  # of `OPERATIONS` those that it needs, with their number in a step
    chains: tuple[tuple[str, str], ...]  # matrix of a product whose result goes into another, and matrix of that
    totals: tuple[str, ...]  # names of matrices all entries of which go into one number
    pending: bool  # whether it has gradient left when its input ends
    window: int | None  # T with which operations were counted; None for a rule without a window
    declared_cost: DeclaredCost | None  # what it says of itself
    equations: str  # its updates and gradient, as it writes them

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Return the verdicts by the paper's criteria."""
        past = ", ".join(tensor.name for tensor in self.tensors if tensor.past)
        products, time = self.operations.get("matrix-matrix", 0), self.time.degree if self.time else 0
        reasons: dict[str, list[str]] = {name: [] for name in CRITERIA}
        for tensor in self.tensors:
            if tensor.degree > 2:
                reasons["ii"].append(f"{tensor.name} has order {tensor.degree}, a synapse joins two units")
        for tensor in self.tensors:
            if tensor.degree == 2 and not tensor.past and tensor.jump > JUMP:
                moves = f"{tensor.name} moves by {tensor.jump:.0%} of its size in a step while the network rests"
                reasons["ii"].append(moves)
        if self.totals:
            reasons["ii"].append(f"all entries of {' and of '.join(self.totals)} go into one number")
        if "Jacobian" in self.operations:
            reasons["ii"].append("synapses would have to follow the Jacobian diag(D) W_rec at once")
        for first, second in self.chains:
            reasons["iii"].append(f"what a product with {first} gives, a voltage, goes into one with {second}")
        if products:
            reasons["iv"].append(f"matrix-matrix products in a step: {products:.2g}")
        elif time > 2:
            reasons["iv"].append(f"{self.time} multiplications a step, more than there are synapses")
        if "perturbed copy" in self.operations:
            reasons["vi"].append("the network's forward pass runs again, from other rates")
        if past:
            late = ", and gradient comes after the last step" if self.pending else ""
            reasons["online"].append(f"activity of earlier steps is kept in {past}{late}")
        return tuple(Verdict(name, "; ".join(reasons[name])) for name in CRITERIA)

    @property
    def plausible(self) -> bool:
        """Tell whether it meets all criteria."""
        return all(verdict.passes for verdict in self.verdicts)

    @property
    def differences(self) -> tuple[str, ...]:
        """Return how it differs from what it declares, a phrase each; orders count by exponents of size and T.

        Raises ValueError for a declared cost that cannot be read.
        """
        if self.declared_cost is None:
            return ()
        claimed, needs = self.declared_cost.needs, set(self.operations)
        if unknown := sorted(claimed - set(OPERATIONS)):
            raise ValueError(f"{self.name} declares unknown {', '.join(unknown)}; known: {', '.join(OPERATIONS)}")
        orders = {"memory": (self.memory, self.declared_cost.memory), "time": (self.time, self.declared_cost.time)}
        return (
            *(
                f"{what} is {seen or 'irregular'}, {text} is claimed"
                for what, (seen, text) in orders.items()
                if Order.parse(text).growth != (seen.growth if seen else ())
            ),
            *(f"needs {name}, which is not claimed" for name in OPERATIONS if name in needs - claimed),
            *(f"claims to need {name}, but does not" for name in OPERATIONS if name in claimed - needs),
        )


@naming("the rule cannot be audited")
def audit_rule(build: Callable[..., Rule], **options: float) -> Audit:
    """Audit a learning rule, in a few small networks on the CPU.

    Args:
        build: the class, or a function that makes a rule of a `RNNCell`.
        options: of the constructor. A class's other options that are whole numbers are varied, to see whether
            something grows with them.

    Raises:
        ValueError: if the rule cannot be built, keeps something outside its state, changes the state that it is
            given, or has a declared cost that cannot be read.
    """
    subject = Subject(build, options)
    rule, axes, moved = subject.build(), find_axes(subject), jumps(subject)
    observer, operations, past, pending = observe(subject)
    # A length of time is what the tensors that hold the past grow with.
    of_the_past = [axis for name in past for axis in axes[name]]
    times = {count for count in subject.counts if any(axis.factors[count] for axis in of_the_past)}
    tensors = []
    for name, each in axes.items():
        size, lengths = memory_order(subject, name, times), tuple(axis.name(times) for axis in each)
        grows = size is not None and any(term.window for term in size.terms)
        tensors.append(StateTensor(name, lengths, size, name in past or grows, moved.get(name, 0.0)))
    sizes = [tensor.size for tensor in tensors]
    found = Audit(
        getattr(rule, "name", type(rule).__name__),
        tuple(tensors),
        None if None in sizes else Order.of(term for size in sizes if size for term in size.terms),
        time_order(subject, times),
        operations,
        tuple(sorted(observer.chains)),
        tuple(sorted(observer.totals)),
        pending,
        max((subject.counts[option] for option in times), default=None),
        rule.declared_cost,
        rule.equations,
    )
    _ = found.differences  # a declared cost that cannot be read is found here, not when it is printed
    return found


# -------------------- audits as tables: for a terminal, in Markdown, and as CSV

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

COLUMNS: tuple[str, ...] = ("rule", "equations", "tensors", "memory", "time", *OPERATIONS)
COLUMNS += (*CRITERIA, "plausible", "claims", "reasons")
"""Columns of the CSV: all tables side by side, operations as numbers a step."""

WIDTH = 140  # columns of a table that does not go to a terminal

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
            table.add_row(f"[bold]{row['rule']}[/bold]", *(marks.get(cell, escape(cell)) for cell in cells[1:]))
        console.print(table)
    for line in _notes(audits, "", [""]):
        console.print(line, highlight=False, markup=False)


def as_markdown(audits: Sequence[Audit]) -> str:
    """Return the tables in Markdown."""
    lines = []
    for columns in TABLES.values():
        rows = [[row[name] for name in columns] for row in map(_row, audits)]
        for cells in (columns.values(), ["---"] * len(columns), *rows):
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join([*lines, *_notes(audits, "- ", ["", "Against:", ""])]) + "\n"


def as_csv(audits: Sequence[Audit]) -> str:
    """Return a CSV with a row for each rule."""
    rows = map(_row, audits)
    return csv_text(COLUMNS, ({name: "no" if text == "NO" else text for name, text in r.items()} for r in rows))


def as_text(audits: Sequence[Audit], form: Format) -> str:
    """Return audits as text in one of the formats."""
    if form != "table":
        return as_markdown(audits) if form == "markdown" else as_csv(audits)
    stream = io.StringIO()
    print_tables(audits, Console(file=stream, width=WIDTH))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
