"""Runs trials side by side until there are enough; Ctrl-C, and going on.

A trial belongs to whoever holds its lock. One that a search left behind when it was stopped or killed is taken up
again, its run at its checkpoint, before any new one is drawn. Several searches, on machines that share the folder
and a storage made for that, part the trials between them.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from cet_rl.runs.lock import Lock, lock_owners
from cet_rl.runs.terminal import Interruption
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.launcher import Launcher
from cet_rl.sweeps.worker import EXIT_INTERRUPTED
from cet_rl.tuning.outcome import best_trial, describe_params, write_best, write_table
from cet_rl.tuning.spec import TuningSpec
from cet_rl.tuning.study import SearchFolder
from cet_rl.tuning.trial import Outcome, TrialRun

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

TICK = 0.2
"""Seconds between two looks at the runs."""


class Search:
    """One go at a search.

    Args:
        spec: what to search.
        folder: claimed.
        study: of the folder.
        launcher: that runs the trials; its capacity is how many at a time.
        trials: how many there are to be in all, those of earlier goes included.
        quiet: print nothing but errors.
    """

    def __init__(
        self,
        spec: TuningSpec,
        folder: SearchFolder,
        study: Study,
        launcher: Launcher,
        *,
        trials: int,
        quiet: bool = False,
    ) -> None:
        self.spec, self.folder, self.study, self.launcher = spec, folder, study, launcher
        self.trials, self.quiet = trials, quiet
        self.interruption = Interruption()
        self._running: list[TrialRun] = []
        self._seen: set[int] = set()  # taken up in this go

    def go(self) -> int:
        """Run until there are enough trials, or until interrupted.

        Returns:
            The exit status: 0; 1 if no trial has come to its end; 130 if interrupted.
        """
        done = self._begun()
        left = f"; going on to {self.trials}" if done < self.trials else ""
        self._say(f"search folder {self.folder.path}")
        self._say(f"{done} trials so far{left}; {self.launcher.capacity} at a time")
        with self.interruption.watched():
            try:
                self._run()
            finally:
                self._end()
        write_table(self.folder, self.spec, self.study)
        write_best(self.folder, self.spec, self.study)
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
            for run in list(self._running):
                outcome = run.poll()
                if outcome is not None:
                    self._running.remove(run)
                    run.lock.release()
                    self._conclude(run.trial, run.params, outcome)
                    more = True
            while more and not stopping and len(self._running) < self.launcher.capacity:
                more = self._start_one()
            if not self._running and (stopping or not more):
                return
            time.sleep(TICK)

    def _end(self) -> None:
        """Have what runs save where it is; nothing to do unless something went wrong."""
        for run in self._running:
            run.stop()
        while self._running:
            self._running = [run for run in self._running if run.poll() is None]
            time.sleep(TICK)

    def _all(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _begun(self) -> int:
        """How many trials there are, those that are only queued in the study apart."""
        return sum(trial.state.name != "WAITING" for trial in self._all())

    def _start_one(self) -> bool:
        """Take up a trial that nobody runs, or begin one; False if there is none to begin."""
        from optuna import Trial
        from optuna.trial import TrialState

        held = lock_owners(self.folder.locks)
        for frozen in self._all():
            left_behind = frozen.state == TrialState.RUNNING and _lock_of(frozen.number) not in held
            if left_behind and frozen.number not in self._seen:
                self._begin(Trial(self.study, frozen._trial_id), resumed=True)
                return True
        if self._begun() >= self.trials:
            return False
        self._begin(self.study.ask(), resumed=False)
        return True

    def _begin(self, trial: Trial, *, resumed: bool) -> None:
        from optuna.trial import TrialState

        self._seen.add(trial.number)
        lock = Lock(self.folder.locks, _lock_of(trial.number))
        if not lock.acquire():  # another search was faster
            return
        if self._all()[trial.number].state != TrialState.RUNNING:
            lock.release()
            return
        params = {name: dimension.suggest(trial) for name, dimension in self.spec.space.items()}
        same = self._same(trial.number)
        outcome = None
        if same is not None and same.value is not None:
            outcome = Outcome("complete", same.value, f"the same as trial {same.number}")
        else:
            try:
                sweep = self.spec.sweep(params)
            except ValueError as error:
                outcome = Outcome("failed", reason=str(error))
        if outcome is not None:
            lock.release()
            self._conclude(trial, params, outcome)
            return
        if resumed:
            self._say(f"trial {trial.number} goes on: {describe_params(params)}")
        runs = SweepFolder(self.folder.trial_path(trial.number))
        self._running.append(TrialRun(self.spec, trial, params, sweep, runs, self.launcher, lock))

    def _same(self, number: int) -> FrozenTrial | None:
        """A finished trial with the same parameters: it would come out the same."""
        from optuna.trial import TrialState

        trials = self._all()
        wanted = trials[number].params
        return next((t for t in trials if t.state == TrialState.COMPLETE and t.params == wanted), None)

    def _conclude(self, trial: Trial, params: dict[str, Any], outcome: Outcome) -> None:
        from optuna.trial import TrialState

        if outcome.state == "open":
            return
        if outcome.reason:
            trial.set_user_attr("reason", outcome.reason)
        if outcome.state == "complete":
            self.study.tell(trial, outcome.score, skip_if_finished=True)
            write_best(self.folder, self.spec, self.study)
        else:
            state = TrialState.PRUNED if outcome.state == "pruned" else TrialState.FAIL
            self.study.tell(trial, state=state, skip_if_finished=True)
        write_table(self.folder, self.spec, self.study)
        best = best_trial(self.study)
        score = f"{self.spec.metric} {outcome.score:.6g}" if outcome.score is not None else outcome.state
        reason = f" ({' '.join(outcome.reason.split())})" if outcome.reason else ""
        so_far = f"; best {best.value:.6g}, trial {best.number}" if best is not None else ""
        self._say(f"[{trial.number + 1}/{self.trials}] {score}{reason}: {describe_params(params)}{so_far}")

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)


def _lock_of(number: int) -> str:
    return f"trial-{number:04d}"
