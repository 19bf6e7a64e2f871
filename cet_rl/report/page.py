"""Writes a report: what stands on the page, and all figures, drawn by several processes where that helps.

The page's text and looks are in template.html.j2.
"""

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
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2

from cet_rl.report.curves import alignment, learning_curves
from cet_rl.report.drawing import Picture, drawing
from cet_rl.report.grouping import Arm, ArmAtDelay, Comparison, group_runs
from cet_rl.report.kernels import kernels
from cet_rl.report.reading import STATES, Run, read_runs
from cet_rl.report.scores import heatmap, scores
from cet_rl.report.statistics import LEAST_SEEDS, Estimate
from cet_rl.report.text import clean, counted, in_seconds, listed, number, sentence, span
from cet_rl.runs.files import replacing, write_text
from cet_rl.sweeps.worker import processors

FIGURES: tuple[Callable[[Comparison], list[Picture]], ...] = (heatmap, scores, learning_curves, alignment, kernels)
"""Figures in the order of the page; each returns no picture where there is nothing to draw."""

MOST_PROCESSES = 4  # that draw; each takes some 200 MB
MOST_FAILED = 8  # runs that are named in a section; the table of runs has them all


@dataclass(frozen=True)
class Report:
    """Hold the paths of the HTML file and of the pictures beside it, and the runs that they are about."""

    page: Path
    pictures: tuple[Path, ...]
    runs: tuple[Run, ...]


class TableCell(NamedTuple):
    """Hold a cell of a table: its text, what it is sorted by ("" comes last), its class, and a relative link."""

    text: str
    value: float | str | None = None
    kind: str = ""
    link: str = ""


class Table(NamedTuple):
    """Hold a table that can be sorted: names and classes of its columns, classes and cells of its rows."""

    caption: str
    heads: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[TableCell]]]


def write_report(
    folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None, title: str | None = None
) -> Report:
    """Write report.html, which needs no other file, and its figures as PNG files beside it.

    The same runs give the same files, byte for byte, with the same versions of matplotlib and Pillow.

    Args:
        folders: run folders, or folders that hold run folders at any depth.
        out: folder to write to; None for the first of `folders`.
        title: title of the page; None for the name of the first folder.

    Raises:
        ValueError: if there is no run folder in one of the folders.
        OSError: if the report cannot be written.
    """
    if not folders:
        raise ValueError("a report needs at least one run folder, or a folder that holds some")
    start = Path(folders[0] if out is None else out)
    runs, problems = read_runs(folders)
    comparisons = group_runs(runs)
    name = clean(title if title is not None else Path(folders[0]).resolve().name or "runs", 120)
    figures = [
        {f"report-{slug}-{picture.name}.png": picture for picture in pictures}
        for slug, pictures in zip(_slugs(comparisons), draw_all(comparisons), strict=True)
    ]
    html = render(
        title=name,
        overview=_overview(runs),
        versions=_versions(runs),
        problems=problems,
        sections=[
            (each.title, _notes(each), own, _results(each), _commands(each))
            for each, own in zip(comparisons, figures, strict=True)
        ],
        runs=_runs_table(runs, comparisons, start),
    )
    files = {start / name: picture.png for own in figures for name, picture in own.items()}
    page = start / "report.html"
    try:
        start.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            with replacing(file) as stream:
                stream.write(data)
        write_text(page, html)
    except OSError as error:
        raise OSError(f"cannot write the report to {start}: {error.strerror}") from None
    return Report(page, tuple(files), tuple(runs))


def render(**content: object) -> str:
    """Fill in the page's template; all text is escaped."""
    blocks: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, **blocks)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("template.html.j2").render(content)


def _slugs(comparisons: Sequence[Comparison]) -> list[str]:
    """Return names for files: letters, digits, dots and dashes, unique whatever their case."""
    slugs: list[str] = []
    for comparison in comparisons:
        base = re.sub(r"[^A-Za-z0-9.]+", "-", comparison.title).strip("-.")[:60] or "task"
        slug, number = base, 1
        while slug.lower() in map(str.lower, slugs):
            number += 1
            slug = f"{base}-{number}"
        slugs.append(slug)
    return slugs


