"""One trial: a run for each seed, one after another, compared with the other trials on the way."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cet_rl.report.reading import FloatArray, read_columns
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.lock import EXIT_BUSY, Lock
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Sweep
from cet_rl.sweeps.launcher import Job, Launcher
from cet_rl.sweeps.states import look, read_summary
from cet_rl.sweeps.worker import EXIT_FINISHED, EXIT_INTERRUPTED, note_failure
from cet_rl.tuning.spec import TuningSpec
from cet_rl.tuning.study import POINTS

if TYPE_CHECKING:
    from optuna import Trial

AGAIN = 1.0
"""Seconds until a run is started again that a worker left behind by a killed search is still saving."""

_STOPPED = (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True)
class Outcome:
    """What has become of a trial.

    Attributes:
        state: complete; pruned, stopped because it was worse than others, or because its numbers grew beyond
            bounds; failed; or open, to be gone on with.
        score: mean over seeds; None unless complete.
        reason: why it failed or was pruned; empty otherwise.
    """

    state: Literal["complete", "pruned", "failed", "open"]
    score: float | None = None
    reason: str = ""


class TrialRun:
    """A trial under way.

    Args:
        spec: of the search.
        trial: Optuna's.
        params: that it has.
        sweep: its runs, seed by seed.
        folder: of these.
        launcher: that runs them.
        lock: held, released when the trial ends; `lost` is set should it be gone.
    """

    def __init__(
        self,
        spec: TuningSpec,
        trial: Trial,
        params: Mapping[str, Any],
        sweep: Sweep,
        folder: SweepFolder,
        launcher: Launcher,
        lock: Lock,
    ) -> None:
        self.spec, self.trial, self.params, self.lock = spec, trial, dict(params), lock
        self._sweep, self._folder, self._launcher = sweep, folder, launcher
        self._curves: list[tuple[FloatArray, FloatArray]] = []  # of the seeds that have ended
        self._reported = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        self._job: Job | None = None
        self._looked = 0
        self._not_before = 0.0
        self._pruning = self._stopping = False
        folder.claim(sweep)

    @property
    def share(self) -> float:
        """How much of its budget it has used, as far as it has been compared."""
        return max(self._reported, default=0) / (POINTS * len(self._sweep.cells))

    def stop(self) -> None:
        """Have its run save where it is and end; the trial stays open."""
        self._stopping = True
        if self._job is not None:
            self._job.stop()

    def poll(self) -> Outcome | None:
        """Look at the run and start the next one; what has become of the trial, None while it goes on."""
        if self._job is None:
            if self._stopping:
                return Outcome("open")
            if time.monotonic() < self._not_before:
                return None
            self._job = self._launcher.submit(self._folder, [self._cell], retry=False)[0]
        status = self._job.poll()
        if status is None:
            if not self._pruning and not self._stopping and self._compare() and self.trial.should_prune():
                self._pruning = True
                self._job.stop()
            return None
        self._job = None
        if self._pruning:
            return Outcome("pruned", reason=f"at {self.share:.0%}")
        return self._ended(status)

    @property
    def _cell(self) -> str:
        return self._sweep.cells[len(self._curves)].name

    def _ended(self, status: int) -> Outcome | None:
        """What follows from the end of a run."""
        if status == EXIT_BUSY:
            self._not_before = time.monotonic() + AGAIN
            return None
        if status in _STOPPED:
            return Outcome("open")
        if status != EXIT_FINISHED:
            return self._failed(status)
        compared = self._compare(ended=True)
        self._curves.append(self._curve(self._cell))
        self._looked = 0
        if len(self._curves) < len(self._sweep.cells):
            worse = compared and self.trial.should_prune()
            return Outcome("pruned", reason=f"at {self.share:.0%}") if worse else None
        return self._score()

    def _failed(self, status: int) -> Outcome:
        state = look(self._folder, self._cell)
        reason = state.error
        if state.state != "failed":
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            reason = f"its process {how}"
            note_failure(self._folder, self._cell, reason)
        # A search should learn to keep away from where numbers grow beyond bounds.
        return Outcome("pruned" if reason.startswith("FloatingPointError") else "failed", reason=reason)

    def _score(self) -> Outcome:
        found = [
            ((read_summary(self._folder, cell.name) or {}).get("metrics") or {}).get(self.spec.metric)
            for cell in self._sweep.cells
        ]
        scores = [score for score in found if score is not None]
        if len(scores) < len(found):
            missing = f"{len(found) - len(scores)} of {len(found)}"
            return Outcome("failed", reason=f"{self.spec.metric} is missing in {missing} summaries")
        return Outcome("complete", score=math.fsum(scores) / len(scores))

    def _curve(self, cell: str) -> tuple[FloatArray, FloatArray]:
        """Steps and values of a run's curve; empty without any."""
        names = (MetricsTable.STEP, self.spec.curve)
        nothing = np.empty(0)
        try:
            columns = read_columns(self._folder.run_path(cell) / "metrics.csv", names.__contains__)
        except (OSError, ValueError):  # there is none yet
            return nothing, nothing
        steps, values = (columns.get(name, nothing) for name in names)
        if len(steps) != len(values):
            return nothing, nothing
        both = np.isfinite(steps) & np.isfinite(values)
        return steps[both], values[both]

    def _compare(self, *, ended: bool = False) -> bool:
        """Report what the run has come to since; whether there was anything.

        At a point of the k-th seed that is the mean over the first k seeds: other trials have come to it in the
        same way.
        """
        try:
            changed = (self._folder.run_path(self._cell) / "metrics.csv").stat().st_mtime_ns
        except OSError:
            return False
        if changed == self._looked and not ended:
            return False
        self._looked = changed
        steps, values = self._curve(self._cell)
        if not len(steps):
            return False
        curves = [curve for curve in [*self._curves, (steps, values)] if len(curve[0])]
        sign = 1.0 if self.spec.curve_direction == self.spec.direction else -1.0
        total = self._sweep.cells[0].values["total_steps"]
        new = False
        for point in range(1, POINTS + 1):
            at, place = total * point / POINTS, len(self._curves) * POINTS + point
            if place in self._reported or at < steps[0] or (at > steps[-1] and not ended):
                continue
            mean = float(np.mean([np.interp(at, *curve) for curve in curves]))
            self.trial.report(sign * mean, place)
            self._reported.add(place)
            new = True
        return new
