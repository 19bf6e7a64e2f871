"""Run folders as a report sees them: read whatever state they are in, and never believed.

Nothing that a folder names is imported or run. A file that cannot be what a run leaves behind makes the run a
damaged one, with the reason; the others are read all the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cet_rl.report.finding import Place
from cet_rl.report.plain import check_file, load_plain, read_bytes, reason
from cet_rl.report.plots import ALIGNMENT, FloatArray, read_columns
from cet_rl.report.presentation import PRESENTATIONS
from cet_rl.report.text import clean
from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import check_values
from cet_rl.runs.folder import MetricsTable, RunFolder
from cet_rl.runs.task_kinds import RL, TASK_KINDS, TaskKind

STATES = {
    "finished": "",
    "interrupted": "stopped before the end; goes on with --resume",
    "failed": "ended with an error",
    "unfinished": "no summary yet: running, or killed",
    "waiting": "planned by a sweep, not started",
    "damaged": "a file cannot be read, or does not fit the others",
}
"""What can have become of a run, and what that means."""

MOST_ROWS = 1_000
"""Of a metrics.csv that are kept: more than a figure can show."""

LARGEST_NUMBER = 1e15
"""Magnitude of a score or a logged value beyond which it counts as none."""

MOST_VALUES = 10_000
"""In a configuration."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a run folder says.

    Attributes:
        path: of the folder.
        status: a key of `STATES`.
        problem: the error of a failed run, the reason why one is damaged, or what is wrong with its metrics.
        task_kind: of its task; None where the configuration cannot be read.
        config: of the run; None likewise.
        arm: the name that a sweep gives it, if it is not the usual one; "" for none.
        steps: made, in the task kind's unit; without a summary the last that is logged, None if there is none.
        speed: steps a second.
        metrics: of the summary, finite ones.
        columns: of metrics.csv: steps, the task kind's curve, and alignment; all of one length, nan for nothing.
        versions: of the packages it ran with.
    """

    path: Path
    status: str
    problem: str = ""
    task_kind: TaskKind | None = None
    config: RunConfig | None = None
    arm: str = ""
    steps: int | None = None
    speed: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, FloatArray] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


class RunReader:
    """Reads run folders. The tasks' catalogues are looked up once."""

    def __init__(self) -> None:
        self._task_kinds = {task: task_kind for task_kind in TASK_KINDS for task in task_kind.tasks()}

    def read(self, place: Place) -> Run:
        """What is there; a run of status "damaged" rather than any exception."""
        folder = RunFolder(place.path)
        source = folder.config_file if place.planned is None else folder.path.parent / "sweep.yaml"
        try:
            values = load_plain(source, MOST_VALUES) if place.planned is None else place.planned
            task_kind, config = self._configuration(values, source.name)
            arm = "" if place.arm == config.label else clean(place.arm)
        except Exception as error:  # whatever a file of anybody's making can raise
            return Run(place.path, "damaged", reason(source, error))
        if place.planned is not None:
            return Run(place.path, "waiting", task_kind=task_kind, config=config, arm=arm)
        run = Run(place.path, "unfinished", task_kind=task_kind, config=config, arm=arm)
        try:
            if folder.summary_file.exists():
                run = _with_summary(run, json.loads(read_bytes(folder.summary_file)))
        except Exception as error:
            return replace(run, status="damaged", problem=reason(folder.summary_file, error))
        try:
            if folder.metrics_file.exists():
                run = replace(run, columns=_columns(folder.metrics_file, task_kind, config))
                if run.steps is None and run.columns:
                    run = replace(run, steps=int(run.columns[MetricsTable.STEP][-1]))
        except Exception as error:
            # The score is in the summary: such a run is used, without its curve.
            return replace(run, problem="; ".join(filter(None, [run.problem, reason(folder.metrics_file, error)])))
        return run

    def _configuration(self, values: Mapping[str, Any], source: str) -> tuple[TaskKind, RunConfig]:
        if not isinstance(values.get("task"), str):
            raise ValueError("it names no task")
        task_kind = self._task_kinds.get(values["task"], RL)
        kind = task_kind.config()
        return task_kind, kind(**check_values(values, source, kind))


def held_out(config: RunConfig) -> str:
    """What a run of images is tested on, test or validation; "" for runs of other kinds."""
    return str(getattr(config, "held_out", ""))


def _with_summary(run: Run, summary: object) -> Run:
    """The run with what its summary says.

    Raises:
        ValueError: if it is no summary, or one of another run.
    """
    if not isinstance(summary, Mapping):
        raise ValueError("it holds no names with values")
    assert run.config is not None
    for name, expected in (("task", run.config.task), ("seed", run.config.seed)):
        if summary.get(name) != expected:
            raise ValueError(f"its {name} is {summary.get(name)!r}, that of config.yaml {expected!r}")
    status, metrics, versions = (summary.get(name) for name in ("status", "metrics", "versions"))
    if status not in ("finished", "interrupted", "failed"):
        raise ValueError(f"its status is {status!r}, not finished, interrupted or failed")
    if not isinstance(metrics, Mapping):
        raise ValueError("it has no metrics")
    taken = {str(name): _finite(value) for name, value in metrics.items() if value is not None}
    steps = _finite(summary.get("steps"))
    speed = summary.get("steps_per_second")
    return replace(
        run,
        status=str(status),
        problem=clean(summary.get("error", "no error was written")) if status == "failed" else "",
        steps=int(steps),
        speed=None if speed is None else _finite(speed),
        metrics=taken,
        versions={clean(name, 40): clean(value, 40) for name, value in versions.items()}
        if isinstance(versions, Mapping)
        else {},
    )


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no number")
    if not (math.isfinite(value) and abs(value) <= LARGEST_NUMBER):
        raise ValueError(f"{value!r} is no finite number of a sensible size")
    return float(value)


def _columns(file: Path, task_kind: TaskKind, config: RunConfig) -> dict[str, FloatArray]:
    """What figures need of metrics.csv; {} before the first row.

    Raises:
        ValueError: if it is no table, or its steps are none.
    """
    check_file(file)
    curve = PRESENTATIONS[task_kind.name].filled(held_out(config)).curve
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
