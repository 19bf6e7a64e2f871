"""Run folders: the files of a run, and what they say about its state.

config.yaml     the resolved configuration, enough to repeat the run
events.out.…    TensorBoard
metrics.csv     the same numbers, a row each time they are logged
checkpoint/     agent.zip or network.zip, and agent.previous.zip, the one before: tensors and JSON
lock/           the process that runs in the folder, while there is one
summary.json    at the end: status, speed, metrics, versions
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from cet_rl import __version__
from cet_rl.runs.config import OPEN, Mark, RunConfig, marked
from cet_rl.runs.config_files import check_values, dump_yaml, load_yaml, read_mapping
from cet_rl.runs.files import csv_text, holds, naming, sync, write_text
from cet_rl.runs.lock import HEARTBEAT, Lock, Owner
from cet_rl.runs.task_kinds import UNRECORDED, TaskKind, differing, identity, task_kind_of

Status = Literal["finished", "interrupted", "failed"]
C = TypeVar("C", bound=RunConfig)

EVALUATED = "eval/"  # prefix of the numbers of the evaluation at the end of a run. A resumed run evaluates again
_LOCK = "lock"  # folder of the lock within a run folder


def checkpoint_interval(total_steps: int, asked: int | None) -> int:
    """Return the steps from one checkpoint to the next: `asked`, which must be positive, or a tenth of the run."""
    if asked is not None and asked < 1:
        raise ValueError(f"--checkpoint-every must be at least 1, got {asked}")
    return asked or max(1, total_steps // 10)


class RunFolder:
    """Find, read and write the files of one run; `checkpoint` is the name of its checkpoint's file."""

    def __init__(self, path: str | os.PathLike[str], checkpoint: str = "agent.zip") -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.summary_file = self.path / "summary.json"
        self.metrics_file = self.path / "metrics.csv"
        self.newest = self.path / "checkpoint" / checkpoint
        self.previous = self.newest.with_suffix(".previous.zip")
        self._bad: set[Path] = set()

    def require_checkpoint(self, purpose: str) -> Path:
        """Return `checkpoint_file` for a `purpose`, such as "evaluate"; raise ValueError if there is none yet."""
        file = self.checkpoint_file
        if not file.is_file():
            raise ValueError(f"{self.path} has no checkpoint yet: nothing to {purpose}")
        return file

    @property
    def checkpoint_file(self) -> Path:
        """Return the newest checkpoint that is whole and of this run; without any, the path for the first one.

        A checkpoint that cannot be used is named in the log, once. Raises ValueError if none of them can be used,
        or one has another format version.
        """
        reasons: dict[Path, str] = {}
        for path in filter(Path.exists, (self.newest, self.previous)):
            from cet_rl.runs import archive  # importing torch takes a second

            try:
                run, ours = archive.read(path, what=self.newest.stem, of_run=True), self._saved_config()
                theirs = run.get("config")
                changes = differing(theirs, ours) if isinstance(theirs, dict) and ours is not None else []
                if changes:
                    reason = f"{path} is of a run of another configuration ({', '.join(changes)})"
                    raise archive.DamagedFileError(reason)
            except archive.DamagedFileError as error:
                reasons[path] = str(error)
                continue
            if reasons.keys() - self._bad:
                logging.getLogger(__name__).warning("%s; using %s", "; ".join(reasons.values()), path)
            self._bad.update(reasons)
            return path
        if reasons:
            raise ValueError(f"{'; '.join(reasons.values())}; move them away to begin again")
        return self.newest

    def save_checkpoint(self, state: dict[str, Any], runtime_state: object = None) -> None:
        """Write a checkpoint, after everything logged so far is on the disk; the newest becomes the previous one.

        It takes its place only when it is whole and on the disk, so that one of the two is always good. It holds
        the run's configuration, so that none is taken for another run's.
        Raises OSError, naming the file, if it cannot be written; the existing checkpoints stay as they are.
        """
        from cet_rl.runs import archive

        for file in (self.metrics_file, *self.path.glob("events.out.tfevents.*")):
            sync(file)
        run = {"config": self._saved_config(), "runtime_state": runtime_state}
        fresh = self.newest.with_name(f".{self.newest.stem}.{os.getpid()}.tmp.zip")
        try:
            archive.write(fresh, state, what=self.newest.stem, run=run)
            if self.newest.exists() and self.newest not in self._bad:
                os.replace(self.newest, self.previous)
                self._bad.discard(self.previous)
            os.replace(fresh, self.newest)
            self._bad.discard(self.newest)
            sync(self.newest.parent)
        except OSError as error:
            kept = "; the checkpoints before it are as they were" if self.newest.exists() else ""
            raise OSError(f"cannot write checkpoint {self.newest}: {error.strerror or error}{kept}") from error
        finally:
            fresh.unlink(missing_ok=True)

    def as_begun(self, config: C) -> C:
        """Return the configuration with its open choices as the folder's run has made them, if it is the same."""
        saved = self._saved_config()
        made = {} if saved is None or differing(saved, config.as_data()) else {**UNRECORDED, **saved}
        open_ = [name for name in marked(type(config), Mark.CHOSEN) if getattr(config, name) in OPEN]
        return replace(config, **{name: made[name] for name in open_ if name in made})

    def runtime_state(self, checkpoint: Path) -> Any:
        """Return the runtime state in a checkpoint, None if it has none."""
        from cet_rl.runs import archive

        return archive.read(checkpoint, what=self.newest.stem, of_run=True).get("runtime_state")

    def _saved_config(self) -> dict[str, Any] | None:
        """Return the values of config.yaml but those of the machine; None if it cannot be read."""
        try:
            return identity(load_yaml(self.config_file.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError):
            return None

    @property
    def summary(self) -> dict[str, Any]:
        """Return the data of summary.json; empty if there is none that can be read."""
        try:
            data = json.loads(self.summary_file.read_text(encoding="utf-8"))
            return data if "status" in data else {}
        except (OSError, ValueError, TypeError):
            return {}

    @property
    def finished(self) -> str | None:
        """Return a line that says so if the folder holds the finished run."""
        done = self.summary.get("status") == "finished"
        return f"{self.path} is finished; its results are in {self.summary_file}" if done else None

    def check_usable(self, config: Mapping[str, Any] | None, *, resume: bool) -> None:
        """Raise ValueError for another run, a damaged config.yaml, or a run without `resume`; None fits all."""
        if holds(self.path, self.config_file.name, "run"):
            saved = self._saved_config()
            if saved is None:
                raise ValueError(f"{self.config_file} is damaged: choose another --run-dir")
            if config is not None and (changes := ", ".join(differing(saved, config))):
                raise ValueError(f"{self.path} is of another configuration ({changes}): choose another --run-dir")
            if not resume:
                state = "a finished run" if self.finished else "an unfinished run"
                hint = "choose another --run-dir" + ("" if state == "a finished run" else ", or add --resume")
                raise ValueError(f"{self.path} already holds {state}: {hint}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process run in the folder while the block runs; ValueError if another does, naming it."""
        lock = Lock(self.path / _LOCK, "run")
        try:
            if not lock.acquire():
                owner = lock.owner
                # One on another machine may be dead, and seen to be so a little after the lock of its sweep's job.
                if owner is None or owner.is_here or not lock.acquire(wait=2 * HEARTBEAT):
                    raise self._busy(owner)
        except OSError as error:
            raise OSError(f"cannot write to run folder {self.path}: {error.strerror}") from None
        try:
            yield
        finally:
            lock.release()
            with suppress(OSError):
                lock.folder.rmdir()

    def check_free(self) -> None:
        """Raise ValueError if another process of this machine runs in the folder."""
        owner = Lock(self.path / _LOCK, "run").owner
        if owner is not None and owner.is_here:
            raise self._busy(owner)

    def _busy(self, owner: Owner | None) -> ValueError:
        who = f" ({owner})" if owner else ""
        hint = "wait for it, or choose another --run-dir"
        return ValueError(f"{self.path} is being run by another process{who}: {hint}")

    def open_for(self, config: Mapping[str, Any], *, resume: bool) -> bool:
        """Prepare the locked folder for a run of a resolved configuration; nothing of another run is overwritten.

        Returns True if there is a checkpoint to resume from. Raises ValueError as `check_usable` does, or if there
        are damaged checkpoints only, and OSError if it cannot be written.
        """
        self.check_usable(config, resume=resume)
        checkpoint = self.checkpoint_file  # raises if none is good, before anything is touched
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.path.glob(".*.tmp"), *checkpoint.parent.glob(".*.tmp*")]:
            leftover.unlink(missing_ok=True)  # of a process killed while it wrote
        self.summary_file.unlink(missing_ok=True)  # of the end before this one
        resumed = checkpoint.exists()
        if not resumed:
            for leftover in [*self.path.glob("events.out.tfevents.*"), self.metrics_file]:
                leftover.unlink(missing_ok=True)  # of a run killed before its first checkpoint
        write_text(self.config_file, dump_yaml(dict(config)))  # a resumed run may be on another machine now
        self.newest.parent.mkdir(exist_ok=True)  # not before config.yaml, by which the folder is known again
        return resumed

    def write_summary(self, *, metrics: Mapping[str, float | int | None], **more: Any) -> None:
        """Write the arguments and versions to summary.json; metrics that are not finite become null."""
        finite = {name: v if v is not None and math.isfinite(v) else None for name, v in metrics.items()}
        summary = {**more, "metrics": finite, "versions": versions()}
        write_text(self.summary_file, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def read_run(path: str | os.PathLike[str]) -> tuple[TaskKind, RunFolder, dict[str, Any]]:
    """Return the kind of a run's task, its folder and configuration; ValueError if they are damaged or missing."""
    file = RunFolder(path).config_file
    if not file.is_file():
        raise ValueError(f"{file.parent} is no run folder: it has no {file.name}")
    mapping = read_mapping(str(file))
    if "task" not in mapping:
        raise ValueError(f"{file} is damaged: it names no task")
    task_kind = task_kind_of(mapping["task"])
    return task_kind, RunFolder(path, task_kind.checkpoint), check_values(mapping, str(file), task_kind.config())


def default_path(config: RunConfig) -> Path:
    """Return the default folder of a run, runs/TASK-LABEL-SEED."""
    task = re.sub(r"[/:]", "-", config.task)
    return Path("runs") / f"{task}-{config.label}-{config.seed}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's numbers depend on."""
    others = {package: version(package) for package in ("torch", "numpy", "gymnasium", "stable-baselines3")}
    return {"python": platform.python_version(), "cet-rl": __version__, **others}


def whole_lines(text: str) -> str:
    """Return a table's text without a last line that has no end: it is being written, or the disk was full."""
    return text[: text.rfind("\n") + 1]


class MetricsTable:
    """Write metrics.csv: a row each time numbers are logged; columns are added when first seen.

    Rows of an existing file are kept up to `last_step`, without the numbers of the final evaluation, which a
    resumed run logs again. A last row without a line break is incomplete, and dropped.
    """

    STEP = "time/total_timesteps"

    def __init__(self, path: Path, last_step: int = 0) -> None:
        self.path = path
        self._columns: list[str] = [self.STEP]
        self._rows: list[dict[str, Any]] = []
        if path.is_file():
            try:
                reader = csv.DictReader(io.StringIO(whole_lines(path.read_bytes().decode()), newline=""))
                self._columns = list(reader.fieldnames or self._columns)
                self._rows = [
                    {name: "" if name.startswith(EVALUATED) else value for name, value in row.items()}
                    for row in reader
                    if None not in row and None not in row.values()
                    if row[self.STEP].isdecimal() and int(row[self.STEP]) <= last_step
                ]
            except (csv.Error, ValueError, KeyError, TypeError):
                raise ValueError(f"{path} is damaged: move it away to go on without it") from None
        self._rewrite()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, or add to the last one if it has the same step."""
        same_step = bool(self._rows) and str(self._rows[-1][self.STEP]) == str(row[self.STEP])
        if same_step:
            self._rows[-1].update(row)
        else:
            self._rows.append(dict(row))
        unseen = [name for name in row if name not in self._columns]
        if unseen or same_step:
            self._columns += sorted(unseen)
            self._rewrite()
        else:
            with naming(self.path), open(self.path, "a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, self._columns).writerow(row)

    def has(self, name: str, step: int) -> bool:
        """Return whether a number has been logged at this step, the last one so far."""
        return (
            bool(self._rows)
            and str(self._rows[-1][self.STEP]) == str(step)
            and self._rows[-1].get(name) not in (None, "")
        )

    def _rewrite(self) -> None:
        write_text(self.path, csv_text(self._columns, self._rows, csv.excel.lineterminator))
