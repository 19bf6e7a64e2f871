"""Where the cells of a sweep run: what a launcher has to do, and the one that starts processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

from cet_rl.sweeps.folder import SweepFolder

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that keep a process to one thread."""


class Job(Protocol):
    """A cell that has been handed over."""

    @property
    def cell(self) -> str:
        """Its name."""

    def poll(self) -> int | None:
        """The exit status of its worker, negative for a signal; None while it waits or runs."""

    def stop(self) -> None:
        """Ask it to save where it is and end."""

    def kill(self) -> None:
        """End it at once."""


class Launcher(Protocol):
    """Runs workers (`cet_rl.sweeps.worker`) somewhere.

    Attributes:
        capacity: how many jobs it takes at a time.
    """

    capacity: int

    def submit(self, folder: SweepFolder, cells: Sequence[str], *, retry: bool) -> list[Job]:
        """Hand over cells by name, at most as many as there is room for; retry those that have failed if told to.

        Raises:
            OSError: if they cannot be started.
        """


Command = Callable[[SweepFolder, str], list[str]]
"""From a sweep and a cell's name to the command line of its worker."""


def worker_command(folder: SweepFolder, name: str) -> list[str]:
    """The command line of a worker in this Python."""
    return [sys.executable, "-m", "cet_rl.sweeps.worker", str(folder.path), name]


class LocalJob:
    """A worker on this machine, which stops if this process is killed.

    Args:
        cell: its name.
        command: its command line.
        log: file that its output is appended to.
    """

    def __init__(self, cell: str, command: Sequence[str], log: Path) -> None:
        self.cell, self._log = cell, log
        log.parent.mkdir(exist_ok=True)
        environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1")}
        with open(log, "ab") as stream:
            # Nothing is ever written to its stdin: it ends when this process does.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment
            )

    @property
    def pid(self) -> int:
        """Number of its process."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        status = self._process.poll()
        if status is not None:
            stdin: IO[bytes] | None = self._process.stdin
            if stdin is not None:
                stdin.close()
            if self._log.is_file() and not self._log.stat().st_size:
                self._log.unlink(missing_ok=True)
        return status

    def stop(self) -> None:
        """Ask it to save where it is and end."""
        # A terminal may have sent it a SIGINT already: a second one would not let it save, SIGTERM does.
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


class LocalLauncher:
    """Processes on this machine, one thread each.

    Args:
        workers: how many at a time; None for as many as there are processors for this process.
        command: of a worker.

    Raises:
        ValueError: if that is not at least one.
    """

    def __init__(self, workers: int | None = None, command: Command = worker_command) -> None:
        check_workers(workers)
        self.capacity = workers or processors()
        self._command = command

    def submit(self, folder: SweepFolder, cells: Sequence[str], *, retry: bool) -> list[Job]:
        """Start a worker for each cell."""
        options = ["--watch", *["--retry"] * retry]
        return [LocalJob(name, [*self._command(folder, name), *options], folder.log_file(name)) for name in cells]


def check_workers(workers: int | None) -> None:
    """Raise ValueError unless it is at least one, or left to the launcher."""
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")


def processors() -> int:
    """How many processors this process may use: its affinity's, or its control group's quota if that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, allowed if quota is None else min(allowed, round(quota)))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Processors' worth of time that a container's control group allows; None without a limit."""
    files = {"cpu.max": None, "cpu/cpu.cfs_quota_us": "cpu/cpu.cfs_period_us"}
    for limit, period in files.items():
        try:
            words = (root / limit).read_text(encoding="ascii").split()
            words += (root / period).read_text(encoding="ascii").split() if period else []
            share, of = int(words[0]), int(words[1])
            return share / of if share > 0 else None
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
    return None
