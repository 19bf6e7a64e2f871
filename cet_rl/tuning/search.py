"""Run trials side by side until there are enough: a run for each seed, compared with earlier trials on the way.

A trial belongs to the process that has its lock. A trial that an earlier search has left open, because it was
stopped or killed or the disk was full, is resumed from its run's checkpoint before any new one is drawn. Several
searches, on machines that share the folder and a storage made for that, share the trials.
"""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import numpy as np

from cet_rl.report.reading import logged, read_columns
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.lock import EXIT_BUSY, Lock, lock_owners
from cet_rl.runs.process import Interruption
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.worker import EXIT_FINISHED, EXIT_INTERRUPTED, STOPPED, Launcher, Worker, record_failure
from cet_rl.traces.base import FloatArray
from cet_rl.tuning.file import SearchFile
from cet_rl.tuning.study import POINTS, STATES, SearchFolder, best_trial, describe_params, write_outcome

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

TICK = 0.2  # seconds between two looks at the runs

_DISK_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


@dataclass(frozen=True)
class TrialResult:
    """Describe how a trial ended.

    It is PRUNED if it was worse than others or diverged, and RUNNING if a later search is to resume it.
    """

    state: Literal["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    score: float | None = None  # mean over seeds, None unless complete
    reason: str = ""  # why it has failed, was pruned or cannot go on now


@dataclass(eq=False)
class TrialRun:
    """Run one trial: a run for each seed, one after the other.

    The caller holds `lock`, and releases it when `poll` has returned a result. If the trial is resumed, runs that
    failed are tried again. Raises ValueError if its parameters cannot be run.
    """

    search: SearchFile
    trial: Trial
    folder: SweepFolder
    launcher: Launcher
    lock: Lock
    resumed: bool

    def __post_init__(self) -> None:
        self._sweep = self.search.sweep(self.trial.params)
        self._curves: list[tuple[FloatArray, FloatArray]] = []  # of the seeds that have ended
        self._reported = set(self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values)
        self._worker: Worker | None = None
        self._pruning = self._stopping = False
        self.folder.open_for(self._sweep)

    def stop(self) -> None:
        """Ask its run to save its checkpoint and end; the trial stays open."""
        self._stopping = True
        if self._worker is not None:
            self._worker.stop()

    def poll(self) -> TrialResult | None:
        """Start the next run if none is under way; return the trial's result once there is one, else None."""
        if self._worker is None:
            if self._stopping:
                return TrialResult("RUNNING")
            (self._worker,) = self.launcher.submit(self.folder, [self._name], retry=self.resumed)
        status = self._worker.poll()
        if status is None:
            if not self._pruning and not self._stopping and self._compare() and self.trial.should_prune():
                self._pruning = True
                self._worker.stop()
            return None
        self._worker = None
        if self._pruning:
            return self._pruned()
        if status == EXIT_BUSY or status in STOPPED:
            return TrialResult("RUNNING")
        return self._next() if status == EXIT_FINISHED else self._failed(status)

    @property
    def _name(self) -> str:
        return self._sweep.jobs[len(self._curves)].name

    def _next(self) -> TrialResult | None:
        """Return the trial's result after a run has finished, None if another run comes next."""
        compared = self._compare(ended=True)
        self._curves.append(self._curve(self._name))
        if len(self._curves) < len(self._sweep.jobs):
            return self._pruned() if compared and self.trial.should_prune() else None
        key = self.search.metric.key
        metrics = [self.folder.summary(job.name).get("metrics") or {} for job in self._sweep.jobs]
        scores = [found[key] for found in metrics if found.get(key) is not None]
        if len(scores) < len(metrics):
            missing = f"{len(metrics) - len(scores)} of {len(metrics)}"
            return TrialResult("FAIL", reason=f"{key} is missing in {missing} summaries")
        return TrialResult("COMPLETE", score=math.fsum(scores) / len(scores))

    def _pruned(self) -> TrialResult:
        share = max(self._reported, default=0) / (POINTS * len(self._sweep.jobs))
        return TrialResult("PRUNED", reason=f"at {share:.0%}")

    def _failed(self, status: int) -> TrialResult:
        reason = record_failure(self.folder, self._name, status)
        if any(text in reason for text in _DISK_FULL):
            return TrialResult("RUNNING", reason=reason)
        # Pruned, not failed: the sampler learns to keep away from parameters with which runs diverge.
        return TrialResult("PRUNED" if reason.startswith("FloatingPointError") else "FAIL", reason=reason)

    def _curve(self, name: str) -> tuple[FloatArray, FloatArray]:
        """Return steps and values of a run's curve; empty without any."""
        try:
            wanted = {MetricsTable.STEP, self.search.curve.key}
            columns = read_columns(self.folder.run_path(name) / "metrics.csv", wanted.__contains__)
        except (OSError, ValueError):  # there is none yet
            columns = {}
        return logged(columns, MetricsTable.STEP, self.search.curve.key)

    def _compare(self, *, ended: bool = False) -> bool:
        """Report the new points of the run's curve to Optuna; return whether there were any.

        A point of the k-th seed is the mean over the first k seeds, as in the trials that it is compared with.
        """
        steps, values = self._curve(self._name)
        if not len(steps):
            return False
        curves = [curve for curve in [*self._curves, (steps, values)] if len(curve[0])]
        sign = 1.0 if self.search.curve.higher_is_better == self.search.metric.higher_is_better else -1.0
        total = self._sweep.jobs[0].values["total_steps"]
        new = False
        for point in range(1, POINTS + 1):
            at, place = total * point / POINTS, len(self._curves) * POINTS + point
            if place in self._reported or at < steps[0] or (at > steps[-1] and not ended):
                continue
            self.trial.report(sign * float(np.mean([np.interp(at, *curve) for curve in curves])), place)
            self._reported.add(place)
            new = True
        return new


@dataclass(eq=False)
class Search:
    """Run one session of a search: until there are `trials` trials, or until it is interrupted."""

    search: SearchFile
    folder: SearchFolder
    study: Study
    launcher: Launcher  # its capacity is the number of trials that run at a time
    trials: int  # those of earlier sessions included
    quiet: bool = False

    def __post_init__(self) -> None:
        self.interruption = Interruption()
        self._running: list[TrialRun] = []
        self._seen: set[int] = set()  # trials begun or resumed in this session
        self._ended, self._since = 0, time.monotonic()  # trials that have ended, and start of the session

    def run(self) -> int:
        """Run until there are enough trials; return 0, 1 if no trial has finished, or 130 if interrupted.

        Raises OSError if the disk is full; the next search resumes the trials that were under way.
        """
        done = self._begun()
        left = f"; going on to {self.trials}" if done < self.trials else ""
        self._say(f"search folder {self.folder.path}")
        self._say(f"{done} trials so far{left}; {self.launcher.capacity} at a time")
        with self.interruption.watched():
            try:
                self._run()
            finally:
                for run in self._running:
                    run.stop()
                while self._running:
                    list(self._results())
                    time.sleep(TICK)
        write_outcome(self.folder, self.search, self.study)
        if self.interruption.wanted:
            self._say("interrupted; the same command goes on")
            return EXIT_INTERRUPTED
        return 0 if best_trial(self.study) is not None else 1

    def _run(self) -> None:
        stopping, more = False, True
        while True:
            if self.interruption.wanted and not stopping:
                stopping = True
                for run in self._running:
                    run.stop()
            for trial, result in self._results():
                self._conclude(trial, result)
                more = True
            while more and not stopping and len(self._running) < self.launcher.capacity:
                more = self._start_one()
            if not self._running and (stopping or not more):
                return
            time.sleep(TICK)

    def _results(self) -> Iterator[tuple[Trial, TrialResult]]:
        """Yield the trials that have ended and their results; their locks are released."""
        for run in list(self._running):
            result = run.poll()
            if result is not None:
                self._running.remove(run)
                run.lock.release()
                yield run.trial, result

    def _all(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _begun(self) -> int:
        """Count the trials, without those that are only queued in the study."""
        return sum(trial.state.name != "WAITING" for trial in self._all())

    def _start_one(self) -> bool:
        """Resume a trial that no process runs, or begin a new one; return False if there are enough."""
        from optuna import Trial

        owners = lock_owners(self.folder.locks)
        for frozen in self._all():
            left_behind = frozen.state.name == "RUNNING" and self.folder.lock(frozen.number).name not in owners
            if left_behind and frozen.number not in self._seen:
                self._begin(Trial(self.study, frozen._trial_id), resumed=True)
                return True
        if self._begun() >= self.trials:
            return False
        self._begin(self.study.ask(), resumed=False)
        return True

    def _begin(self, trial: Trial, *, resumed: bool) -> None:
        self._seen.add(trial.number)
        lock = self.folder.lock(trial.number)
        if not lock.acquire():  # another search was faster
            return
        if self._all()[trial.number].state.name != "RUNNING":
            lock.release()
            return
        for name, distribution in self.search.space.items():
            trial._suggest(name, distribution)
        same = next((t for t in self._all() if t.state.name == "COMPLETE" and t.params == trial.params), None)
        try:
            if same is None:
                folder = SweepFolder(self.folder.trial_path(trial.number))
                self._running.append(TrialRun(self.search, trial, folder, self.launcher, lock, resumed))
                if resumed:
                    self._say(f"trial {trial.number} goes on: {describe_params(trial.params)}")
                return
            result = TrialResult("COMPLETE", same.value, f"the same as trial {same.number}")
        except ValueError as error:
            result = TrialResult("FAIL", reason=str(error))
        lock.release()
        self._conclude(trial, result)

    def _conclude(self, trial: Trial, result: TrialResult) -> None:
        from optuna.trial import TrialState

        if result.state == "RUNNING":
            if result.reason:
                again = "the same command takes it up again"
                raise OSError(f"trial {trial.number} cannot go on: {result.reason}; {again}")
            return
        if result.reason:
            trial.set_user_attr("reason", result.reason)
        self.study.tell(trial, result.score, state=TrialState[result.state], skip_if_finished=True)
        write_outcome(self.folder, self.search, self.study)
        best = best_trial(self.study)
        metric, score, params = self.search.metric.key, result.score, describe_params(trial.params)
        what = STATES[result.state] if score is None else f"{metric} {score:.6g}"
        reason = f" ({' '.join(result.reason.split())})" if result.reason else ""
        so_far = f"; best {best.value:.6g}, trial {best.number}" if best is not None else ""
        self._ended += 1
        waiting = self.trials - sum(each.state.is_finished() for each in self._all())
        pace = (time.monotonic() - self._since) / self._ended
        left = f"; about {timedelta(seconds=round(pace * waiting))} left" * (waiting > 0)
        self._say(f"[{trial.number + 1}/{self.trials}] {what}{reason}: {params}{so_far}{left}")

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)
