"""Run the jobs of a sweep until none is left, and show how far they are: in a terminal, as a live table.

Several schedulers, on one machine or more, may share a folder: locks give each job to one of them, so that no job
has two workers, and each waits for the jobs of the others, to take them over should those die.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cet_rl.runs.lock import EXIT_BUSY
from cet_rl.runs.process import Interruption
from cet_rl.sweeps.folder import Job, JobState, State, Sweep, SweepFolder, counts, describe_counts
from cet_rl.sweeps.worker import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_INTERRUPTED,
    STOPPED,
    Launcher,
    Worker,
    killed_by,
    record_failure,
)

TICK = 0.1  # seconds between two looks at the workers
GLANCE = 1.0  # seconds between two looks at the folder
LEAST_SPACE = 10_000_000  # bytes that must be free on the disk where a job is to start
STYLES: dict[State, str] = {
    "failed": "red",
    "running": "bold",
    "partial": "yellow",
    "waiting": "dim",
    "finished": "green",
}
"""Colours of states, in the order in which a terminal shows their jobs when it is too small for all."""

AROUND = 7  # lines of a terminal that the rows of the table leave free
WIDTH = 160  # of a table that is not printed to a terminal


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
        self.folder.add_to_known(self.jobs)  # of a worker that was killed before it had done so
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
            ended = [worker for worker in self.workers if self._record_end(worker)]
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

    def _record_end(self, worker: Worker) -> bool:
        """Write down why jobs of an ended worker have failed, if it has not itself; return False while it runs."""
        status = worker.poll()
        if status is None:
            return False
        left = [name for name in worker.names if self.folder.state(name).state not in ("finished", "failed")]
        if status in STOPPED or not left:
            return True
        if self.launcher.batches and status < 0:  # by no fault of one job: the next scheduler resumes them
            self.display.killed(len(left), status)
            return True
        for name in left:
            # Of a batch, those that have neither ended nor failed are run by another process.
            if status == EXIT_BUSY or (self.launcher.batches and status in (EXIT_FINISHED, EXIT_FAILED)):
                self.started.discard(name)  # should its owner die, this sweep takes it over
            elif status != EXIT_FINISHED:
                record_failure(self.folder, name, status)
        return True

    def _start(self) -> None:
        """Start as many jobs as there is room for."""
        room = self.launcher.capacity - sum(len(worker.names) for worker in self.workers)
        names = [job.name for job in self.jobs if self._is_ready(job.name)][: max(room, 0)]
        if names:
            if shutil.disk_usage(self.folder.path).free < LEAST_SPACE:
                raise OSError(f"the disk of {self.folder.path} is full: make room, then the same command goes on")
            workers = self.launcher.submit(self.folder, names, retry=bool(self.to_retry))
            self.workers += workers
            self.started.update(name for worker in workers for name in worker.names)

    def _starting(self) -> dict[str, JobState]:
        """Return, as running, the states of jobs whose workers have been started but have no lock yet."""
        own = [(name, self.states[name]) for worker in self.workers for name in worker.names]
        return {name: replace(job, state="running") for name, job in own if job.state in ("waiting", "partial")}

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
            end = worker.kill if kill else worker.stop
            end()
        while any(worker.poll() is None for worker in self.workers):
            time.sleep(TICK)
        self.workers.clear()


# -------------------- what is shown, on stderr: the table of jobs, or a line for each that ends


class SweepDisplay:
    """Show the progress of a sweep that runs `workers` jobs at a time; print nothing but errors if quiet."""

    def __init__(self, jobs: Sequence[Job], folder: SweepFolder, workers: int, *, quiet: bool) -> None:
        self.jobs, self.folder, self.workers, self.quiet = jobs, folder, workers, quiet
        self._before: Mapping[str, JobState] = {}
        self._live: Live | None = None

    def start(self, states: Mapping[str, JobState]) -> None:
        """Show the states that the jobs have before any is started."""
        self._before, self._began, self._share = states, time.monotonic(), self._progress(states)
        number = counts(states)
        self._say(f"sweep folder {self.folder.path}")
        if number["finished"] < len(self.jobs):
            begun = f": {describe_counts(states)}" if number["waiting"] < len(self.jobs) else ""
            self._say(f"{len(self.jobs)} jobs{begun}; {self.workers} at a time")
        if number["failed"]:
            self._say(f"--retry runs the {number['failed']} that failed again")
        if sys.stderr.isatty() and not self.quiet and number["finished"] < len(self.jobs):
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
            self.update(states)

    def update(self, states: Mapping[str, JobState]) -> None:
        """Show the present states of the jobs."""
        share = self._progress(states)
        done, made = f"{share:.0%} done", share - self._share
        if made > 0:
            left = (time.monotonic() - self._began) * (1 - share) / made  # at the speed so far
            done += f", about {timedelta(seconds=round(left))} left"
        if self._live is not None:
            bar = ProgressBar(total=1.0, completed=share, width=40)
            line = f"{describe_counts(states)}; {done}"
            self._live.update(Group(self._fitting(states), bar, line), refresh=True)
            return
        has_ended = {name for name, state in states.items() if state.state in ("finished", "failed")}
        ended = [name for name in states if name in has_ended and self._before[name].state != states[name].state]
        self._before = states
        for number, name in enumerate(ended, start=1 + len(has_ended) - len(ended)):
            state = states[name]
            speed = "" if state.speed is None else f"{state.speed:,.0f} steps/s"
            failed = f"failed: {_reason(state)}" * (state.state == "failed")
            what = failed or ", ".join(filter(None, ["finished", state.score, speed]))
            so_far = f"; {done}" if name == ended[-1] and number < len(self.jobs) else ""
            self._say(f"[{number}/{len(self.jobs)}] {name}: {what}{so_far}")

    def stopping(self, running: int) -> None:
        """Say that workers have been asked to stop."""
        if running:
            jobs = f"{running} job{'s' * (running > 1)}"
            self._say(f"stopping: waiting for {jobs} to save a checkpoint; Ctrl-C again kills what is left")

    def killed(self, jobs: int, status: int) -> None:
        """Say that a process that ran `jobs` jobs has been killed, by its exit status."""
        what = f"the process of {jobs} job{'s' * (jobs > 1)} was {killed_by(status)}"
        self._print(f"{what}: the same command resumes from the last checkpoints")

    def close(self, states: Mapping[str, JobState]) -> None:
        """Show the table a last time, without bar and counts, and stop updating it."""
        if self._live is not None:
            self._live.update(self._fitting(states), refresh=True)
            self._live.stop()
            self._live = None

    def conclude(self, states: Mapping[str, JobState]) -> None:
        """Print failures, counts and the commands for what comes next."""
        for line in _failures(self.folder, states):
            print(line, file=sys.stderr, flush=True)
        number = counts(states)
        retry = "; --retry runs again what failed" * bool(number["failed"])
        resume = "; the same command goes on" * bool(number["partial"] + number["waiting"])
        self._say(f"{describe_counts(states)}{retry}{resume}")
        report = f"cet-rl report {shlex.quote(str(self.folder.path))}"
        self._say(f"results: {self.folder.results_file}; figures: {report}")

    def _progress(self, states: Mapping[str, JobState]) -> float:
        """Return the share of the sweep that is done: the mean over its jobs."""
        done = 0.0
        for job in self.jobs:
            state = states[job.name]
            ended = state.state in ("finished", "failed")
            done += 1.0 if ended else min(1.0, (state.step or 0) / job.values["total_steps"])
        return done / len(self.jobs)

    def _fitting(self, states: Mapping[str, JobState]) -> Table:
        """Return the table with as many rows as the terminal has room for."""
        assert self._live is not None
        return jobs_table(self.jobs, states, max(self._live.console.height - AROUND, 1))

    def _say(self, text: str) -> None:
        if not self.quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def _reason(state: JobState) -> str:
    """Return why a job has failed, in a line."""
    return state.error.partition("\n")[0]


def _failures(folder: SweepFolder, states: Mapping[str, JobState]) -> list[str]:
    """Return a line for each job that has failed: why, and where to read more."""
    failed = [name for name, state in states.items() if state.state == "failed"]
    logs = {name: f" (see {log})" for name in failed if (log := folder.log_file(name)).is_file()}
    return [f"{name} failed: {_reason(states[name])}{logs.get(name, '')}" for name in failed]


def jobs_table(jobs: Sequence[Job], states: Mapping[str, JobState], rows: int) -> Table:
    """Return a line for each of the most urgent jobs, at most `rows`, in the file's order."""
    urgency = list(STYLES)
    urgent = sorted(jobs, key=lambda job: urgency.index(states[job.name].state))
    hidden = {job.name for job in urgent[rows:]}
    caption = f"{len(hidden)} not shown" if hidden else None
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    for title in ("job", "state", "steps", "score", "steps/s", ""):
        right = title.startswith("steps")
        table.add_column(title, no_wrap=title not in ("job", ""), justify="right" if right else "left")
    for job in jobs:
        if job.name in hidden:
            continue
        state = states[job.name]
        far = "" if state.step is None else f"{state.step:,} of {job.values['total_steps']:,}"
        speed = "" if state.speed is None else f"{state.speed:,.0f}"
        note = _reason(state) or (f"on {state.owner}" if state.owner else "")
        name, note_text = (Text(text, no_wrap=True, overflow="ellipsis") for text in (job.name, note))
        table.add_row(name, Text(state.state, STYLES[state.state]), far, state.score, speed, note_text)
    return table


def print_status(sweep: Sweep, folder: SweepFolder) -> None:
    """Print the states of a sweep's jobs, and write results.csv; raise ValueError as `SweepFolder.check` does."""
    folder.check(sweep)
    states = folder.states(sweep.jobs)
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    table = jobs_table(sweep.jobs, states, len(sweep.jobs))
    for part in (f"sweep folder {folder.path}", table, describe_counts(states), *_failures(folder, states)):
        console.print(part)
    if counts(states)["finished"] and folder.path.is_dir():  # all may be known from elsewhere
        try:
            folder.write_results(sweep.jobs, states)
        except OSError as error:  # the folder may be another user's
            print(f"{folder.results_file} not written: {error.strerror}", file=sys.stderr)
