"""The run session: everything around the learning of a run, shared by all task kinds.

A `Session` holds one run's folder, log, display, checkpoints, interruption and summary. Learners of our own plug
in as a `Learner`; `run` drives one of them, or several that take their steps together, each in a folder of its
own. Reinforcement learning drives a session from Stable-Baselines3's callbacks (`cet_rl.rl.training`).
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from cet_rl.runs.config import RunConfig, check_batch
from cet_rl.runs.folder import EVALUATED, RunFolder, Status, checkpoint_interval, default_path
from cet_rl.runs.learner import L, LearnerBatch
from cet_rl.runs.log import Display, RunLog
from cet_rl.runs.process import Interruption, set_threads
from cet_rl.runs.task_kinds import TaskKind
from cet_rl.runs.tracking import Tracker, TrackerName, check_tracker, start_tracker

LOGGED_POINTS = 50  # points logged in a run


T = TypeVar("T")


class SessionOptions(TypedDict, total=False):
    """Hold the options of a run that are no part of its configuration, see `cet_rl.rl.train`."""

    resume: bool
    checkpoint_every: int | None
    quiet: bool
    track: TrackerName | None


class SharedTime:
    """Divide the time from now on among runs that learn together."""

    def __init__(self, runs: int) -> None:
        self._runs, self._each, self._last = runs, 0.0, time.monotonic()

    def leave(self) -> float:
        """Return the share of each run in seconds until now, when one of them ends."""
        now = time.monotonic()
        self._each += (now - self._last) / self._runs
        self._last, self._runs = now, max(self._runs - 1, 1)
        return self._each


class Session:
    """Hold what a run needs besides its learner.

    Call `begin` in a folder that `opened` has opened, then learn within `run_and_summarize`. Raises ValueError for
    a folder that cannot be used; nothing in it is touched before it is opened.

    The configuration is a resolved one; `agent` is the name of the learner in the summary. Runs that learn
    together share an interruption, and are not `alone`. Other arguments are those of `cet_rl.rl.train`. `status`
    says how the run ended, None before, and `next_save` at which step the next checkpoint is due.
    """

    resumed = False  # whether there was a checkpoint when the folder was opened

    def __init__(
        self,
        config: RunConfig,
        kind: TaskKind,
        run_dir: str | Path | None,
        agent: str,
        *,
        resume: bool = False,
        checkpoint_every: int | None = None,
        quiet: bool = False,
        track: TrackerName | None = None,
        interruption: Interruption | None = None,
        alone: bool = True,
    ) -> None:
        self.kind, self.agent, self.quiet, self._track, self._alone = kind, agent, quiet, track, alone
        check_tracker(track)
        self.folder = RunFolder(run_dir or default_path(config), kind.checkpoint)
        self.config = config = self.folder.as_begun(config)
        self.resume, self._save_every = resume, checkpoint_interval(config.total_steps, checkpoint_every)
        self.folder.check_usable(config.as_data(), resume=resume)
        self.interruption = interruption or Interruption()
        self.display = Display(config.total_steps, kind, quiet=quiet)
        self.status: Status | None = None
        self._time, self._closing = SharedTime(1), ExitStack()
        self.step: Callable[[], int] = lambda: 0
        self._seconds, self._pieces = 0.0, 0
        self._first = self._counted = self._saved = 0

    def announce_if_finished(self) -> bool:
        """Tell the user if the folder holds the finished run, and return whether it does."""
        if line := self.folder.finished:
            self.say(line)
        return bool(line)

    def open(self, load: Callable[[], object]) -> None:
        """Open the locked folder, and `load` its checkpoint if there is one."""
        self.resumed = self.folder.open_for(self.config.as_data(), resume=self.resume)
        if self.resumed:
            load()

    def begin(self, step: Callable[[], int], shared_time: SharedTime) -> None:
        """Start the log, with a function that returns the learner's step."""
        self.step, self._first, self._counted, self._time = step, step(), step(), shared_time
        self._note_saved()
        with ExitStack() as started:  # should the log not start, the tracker's run ends
            tracker = start_tracker(self._track, self.config.as_data(), self.folder.path, resumed=self.resumed)
            started.callback(self._close_tracker, tracker)
            self.log = RunLog(self.folder, self._first if self.resumed else None, tracker)
            started.callback(self.log.close)
            self._closing = started.pop_all()
        self.say(f"run folder {self.folder.path}")

    def save(self, state: dict[str, Any], runtime_state: object = None) -> None:
        """Write a checkpoint of the learner as it is now; see `RunFolder.save_checkpoint`."""
        self.log.flush()
        self.folder.save_checkpoint(state, runtime_state)
        self._note_saved()

    def _note_saved(self) -> None:
        """Set `next_save` to a multiple of the interval, so that resumed runs save where others do."""
        self._saved = self.step()
        self.next_save = self._saved - self._saved % self._save_every + self._save_every

    def speed(self) -> float | None:
        """Return the steps per second of learning; None before any."""
        return (self._counted - self._first) / self._seconds if self._seconds else None

    def count(self, seconds: float) -> None:
        """Count the seconds that learning up to the present step has taken since the last call.

        The first piece of a run includes start-up and compilation, so that it does not count any more as soon as
        there is another.
        """
        if self._pieces == 1:
            self._first, self._seconds = self._counted, 0.0
        self._pieces += 1
        self._counted = self.step()
        self._seconds += seconds

    def show(self, number: float | None) -> None:
        """Show the step, a number that says how well the run goes, and from the second piece on its speed."""
        self.display.update(self._counted, number, self.speed() if self._pieces > 1 else None)

    def interrupt(self, metrics: Mapping[str, float | None]) -> Status:
        """End the run, whose checkpoint has been saved, with a summary that says "interrupted"."""
        self.summarize("interrupted", metrics)
        here = shlex.quote(str(self.folder.path))
        self.say(f"interrupted at {self._saved:,} {self.kind.unit}; next: cet-rl train --run-dir {here} --resume")
        return "interrupted"

    def finish(self, metrics: Mapping[str, float | int | None], text: str) -> Status:
        """End the run with a summary that says "finished", and print `text` and the speed."""
        self.summarize("finished", metrics)
        speed = self.speed()
        self.say(text + (f"; {speed:,.0f} {self.kind.unit}/s" if speed else ""))
        here = shlex.quote(str(self.folder.path))
        self.say(f"curves: tensorboard --logdir {here}")
        self.say(f"figures: cet-rl report {here}")
        return "finished"

    def fail(self, error: Exception) -> None:
        """End the run with a summary that says "failed", if that can be written."""
        self.status = "failed"
        with suppress(OSError):  # the error itself is what matters
            self.summarize("failed", {}, error=f"{type(error).__name__}: {error}")

    def summarize(self, status: Status, metrics: Mapping[str, float | int | None], **more: str) -> None:
        """Write summary.json."""
        speed = self.speed()
        self.folder.write_summary(
            task=self.config.task,
            agent=self.agent,
            seed=self.config.seed,
            status=status,
            steps=self._saved if status == "interrupted" else self.step(),
            wall_seconds=round(self._time.leave(), 3),
            steps_per_second=speed and round(speed, 1),
            metrics=metrics,
            **more,
        )
        self.status = status

    def say(self, text: str) -> None:
        """Print a line for the user, unless the run is quiet."""
        self.display.close()
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def attempt(self, act: Callable[..., object], *given: Any) -> None:
        """Call `act` unless the run has ended; an error ends the run, or is raised if it learns alone."""
        if self.status is None:
            try:
                act(*given)
            except Exception as error:
                if self._alone:
                    raise
                self.fail(error)
                self.say(f"{self.folder.path} failed: {error}")

    def close(self) -> None:
        """Close display, log and tracker."""
        self.display.close()
        self._closing.close()

    def _close_tracker(self, tracker: Tracker | None) -> None:
        if tracker is not None:
            with suppress(Exception):  # the run itself has ended well, or its error is what matters
                tracker.close(self.status)


