"""What a report shows of each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from cet_rl.report.statistics import Statistic, interquartile_mean, mean
from cet_rl.report.text import number
from cet_rl.runs.config import RunConfig
from cet_rl.runs.task_kinds import RECURRENT, RL, VISION, Score, TaskKind


@dataclass(frozen=True)
class Measure:
    """How good a run is, by one number of its summary.

    Attributes:
        key: among the summary's metrics; {held_out} stands for what images are tested on.
        title: in words.
        higher_is_better: or lower.
        factor: from the summary's number to the one that is shown.
        unit: of the number that is shown.
        digits: decimals that are shown.
    """

    key: str
    title: str
    higher_is_better: bool = True
    factor: float = 1.0
    unit: str = ""
    digits: int = 1

    def show(self, value: float | None) -> str:
        """A value, already multiplied by `factor`, as text without unit."""
        return number(value, self.digits)

    @property
    def subject(self) -> str:
        """Title and unit as a sentence begins: "Test accuracy (%)"."""
        return self.title[0].upper() + self.title[1:] + (f" ({self.unit})" if self.unit else "")

    @property
    def heading(self) -> str:
        """Title and unit: "test accuracy, %"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


@dataclass(frozen=True)
class Presentation:
    """What is drawn and tabulated for the tasks of a task kind.

    Attributes:
        scores: of a run; arms are compared on the first.
        curve: column of metrics.csv that is drawn over training; {held_out} as in `Measure`.
        curve_title: that column in words.
        curve_factor: from that column's numbers to those that are shown.
        steps: what a run's steps are, in words.
        statistic: over seeds.
        statistic_title: its name.
        settling: share of a run whose values do not decide how much of the curves' axis is shown.
        over_score: what the curve shows, in one word, where alignment is drawn over it a second time; None not to.
        defaults: fields of a configuration that a run fills in, with the property of the configuration that they
            are filled in from.
        floors: losses that predictors of a known weakness cannot get below, by name, given a configuration.
    """

    scores: tuple[Measure, ...]
    curve: str
    curve_title: str
    steps: str
    curve_factor: float = 1.0
    statistic: Statistic = mean
    statistic_title: str = "mean"
    settling: float = 0.0
    over_score: str | None = None
    defaults: Mapping[str, str] = field(default_factory=dict)
    floors: Callable[[RunConfig], Mapping[str, float]] | None = None

    @property
    def score(self) -> Measure:
        """What arms are compared on."""
        return self.scores[0]

    def filled(self, held_out: str) -> Presentation:
        """The same with the name of what images are tested on filled in: test or validation."""
        scores = tuple(
            replace(
                measure, key=measure.key.format(held_out=held_out), title=measure.title.format(held_out=held_out)
            )
            for measure in self.scores
        )
        curve, title = (text.format(held_out=held_out) for text in (self.curve, self.curve_title))
        return replace(self, scores=scores, curve=curve, curve_title=title)


LEAST_ALPHA = 0.01
"""Below which a symbol is held for so long that an estimate of the floors takes too much memory."""


def _floors_of_task(config: RunConfig) -> Mapping[str, float]:
    from cet_rl.recurrent.config import RecurrentConfig

    assert isinstance(config, RecurrentConfig)
    if config.alpha < LEAST_ALPHA:
        return {}
    return _floors(config.task, config.lags, config.alpha, config.seed)


@lru_cache
def _floors(task: str, lags: tuple[int, int], alpha: float, seed: int) -> Mapping[str, float]:
    from cet_rl.recurrent.tasks import build_task  # torch: a second to load

    return build_task(task, SimpleNamespace(lags=lags, alpha=alpha, seed=seed)).baselines


def _measure(score: Score) -> Measure:
    factor, unit, digits = (100, "%", score.digits - 2) if score.percent else (1, "", score.digits)
    return Measure(score.key, score.title, score.higher_is_better, factor, unit, digits)


def _presentation(task_kind: TaskKind, **own: Any) -> Presentation:
    curve = _measure(task_kind.curve)
    return Presentation(
        scores=tuple(map(_measure, task_kind.scores)),
        curve=curve.key,
        curve_title=curve.heading,
        curve_factor=curve.factor,
        steps=task_kind.unit,
        **own,
    )


PRESENTATIONS: dict[str, Presentation] = {
    RL.name: _presentation(
        RL,
        statistic=interquartile_mean,
        statistic_title="interquartile mean",
        over_score="return",
    ),
    VISION.name: _presentation(
        VISION,
        settling=0.1,
        over_score="accuracy",
        defaults={"model": "network", "hidden": "widths"},
    ),
    RECURRENT.name: _presentation(
        RECURRENT,
        settling=0.05,
        defaults={"rule_options": "options"},
        floors=_floors_of_task,
    ),
}
"""By the task kind's name."""
