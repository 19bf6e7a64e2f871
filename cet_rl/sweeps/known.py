"""A CSV of finished runs that outlives their folders: sweeps add to it, and skip what it has (`--known FILE.csv`).

A row is one run: task, agent, arm, seed, budget and steps made, its final metrics, the seconds it took, the commit
of the code where that is known, and all of its options as JSON. A run is recognised by its options, those of the
machine aside; options that the code has gained since count as having their defaults.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import cet_rl
from cet_rl.runs.files import check_file, write_text
from cet_rl.runs.lock import Lock
from cet_rl.runs.task_kinds import identity, task_kind_of

FIRST = ("task", "agent", "arm", "seed", "budget", "steps")
LAST = ("seconds", "commit", "options")
"""Columns before and after those of the metrics."""

WAIT = 60.0  # seconds that another process may take to add its rows


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits of SHA-256 of a configuration's identity as sorted JSON without spaces."""
    text = json.dumps(identity(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@cache
def _defaults(task: str) -> dict[str, Any]:
    """Return the default of every option that a task has, as plain data."""
    found = {
        item.name: item.default for item in fields(task_kind_of(task).config()) if item.default is not MISSING
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


@dataclass(frozen=True)
class KnownRun:
    """Hold one row: a finished run."""

    arm: str
    options: Mapping[str, Any]  # its configuration, but for the machine
    agent: str
    steps: int
    metrics: Mapping[str, float]
    seconds: float
    commit: str = ""  # of the code; empty if unknown

    @property
    def name(self) -> str:
        """Return a name that no other row has: ARM-SEED-FINGERPRINT."""
        return f"{self.arm}-{self.options['seed']}-{fingerprint(self.options)}"

    @property
    def summary(self) -> dict[str, Any]:
        """Return what a run folder's summary.json would say."""
        own = {"task": self.options["task"], "seed": self.options["seed"], "agent": self.agent}
        speed = self.steps / self.seconds if self.seconds else None
        return {
            **own,
            "status": "finished",
            "steps": self.steps,
            "steps_per_second": speed,
            "metrics": self.metrics,
        }

    def row(self) -> dict[str, Any]:
        """Return the cells by column."""
        named = {name: self.options.get(name, "") for name in ("task", "seed")}
        text = json.dumps(identity(self.options), separators=(",", ":"), sort_keys=True)
        own = {
            "agent": self.agent,
            "arm": self.arm,
            "budget": self.options.get("total_steps", ""),
            "options": text,
        }
        return {
            **named,
            **own,
            "steps": self.steps,
            **self.metrics,
            "seconds": self.seconds,
            "commit": self.commit,
        }

    @classmethod
    def of_row(cls, row: Mapping[str | None, Any]) -> KnownRun:
        """Return the run of a row; ValueError, TypeError or KeyError, saying why, for one that cannot be."""
        if None in row or None in row.values():
            raise ValueError(f"it has {'more' if None in row else 'fewer'} cells than there are columns")
        options = json.loads(row["options"])
        budget = options.get("total_steps", "")
        for name, value in (("task", options["task"]), ("seed", options["seed"]), ("budget", budget)):
            if row[name] != str(value):
                raise ValueError(f"its {name} is {row[name]}, that of its options {value}")
        cells = {name: row[name] for name in row if name not in (*FIRST, *LAST, None) and row[name]}
        metrics = {str(name): _number(name, text) for name, text in cells.items()}
        seconds = _number("seconds", row["seconds"] or "0")
        return cls(row["arm"], options, row["agent"], int(row["steps"]), metrics, seconds, row["commit"])


def _number(name: object, text: str) -> float:
    """Return a cell's number as it was written, whole numbers as such."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"its {name} is no number: {text!r}") from None


class KnownRuns:
    """Read and extend a CSV of finished runs; several processes may do so at once."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.file = check_file("--known", Path(os.path.abspath(file)), ".csv")

    def read(self) -> list[KnownRun]:
        """Return all rows, none if there is no file yet; ValueError, saying where and why, if one is damaged."""
        return self._read()[1]

    def _read(self) -> tuple[list[str], list[KnownRun]]:
        try:
            text = self.file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return [], []
        except UnicodeDecodeError:
            raise ValueError(
                f"{self.file} is no text: name a CSV that --known has written, or a new one"
            ) from None
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns = list(reader.fieldnames or [])
        if text.strip() and (missing := [name for name in (*FIRST, *LAST) if name not in columns]):
            lacks = f"{self.file} has no column {missing[0]}"
            raise ValueError(f"{lacks}: name a CSV that --known has written, or a new one")
        runs = []
        try:
            for row in reader:
                runs.append(KnownRun.of_row(row))
        except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
            why = f"its options lack {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{self.file}, line {reader.line_num}: {why}: mend the row or remove it") from None
        return columns, runs

    @cached_property
    def _summaries(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for run in self.read():
            now = {**_defaults(run.options["task"]), **run.options}
            for values in (run.options, now):
                found.setdefault(fingerprint(values), run.summary)
        return found

    def summary(self, digest: str) -> dict[str, Any]:
        """Return the summary of the run with this fingerprint, as first read; empty if there is none."""
        return self._summaries.get(digest, {})

    def add(self, runs: Iterable[KnownRun]) -> None:
        """Add rows for those runs that have none, in one step that nobody sees half of; OSError if that fails."""
        with self._locked():
            columns, there = self._read()
            known = {fingerprint(run.options) for run in there}
            new = {fingerprint(run.options): run for run in runs}
            added = [run for digest, run in new.items() if digest not in known]
            if not added:
                return
            rows = [run.row() for run in (*there, *added)]
            metrics = dict.fromkeys(name for name in columns if name not in (*FIRST, *LAST))
            metrics |= dict.fromkeys(name for run in added for name in run.metrics)
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, [*FIRST, *metrics, *LAST], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(self.file, text.getvalue())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = Lock(self.file.parent / f".{self.file.name}.lock", "rows")
        if not lock.acquire(WAIT):
            raise OSError(f"{self.file} is locked by another process ({lock.owner}): rows were not added")
        try:
            yield
        finally:
            lock.release()
            with suppress(OSError):
                lock.folder.rmdir()


@cache
def commit() -> str:
    """Return the commit of this code, with -dirty if it has been changed; empty where it is in no repository."""
    home = Path(cet_rl.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", home, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # installed beside somebody else's repository: not ours
        return git("describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return ""
