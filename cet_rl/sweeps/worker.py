"""The process that runs jobs of a sweep, and what starts such processes on this machine.

    python -m cet_rl.sweeps.worker FOLDER JOB ... [--batch] [--retry] [--wait] [--known=FILE] [--machine=JSON]

holds the locks of its jobs for as long as it lives, resumes them from their checkpoints, and writes down why jobs
fail.

--batch  trains all jobs as one batch (`train_batch` of `cet_rl.vision` and of `cet_rl.rl`)
--retry  also trains jobs that have failed
--wait   waits for a job that another process runs, for as long as it takes to find that process dead

--known and --machine give the CSV of finished runs and the options of this machine, such as `data_dir`: those that
stand in the folder may be of another machine that shares it.

It stops when its stdin is closed. Its exit status is 0 if all jobs that no other process runs are finished, 3 if
some have failed, 1 if a failure could not be written down, 75 if others run all, 130 if it was interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from cet_rl.runs.files import make_folder
from cet_rl.runs.folder import RunFolder
from cet_rl.runs.lock import EXIT_BUSY, TAKEOVER, Lock
from cet_rl.sweeps.build import configuration
from cet_rl.sweeps.folder import Job, SweepFolder

EXIT_FINISHED, EXIT_UNRECORDED, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 3, 130

STOPPED = (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)  # exit statuses of a worker that was asked to stop

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # set to 1 for a worker
JOBS_ON_GPU, JOBS_ON_CORE = 64, 16  # at most in one batch, unless told otherwise

Trainer = Callable[[SweepFolder, Sequence[Job]], str]
"""Trains jobs in their run folders, or resumes them; returns "finished" or "interrupted"."""

Command = Callable[[SweepFolder, Sequence[str]], list[str]]
"""Returns the command line of a worker from a sweep's folder and the names of jobs."""


def train_job(folder: SweepFolder, jobs: Sequence[Job]) -> str:
    """Train a job as `cet-rl train --resume` would, on one thread."""
    (job,) = jobs
    task_kind, config = configuration(job)
    return str(task_kind.training().train(config, folder.run_path(job.name), resume=True, quiet=True))


def train_together(folder: SweepFolder, jobs: Sequence[Job]) -> str:
    """Train jobs together; each leaves a run folder as if it had been alone, also if it fails."""
    task_kind, _ = configuration(jobs[0])
    good = []
    for job in jobs:
        run = RunFolder(folder.run_path(job.name), task_kind.checkpoint)
        try:  # or one folder that cannot be used would end the whole batch
            run.check_usable(job.values, resume=True)
            make_folder(run.path, "run")
            run.check_free()
            _ = run.checkpoint_file
            good.append((configuration(job)[1], run.path))
        except (ValueError, OSError) as error:
            folder.note_failure(job.name, f"{type(error).__name__}: {error}")
    if good:
        task_kind.training().train_batch(*map(list, zip(*good, strict=True)), quiet=True)
    return "finished"


def work(
    folder: SweepFolder, names: Sequence[str], train: Trainer, *, retry: bool = False, wait: float = 0
) -> int:
    """Train those of the jobs that are not finished and that no other process runs; return the exit status.

    With `retry` jobs that have failed are trained, too. A job that another process runs is waited for `wait`
    seconds. Raises OSError if the folder cannot be written.
    """
    jobs: dict[str, Job] = {}
    for job in folder.read().jobs:
        own = {name: value for name, value in folder.machine.items() if name in job.values}
        jobs[job.name] = replace(job, values={**job.values, **own})
    held: list[str] = []
    pending: list[Job] = []
    with ExitStack() as locks:
        for name in names:
            lock = Lock(folder.locks, name)
            if lock.acquire(wait):
                locks.callback(lock.release)
                held.append(name)
        if not held:
            return EXIT_BUSY
        try:
            if retry:
                for name in held:
                    folder.forget_failure(name)
            pending = [jobs[name] for name in held if folder.state(name).state not in ("finished", "failed")]
            locks.callback(folder.add_to_known, pending, now=True)
            if pending and train(folder, pending) != "finished":
                return EXIT_INTERRUPTED
            reason = "its summary cannot be written"
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except Exception as error:  # whatever it is, these jobs have failed with it
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
        for job in pending:
            if folder.state(job.name).state not in ("finished", "failed"):
                folder.note_failure(job.name, reason)
        states = {folder.state(name).state for name in held}
        if not states <= {"finished", "failed"}:
            return EXIT_UNRECORDED
        return EXIT_FAILED if "failed" in states else EXIT_FINISHED


