"""The table of a sweep's jobs, on stderr: live in a terminal, a line for each job that ends elsewhere."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cet_rl.sweeps.folder import Job, JobState, State, Sweep, SweepFolder, counts, describe_counts

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


class SweepDisplay:
    """Show how far a sweep has come that runs so many jobs at a time; print nothing but errors if quiet."""

    def __init__(self, jobs: Sequence[Job], folder: SweepFolder, workers: int, *, quiet: bool) -> None:
        self.jobs, self.folder, self.workers, self.quiet = jobs, folder, workers, quiet
        self._before: Mapping[str, JobState] = {}
        self._live: Live | None = None

    def start(self, states: Mapping[str, JobState]) -> None:
        """Begin with what is there already."""
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
        """Show what has become of the jobs since."""
        share = self._progress(states)
        done, made = f"{share:.0%} done", share - self._share
        if made > 0:
            left = (time.monotonic() - self._began) * (1 - share) / made  # at the speed so far
            done += f", about {timedelta(seconds=round(left))} left"
        if self._live is not None:
            bar = ProgressBar(total=1.0, completed=share, width=40)
            self._live.update(
                Group(self._fitting(states), bar, f"{describe_counts(states)}; {done}"), refresh=True
            )
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
            self._say(f"stopping: waiting for {running} jobs to save their checkpoints; Ctrl-C again kills them")

    def close(self, states: Mapping[str, JobState]) -> None:
        """Leave the last table in the terminal, without bar and counts."""
        if self._live is not None:
            self._live.update(self._fitting(states), refresh=True)
            self._live.stop()
            self._live = None

    def conclude(self, states: Mapping[str, JobState]) -> None:
        """Say what came out, and what to do next."""
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
    """Print what has become of a sweep's jobs, and write results.csv; errors as of `SweepFolder.check`."""
    folder.check(sweep)
    states = folder.states(sweep.jobs)
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    table = jobs_table(sweep.jobs, states, len(sweep.jobs))
    for part in (f"sweep folder {folder.path}", table, describe_counts(states), *_failures(folder, states)):
        console.print(part)
    if counts(states)["finished"]:
        try:
            folder.write_results(sweep.jobs, states)
        except OSError as error:  # the folder may be another user's
            print(f"{folder.results_file} not written: {error.strerror}", file=sys.stderr)
