"""Find run folders, and read runs in any state.

Nothing that a folder names is imported or executed. If a file cannot be read, or contradicts the others, its run
is "damaged", with the reason; the other runs are read all the same.
"""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cet_rl.report.text import clean
from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import check_values, load_yaml
from cet_rl.runs.folder import MetricsTable, RunFolder, whole_lines
from cet_rl.runs.task_kinds import TaskKind, task_kind_of
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.known import KnownRuns
from cet_rl.traces.base import FloatArray

ALIGNMENT = "credit/alignment/"
"""Prefix of the columns with alignment in metrics.csv; a layer's name follows."""

STATES = {
    "finished": "",
    "interrupted": "stopped before the end; continues with --resume",
    "failed": "ended with an error",
    "unfinished": "no summary yet: running, or killed",
    "waiting": "planned by a sweep, not started",
    "damaged": "a file cannot be read, or does not fit the others",
}
"""States of a run, each with its meaning, if that is not obvious."""

MOST_ROWS = 1_000  # of a metrics.csv that are kept: more than a figure can show
LARGEST_NUMBER = 1e15  # a larger logged value counts as missing, a larger score as damage


@dataclass(frozen=True)
class RunLocation:
    """Locate a run: in its folder, in the plan of a sweep, or in a CSV file of results."""

    path: Path  # run folder
    arm: str = ""  # name that a sweep gives the run in legends; "" for none
    planned: Mapping[str, Any] | None = None  # configuration of a run without a folder
    summary: Mapping[str, Any] | None = None  # summary of a run without a folder; None if it has not started
    sweep: str = ""  # title of its sweep; "" for none
    failure: str = ""  # why its sweep says that it has failed; "" if it does not


@dataclass(frozen=True, eq=False)
class Run:
    """Hold the contents of a run folder."""

    path: Path
    status: str  # a key of `STATES`
    problem: str = ""  # error of a failed run, why a run is damaged, or what is wrong with its metrics.csv
    task_kind: TaskKind | None = None  # None if the configuration cannot be read
    config: RunConfig | None = None  # None if it cannot be read
    arm: str = ""  # name that a sweep gives it, if that is not the usual one; "" for none
    sweep: str = ""  # title of its sweep; "" for none
    steps: int | None = None  # steps made; without a summary the last logged step, None if there is none
    speed: float | None = None  # steps per second
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the summary
    columns: Mapping[str, FloatArray] = field(default_factory=dict)  # steps, curve, alignment; nan for none
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that it ran with

    @property
    def tested_on(self) -> str:
        """Return the data that a run on images is tested on, "test" or "validation"; "" for other runs."""
        return str(getattr(self.config, "held_out", ""))


def read_runs(folders: Iterable[str | os.PathLike[str]]) -> tuple[list[Run], list[str]]:
    """Read all runs in some folders; return them, and a line on each unreadable sweep. Raises as `find_runs`."""
    locations, problems = find_runs(folders)
    return [read_run(location) for location in locations], problems


def find_runs(roots: Iterable[str | os.PathLike[str]]) -> tuple[list[RunLocation], list[str]]:
    """Find the run folders in some folders at any depth, each once, and the runs that sweeps have not started.

    A run folder has a config.yaml, or a summary.json whose config.yaml is lost. Folders whose names start with a
    dot are skipped; links are followed. A CSV file of `cet-rl sweep --known` stands for the runs in its rows.

    Returns the runs sorted by path, and a line about each sweep that cannot be read. Raises ValueError if one of
    the folders does not exist, or holds neither a run nor a sweep.
    """
    found: dict[str, RunLocation] = {}
    problems: list[str] = []
    for root in map(Path, roots):
        if root.suffix.lower() == ".csv" and root.is_file():
            known = {root / run.name: run for run in KnownRuns(root).read()}
            rows = {str(path): RunLocation(path, run.arm, run.options, run.summary) for path, run in known.items()}
            if not rows:
                raise ValueError(f"{root} has no rows, so there is nothing to report")
            found = {**rows, **found}
            continue
        if not root.is_dir():
            raise ValueError(f"{root} is no folder: name run folders, folders that hold some, or a CSV of --known")
        locations, sweeps = _walk(root)
        for folder in sweeps:
            try:
                why = _add_jobs(folder, locations)
            except Exception:  # a damaged file can raise anything
                why = "its sweep.yaml is damaged, edited, or of another version"
            if why:
                problems.append(f"Which runs {clean(folder)} still waits for is not known: {why}.")
                print(problems[-1], file=sys.stderr)
        if not locations:
            raise ValueError(f"there is no run folder in {root}: one has a config.yaml, as cet-rl train writes it")
        found = {**locations, **found}
    return sorted(found.values(), key=lambda location: location.path), problems


