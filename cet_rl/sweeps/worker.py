"""The process that runs a job of a sweep, and what starts such processes on this machine.

    python -m cet_rl.sweeps.worker FOLDER JOB [--retry] [--wait] [--watch]

holds the job's lock for as long as it lives, goes on from the job's checkpoint, and writes down why the job fails
if it does. Its exit status: 0 finished, 1 failed, 75 another process runs the job, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from cet_rl.runs.lock import EXIT_BUSY, HEARTBEAT, LEASE, Lock
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Job

EXIT_FINISHED, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130

STOPPED = (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
"""Exit statuses of a worker that was asked to stop."""

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that keep a process to one thread."""

Trainer = Callable[[SweepFolder, Sequence[Job]], str]
"""Trains jobs in their run folders, or goes on with them; returns "finished" or "interrupted"."""

Command = Callable[[SweepFolder, str], list[str]]
"""Returns the command line of a worker from a sweep's folder and a job's name."""


def train_job(folder: SweepFolder, jobs: Sequence[Job]) -> str:
    """Train a job as `cet-rl train --resume` would, on one thread."""
    from cet_rl.sweeps.build import configuration  # takes a second, and what trains takes more

    (job,) = jobs
    task_kind, config = configuration(job)
    status: str = task_kind.training().train(config, folder.run_path(job.name), resume=True, quiet=True)
    return status


def work(
    folder: SweepFolder, names: Sequence[str], train: Trainer, *, retry: bool = False, wait: float = 0
) -> int:
    """Train those jobs that are neither finished nor another process's.

    Args:
        folder: of the sweep.
        names: of the jobs.
        train: trains them.
        retry: train jobs that have failed, too.
        wait: seconds to wait for a job that another process runs.

    Returns:
        The exit status.

    Raises:
        ValueError: if the sweep has no such job.
        OSError: if the folder cannot be written.
    """
    jobs = {job.name: job for job in folder.read().jobs}
    if unknown := [name for name in names if name not in jobs]:
        raise ValueError(f"{folder.path} has no job {unknown[0]}")
    locks: list[Lock] = []
    pending: list[Job] = []
    try:
        for name in names:
            lock = Lock(folder.locks, name)
            if lock.acquire(wait):
                locks.append(lock)
                pending += [jobs[name]] * _is_pending(folder, name, retry)
        if not locks:
            return EXIT_BUSY
        if pending and train(folder, pending) != "finished":
            return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # whatever it is, it is these jobs', and written down
        traceback.print_exc()
        for job in pending:
            if folder.state(job.name).state not in ("finished", "failed"):
                folder.note_failure(job.name, f"{type(error).__name__}: {error}")
    finally:
        for lock in locks:
            lock.release()
    failed = any(folder.state(lock.name).state == "failed" for lock in locks)
    return EXIT_FAILED if failed else EXIT_FINISHED


def _is_pending(folder: SweepFolder, name: str, retry: bool) -> bool:
    """Tell whether a job is to be trained; one that is retried forgets why it failed."""
    state = folder.state(name).state
    if state == "failed" and retry:
        folder.forget_failure(name)
    return state not in ("finished", "failed") or (state == "failed" and retry)


