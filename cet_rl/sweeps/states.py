"""What has become of the cells of a sweep, as their folders say."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cet_rl.runs.lock import lock_owners
from cet_rl.runs.task_kinds import TASK_KINDS, Score
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Cell

State = Literal["finished", "running", "partial", "failed", "waiting"]

STATES: tuple[State, ...] = ("finished", "running", "partial", "failed", "waiting")

STEP = "time/total_timesteps"
SPEED = "time/fps"

RESULTS = tuple(
    score.on(held_out) for kind in TASK_KINDS for score in kind.scores for held_out in ("test", "validation")
)
"""The metrics of a summary that say how good a run is; of a run's, the first is shown."""

PROGRESS = tuple(kind.progress for kind in TASK_KINDS)
"""The same for a run that is under way, as columns of its metrics.csv."""

_LONG = 1e7
"""Scores from which on are shown with an exponent: of a run that has diverged."""

TAIL = 8192
"""Bytes from the end of a metrics.csv that hold its last row."""


@dataclass(frozen=True)
class CellState:
    """What has become of one cell.

    Attributes:
        state: finished; running, in this sweep or another; partial, begun and not being run; failed; waiting.
        step: how far it has come, in its own unit; None if that is not known.
        score: how good it is, in words: "return 203.4".
        speed: steps per second; None if that is not known.
        error: why it has failed; empty if it has not.
        owner: who runs it; empty if nobody does.
    """

    state: State
    step: int | None = None
    score: str = ""
    speed: float | None = None
    error: str = ""
    owner: str = ""


def read_summary(folder: SweepFolder, name: str) -> dict[str, Any] | None:
    """The summary of a cell's run; None without a legible one."""
    try:
        data = json.loads((folder.run_path(name) / "summary.json").read_text(encoding="utf-8"))
        return data if "status" in data else None
    except (OSError, ValueError, TypeError):
        return None


def look(folder: SweepFolder, name: str, owner: object = None, *, held: bool = False) -> CellState:
    """What has become of one cell.

    Args:
        folder: of the sweep.
        name: of the cell.
        owner: who runs it, if that is known.
        held: whether somebody runs it.
    """
    summary = read_summary(folder, name)
    if summary is not None and summary["status"] == "finished":
        score = _first(summary.get("metrics") or {}, RESULTS)
        return CellState("finished", summary.get("steps"), score, summary.get("steps_per_second"))
    if held:
        step, score, speed = _progress(folder.run_path(name) / "metrics.csv")
        return CellState("running", step, score, speed, owner="" if owner is None else str(owner))
    error = failure(folder, name, summary)
    if error:
        return CellState("failed", error=error)
    if (folder.run_path(name) / "config.yaml").is_file():
        step, score, _ = _progress(folder.run_path(name) / "metrics.csv")
        if summary is not None and summary["status"] == "interrupted":
            step = summary.get("steps")  # more than was logged last, and what is saved
        return CellState("partial", step, score)
    return CellState("waiting")


def failure(folder: SweepFolder, name: str, summary: Mapping[str, Any] | None) -> str:
    """Why a cell has failed, as its worker or its summary says; empty if it has not."""
    try:
        return folder.failure_file(name).read_text(encoding="utf-8", errors="replace").strip() or "unknown"
    except OSError:
        failed = summary is not None and summary["status"] == "failed"
        return str((summary or {}).get("error") or "unknown") if failed else ""


def look_at_all(
    folder: SweepFolder, cells: Iterable[Cell], known: Mapping[str, CellState] | None = None
) -> dict[str, CellState]:
    """What has become of all cells, by name.

    Args:
        folder: of the sweep.
        cells: of the sweep.
        known: what they were like; those that were finished are not looked at again.
    """
    held = lock_owners(folder.locks)
    try:
        there = set(os.listdir(folder.path))
        failed = set(os.listdir(folder.failures)) if "failures" in there else set()
    except FileNotFoundError:
        there, failed = set(), set()
    states = {}
    for cell in cells:
        name, before = cell.name, (known or {}).get(cell.name)
        if before is not None and before.state == "finished":
            states[name] = before
        elif name in there or name in failed or name in held:
            states[name] = look(folder, name, held.get(name), held=name in held)
        else:
            states[name] = CellState("waiting")
    return states


def _progress(file: Path) -> tuple[int | None, str, float | None]:
    """Step, score and speed as the last row of a metrics.csv has them."""
    try:
        with open(file, "rb") as stream:
            head = stream.readline()
            stream.seek(max(len(head), os.path.getsize(file) - TAIL))
            rows = stream.read().splitlines()
        names, last = (next(csv.reader([line.decode()])) for line in (head, rows[-1]))
        row = dict(zip(names, last, strict=True))
        speed = float(row[SPEED]) if row.get(SPEED) else None
        return int(float(row[STEP])), _first(row, PROGRESS), speed
    except (OSError, IndexError, ValueError, KeyError, StopIteration, csv.Error):  # not there yet, or half a row
        return None, "", None


def _first(values: Mapping[str, Any], scores: Iterable[Score]) -> str:
    for score in scores:
        if values.get(score.key) not in (None, ""):
            number = float(values[score.key])
            return (
                f"{score.word} {number:.{score.digits}f}" if abs(number) < _LONG else f"{score.word} {number:.3g}"
            )
    return ""
