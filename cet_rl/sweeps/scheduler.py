"""Runs the cells of a sweep until none is left: which one comes next, what became of it, Ctrl-C.

Every cell is started at most once in a go. Several schedulers, on one machine or more, may share a folder: locks
part the cells between them, and each waits for what the others run, to take it over should they die.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence

from cet_rl.runs.lock import EXIT_BUSY
from cet_rl.runs.terminal import Interruption
from cet_rl.sweeps.display import SweepDisplay, counts
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Cell, Sweep
from cet_rl.sweeps.launcher import Job, Launcher
from cet_rl.sweeps.results import write_results
from cet_rl.sweeps.states import CellState, look_at_all
from cet_rl.sweeps.worker import EXIT_FINISHED, EXIT_INTERRUPTED, note_failure

TICK = 0.1
"""Seconds between two looks at the workers."""
GLANCE = 1.0
"""Seconds between two looks at the folder."""

_STOPPED = (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
"""Exit statuses of a worker that was asked to stop."""


def run_sweep(
    sweep: Sweep, folder: SweepFolder, launcher: Launcher, *, retry: bool = False, quiet: bool = False
) -> int:
    """Run all cells that are not finished yet.

    Args:
        sweep: what to run.
        folder: where; taken over from an earlier go at the same sweep.
        launcher: what runs the cells.
        retry: run those that have failed again.
        quiet: print nothing but errors.

    Returns:
        The exit status: 0 if all cells are finished, 1 if some have failed or been stopped, 130 if interrupted.

    Raises:
        ValueError: if the folder is not this sweep's, before anything is written.
        OSError: if it cannot be written.
    """
    new = folder.claim(sweep)
    if 0 < new < len(sweep.cells) and not quiet:
        print(f"{folder.path} has {new} cells more than before", file=sys.stderr, flush=True)
    return _Go(sweep.cells, folder, launcher, retry=retry, quiet=quiet).go()


class _Go:
    """One go at a sweep."""

    def __init__(
        self, cells: Sequence[Cell], folder: SweepFolder, launcher: Launcher, *, retry: bool, quiet: bool
    ) -> None:
        self.cells, self.folder, self.launcher = cells, folder, launcher
        self.display = SweepDisplay(cells, launcher.capacity, quiet=quiet)
        self.interruption = Interruption()
        self.jobs: dict[str, Job] = {}
        self.states: dict[str, CellState] = look_at_all(folder, cells)
        failed = {name for name, state in self.states.items() if state.state == "failed"}
        self.to_retry = failed if retry else set()
        self.started: set[str] = set()
        self._looked = time.monotonic()

    def go(self) -> int:
        self.display.start(self.folder, self.states)
        try:
            with self.interruption.watched():
                self._run()
        except KeyboardInterrupt:
            self._end(kill=True)
        finally:
            self._end(kill=False)
            self.display.close()
        self.states = look_at_all(self.folder, self.cells, self.states)
        self.display.conclude(self.folder, self.states)
        write_results(self.folder, self.cells, self.states)
        if counts(self.states)["finished"] == len(self.cells):
            return 0
        return EXIT_INTERRUPTED if self.interruption.wanted else 1

    def _run(self) -> None:
        stopping = False
        while True:
            if self.interruption.wanted and not stopping:
                stopping = True
                self.display.stopping(len(self.jobs))
                for job in self.jobs.values():
                    job.stop()
            ended = self._reap()
            if ended or time.monotonic() - self._looked > GLANCE:
                self._look()
            if not stopping:
                self._start()
            if not self.jobs and (stopping or not self._running_elsewhere()):
                return
            time.sleep(TICK)

    def _reap(self) -> bool:
        """Note what has become of the workers that have ended; whether there are any."""
        ended = {name: status for name, job in self.jobs.items() if (status := job.poll()) is not None}
        for name, status in ended.items():
            del self.jobs[name]
            if status == EXIT_BUSY:
                self.started.discard(name)  # should its owner die, it is ours again
            elif status not in (EXIT_FINISHED, *_STOPPED) and not self._has_failed(name):
                note_failure(self.folder, name, self._last_words(name, status))
        return bool(ended)

    def _has_failed(self, name: str) -> bool:
        return look_at_all(self.folder, [cell for cell in self.cells if cell.name == name])[name].state == "failed"

    def _last_words(self, name: str, status: int) -> str:
        """Why a worker has died that did not say so itself."""
        if status < 0:
            hint = " (out of memory?)" if status == -signal.SIGKILL else ""
            return f"its process was killed by {signal.Signals(-status).name}{hint}"
        try:
            lines = self.folder.log_file(name).read_text(encoding="utf-8", errors="replace").split("\n")
            return next(line.strip() for line in reversed(lines) if line.strip())
        except (OSError, StopIteration):
            return f"its process ended with status {status}"

    def _look(self) -> None:
        self.states = look_at_all(self.folder, self.cells, self.states)
        self._looked = time.monotonic()
        self.display.update(self.states)

    def _start(self) -> None:
        """Start as many cells as there is room for."""
        room = self.launcher.capacity - len(self.jobs)
        if room < 1:
            return
        ready = [cell.name for cell in self.cells if self._is_ready(cell.name)][:room]
        for retry in (False, True):
            names = [name for name in ready if (name in self.to_retry) == retry]
            if names:
                for job in self.launcher.submit(self.folder, names, retry=retry):
                    self.jobs[job.cell] = job
        self.started.update(ready)

    def _is_ready(self, name: str) -> bool:
        state = self.states[name].state
        wanted = state in ("waiting", "partial") or (state == "failed" and name in self.to_retry)
        return wanted and name not in self.started

    def _running_elsewhere(self) -> bool:
        return any(state.state == "running" or self._is_ready(name) for name, state in self.states.items())

    def _end(self, *, kill: bool) -> None:
        """End all workers and wait for them."""
        for job in self.jobs.values():
            if kill:
                job.kill()
            else:
                job.stop()
        while any(job.poll() is None for job in self.jobs.values()):
            time.sleep(TICK)
        self.jobs.clear()


def show_status(sweep: Sweep, folder: SweepFolder) -> int:
    """Print what has become of the cells, and write results.csv if there is a folder that can be written; 0.

    Raises:
        ValueError: if the folder is not this sweep's.
    """
    folder.check(sweep)
    states = look_at_all(folder, sweep.cells)
    SweepDisplay(sweep.cells, 0, quiet=False).print_once(folder, states)
    if folder.path.is_dir() and counts(states)["finished"]:
        try:
            write_results(folder, sweep.cells, states)
        except OSError as error:
            print(f"{folder.results_file} not written: {error.strerror}", file=sys.stderr)
    return 0
