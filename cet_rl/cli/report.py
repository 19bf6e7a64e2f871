"""`cet-rl report`: turn folders of runs into one page of figures and tables, or judge claims by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cet_rl.cli import parse


@dataclass(frozen=True)
class ReportArguments:
    """Turn runs into report.html, which needs no other file, and its figures and tables as files for a paper.

    They show scores by arm and delay, how probably an arm beats another, learning curves, alignment, kernels, and
    all runs. Tables are CSV files and, for LaTeX with booktabs, .tex files.

    Examples:
      cet-rl report runs/quick
      cet-rl report runs/fig4-cartpole --format pdf --out paper/figures
      cet-rl report --claims runs/fig4-cartpole
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS")]
    """Run folders, folders that hold run folders at any depth, such as that of a sweep, or CSV files written by
    `cet-rl sweep --known`."""
    out: str | None = None
    """Folder to write to. Default: the first of RUNS."""
    format: Literal["png", "svg", "pdf"] = "png"
    """Format of the figures beside the page: png for slides, pdf or svg for LaTeX. Those on the page are SVG."""
    claims: bool = False
    """Instead of a report, judge the papers' claims and ours by the runs; with --out, also write claims.md."""
    quiet: bool = False
    """Print nothing but errors."""


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    parsed = parse(ReportArguments, arguments, "cet-rl report")
    if not parsed.runs:
        raise ValueError("name run folders, or folders that hold some: cet-rl report runs")
    if parsed.claims:
        if parsed.format != "png":
            raise ValueError("--claims draws nothing: leave out --format")
        return _claims(parsed)
    # Imported late: matplotlib is slow, and bad options should be refused at once.
    from cet_rl.report import write_report
    from cet_rl.report.text import counted, listed

    report = write_report(parsed.runs, parsed.out, figure_format=parsed.format)
    if not parsed.quiet:
        states = Counter(run.status for run in report.runs)
        runs = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
        print(f"{report.page}: {counted(len(report.runs), 'run')} ({runs})")
        for what, files in (("figure", report.pictures), ("table", report.tables)):
            if files:
                print(f"{counted(len(files), what)} beside it: {listed([file.name for file in files])}")
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
