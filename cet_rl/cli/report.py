"""`cet-rl report`: a folder of runs as one page of figures and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from cet_rl.cli import parse


@dataclass(frozen=True)
class ReportArguments:
    """Turn runs into report.html, one file to read anywhere, and its figures as PNG files.

    They show scores by arm and delay, learning curves, alignment, kernels, and a table of all runs.

    Examples:
      cet-rl report runs/quick
      cet-rl report --claims runs/fig4-cartpole
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS")]
    """Run folders, or folders that hold run folders at any depth, such as that of a sweep, or a CSV that
    `cet-rl sweep --known` has written."""
    out: str | None = None
    """Folder to write to. Default: the first of RUNS."""
    claims: bool = False
    """Judge the papers' claims, and ours, by the runs instead; with --out, also write claims.md."""
    quiet: bool = False
    """Print nothing but errors."""


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parsed = parse(ReportArguments, arguments, "cet-rl report")
    if not parsed.runs:
        raise ValueError("name run folders, or folders that hold some: cet-rl report runs")
    if parsed.claims:
        return _claims(parsed)
    # Matplotlib: a misspelt option should not wait for it.
    from cet_rl.report import write_report
    from cet_rl.report.text import counted

    report = write_report(parsed.runs, parsed.out)
    if not parsed.quiet:
        states = Counter(run.status for run in report.runs)
        runs = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
        figures = counted(len(report.pictures), "figure")
        print(f"{report.page}: {counted(len(report.runs), 'run')} ({runs}), {figures}")
    return 0


def _claims(parsed: ReportArguments) -> int:
    """Judge the claims by the runs, print the verdicts, and write them where --out says."""
    from rich.console import Console

    from cet_rl.report.claims import examine_folders
    from cet_rl.report.claims.judging import print_claims, write_claims

    findings = examine_folders(parsed.runs)
    if not parsed.quiet:
        print_claims(findings, Console())
    if parsed.out is not None:
        file = write_claims(findings, parsed.runs, parsed.out)
        if not parsed.quiet:
            print(file)
    return 0
