"""Verdicts as text: for a terminal, and as Markdown."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cet_rl.report.claims.judging import VERDICTS, Finding
from cet_rl.report.statistics import LEAST, LEVEL
from cet_rl.runs.folder import write_text

FILE = "claims.md"
"""What `write_claims` writes."""

METHOD = (
    f"Only finished runs count. A check passes if the whole {LEVEL:.0%} bootstrap interval over seeds (in "
    f"brackets) lies where the claim says, with at least {LEAST} seeds a side. A claim holds if all of its checks "
    "pass, and does not hold if one fails: its runs do not show what it says."
)


def summary(findings: Sequence[Finding]) -> str:
    """Counts of verdicts: "holds 3, does not hold 1, not enough data 29"."""
    counts = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS)


def print_claims(findings: Sequence[Finding], console: Console) -> None:
    """Print a table of claim, verdict, numbers and seeds a side."""
    grid = Table(show_lines=True)
    for head in ("claim", "verdict", "numbers"):
        grid.add_column(head, overflow="fold")
    grid.add_column("n", justify="right")
    for finding in findings:
        claim = finding.claim
        words = f"{claim.name} ({claim.place}): {claim.words}"
        # As they are: numbers hold square brackets, which rich would take for markup.
        grid.add_row(*map(Text, (words, finding.verdict, finding.numbers, seeds(finding))))
    console.print(grid)
    console.print(f"{summary(findings)}. {METHOD}", highlight=False)


def as_markdown(findings: Sequence[Finding], folders: Sequence[str | os.PathLike[str]]) -> str:
    """The same as a Markdown page.

    Args:
        findings: to show.
        folders: that the runs are from, named on the page.
    """
    rows = [
        [
            f"`{finding.claim.name}`",
            finding.claim.place,
            finding.claim.words,
            f"**{finding.verdict}**" if finding.outcomes else finding.verdict,
            finding.numbers,
            seeds(finding),
        ]
        for finding in findings
    ]
    heads = ["claim", "place", "in words", "verdict", "numbers", "n"]
    lines = [
        "# Claims",
        "",
        f"Judged on the runs in {', '.join(f'`{folder}`' for folder in folders)}: {summary(findings)}.",
        METHOD,
        "n is the number of seeds a side. `cet-rl sweep CONFIG` makes the runs that a claim needs.",
        "",
        _row(heads),
        _row(["---"] * len(heads)),
        *map(_row, rows),
    ]
    return "\n".join(lines) + "\n"


def write_claims(
    findings: Sequence[Finding], folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> Path:
    """Write claims.md; its path.

    Args:
        findings: to write.
        folders: that the runs are from.
        out: folder to write to; made if it is not there.

    Raises:
        OSError: if it cannot be written.
    """
    file = Path(out) / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, as_markdown(findings, folders))
    return file


def seeds(finding: Finding) -> str:
    """Seeds of the sides that were evaluated: "3", "3–5", "–" if none was."""
    if finding.seeds is None:
        return "–"
    least, most = finding.seeds
    return str(least) if least == most else f"{least}–{most}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
