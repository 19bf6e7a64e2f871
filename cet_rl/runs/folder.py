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
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from cet_rl import __version__
from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import check_values, dump_yaml, load_yaml, read_mapping
from cet_rl.runs.files import holds, naming, sync, write_text
from cet_rl.runs.lock import HEARTBEAT, Lock, Owner
from cet_rl.runs.task_kinds import TaskKind, differing, identity, task_kind_of

if TYPE_CHECKING:
    from cet_rl.runs.archive import Checkpoints

Status = Literal["finished", "interrupted", "failed"]

EVALUATED = "eval/"
"""Prefix of the numbers of the evaluation at the end of a run. A resumed run evaluates again."""

CHECKPOINTS = 10
"""Number of checkpoints in a run by default, not counting interruptions."""

_LOCK = "lock"
"""Folder of the lock within a run folder."""


def checkpoint_interval(total_steps: int, asked: int | None) -> int:
    """Return the steps from one checkpoint to the next: `asked`, or a tenth of the run.

    Raises:
        ValueError: if `asked` is less than one.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"--checkpoint-every must be at least 1, got {asked}")
    return asked or max(1, total_steps // CHECKPOINTS)


class RunFolder:
    """Find, read and write the files of one run.

    Args:
        path: the folder itself.
        checkpoint: the checkpoint's file name.
    """

    def __init__(self, path: str | os.PathLike[str], checkpoint: str = "agent.zip") -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.summary_file = self.path / "summary.json"
        self.metrics_file = self.path / "metrics.csv"
        self._checkpoint = self.path / "checkpoint" / checkpoint

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Return the last two checkpoints."""
        from cet_rl.runs.archive import Checkpoints  # importing torch takes a second

        return Checkpoints(self._checkpoint)

    @property
    def checkpoint_file(self) -> Path:
        """Return the newest good checkpoint, see `Checkpoints.find`; without any, the first one to come."""
        if not any(self._checkpoint.parent.glob("*.zip")):
            return self._checkpoint  # without an import of torch
        return self.checkpoints.find(self._saved_config()) or self._checkpoint

    def save_checkpoint(self, state: dict[str, Any], runtime_state: object = None) -> None:
        """Write a checkpoint, after everything logged so far has reached the disk; see `Checkpoints.save`."""
        for file in (self.metrics_file, *self.path.glob("events.out.tfevents.*")):
            sync(file)
        self.checkpoints.save(state, self._saved_config(), runtime_state)

    def _saved_config(self) -> dict[str, Any] | None:
        """Return the values of config.yaml but those of the machine; None if it cannot be read."""
        try:
            return identity(load_yaml(self.config_file.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError):
            return None

    @property
    def status(self) -> str | None:
        """Status in the summary: finished, interrupted or failed; None without a readable one."""
        try:
            return str(json.loads(self.summary_file.read_text(encoding="utf-8"))["status"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def finished(self) -> str | None:
        """Return a line that says so if the folder holds the finished run."""
        done = self.status == "finished"
        return f"{self.path} is finished; its results are in {self.summary_file}" if done else None

    def check_usable(self, config: Mapping[str, Any] | None, *, resume: bool) -> None:
        """Raise ValueError where `open_for` would, without touching anything; None is any configuration."""
        if holds(self.path, self.config_file.name, "run"):
            saved = self._saved_config()
            if saved is None:
                raise ValueError(f"{self.config_file} is damaged: choose another --run-dir")
            if config is not None and (changes := ", ".join(differing(saved, config))):
                raise ValueError(
                    f"{self.path} holds a run of another configuration ({changes}): choose another --run-dir"
                )
            if not resume:
                state = "a finished run" if self.status == "finished" else "an unfinished run"
                hint = "choose another --run-dir" + ("" if state == "a finished run" else ", or add --resume")
                raise ValueError(f"{self.path} already holds {state}: {hint}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process run in the folder while the block runs.

        Raises:
            ValueError: if another process does, naming it.
            OSError: if the folder cannot be written.
        """
        lock = Lock(self.path / _LOCK, "run")
        try:
            if not lock.acquire():
                self.check_free()
                # One on another machine may be dead, and seen to be so a little after the lock of its sweep's job.
                if not lock.acquire(wait=2 * HEARTBEAT):
                    raise self._busy(lock.owner)
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
        """Prepare the locked folder for a run of `config`; nothing of another run is overwritten.

        Args:
            config: resolved, as it goes into config.yaml.
            resume: whether an unfinished run of the same configuration may be there.

        Returns:
            True if there is a checkpoint to resume from.

        Raises:
            ValueError: as of `check_usable`, or if there are damaged checkpoints only.
            OSError: if it cannot be written.
        """
        self.check_usable(config, resume=resume)
        checkpoint = self.checkpoint_file  # raises if none is good, before anything is touched
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.path.glob(".*.tmp"), *checkpoint.parent.glob(".*.tmp*")]:
            leftover.unlink(missing_ok=True)  # of a process killed while it wrote
        resumed = checkpoint.exists()
        if not resumed:
            for leftover in [*self.path.glob("events.out.tfevents.*"), self.metrics_file, self.summary_file]:
                leftover.unlink(missing_ok=True)  # of a run killed before its first checkpoint
        write_text(self.config_file, dump_yaml(dict(config)))  # a resumed run may be on another machine now
        return resumed

    def write_summary(self, *, metrics: Mapping[str, float | int | None], **more: Any) -> None:
        """Write summary.json: what is given, and versions; metrics that are not finite become null."""
        finite = {name: v if v is not None and math.isfinite(v) else None for name, v in metrics.items()}
        summary = {**more, "metrics": finite, "versions": versions()}
        write_text(self.summary_file, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def read_run(path: str | os.PathLike[str]) -> tuple[TaskKind, RunFolder, dict[str, Any]]:
    """Return the kind of a run's task, the run's folder, and the values of its configuration.

    Raises:
        ValueError: if it is no run folder, or its configuration is damaged.
    """
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


class MetricsTable:
    """Write metrics.csv: a row each time numbers are logged; columns are added when first seen.

    Whole rows that are already in the file are kept up to `last_step`, but not the numbers of an evaluation: a
    resumed run logs them again.
    """

    STEP = "time/total_timesteps"

    def __init__(self, path: Path, last_step: int = 0) -> None:
        self.path = path
        self._columns: list[str] = [self.STEP]
        self._rows: list[dict[str, Any]] = []
        if path.is_file():
            try:
                text = path.read_bytes().decode()
                # A row without a line break was being written when the process was killed.
                reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
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
        return bool(self._rows) and str(self._rows[-1][self.STEP]) == str(step) and bool(self._rows[-1].get(name))

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())