def _walk(root: Path) -> tuple[dict[str, RunLocation], list[Path]]:
    """Return the run folders below a folder, by their real paths, and the folders of sweeps."""
    seen: set[str] = set()
    locations: dict[str, RunLocation] = {}
    sweeps: list[Path] = []
    for name, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(name)
        if real in seen:  # a link to a folder already visited
            inner.clear()
            continue
        seen.add(real)
        if "config.yaml" in files or "summary.json" in files:
            locations[real] = RunLocation(Path(name))
        if "sweep.yaml" in files:
            sweeps.append(Path(name))
        inner[:] = sorted(folder for folder in inner if folder != "checkpoint" and not folder.startswith("."))
    return locations, sweeps


def _add_jobs(folder: Path, locations: dict[str, RunLocation]) -> str:
    """Add arms, title and unstarted runs of a sweep to `locations`; return what is wrong with its CSV, or ""."""
    sweep_folder = SweepFolder(folder)
    planned: dict[str, RunLocation] = {}
    sweep = sweep_folder.read()
    if strange := [job.name for job in sweep.jobs if Path(job.name).name != job.name]:
        raise ValueError(f"{strange[0]} is no name of a folder within that of the sweep")
    for job in sweep.jobs:
        path = sweep_folder.run_path(job.name)
        real, failure = os.path.realpath(path), sweep_folder.failure(job.name)
        if real in locations:
            locations[real] = RunLocation(locations[real].path, job.arm, sweep=sweep.title, failure=failure)
        else:
            planned[real] = RunLocation(path, job.arm, job.values, None, sweep.title, failure)
    locations.update(planned)
    try:
        for real, run in planned.items():
            locations[real] = replace(run, summary=sweep_folder.summary(run.path.name) or None)
    except ValueError as error:
        return clean(error)
    return ""


def read_run(location: RunLocation) -> Run:
    """Read a run. If that fails, its status is "damaged", and nothing is raised."""
    run = _read_run(location)
    if location.failure and run.status in ("unfinished", "waiting", "interrupted"):
        return replace(run, status="failed", problem=clean(location.failure))
    return run


def _read_run(location: RunLocation) -> Run:
    folder = RunFolder(location.path)
    file = folder.path.parent  # a CSV, or a sweep's folder
    planned = file if file.suffix.lower() == ".csv" else file / "sweep.yaml"
    source = folder.config_file if location.planned is None else planned
    try:
        values = location.planned or load_yaml(source.read_bytes())
        if not isinstance(values, Mapping):
            raise ValueError("it holds no mapping of names to values")
        if not isinstance(values.get("task"), str):
            raise ValueError("it names no task")
        task_kind = task_kind_of(values["task"])
        kind = task_kind.config()
        config = kind(**check_values(values, source.name, kind))
        arm = "" if location.arm == config.label else clean(location.arm)
    except Exception as error:  # a damaged file can raise anything
        return Run(location.path, "damaged", _reason(source, error))
    sweep = clean(location.sweep)
    run = Run(location.path, "unfinished", task_kind=task_kind, config=config, arm=arm, sweep=sweep)
    if location.planned is not None and location.summary is None:
        return replace(run, status="waiting")
    try:
        if location.summary is not None:
            return _with_summary(run, location.summary)
        if folder.summary_file.exists():
            run = _with_summary(run, json.loads(folder.summary_file.read_bytes()))
    except Exception as error:
        return replace(run, status="damaged", problem=_reason(folder.summary_file, error))
    try:
        if folder.metrics_file.exists():
            run = replace(run, columns=_columns(folder.metrics_file, task_kind.curve.on(run.tested_on).key))
            if run.steps is None and run.columns:
                run = replace(run, steps=int(run.columns[MetricsTable.STEP][-1]))
    except Exception as error:
        # The score is in the summary: the run counts, without its curve.
        return replace(run, problem="; ".join(filter(None, [run.problem, _reason(folder.metrics_file, error)])))
    return run


