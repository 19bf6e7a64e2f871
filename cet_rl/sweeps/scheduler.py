"""Run the jobs of a sweep until none is left.

Every job is started at most once in a go. Several schedulers, on one machine or more, may share a folder: locks
share the jobs out among them, and each waits for what the others run, to take it over should they die.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from cet_rl.runs.lock import EXIT_BUSY
from cet_rl.runs.process import Interruption
from cet_rl.sweeps.display import SweepDisplay
from cet_rl.sweeps.folder import JobState, Sweep, SweepFolder, counts
from cet_rl.sweeps.worker import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_INTERRUPTED,
    STOPPED,
    Launcher,
    Worker,
    failure_reason,
)

TICK = 0.1  # seconds between two looks at the workers
GLANCE = 1.0  # seconds between two looks at the folder


def run_sweep(
    sweep: Sweep, folder: SweepFolder, launcher: Launcher, *, retry: bool = False, quiet: bool = False
) -> int:
    """Run all jobs that are not finished yet; those that have failed only if told to retry.

    Returns the exit status: 0 if all jobs are finished, 1 if some have failed or been stopped, 130 if interrupted.
    Raises ValueError if the folder is another sweep's, before anything is written, and OSError if it cannot be.
    """
    new = folder.open_for(sweep)
    if 0 < new < len(sweep.jobs) and not quiet:
        print(f"{folder.path} has {new} jobs more than before", file=sys.stderr, flush=True)
    return _SweepRun(sweep, folder, launcher, retry=retry, quiet=quiet).run()


class _SweepRun:
    """Run a sweep once, from whatever it has reached."""

    def __init__(self, sweep: Sweep, folder: SweepFolder, launcher: Launcher, *, retry: bool, quiet: bool) -> None:
        self.jobs, self.folder, self.launcher = sweep.jobs, folder, launcher
        self.display = SweepDisplay(sweep.jobs, folder, launcher.capacity, quiet=quiet)
        self.interruption = Interruption()
        self.workers: list[Worker] = []
        self.states: dict[str, JobState] = folder.states(self.jobs)
        failed = {name for name, state in self.states.items() if state.state == "failed"}
        self.to_retry = failed if retry else set()
        self.started: set[str] = set()
        self._looked = time.monotonic()

    def run(self) -> int:
        self.display.start(self.states)
        try:
            with self.interruption.watched():
                self._run()
        except KeyboardInterrupt:
            self._end(kill=True)
        finally:
            self._end(kill=False)
            self.states = self.folder.states(self.jobs, self.states)
            self.display.close(self.states)
        self.display.conclude(self.states)
        self.folder.write_results(self.jobs, self.states)
        if counts(self.states)["finished"] == len(self.jobs):
            return 0
        return EXIT_INTERRUPTED if self.interruption.wanted else 1

    def _run(self) -> None:
        stopping = False
        while True:
            if self.interruption.wanted and not stopping:
                stopping = True
                self.display.stopping(sum(len(worker.names) for worker in self.workers))
                for worker in self.workers:
                    worker.stop()
            ended = [worker for worker in self.workers if self._has_ended(worker)]
            self.workers = [worker for worker in self.workers if worker not in ended]
            looked = bool(ended) or time.monotonic() - self._looked > GLANCE
            if looked:
                self.states, self._looked = self.folder.states(self.jobs, self.states), time.monotonic()
            if not stopping:
                self._start()
            if looked:
                self.display.update({**self.states, **self._starting()})
            if not self.workers and (stopping or not self._is_waiting()):
                return
            time.sleep(TICK)

    def _has_ended(self, worker: Worker) -> bool:
        """Return whether a worker has ended; note what has become of its jobs if it has not done so."""
        status = worker.poll()
        if status is None:
            return False
        for name in worker.names:
            if self.folder.state(name).state in ("finished", "failed") or status in STOPPED:
                continue
            # Of a batch, those that have neither ended nor failed are run by another process.
            if status == EXIT_BUSY or (len(worker.names) > 1 and status in (EXIT_FINISHED, EXIT_FAILED)):
                self.started.discard(name)  # should its owner die, this sweep takes it over
            elif status != EXIT_FINISHED:
                failure_reason(self.folder, name, status)
        return True

    def _start(self) -> None:
        """Start as many jobs as there is room for."""
        room = self.launcher.capacity - sum(len(worker.names) for worker in self.workers)
        names = [job.name for job in self.jobs if self._is_ready(job.name)][: max(room, 0)]
        if names:
            self.workers += self.launcher.submit(self.folder, names, retry=bool(self.to_retry))
            self.started.update(names)

    def _starting(self) -> dict[str, JobState]:
        """Return the states of jobs whose workers have started and do not have their locks yet: they run."""
        own = [(name, self.states[name]) for worker in self.workers for name in worker.names]
        return {
            name: replace(state, state="running") for name, state in own if state.state in ("waiting", "partial")
        }

    def _is_ready(self, name: str) -> bool:
        state = self.states[name].state
        wanted = state in ("waiting", "partial") or (state == "failed" and name in self.to_retry)
        return wanted and name not in self.started

    def _is_waiting(self) -> bool:
        """Return whether jobs are left that this sweep may start, now or when their owners die."""
        return any(state.state == "running" or self._is_ready(name) for name, state in self.states.items())

    def _end(self, *, kill: bool) -> None:
        """End all workers and wait for them."""
        for worker in self.workers:
            if kill:
                worker.kill()
            else:
                worker.stop()
        while any(worker.poll() is None for worker in self.workers):
            time.sleep(TICK)
        self.workers.clear()
