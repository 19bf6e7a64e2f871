"""The table of a sweep's jobs, on stderr: live in a terminal, a line for each job that ends elsewhere."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Job, JobState, State, counts, describe_counts

STYLES: dict[State, str] = {
    "failed": "red",
    "running": "bold",
    "partial": "yellow",
    "waiting": "dim",
    "finished": "green",
}
"""Colours of states, in the order in which a terminal shows their jobs when it is too small for all."""

AROUND = 7
"""Lines of a terminal that the rows of the table leave free."""

WIDTH = 160
"""Width of a table that is not printed to a terminal."""


class SweepDisplay:
    """Show how far a sweep has come.

    Args:
        jobs: of the sweep.
        folder: of the sweep.
        workers: at a time.
        quiet: print nothing but errors.
    """

    def __init__(self, jobs: Sequence[Job], folder: SweepFolder, workers: int, *, quiet: bool) -> None:
        self.jobs, self.folder, self.workers, self.quiet = jobs, folder, workers, quiet
        self._before: dict[str, JobState] = {}
        self._live: Live | None = None

    def start(self, states: Mapping[str, JobState]) -> None:
        """Begin with what is there already."""
        self._before, self._began, self._share = dict(states), time.monotonic(), self._progress(states)
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
        ended = [
            job
            for job in self.jobs
            if states[job.name].state in ("finished", "failed")
            and self._before[job.name].state != states[job.name].state
        ]
        self._before = dict(states)
        if self._live is not None:
            bar = ProgressBar(total=1.0, completed=self._progress(states), width=40)
            table = self._table(states, self._live.console.height - AROUND)
            text = Text(f"{describe_counts(states)}; {self._time_left(states)}")
            self._live.update(Group(table, bar, text), refresh=True)
            return
        now = counts(states)
        for number, job in enumerate(ended, start=1 + now["finished"] + now["failed"] - len(ended)):
            state = states[job.name]
            what = f"failed: {_first_line(state.error)}" if state.state == "failed" else _outcome(state)
            left = f"; {self._time_left(states)}" if job is ended[-1] and number < len(self.jobs) else ""
            self._say(f"[{number}/{len(self.jobs)}] {job.name}: {what}{left}")

    def stopping(self, running: int) -> None:
        """Say that workers have been asked to stop."""
        if running:
            self._say(f"stopping: waiting for {running} jobs to save their checkpoints; Ctrl-C again kills them")

    def close(self, states: Mapping[str, JobState]) -> None:
        """Leave the last table in the terminal, without bar and counts."""
        if self._live is not None:
            self._live.update(self._table(states, self._live.console.height - AROUND), refresh=True)
            self._live.stop()
            self._live = None

    def conclude(self, states: Mapping[str, JobState]) -> None:
        """Say what came out, and what to do next."""
        for line in self._failures(states):
            print(line, file=sys.stderr, flush=True)
        hints = []
        if counts(states)["failed"]:
            hints.append("--retry runs again what failed")
        if counts(states)["partial"] + counts(states)["waiting"]:
            hints.append("the same command goes on")
        self._say("; ".join([describe_counts(states), *hints]))
        report = f"cet-rl report {shlex.quote(str(self.folder.path))}"
        self._say(f"results: {self.folder.results_file}; figures: {report}")

    def print_once(self, states: Mapping[str, JobState]) -> None:
        """Print the whole table to stdout."""
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
        for part in (
            f"sweep folder {self.folder.path}",
            self._table(states, len(self.jobs)),
            describe_counts(states),
        ):
            console.print(part, markup=False, highlight=False)
        for line in self._failures(states):
            console.print(line, markup=False, highlight=False)

    def _progress(self, states: Mapping[str, JobState]) -> float:
        """Return the share of the sweep that is done: the mean over its jobs."""
        done = 0.0
        for job in self.jobs:
            state = states[job.name]
            ended = state.state in ("finished", "failed")
            done += 1.0 if ended else min(1.0, (state.step or 0) / job.values["total_steps"])
        return done / len(self.jobs)

    def _time_left(self, states: Mapping[str, JobState]) -> str:
        """Say how far the sweep is, and how long it still takes at the speed so far."""
        share = self._progress(states)
        made = share - self._share
        left = (time.monotonic() - self._began) * (1 - share) / made if made > 0 else None
        return f"{share:.0%} done" + ("" if left is None else f", about {_duration(left)} left")

    def _failures(self, states: Mapping[str, JobState]) -> Iterator[str]:
        """Yield a line for each job that has failed: why, and where to read more."""
        for job in self.jobs:
            if states[job.name].state == "failed":
                log = self.folder.log_file(job.name)
                where = f" (see {log})" if log.is_file() else ""
                yield f"{job.name} failed: {_first_line(states[job.name].error)}{where}"

    def _table(self, states: Mapping[str, JobState], rows: int) -> Table:
        """Return a line for each of the most urgent jobs, at most `rows`, in the file's order."""
        urgency = list(STYLES)
        urgent = sorted(self.jobs, key=lambda job: urgency.index(states[job.name].state))
        shown = {job.name for job in urgent[: max(rows, 1)]}
        hidden = len(self.jobs) - len(shown)
        table = Table(box=None, pad_edge=False, caption=f"{hidden} not shown" if hidden else None)
        table.caption_justify = "left"
        for title in ("job", "state", "steps", "score", "steps/s", ""):
            right = title.startswith("steps")
            table.add_column(title, no_wrap=title not in ("job", ""), justify="right" if right else "left")
        for job in self.jobs:
            state = states[job.name]
            if job.name in shown:
                far = "" if state.step is None else f"{state.step:,} of {job.values['total_steps']:,}"
                speed = "" if state.speed is None else f"{state.speed:,.0f}"
                note = _first_line(state.error) or (f"on {state.owner}" if state.owner else "")
                name, note_text = (Text(text, no_wrap=True, overflow="ellipsis") for text in (job.name, note))
                table.add_row(name, Text(state.state, STYLES[state.state]), far, state.score, speed, note_text)
        return table

    def _say(self, text: str) -> None:
        if not self.quiet:
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=sys.stderr, flush=True)


def _outcome(state: JobState) -> str:
    speed = "" if state.speed is None else f"{state.speed:,.0f} steps/s"
    return ", ".join(part for part in ("finished", state.score, speed) if part)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