def batch_sessions(
    configs: Sequence[RunConfig], folders: Sequence[str | Path] | None, session: Callable[..., Session]
) -> list[Session]:
    """Return sessions, made by `session`, of runs that learn together: they share an interruption, and resume.

    Raises ValueError unless the resolved configurations can be batched, and each has a folder of its own, by
    default that of `default_path`.
    """
    check_batch(configs)
    paths = [Path(folder) for folder in folders or map(default_path, configs)]
    if len(paths) != len(configs) or len(set(paths)) < len(configs):
        raise ValueError("every run of a batch needs a folder of its own")
    shared: dict[str, Any] = {"resume": True, "interruption": Interruption(), "alone": len(paths) == 1}
    return [session(config, path, **shared) for config, path in zip(configs, paths, strict=True)]


@contextmanager
def opened(
    sessions: Sequence[Session], build: Callable[[Session], T], load: Callable[[Session, T], object]
) -> Iterator[list[tuple[Session, T]]]:
    """Hold the folders of unfinished runs locked and open while the block runs; yield runs and learners.

    `build` makes a learner, at its first step, before anything is touched; `load` brings it to the checkpoint of
    its run. Of several runs, one whose checkpoint cannot be loaded fails alone; a locked folder ends all.
    """
    set_threads(sessions[0].config.threads)
    pairs = [(session, build(session)) for session in sessions if not session.announce_if_finished()]
    with ExitStack() as locks:
        for session, _ in pairs:
            locks.enter_context(session.folder.locked())
        # Another process may have finished one while this one waited.
        pairs = [(session, learner) for session, learner in pairs if not session.announce_if_finished()]
        for session, _ in pairs:  # no summary may be written to another run's folder
            session.folder.check_usable(session.config.as_data(), resume=session.resume)
        for session, learner in pairs:
            session.attempt(session.open, partial(load, session, learner))
        yield [(session, learner) for session, learner in pairs if session.status is None]


