"""Write a report: its page, whose layout is in template.html.j2, and its figures and tables as files."""

from __future__ import annotations

import base64
import multiprocessing
import os
import re
import shlex
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import quote

import jinja2

from cet_rl.report.drawing import Format, Picture, as_files, drawing
from cet_rl.report.grouping import Arm, Comparison, group_runs
from cet_rl.report.improvement import Improvement, improvement, improvement_matrix
from cet_rl.report.kernels import kernels, memory
from cet_rl.report.plots import alignment, learning_curves
from cet_rl.report.reading import STATES, Run, read_runs
from cet_rl.report.scores import heatmap, scores
from cet_rl.report.statistics import LEAST_SEEDS
from cet_rl.report.tables import all_tables
from cet_rl.report.text import clean, counted, in_seconds, listed, number, sentence, span
from cet_rl.runs.files import make_folder, replacing, write_text
from cet_rl.runs.values import unknown
from cet_rl.sweeps.worker import processors

FIGURES: tuple[Callable[[Comparison], list[Picture]], ...] = (
    heatmap,
    scores,
    improvement_matrix,
    learning_curves,
    alignment,
    kernels,
    memory,
)
"""Figures in the order of the page; each returns no picture if there is nothing to draw."""

MOST_PROCESSES = 4  # that draw figures; each takes some 200 MB
MOST_FAILED = 8  # failed runs that are named in a section; the table of runs has all


@dataclass(frozen=True)
class Report:
    """Hold the paths of the HTML page and of the figures and tables beside it, and the runs that they show."""

    page: Path
    pictures: tuple[Path, ...]
    tables: tuple[Path, ...]
    runs: tuple[Run, ...]


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    title: str | None = None,
    figure_format: Format = "png",
) -> Report:
    """Write report.html, which needs no other file, and its figures and tables beside it.

    The same runs give the same files, byte for byte, with the same versions of matplotlib and Pillow.

    Args:
        folders: run folders, folders that hold some at any depth, or CSV files of `cet-rl sweep --known`.
        out: folder to write to; None for the first of `folders`.
        title: title of the page; None for that of the sweep, or the name of the first folder.
        figure_format: format of the figures beside the page: png, svg or pdf.

    Raises:
        ValueError: if one of the folders holds no run, or the format is unknown.
        OSError: if the report cannot be written.
    """
    if not folders:
        raise ValueError("a report needs at least one run folder, or a folder that holds some")
    if figure_format not in get_args(Format):
        raise unknown("figure format", figure_format, get_args(Format))
    first = Path(folders[0])
    start = Path(out) if out is not None else first.parent if first.is_file() else first
    runs, problems = read_runs(folders)
    make_folder(start, "the report's")  # refuses before anything is drawn
    comparisons = group_runs(runs)
    sweeps = sorted({run.sweep for run in runs} - {""})
    usual = sweeps[0] if len(sweeps) == 1 and all(run.sweep for run in runs) else first.resolve().name
    slugs = [f"report-{slug}" for slug in _slugs(comparisons)]
    figures = [
        {f"{slug}-{picture.name}.{figure_format}": picture for picture in pictures}
        for slug, pictures in zip(slugs, draw_all(comparisons, figure_format), strict=True)
    ]
    tables = [
        {f"{slug}-{name}": text for name, text in all_tables(comparison).items()}
        for slug, comparison in zip(slugs, comparisons, strict=True)
    ]
    html = render(
        title=clean(title if title is not None else usual or "runs", 120),
        overview=_overview(runs),
        sweeps=sweeps if len(sweeps) > 1 else [],
        versions=_versions(runs),
        problems=problems,
        sections=[
            (each, summarize(each), _notes(each), own, list(files), _commands(each))
            for each, own, files in zip(comparisons, figures, tables, strict=True)
        ],
        runs=_listed(runs, comparisons, start),
    )
    pictures = {start / name: picture.file for own in figures for name, picture in own.items()}
    texts = {start / name: text for own in tables for name, text in own.items()}
    page = start / "report.html"
    try:
        for file, data in pictures.items():
            with replacing(file) as stream:
                stream.write(data)
        for file, text in [*texts.items(), (page, html)]:
            write_text(file, text)
    except OSError as error:
        raise OSError(f"cannot write the report to {start}: {error.strerror}") from None
    return Report(page, tuple(pictures), tuple(texts), tuple(runs))


def render(**content: object) -> str:
    """Return the page's template filled with the content; all text is escaped."""
    blocks: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, **blocks)
    environment.filters |= {"base64": lambda text: base64.b64encode(text.encode()).decode(), "show": number}
    environment.filters |= {"clean": clean, "in_seconds": in_seconds, "span": span}
    environment.globals["LEAST_SEEDS"] = LEAST_SEEDS
    return environment.get_template("template.html.j2").render(content)


