"""A study: the runs of one task by arm and delay, with the seeds of each cell and their averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cet_rl.report.plots import FloatArray
from cet_rl.report.presentation import PRESENTATIONS, Measure, Presentation
from cet_rl.report.reading import Run
from cet_rl.report.statistics import Estimate, estimate
from cet_rl.report.text import clean
from cet_rl.runs.config import RunConfig
from cet_rl.runs.task_kinds import TaskKind


@dataclass(frozen=True, eq=False)
class Cell:
    """An arm at one delay.

    Attributes:
        delay: in seconds.
        runs: one for each seed, in their order.
        repeats: further runs of the same seeds, which count for nothing.
    """

    delay: float
    runs: tuple[Run, ...]
    repeats: tuple[Run, ...] = ()

    @property
    def config(self) -> RunConfig:
        """Of its runs, that of the first."""
        config = self.runs[0].config
        assert config is not None
        return config

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that have a result."""
        return tuple(run for run in self.runs if run.status == "finished")

    @property
    def drawn(self) -> tuple[Run, ...]:
        """The runs whose curves are shown: finished ones, or whatever there is as long as there are none."""
        return tuple(run for run in self.finished or self.runs if run.columns)

    def scores(self, measure: Measure) -> FloatArray:
        """The measure's values of finished runs, in its shown unit."""
        found = [run.metrics[measure.key] for run in self.finished if measure.key in run.metrics]
        return measure.factor * np.array(found)


@dataclass(frozen=True, eq=False)
class Arm:
    """What is compared.

    Attributes:
        label: its name, unique in its study.
        cells: by delay in seconds, increasing.
        following: options that differ between its delays.
    """

    label: str
    cells: Mapping[float, Cell]
    following: tuple[str, ...] = ()

    @property
    def undelayed(self) -> bool:
        """Whether its credit is never late."""
        return not any(self.cells)

    @property
    def config(self) -> RunConfig:
        """Of one of its cells, the one with the shortest delay."""
        return next(iter(self.cells.values())).config


@dataclass(frozen=True, eq=False)
class Study:
    """The runs of one task that can be compared with each other.

    Attributes:
        task: its name.
        held_out: what images are tested on, where there is a choice.
        stacked: whether delays add up from the output layer down.
        task_kind: of the task.
        arms: in the order in which they are shown.
        differing: for each arm's label and delay, as text, the options in which the study's configurations differ
            and that names of arms do not tell.
    """

    task: str
    held_out: str
    stacked: bool
    task_kind: TaskKind
    arms: tuple[Arm, ...]
    differing: Mapping[tuple[str, float], str]

    @property
    def title(self) -> str:
        """The task, and what is unusual about all of its runs here."""
        tested = ["tested on a validation set"] * (self.held_out == "validation")
        return ", ".join([clean(self.task, 80), *tested, *["stacked delays"] * self.stacked])

    @cached_property
    def presentation(self) -> Presentation:
        """What is shown of it."""
        return PRESENTATIONS[self.task_kind.name].filled(self.held_out)

    @cached_property
    def delays(self) -> tuple[float, ...]:
        """At which arms are compared, in seconds; those without delay are compared with at each."""
        delayed = [arm for arm in self.arms if not arm.undelayed]
        return tuple(sorted({delay for arm in delayed or self.arms for delay in arm.cells}))

    @cached_property
    def references(self) -> tuple[Arm, ...]:
        """Arms without delay, if others have one."""
        return tuple(arm for arm in self.arms if arm.undelayed) if any(self.delays) else ()

    @cached_property
    def compared(self) -> tuple[Arm, ...]:
        """All other arms."""
        return tuple(arm for arm in self.arms if arm not in self.references)

    @cached_property
    def cells(self) -> tuple[tuple[Arm, Cell], ...]:
        """All there are, arm by arm."""
        return tuple((arm, cell) for arm in self.arms for cell in arm.cells.values())

    @cached_property
    def decays(self) -> tuple[str, ...]:
        """A sentence for each arm whose trace's decay goes with the delay: "et: decay 0.5 at 2 s, 0.9 at 4 s"."""
        found = []
        for arm in self.arms:
            if "decay" in arm.following:
                delays: dict[str, list[str]] = {}
                for delay, cell in arm.cells.items():
                    decay = cell.config.trace_config.options.get("decay")
                    delays.setdefault("its default" if decay is None else f"{decay:g}", []).append(f"{delay:g}")
                each = [f"{decay} at {', '.join(of_decay)} s" for decay, of_decay in delays.items()]
                found.append(f"{arm.label}: decay {'; '.join(each)}.")
        return tuple(found)

    @cached_property
    def missing(self) -> tuple[tuple[Arm, float], ...]:
        """Arms and delays without any result, though the study has both."""
        wanted = [(arm, delay) for arm in self.compared for delay in self.delays]
        wanted += [(arm, delay) for arm in self.references for delay in arm.cells]
        return tuple((arm, delay) for arm, delay in wanted if self.estimate(arm, delay) is None)

    def estimate(self, arm: Arm, delay: float, measure: Measure | None = None) -> Estimate | None:
        """The task kind's statistic over the seeds of a cell; None where there is no result.

        Args:
            arm: one of the study's.
            delay: in seconds.
            measure: of a run; None for the score.
        """
        measure = measure or self.presentation.score
        key = (arm.label, delay, measure.key)
        if key not in self._estimates:
            cell = arm.cells.get(delay)
            scores = np.empty(0) if cell is None else cell.scores(measure)
            self._estimates[key] = estimate([scores], self.presentation.statistic) if len(scores) else None
        return self._estimates[key]

    def over_delays(self, arm: Arm) -> Estimate | None:
        """The same over the seeds of all delays, resampled within each.

        None unless the arm has results at each delay of the study, two at least, and of as many seeds at each:
        then no delay weighs more than another.
        """
        if len(self.delays) < 2 or arm in self.references:
            return None
        score = self.presentation.score
        strata = [arm.cells[delay].scores(score) for delay in self.delays if delay in arm.cells]
        if len(strata) < len(self.delays) or not len(strata[0]) or len(set(map(len, strata))) > 1:
            return None
        return estimate(strata, self.presentation.statistic)

    def best(self, arms: Sequence[Arm], most: int, delay: float | None = None) -> tuple[Arm, ...]:
        """So many arms, in the order they are given: those with the best scores.

        Args:
            arms: to choose from.
            most: how many.
            delay: at which they are compared, in seconds; None for the mean over their delays.
        """

        def rank(arm: Arm) -> float:
            found = [self.estimate(arm, each) for each in arm.cells if delay is None or each == delay]
            centres = [each.centre for each in found if each]
            if not centres:
                return float("inf")
            mean = sum(centres) / len(centres)
            return -mean if self.presentation.score.higher_is_better else mean

        chosen = sorted(arms, key=rank)[:most]
        return tuple(arm for arm in arms if arm in chosen)

    @cached_property
    def _estimates(self) -> dict[tuple[str, float, str], Estimate | None]:
        return {}