def run_worker(arguments: Sequence[str], train: Trainer | None = None) -> int:
    """Run a worker's process by its command line, see above, or with another trainer; return its exit status."""
    folder, *words = arguments
    names = [word for word in words if not word.startswith("--")]
    values = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the run handles it itself
    threading.Thread(target=_stop_with_stdin, daemon=True).start()
    wait = TAKEOVER if "--wait" in words else 0.0
    train = train or (train_together if "--batch" in words else train_job)
    try:
        sweep_folder = SweepFolder(folder, values.get("known"), json.loads(values.get("machine", "{}")))
        return work(sweep_folder, names, train, retry="--retry" in words, wait=wait)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _stop_with_stdin() -> None:
    """Stop, as after Ctrl-C, when the process at the other end of stdin is gone."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def worker_command(folder: SweepFolder, names: Sequence[str]) -> list[str]:
    """Return the command line of a worker in this Python."""
    command = [sys.executable, "-m", "cet_rl.sweeps.worker", str(folder.path), *names]
    if folder.known is not None:
        command.append(f"--known={folder.known.file}")
    return [*command, f"--machine={json.dumps(folder.machine)}"]


class Worker:
    """Run jobs in a worker on this machine, which stops if this process is killed; its output goes to a log."""

    def __init__(self, names: Sequence[str], command: Sequence[str], log: Path) -> None:
        self.names, self._log = names, log
        log.parent.mkdir(exist_ok=True)
        environment = {**os.environ, **dict.fromkeys(ONE_THREAD, "1")}
        with open(log, "ab") as stream:
            # Nothing is ever written to its stdin: it ends when this process does.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment
            )

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        status = self._process.poll()
        if status is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            with suppress(FileNotFoundError):  # another process that has run the job may have removed it
                if not self._log.stat().st_size:
                    self._log.unlink()
        return status

    def stop(self) -> None:
        """Ask it to save its checkpoints and end."""
        # A terminal may have sent it a SIGINT already: a second one would not let it save, SIGTERM does.
        self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


class Launcher:
    """Start workers on this machine, one thread each.

    `capacity` is the number of jobs that run at a time, None for the number of processors. `options` are added to
    the command line that `command` returns. `batches` has a key for each job, by name: jobs with equal keys share
    workers, of which at most `processes` run at a time. Without it each job has a worker of its own.
    """

    def __init__(
        self,
        capacity: int | None = None,
        command: Command = worker_command,
        options: Sequence[str] = (),
        batches: Mapping[str, Hashable] | None = None,
        processes: int = 1,
    ) -> None:
        check_workers(capacity)
        self.capacity = capacity or processors()
        self._command, self._options, self._processes = command, options, processes
        self.batches = batches or {}
        self._workers: list[Worker] = []

    def submit(self, folder: SweepFolder, names: Sequence[str], *, retry: bool = False) -> list[Worker]:
        """Start workers for jobs, in batches for as many as there are processes left; OSError if that fails.

        With `retry` they also run jobs that have failed.
        """
        together: dict[Hashable, list[str]] = {}
        for name in names:
            together.setdefault(self.batches.get(name, name), []).append(name)
        batches = list(together.values())
        self._workers = [worker for worker in self._workers if worker.poll() is None]
        while len(batches) + len(self._workers) < self._processes and len(longest := max(batches, key=len)) > 1:
            batches.remove(longest)
            batches += [longest[: len(longest) // 2], longest[len(longest) // 2 :]]
        if self.batches:
            batches = batches[: max(self._processes - len(self._workers), 0)]
        options = [*self._options, *["--retry"] * retry]
        workers = [
            Worker(jobs, [*self._command(folder, jobs), *options], folder.log_file(jobs[0])) for jobs in batches
        ]
        self._workers += workers
        return workers


def batch_launcher(jobs: Iterable[Job], capacity: int | None = None) -> Launcher:
    """Return a launcher that trains jobs that are alike as one batch, or on a CPU as one batch a processor.

    Raises ValueError for a job that cannot be part of a batch.
    """
    alike: dict[str, Hashable] = {}
    devices = set()
    for job in jobs:
        _, config = configuration(job)
        config.check_batchable()
        alike[job.name] = tuple(map(repr, config.shared().items()))
        devices.add(config.device)
    import torch  # takes a second

    on_cpu = devices == {"cpu"} or not torch.cuda.is_available()
    workers, most = (processors(), JOBS_ON_CORE * processors()) if on_cpu else (1, JOBS_ON_GPU)
    return Launcher(most if capacity is None else capacity, options=["--batch"], batches=alike, processes=workers)


def check_workers(workers: int | None) -> None:
    """Raise ValueError for a number of workers below one; None leaves it to the launcher."""
    if workers is not None and workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def killed_by(status: int) -> str:
    """Return a negative exit status in words: "killed by SIGKILL (out of memory?)"."""
    return f"killed by {signal.Signals(-status).name}" + " (out of memory?)" * (status == -signal.SIGKILL)


def record_failure(folder: SweepFolder, name: str, status: int) -> str:
    """Write down why a job failed whose worker ended with `status`, if the worker has not; return the reason."""
    state = folder.state(name)
    if state.state == "failed":
        return state.error
    if status < 0:
        reason = f"its process was {killed_by(status)}"
    else:
        try:
            lines = folder.log_file(name).read_text(encoding="utf-8", errors="replace").split("\n")
            reason = next(line.strip() for line in reversed(lines) if line.strip())
        except (OSError, StopIteration):
            reason = f"its process ended with status {status}"
    folder.note_failure(name, reason)
    return reason


if __name__ == "__main__":
    sys.exit(run_worker(sys.argv[1:]))
