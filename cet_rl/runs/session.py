"""A run in a folder, for learners of our own: learn, log, save, evaluate, summarise.

Reinforcement learning goes through Stable-Baselines3's loop instead (`cet_rl.rl.training`).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cet_rl.runs.config import RunConfig
from cet_rl.runs.ending import to_its_end
from cet_rl.runs.events import purge_events
from cet_rl.runs.files import naming
from cet_rl.runs.folder import MetricsTable, RunFolder, Status, checkpoint_interval
from cet_rl.runs.interrupt import Interruption
from cet_rl.runs.machine import set_threads
from cet_rl.runs.progress import Display
from cet_rl.traces.plot import kernel_figure

LEAST_POINTS = 50
"""Logged in a run."""


class Learner(Protocol):
    """What can be run.

    Attributes:
        step: how far it has come, in the unit of the configuration's `total_steps`.
    """

    step: int

    def advance(self, limit: int, *, measure: bool) -> Tensor:
        """Learn a little, at least one step and not beyond `limit`; the loss.

        With `measure`, have `measurements` ready when it comes to `limit`.
        """

    @property
    def loss_sum(self) -> Tensor:
        """Of all losses since the last `take_loss`."""

    def take_loss(self) -> float:
        """Mean loss since this was last asked for."""

    def measurements(self) -> Mapping[str, float]:
        """What else to log, by TensorBoard tag; nan where there is nothing."""

    def evaluate(self) -> Mapping[str, float]:
        """How good it is, by the names that summary.json has."""

    def save(self, file: Path) -> None:
        """Write everything that going on takes with `cet_rl.runs.archive.write`."""

    def load(self, file: Path) -> None:
        """Go on from where the learner stood that wrote this file."""


@dataclass(frozen=True)
class Words:
    """How a run speaks of itself.

    Args:
        agent: what learns, for the summary.
        unit: of steps: "updates".
        score: the evaluation's name that says most: "test_accuracy".
    """

    agent: str
    unit: str
    score: str


def run(
    config: RunConfig,
    folder: RunFolder,
    build: Callable[[], Learner],
    words: Words,
    *,
    resume: bool,
    checkpoint_every: int | None,
    quiet: bool,
) -> Status:
    """One go at a run in its folder, from the beginning or from its last checkpoint.

    Args:
        config: resolved.
        folder: of the run, which may be there already.
        build: makes the learner at its first step.
        words: for the summary and for people.
        resume: go on from the checkpoint of an interrupted run; without one, start afresh.
        checkpoint_every: steps from one checkpoint to the next; None for ten in the run.
        quiet: print nothing.

    Returns:
        "finished" or "interrupted".

    Raises:
        ValueError, OSError: for what cannot be, before any work is lost.
        FloatingPointError: if a number is not finite any more; the summary says "failed", and the last checkpoint
            is from before.
    """
    assert config.threads is not None
    set_threads(config.threads)
    save_every = checkpoint_interval(config.total_steps, checkpoint_every)
    # Everything that can be refused is refused before the folder is touched.
    folder.check(config.as_data(), resume=resume)
    if folder.status == "finished":
        _say(f"{folder.path} is finished; its results are in {folder.summary_file}", quiet)
        return "finished"
    learner = build()
    with folder.locked():
        if folder.claim(config.as_data(), resume=resume) == "resumed":
            learner.load(folder.checkpoint_file)
            _say(f"resuming at {learner.step:,} {words.unit}", quiet)
        _say(f"run folder {folder.path}", quiet)
        return RunLoop(config, folder, learner, words, save_every, quiet=quiet).go()


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)


class RunLog:
    """Where numbers of a run go: TensorBoard and metrics.csv.

    Args:
        folder: of the run.
        last_step: what was logged later than this is dropped, as a run that is resumed logs it again.
    """

    def __init__(self, folder: RunFolder, last_step: int = 0) -> None:
        self._folder = folder.path
        self._resumed = purge_events(folder.path, last_step)
        self._writer = SummaryWriter(str(folder.path))
        self._table = MetricsTable(folder.metrics_file, last_step)

    def describe(self, config: RunConfig, score: str) -> None:
        """Hyper-parameters and kernels for TensorBoard; nothing for a run that is resumed, which has them.

        Args:
            config: of the run.
            score: the evaluation's name that says most.
        """
        if self._resumed:
            return
        writer: Any = self._writer.file_writer
        for summary in hparams(config.as_hyperparameters(), {f"eval/{score}": 0.0}):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
        if config.delay:
            delays = config.timing.layer_delays
            traces = [config.trace_config.build(delay) for delay in delays]
            self._writer.add_figure("credit/kernel", kernel_figure(traces, delays, config.step_duration))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by TensorBoard tag; those that are not finite are left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        with naming(self._folder):
            for name, value in finite.items():
                self._writer.add_scalar(name, value, step)
        self._table.add({MetricsTable.STEP: step, **finite})

    def flush(self) -> None:
        """Hand everything to the system, which keeps it should this process be killed."""
        with naming(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        with naming(self._folder):
            self._writer.close()


class RunLoop:
    """One go at a run: from wherever the learner stands to the summary.

    Args:
        config: resolved.
        folder: claimed.
        learner: at the step it goes on from.
        words: for the summary and for people.
        save_every: steps from one checkpoint to the next.
        quiet: print nothing.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        learner: Learner,
        words: Words,
        save_every: int,
        *,
        quiet: bool,
    ) -> None:
        self.config, self.folder, self.learner = config, folder, learner
        self.words, self.unit, self.save_every, self.quiet = words, words.unit, save_every, quiet
        self.interruption = Interruption()
        self.display = Display(config.total_steps, unit=self.unit, shows="loss", digits=4)
        self.began = time.monotonic()
        self.learning_seconds = 0.0
        self.steps_before = learner.step
        self.steps_saved = learner.step

    def go(self) -> Status:
        """Run to the end, or until interrupted.

        Raises:
            FloatingPointError: if the loss is not finite any more; the summary says "failed".
            OSError: if a file cannot be written; the summary says "failed", if that can be.
        """
        self.log = RunLog(self.folder, self.steps_before)
        return to_its_end(self._learn_and_evaluate, self.interruption, self._summarise, self._close)

    def _close(self) -> None:
        self.display.close()
        self.log.close()

    def _learn_and_evaluate(self) -> Status:
        self.log.describe(self.config, self.words.score)
        if not self._learn():
            self._save()
            self._summarise("interrupted", {})
            self._say(f"interrupted at {self.learner.step:,} {self.unit}; go on with --resume")
            return "interrupted"
        found = dict(self.learner.evaluate())
        if not all(map(math.isfinite, found.values())):
            raise self._diverged()
        self._save()
        self.log.add({f"eval/{name}": value for name, value in found.items()}, self.learner.step)
        self._summarise("finished", found)
        speed = f"; {self._speed():,.0f} {self.unit}/s" if self.learning_seconds else ""
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items())
        self._say(shown + speed)
        self._say(f"curves: tensorboard --logdir {self.folder.path}")
        return "finished"

    def _learn(self) -> bool:
        """Learn to the end; False if interrupted before."""
        learner, total = self.learner, self.config.total_steps
        log_every, save_every = max(1, total // LEAST_POINTS), self.save_every
        if not self.quiet:
            self.display.start(learner.step)
        mean: float | None = None
        while learner.step < total:
            if self.interruption.wanted:
                return False
            began = time.monotonic()
            log_at = min(learner.step - learner.step % log_every + log_every, total)
            limit = min(log_at, learner.step - learner.step % save_every + save_every)
            learner.advance(limit, measure=limit == log_at)
            due = learner.step == log_at
            save = learner.step % save_every == 0 and learner.step < total
            if (due or save) and not math.isfinite(float(learner.loss_sum)):
                raise self._diverged()
            mean = learner.take_loss() if due else mean
            self.learning_seconds += time.monotonic() - began
            if due:
                values = {"train/loss": mean or 0.0, **learner.measurements(), "time/fps": self._speed() or 0.0}
                self.log.add(values, learner.step)
            if save:
                self._save()
            if not self.quiet:
                self.display.update(learner.step, mean)
        self.display.close()
        return True

    def _diverged(self) -> FloatingPointError:
        return FloatingPointError(
            f"the loss is not finite at {self.learner.step:,} {self.unit}: use a smaller --lr "
            f"({self.config.lr:g} now)"
        )

    def _save(self) -> None:
        self.log.flush()
        self.folder.save_checkpoint(self.learner.save)
        self.steps_saved = self.learner.step

    def _speed(self) -> float | None:
        made = self.learner.step - self.steps_before
        return made / self.learning_seconds if self.learning_seconds else None

    def _summarise(self, status: Status, metrics: Mapping[str, float], error: str | None = None) -> None:
        self.folder.write_summary(
            task=self.config.task,
            agent=self.words.agent,
            seed=self.config.seed,
            status=status,
            steps=self.steps_saved if status == "interrupted" else self.learner.step,
            wall_seconds=time.monotonic() - self.began,
            steps_per_second=self._speed(),
            metrics=metrics,
            error=error,
        )

    def _say(self, text: str) -> None:
        self.display.close()
        _say(text, self.quiet)