def run_and_summarize(sessions: Sequence[Session], learn: Callable[[], Status]) -> Status:
    """Let begun runs, which share an interruption, learn; leave summaries and closed files however that ends.

    `learn` itself writes the summaries of runs that end or are interrupted. A second Ctrl-C ends the runs without
    asking it. Whatever else it raises is raised, after summaries that say "failed".
    """
    try:
        with sessions[0].interruption.watched():
            return learn()
    except KeyboardInterrupt:
        for session in sessions:
            if session.status is None:
                session.summarize("interrupted", {})
        return "interrupted"
    except Exception as error:
        for session in sessions:
            if session.status is None:
                session.fail(error)
        raise
    finally:
        with suppress(OSError) if sys.exc_info()[0] else nullcontext(), ExitStack() as closing:
            for session in sessions:
                closing.callback(session.close)  # all of them, though closing one may fail


def run(
    sessions: Sequence[Session], build: Callable[[Any], L], join: type[LearnerBatch[L]] = LearnerBatch
) -> Status:
    """Run learners in their folders, each from the beginning or from its last checkpoint; see `opened`.

    `build` makes the learner of a configuration, at its first step, and `join` lets those at the same step take
    their steps together; those at other steps come one group after the other. Returns "interrupted", or "finished"
    when all runs have ended; each session's status says how. Raises whatever ended all runs, or the only one, such
    as FloatingPointError for a number that is not finite; the last checkpoint is from before.
    """

    def make(session: Session) -> L:
        learner = build(session.config)
        session.config = learner.config  # with the choices that it has made
        return learner

    def load(session: Session, learner: L) -> None:
        learner.load(session.folder.checkpoint_file)
        session.say(f"resuming at {learner.step:,} {session.kind.unit}")

    ended: list[Status] = []
    with opened(sessions, make, load) as runs:
        for step in sorted({learner.step for _, learner in runs}):
            group = [(session, learner) for session, learner in runs if learner.step == step]
            loop = _Loop([session for session, _ in group], join([learner for _, learner in group]))
            time_shared = SharedTime(len(group))
            for session in loop.sessions:
                session.attempt(session.begin, lambda loop=loop: loop.batch.step, time_shared)
            ended.append(run_and_summarize(loop.sessions, loop.run))  # at once if the last one was interrupted
    return "interrupted" if "interrupted" in ended else "finished"