# -------------------- figures


def draw_all(comparisons: Sequence[Comparison]) -> list[list[Picture]]:
    """Return the pictures of each comparison, the same ones however many processes draw."""
    processes = min(len(comparisons), processors(), MOST_PROCESSES)
    # Forking is quick, but unsafe beside threads, such as those of torch.
    may_fork = sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
    if processes > 1 and may_fork and not multiprocessing.current_process().daemon:
        try:
            with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
                return list(pool.map(draw, comparisons))
        except BrokenProcessPool:  # one was killed, for its memory perhaps
            pass
    return [draw(comparison) for comparison in comparisons]


def draw(comparison: Comparison) -> list[Picture]:
    """Return the pictures of one comparison."""
    with drawing():
        return [picture for figure in FIGURES for picture in figure(comparison)]


# -------------------- text


def _overview(runs: Sequence[Run]) -> str:
    """Count the runs, by state."""
    states = Counter(run.status for run in runs)
    meanings = {state: f" ({meaning})" * bool(meaning) for state, meaning in STATES.items()}
    said = [f"{states[state]:,} {state}{meaning}" for state, meaning in meanings.items() if states[state]]
    return f"{counted(len(runs), 'run')}: {'; '.join(said)}."


def _versions(runs: Sequence[Run]) -> str:
    """Say which versions the runs were made with: "torch 2.13.0, numpy 2.4.6 or 2.4.5"."""
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
    files = [run.path / "config.yaml" for run in comparison.counted_runs if run.status != "waiting"]
    return [f"cet-rl train --config {shlex.quote(str(file))}" for file in files]


def _notes(comparison: Comparison) -> list[str]:
    """Return sentences on what the comparison consists of, and what it lacks."""
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
    score = comparison.presentation.score
    unscored = [run for run in runs if run.status == "finished" and score.value(run) is None]
    if unscored:
        notes.append(f"{counted(len(unscored), 'finished run')} without a {score.title}.")
    failed = [f"{clean(run.path.name, 60)}: {clean(run.problem, 160)}" for run in runs if run.status == "failed"]
    notes += [f"Failed: {text}" for text in failed[:MOST_FAILED]]
    if len(failed) > MOST_FAILED:
        notes.append(f"{len(failed) - MOST_FAILED} more failed; see the table of runs.")
    return notes


# -------------------- tables


def _results(comparison: Comparison) -> Table:
    """Return the table of arms at delays."""
    score, *others = comparison.presentation.scores
    pooled = {arm.label: each for arm in comparison.compared if (each := comparison.over_delays(arm))}
    numbers = ["delay", "n", score.heading, "95 % interval", "lowest to highest"]
    numbers += [*(measure.heading for measure in others), "steps/s"]
    heads = [("arm", ""), *((name, "number") for name in numbers), ("options that differ", "")]
    rows: list[tuple[str, list[TableCell]]] = []
    for arm in comparison.arms:
        rows += [("", _result(comparison, arm, at_delay)) for at_delay in arm.at.values()]
        if arm.label in pooled:
            empty = [TableCell("", "", "number")] * (len(others) + 1)
            estimate = _estimate_cells(comparison, pooled[arm.label])
            first = TableCell(arm.label), TableCell("all", "", "number")
            rows.append(("", [*first, *estimate, *empty, TableCell("")]))
    caption = (
        f"Results of finished runs: {comparison.presentation.statistic_title} over n seeds, with a bootstrap "
        f"interval where n is at least {LEAST_SEEDS}. Steps are {comparison.presentation.steps}."
    )
    if pooled:
        caption += " All: the seeds of all delays together, resampled within each."
    return Table(caption, heads, rows)


