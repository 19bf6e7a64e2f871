"""`cet-rl plot`: draw the learning curves of runs as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import tyro

from cet_rl.cli import parse
from cet_rl.runs.files import check_file, replacing


@dataclass(frozen=True)
class PlotArguments:
    """Draw the learning curves of runs of one task: for each arm the mean over seeds, with a band of spread."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS")]
    """Run folders, or folders that hold run folders at any depth, such as that of a sweep."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE.svg")]
    """FILE.svg, FILE.png or FILE.pdf: the picture."""


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    parsed = parse(PlotArguments, arguments, "cet-rl plot")
    if not parsed.runs:
        raise ValueError("name run folders, or folders that hold some: cet-rl plot runs --out curves.svg")
    file = check_file("--out", Path(parsed.out), ".svg", ".png", ".pdf")
    # Imported late: matplotlib is slow, and bad options should be refused at once.
    from cet_rl.report.drawing import Format, drawing, render
    from cet_rl.report.grouping import group_runs
    from cet_rl.report.plots import learning_curves
    from cet_rl.report.reading import read_runs
    from cet_rl.report.text import counted, listed

    runs, _ = read_runs(parsed.runs)
    damaged = [run for run in runs if run.status == "damaged"]
    comparisons = group_runs(runs)
    if not comparisons:
        raise ValueError(f"none of these runs can be read; {damaged[0].path}: {damaged[0].problem}")
    if len(comparisons) > 1:
        titles = listed([each.title for each in comparisons], 4)
        raise ValueError(f"a picture shows runs that can be compared, and these are of {titles}: name some of one")
    with drawing():
        pictures = learning_curves(comparisons[0])
        if not pictures or (figure := pictures[0].figure) is None:
            raise ValueError("none of these runs has logged a learning curve yet")
        with replacing(file) as stream:
            stream.write(render(figure, cast("Format", file.suffix[1:].lower())))
    print(f"{file}: {pictures[0].caption}" + f" {counted(len(damaged), 'damaged run')} left out." * bool(damaged))
    return 0
