"""A CSV of finished runs that outlives their folders: sweeps add to it, and skip what it has (`--known FILE.csv`).

A row is one run: task, agent, arm, seed, budget and steps made, its final metrics, its speed, the seconds it took
(in a batch its own share), the commit of the code or its version, and all of its options as JSON. A run is
recognised by its options except those of the machine; options that the code has gained since are taken at their
defaults.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import cet_rl
from cet_rl.runs.files import check_file, csv_text, make_folder, write_text
from cet_rl.runs.lock import TAKEOVER, Lock
from cet_rl.runs.task_kinds import identity, task_kind_of

FIRST = ("task", "agent", "arm", "seed", "budget", "steps")
SPEED = "steps_per_second"  # which files of earlier versions lack
LAST = (SPEED, "seconds", "commit", "options")
"""Columns before and after those of the metrics."""


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits of SHA-256 of a configuration's identity as sorted JSON without spaces."""
    text = json.dumps(identity(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class KnownRun:
    """Hold a finished run: its arm, its configuration, and what its summary.json says."""

    arm: str
    options: Mapping[str, Any]
    summary: Mapping[str, Any]
    commit: str = ""  # of the code, or its version; empty if unknown

    @property
    def name(self) -> str:
        """Return a name that is unique among the rows: ARM-SEED-FINGERPRINT."""
        return f"{self.arm}-{self.options['seed']}-{fingerprint(self.options)}"

    def row(self) -> dict[str, Any]:
        """Return the cells by column."""
        own = {"budget": self.options.get("total_steps", ""), "arm": self.arm, "commit": self.commit}
        own |= {name: self.options[name] for name in ("task", "seed")}
        own |= {name: self.summary.get(name, "") for name in ("agent", "steps")}
        text = json.dumps(identity(self.options), separators=(",", ":"), sort_keys=True)
        own |= {SPEED: self.summary.get(SPEED) or "", "seconds": self.summary.get("wall_seconds", "")}
        return {**own, **self.summary["metrics"], "options": text}

    @classmethod
    def of_row(cls, row: Mapping[str, str]) -> KnownRun:
        """Return the run of a row; raise ValueError, TypeError or KeyError for a row that cannot be read."""
        options = json.loads(row["options"])
        said = {"task": options["task"], "seed": options["seed"], "budget": options.get("total_steps", "")}
        for name, value in said.items():
            if row[name] != str(value):
                raise ValueError(f"its {name} is {row[name]}, that of its options {value}")
        texts = {name: text for name, text in row.items() if name not in (*FIRST, *LAST) and text}
        metrics: dict[str, float] = {}
        for name, text in texts.items():
            number = math.nan
            with suppress(ValueError):
                number = float(text)
            if not math.isfinite(number):
                raise ValueError(f"column {name} must hold finite numbers, got {text!r}")
            metrics[name] = int(text) if text.isdecimal() else number
        own = {"task": options["task"], "seed": options["seed"], "agent": row["agent"], "steps": int(row["steps"])}
        speed = float(row[SPEED]) if row.get(SPEED) else None
        summary = {**own, "status": "finished", SPEED: speed, "metrics": metrics}
        return cls(row["arm"], options, summary, row["commit"])


class KnownRuns:
    """Read and extend a CSV of finished runs; several processes may do so at once."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.file = check_file("--known", Path(os.path.realpath(file)), ".csv", read=True)
        self._summaries: dict[str, Mapping[str, Any]] = {}
        self._version: tuple[int, ...] = ()  # of the file that they were read from

    def read(self) -> list[KnownRun]:
        """Return all runs, none if there is no file yet; ValueError, saying where and why, if it is damaged."""
        return [run for _, run in self._rows()]

    def _rows(self) -> list[tuple[dict[str, str], KnownRun]]:
        rows, number, seen = [], 0, dict[str, tuple[int, str]]()
        try:
            with open(self.file, newline="", encoding="utf-8-sig") as stream:  # spreadsheets add a mark
                reader = csv.DictReader(stream)
                if missing := {*FIRST, *LAST}.difference(reader.fieldnames or (FIRST + LAST), {SPEED}):
                    raise ValueError(f"it has no column {min(missing)}: name one that --known has written")
                for row in reader:
                    number = reader.line_num
                    if None in row or None in row.values():
                        raise ValueError(f"it has {'more' if None in row else 'fewer'} cells than columns")
                    rows.append((row, run := KnownRun.of_row(row)))
                    metrics = str(run.summary["metrics"])
                    first = seen.setdefault(fingerprint(run.options), (number, metrics))
                    if metrics != first[1]:
                        raise ValueError(f"it is another result of the run in line {first[0]}")
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            why = f"its options lack {error}" if isinstance(error, KeyError) else error
            where = f", line {number}: mend the row or remove it" * bool(number)
            raise ValueError(f"{self.file} is damaged{where}: {why}") from None
        return rows

    def summary(self, digest: str) -> Mapping[str, Any]:
        """Return the summary of the run with this fingerprint; empty if the file has none now."""
        with suppress(OSError):  # there is no file yet
            found = os.stat(self.file)
            version = found.st_ino, found.st_mtime_ns, found.st_size
            if version != self._version:
                pairs = [(run.summary, key) for run in self.read() for key in _fingerprints(run)]
                self._summaries, self._version = {key: one for one, key in reversed(pairs)}, version  # first wins
        return self._summaries.get(digest, {})

    def add(self, runs: Iterable[KnownRun]) -> None:
        """Add a row for each run that has none, atomically; raise OSError if that fails, ValueError as `read`."""
        make_folder(self.file.parent, "the")
        lock = Lock(self.file.parent / f".{self.file.name}.lock", "rows")
        if not lock.acquire(TAKEOVER):
            raise OSError(f"{self.file} is locked by another process ({lock.owner}): rows were not added")
        try:
            there = self._rows()
            known = {digest for _, run in there for digest in _fingerprints(run)}
            new = {key: run.row() for run in runs if (key := fingerprint(run.options)) not in known}
            if new:
                rows = [*(row for row, _ in there), *new.values()]
                metrics = dict.fromkeys(name for row in rows for name in row if name not in (*FIRST, *LAST))
                write_text(self.file, csv_text((*FIRST, *metrics, *LAST), rows))
        finally:
            lock.release()
            with suppress(OSError):
                lock.folder.rmdir()


def _fingerprints(run: KnownRun) -> tuple[str, str]:
    """Return the fingerprints of a run's options, and of these with defaults for options gained since."""
    kind = task_kind_of(run.options["task"]).config()
    defaults = {item.name: item.default for item in fields(kind) if item.default is not MISSING}
    return fingerprint(run.options), fingerprint({**defaults, **run.options})


@cache
def commit() -> str:
    """Return the commit of this code, with -dirty if it has been changed; in no repository, its version."""
    home, found = Path(cet_rl.__file__).parent, ""
    # The first command fails if the package lies in another project's repository, whose commit would be wrong.
    for words in ("ls-files --error-unmatch __init__.py", "describe --always --dirty --exclude=*"):
        command = ["git", "-C", str(home), *words.split()]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return f"version {cet_rl.__version__}"
    return found.strip()