def _reason(file: Path, error: Exception) -> str:
    """Return one line on why a file cannot be read, which begins with the file's name."""
    if isinstance(error, FileNotFoundError):
        return f"there is no {file.name}"
    text = str(error.strerror if isinstance(error, OSError) else error) or type(error).__name__
    text = text.replace(str(file), file.name)
    return clean(text if text.startswith(file.name) else f"{file.name}: {text}")


def _with_summary(run: Run, summary: object) -> Run:
    """Return the run with the contents of its summary; raise ValueError if it is not the summary of this run."""
    if not isinstance(summary, Mapping):
        raise ValueError("it holds no mapping of names to values")
    assert run.config is not None
    for name, expected in (("task", run.config.task), ("seed", run.config.seed)):
        if summary.get(name) != expected:
            raise ValueError(f"its {name} is {summary.get(name)!r}, that of config.yaml {expected!r}")
    status, metrics, versions = (summary.get(name) for name in ("status", "metrics", "versions"))
    if status not in ("finished", "interrupted", "failed"):
        raise ValueError(f"its status is {status!r}, not finished, interrupted or failed")
    if not isinstance(metrics, Mapping):
        raise ValueError("it has no metrics")
    if not isinstance(versions, Mapping):
        versions = {}
    speed = summary.get("steps_per_second")
    return replace(
        run,
        status=str(status),
        problem=clean(summary.get("error", "no error was written")) if status == "failed" else "",
        steps=int(_finite(summary.get("steps"))),
        speed=None if speed is None else _finite(speed),
        metrics={str(name): _finite(value) for name, value in metrics.items() if value is not None},
        versions={clean(name, 40): clean(value, 40) for name, value in versions.items()},
    )


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no number")
    if not (math.isfinite(value) and abs(value) <= LARGEST_NUMBER):
        raise ValueError(f"{value!r} is not finite, or beyond {LARGEST_NUMBER:g}")
    return float(value)


def _columns(file: Path, curve: str) -> dict[str, FloatArray]:
    """Return the columns of metrics.csv with steps, learning curve and alignment; {} if there is no row yet.

    Raises ValueError if the file is no table, or its steps decrease.
    """
    wanted = (MetricsTable.STEP, curve)
    columns = read_columns(file, lambda name: name in wanted or name.startswith(ALIGNMENT), MOST_ROWS)
    steps = columns.get(MetricsTable.STEP)
    if steps is None:
        with open(file, encoding="utf-8") as stream:
            if MetricsTable.STEP in stream.readline() or not file.stat().st_size:
                return {}  # no row yet
        raise ValueError(f"it has no column {MetricsTable.STEP}")
    if not (np.isfinite(steps).all() and (np.abs(steps) <= LARGEST_NUMBER).all() and (np.diff(steps) >= 0).all()):
        raise ValueError("its steps do not increase")
    return {name: np.where(np.abs(values) <= LARGEST_NUMBER, values, np.nan) for name, values in columns.items()}


def logged(columns: Mapping[str, FloatArray], x: str, y: str) -> tuple[FloatArray, FloatArray]:
    """Return two columns at the rows in which both have values; empty arrays if one column is missing."""
    empty = np.empty(0)
    a, b = columns.get(x, empty), columns.get(y, empty)
    if len(a) != len(b):
        return empty, empty
    both = np.isfinite(a) & np.isfinite(b)
    return a[both], b[both]


def read_columns(
    file: str | os.PathLike[str], wanted: Callable[[str], bool] | None = None, most: int | None = None
) -> dict[str, FloatArray]:
    """Return the columns of a metrics.csv by name, of equal length, nan where a row has no value.

    `wanted` tells from a column's name whether to read it; None reads all. `most` is the number of rows to keep,
    evenly spaced; None keeps all. Raises FileNotFoundError if there is no such file, ValueError if it is no table.
    """
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            header, *rows = csv.reader(whole_lines(stream.read()).split("\n"))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    rows = [row for row in rows if len(row) == len(header)]
    if most is not None and len(rows) > most:
        rows = [rows[place] for place in np.linspace(0, len(rows) - 1, most).astype(int)]
    if not rows:
        return {}
    places = {name: place for place, name in enumerate(header) if wanted is None or wanted(name)}
    return {name: np.array([_number(row[place]) for row in rows]) for name, place in places.items()}


def _number(text: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