def _result(comparison: Comparison, arm: Arm, at_delay: ArmAtDelay) -> list[TableCell]:
    speeds = sorted(run.speed for run in at_delay.finished if run.speed is not None)
    others = [(m, comparison.estimate(arm, at_delay.delay, m)) for m in comparison.presentation.scores[1:]]
    return [
        TableCell(arm.label),
        TableCell(in_seconds(at_delay.delay), at_delay.delay, "number"),
        *_estimate_cells(comparison, comparison.estimate(arm, at_delay.delay)),
        *(_number_cell(found.centre if found else None, measure.digits) for measure, found in others),
        _number_cell(speeds[len(speeds) // 2] if speeds else None, 0),
        TableCell(comparison.differing[arm.label, at_delay.delay], kind="text"),
    ]


def _estimate_cells(comparison: Comparison, found: Estimate | None) -> list[TableCell]:
    """Return cells for count, centre, interval and range."""
    score = comparison.presentation.score
    if found is None:
        return [TableCell("0", 0, "number"), *[TableCell("–", "", "number")] * 3]
    interval = TableCell("n too small", "", "number")
    if found.low is not None:
        interval = TableCell(f"{score.show(found.low)} to {score.show(found.high)}", found.low, "number")
    return [
        TableCell(str(found.count), found.count, "number"),
        _number_cell(found.centre, score.digits),
        interval,
        TableCell(f"{score.show(found.least)} to {score.show(found.most)}", found.least, "number"),
    ]


def _number_cell(value: float | None, digits: int) -> TableCell:
    return TableCell(number(value, digits), "" if value is None else value, "number")


def _runs_table(runs: Sequence[Run], comparisons: Sequence[Comparison], start: Path) -> Table:
    """Return the table of all runs, damaged ones first, with links relative to the page's folder `start`."""
    found: dict[Path, tuple[Comparison, Arm]] = {}
    repeats: set[Path] = set()
    for comparison in comparisons:
        for arm, at_delay in comparison.all_runs:
            found |= {run.path: (comparison, arm) for run in (*at_delay.runs, *at_delay.repeats)}
            repeats |= {run.path for run in at_delay.repeats}
    order = {path: place for place, path in enumerate(found, 1)}
    rows = []
    for run in sorted(runs, key=lambda run: (run.path in repeats, order.get(run.path, 0), run.path)):
        said = ["repeats a run of the same seed; not counted"] * (run.path in repeats)
        problem = "; ".join([*said, *filter(None, [run.problem])])
        rows.append((run.status, _run_row(run, found.get(run.path), problem, start)))
    heads = [(name, "") for name in ("run", "state", "task", "arm")]
    heads += [(name, "number") for name in ("delay", "seed", "score", "steps", "steps/s")]
    caption = "A click on a column's name sorts by it. Scores are those that the arms of a task are compared on."
    return Table(caption, [*heads, ("note", "")], rows)


def _run_row(run: Run, group: tuple[Comparison, Arm] | None, problem: str, start: Path) -> list[TableCell]:
    config, name = run.config, clean(run.path.name or run.path, 80)
    link = "./" + quote(os.fsencode(os.path.relpath(run.path.resolve(), start.resolve())))
    score = _number_cell(None, 0)
    task, arm = (clean(config.task, 80), clean(config.label, 60)) if config else ("–", "–")
    if group is not None:
        comparison, of_arm = group
        task, arm = comparison.title, of_arm.label
        measure = comparison.presentation.score
        score = _number_cell(measure.value(run), measure.digits)
    return [
        TableCell(name, link="" if run.status == "waiting" else link),
        TableCell(run.status, kind="state"),
        TableCell(task),
        TableCell(arm),
        TableCell(in_seconds(config.delay) if config else "–", config.delay if config else "", "number"),
        TableCell(str(config.seed) if config else "–", config.seed if config else "", "number"),
        score,
        _number_cell(run.steps, 0),
        _number_cell(run.speed, 0),
        TableCell(problem, kind="text"),
    ]