class _Loop:
    """Let runs learn together to their end."""

    def __init__(self, sessions: Sequence[Session], batch: LearnerBatch[Any]) -> None:
        self.sessions, self.batch = sessions, batch
        self._first = sessions[0]  # all have the same interruption, steps and intervals

    def run(self) -> Status:
        """Learn until the end or an interruption."""
        score = self._first.kind.scores[0].on(getattr(self._first.config, "held_out", "test"))
        self._each(lambda run: run.log.describe(run.config, [f"{EVALUATED}{score.key}"], kernels=True))
        if not self._learn():
            self._each(Session.save, self.batch.states())
            self._each(lambda run: run.interrupt({}))
            return "interrupted"
        if self._active():
            found = self.batch.evaluate()
            self._each(self._check_finite, [sum(values.values()) for values in found])
            self._each(self._finish, found, self.batch.states())
        return "finished"

    def _active(self) -> list[Session]:
        return [session for session in self.sessions if session.status is None]

    def _each(self, act: Callable[..., object], *values: Sequence[Any]) -> None:
        """Call `act` with each run that has not ended and its values; an error ends the run it belongs to."""
        for session, *given in zip(self.sessions, *values, strict=True):
            session.attempt(act, session, *given)

    def _learn(self) -> bool:
        """Learn to the end, and return False if interrupted before."""
        batch, first, total = self.batch, self._first, self._first.config.total_steps
        log_every = max(1, total // LOGGED_POINTS)
        first.display.start(batch.step)
        mean: float | None = None
        while batch.step < total and (active := self._active()):
            if first.interruption.wanted:
                return False
            began = time.monotonic()
            log_at = min(batch.step - batch.step % log_every + log_every, total)
            save_at = active[0].next_save
            batch.advance(min(log_at, save_at), measure=log_at <= save_at)
            log, save = batch.step == log_at, batch.step == save_at and batch.step < total
            if log or save:
                self._each(self._check_finite, batch.loss_sums())
            losses = batch.take_losses() if log else []
            seconds = time.monotonic() - began
            for session in self.sessions:
                session.count(seconds)
            if log:
                self._each(self._log, losses, batch.measurements())
                known = [loss for loss, run in zip(losses, self.sessions, strict=True) if run.status is None]
                mean = sum(known) / max(len(known), 1)
            if save:
                self._each(Session.save, batch.states())
            first.show(mean)
        first.display.close()
        return True

    def _check_finite(self, session: Session, number: float) -> None:
        if not math.isfinite(number):
            raise FloatingPointError(
                f"the loss is not finite at {self.batch.step:,} {session.kind.unit}: use a smaller --lr "
                f"({session.config.lr:g} now)"
            )

    def _log(self, session: Session, loss: float, measurements: Mapping[str, float]) -> None:
        session.log.add({"train/loss": loss, **measurements, "time/fps": session.speed() or 0.0}, self.batch.step)

    def _finish(self, session: Session, found: Mapping[str, float], state: dict[str, Any]) -> None:
        session.save(state)
        session.log.add_evaluation(found, self.batch.step)
        scores = [score.on(getattr(session.config, "held_out", "test")) for score in session.kind.scores]
        text = ", ".join(f"{score.title} {score.show(found[score.key])}" for score in scores)
        session.finish(found, text if len(self.sessions) == 1 else f"{session.folder.path}: {text}")