def _slugs(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a file name for each comparison, of letters, digits, dots and dashes, unique whatever the case."""
    slugs: list[str] = []
    for comparison in comparisons:
        base = re.sub(r"[^A-Za-z0-9.]+", "-", comparison.title).strip("-.")[:60] or "task"
        slug, number = base, 1
        while slug.lower() in map(str.lower, slugs):
            number += 1
            slug = f"{base}-{number}"
        slugs.append(slug)
    return slugs


def draw_all(comparisons: Sequence[Comparison], form: Format = "png") -> list[list[Picture]]:
    """Return the pictures of each comparison, drawn by several processes where that is safe and helps."""
    tasks = list(product(comparisons, FIGURES))
    processes = min(len(tasks), processors(), MOST_PROCESSES)
    drawn = None
    # Forking is quick, but unsafe in a process with threads, such as those of torch.
    may_fork = sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
    if processes > 1 and may_fork and not multiprocessing.current_process().daemon:
        try:
            with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
                drawn = list(pool.map(partial(draw, form=form), *zip(*tasks, strict=True)))
        except BrokenProcessPool:  # a process was killed, perhaps for its memory: draw all in this one
            pass
    drawn = drawn or [draw(*task, form) for task in tasks]
    of_each = zip(*[iter(drawn)] * len(FIGURES), strict=True)
    return [list(chain.from_iterable(pictures)) for pictures in of_each]


def draw(comparison: Comparison, figure: Callable[[Comparison], list[Picture]], form: Format) -> list[Picture]:
    """Return the pictures of one figure of a comparison."""
    with drawing():
        return [as_files(picture, form) for picture in figure(comparison)]


def summarize(comparison: Comparison) -> list[tuple[float, Arm, Improvement | None]]:
    """Return each delay with a result, its best arm, and the probability that it beats the next, if any."""
    ranked = {delay: comparison.ranked(delay) for delay in comparison.delays}
    return [
        (delay, arms[0], improvement(comparison, arms[0], arms[1], delay) if len(arms) > 1 else None)
        for delay, arms in ranked.items()
        if arms
    ]


def _overview(runs: Sequence[Run]) -> str:
    """Return the number of runs in each state as a sentence."""
    states = Counter(run.status for run in runs)
    meanings = {state: f" ({meaning})" * bool(meaning) for state, meaning in STATES.items()}
    parts = [f"{states[state]:,} {state}{meaning}" for state, meaning in meanings.items() if states[state]]
    return f"{counted(len(runs), 'run')}: {'; '.join(parts)}."


def _versions(runs: Sequence[Run]) -> str:
    """Return the versions that the runs were made with as a sentence: "torch 2.13.0, numpy 2.4.6 or 2.4.5"."""
    found: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, version in run.versions.items():
            found[name].add(version)
    if not found:
        return "No run says which versions it was made with."
    shown = [f"{name} {' or '.join(sorted(versions))}" for name, versions in sorted(found.items())]
    return f"Runs were made with {listed(shown, 20)}."


def _commands(comparison: Comparison) -> list[str]:
    """Return the command that repeats each run."""
    files = [run.path / "config.yaml" for run in comparison.counted_runs if run.path.is_dir()]
    return [f"cet-rl train --config {shlex.quote(str(file))}" for file in files]


def _notes(comparison: Comparison) -> list[str]:
    """Return sentences on the runs of a comparison, and on what is missing."""
    runs = comparison.counted_runs
    states = Counter(run.status for run in runs)
    delays = ", ".join(f"{delay:g} s" for delay in sorted({each.delay for _, each in comparison.all_runs}))
    counts = [len(at_delay.runs) for _, at_delay in comparison.all_runs]
    seeds = f"{span(counts)} seed{'s' * (max(counts) > 1)}"
    arms = counted(len(comparison.arms), "arm")
    notes = [f"{counted(len(runs), 'run')}: {arms}, {seeds} each; credit delay {delays}."]
    others = [f"{states[state]} {state}" for state in STATES if state != "finished" and states[state]]
    notes += sentence("Not among the results", others)
    notes += sentence("Missing, without any result", comparison.missing)
    repeats = sum(len(at_delay.repeats) for _, at_delay in comparison.all_runs)
    if repeats:
        notes.append(f"{counted(repeats, 'run')} of the same configuration and seed as another, not counted.")
    unseen = [run for run in runs if run.status == "finished" and not run.columns]
    if unseen:
        known = f"Of {counted(len(unseen), 'finished run')} only the final numbers are there"
        notes.append(f"{known}: learning curves and alignment need run folders with a metrics.csv.")
    score = comparison.presentation.score
    unscored = [run for run in runs if run.status == "finished" and score.value(run) is None]
    if unscored:
        notes.append(f"{counted(len(unscored), 'finished run')} without a {score.title}.")
    failed = [f"{clean(run.path.name, 60)}: {clean(run.problem, 160)}" for run in runs if run.status == "failed"]
    notes += [f"Failed: {text}" for text in failed[:MOST_FAILED]]
    if len(failed) > MOST_FAILED:
        notes.append(f"{len(failed) - MOST_FAILED} more failed; see the table of runs.")
    return notes


class ListedRun(NamedTuple):
    """Hold a row of the table of all runs."""

    run: Run
    comparison: Comparison | None  # None for a damaged run
    arm: str
    note: str
    link: str  # to its folder, relative to the page; "" without a folder


def _listed(runs: Sequence[Run], comparisons: Sequence[Comparison], start: Path) -> list[ListedRun]:
    """Return the rows, damaged runs first and repeats last; links are relative to the page's folder `start`."""
    found: dict[Path, tuple[Comparison, Arm]] = {}
    repeats: set[Path] = set()
    for comparison in comparisons:
        for arm, at_delay in comparison.all_runs:
            found |= {run.path: (comparison, arm) for run in (*at_delay.runs, *at_delay.repeats)}
            repeats |= {run.path for run in at_delay.repeats}
    order = {path: place for place, path in enumerate(found, 1)}
    rows = []
    for run in sorted(runs, key=lambda run: (run.path in repeats, order.get(run.path, 0), run.path)):
        own, of_arm = found.get(run.path, (None, None))
        label = of_arm.label if of_arm else clean(run.config.label, 60) if run.config else "–"
        notes = ["repeats a run of the same seed; not counted"] * (run.path in repeats)
        link = "./" + quote(os.fsencode(os.path.relpath(run.path.resolve(), start.resolve())))
        link *= run.path.is_dir()
        rows.append(ListedRun(run, own, label, "; ".join([*notes, *filter(None, [run.problem])]), link))
    return rows