def run_worker(arguments: Sequence[str], train: Trainer) -> int:
    """Run a worker's process; return its exit status.

    Args:
        arguments: FOLDER JOB …, --retry to train jobs that have failed, --wait to wait for another process that
            runs a job, until it would be found dead, --watch to stop when stdin ends.
        train: trains the jobs.
    """
    folder, *words = arguments
    names = [word for word in words if not word.startswith("--")]
    signal.signal(signal.SIGTERM, _interrupt)  # until the run handles it itself
    if "--watch" in words:
        threading.Thread(target=_stop_with_stdin, daemon=True).start()
    wait = LEASE + HEARTBEAT if "--wait" in words else 0.0
    try:
        return work(SweepFolder(folder), names, train, retry="--retry" in words, wait=wait)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _stop_with_stdin() -> None:
    """Stop, as after Ctrl-C, when the process at the other end of stdin is gone."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class SubmittedJob(Protocol):
    """Represent a job that a launcher has taken."""

    @property
    def name(self) -> str:
        """Return the name of the job."""

    def poll(self) -> int | None:
        """Return the exit status of its worker, negative for a signal; None while it waits or runs."""

    def stop(self) -> None:
        """Ask the worker to save its checkpoint and end."""

    def kill(self) -> None:
        """End the worker at once."""


class Launcher(Protocol):
    """Runs workers somewhere.

    Attributes:
        capacity: how many jobs it takes at a time.
    """

    capacity: int

    def submit(self, folder: SweepFolder, names: Sequence[str], *, retry: bool) -> list[SubmittedJob]:
        """Start jobs by name, at most as many as there is room for; retry those that have failed if told to.

        Raises:
            OSError: if they cannot be started.
        """


def worker_command(folder: SweepFolder, name: str) -> list[str]:
    """Return the command line of a worker in this Python."""
    return [sys.executable, "-m", "cet_rl.sweeps.worker", str(folder.path), name]


class LocalJob:
    """Run a worker on this machine, which stops if this process is killed.

    Args:
        name: of the job.
        command: of the worker.
        log: file that its output is appended to.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name, self._log = name, log
        log.parent.mkdir(exist_ok=True)
        environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1")}
        with open(log, "ab") as stream:
            # Nothing is ever written to its stdin: it ends when this process does.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment
            )

    @property
    def pid(self) -> int:
        """Return the number of the worker's process."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        status = self._process.poll()
        if status is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            if self._log.is_file() and not self._log.stat().st_size:
                self._log.unlink(missing_ok=True)
        return status

    def stop(self) -> None:
        """Ask the worker to save its checkpoint and end."""
        # A terminal may have sent it a SIGINT already: a second one would not let it save, SIGTERM does.
        self._process.terminate()

    def kill(self) -> None:
        """End the worker at once."""
        self._process.kill()


class LocalLauncher:
    """Start processes on this machine, one thread each.

    Args:
        workers: how many at a time; None for as many as there are processors for this process.
        command: of a worker.
        wait: let a worker wait for a job that another process runs.

    Raises:
        ValueError: if `workers` is not at least one.
    """

    def __init__(
        self, workers: int | None = None, command: Command = worker_command, *, wait: bool = False
    ) -> None:
        check_workers(workers)
        self.capacity = workers or processors()
        self._command, self._options = command, ["--watch", *["--wait"] * wait]

    def submit(self, folder: SweepFolder, names: Sequence[str], *, retry: bool) -> list[SubmittedJob]:
        """Start a worker for each job."""
        options = [*self._options, *["--retry"] * retry]
        return [LocalJob(name, [*self._command(folder, name), *options], folder.log_file(name)) for name in names]


def check_workers(workers: int | None) -> None:
    """Raise ValueError unless it is at least one, or left to the launcher."""
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def failure_reason(folder: SweepFolder, name: str, status: int) -> str:
    """Return why a job has failed; write it down if its worker has not done so.

    Args:
        folder: of the sweep.
        name: of the job.
        status: exit status of its worker.
    """
    state = folder.state(name)
    if state.state == "failed":
        return state.error
    if status < 0:
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        reason = f"its process was killed by {signal.Signals(-status).name}{hint}"
    else:
        try:
            lines = folder.log_file(name).read_text(encoding="utf-8", errors="replace").split("\n")
            reason = next(line.strip() for line in reversed(lines) if line.strip())
        except (OSError, StopIteration):
            reason = f"its process ended with status {status}"
    folder.note_failure(name, reason)
    return reason


if __name__ == "__main__":
    sys.exit(run_worker(sys.argv[1:], train_job))
