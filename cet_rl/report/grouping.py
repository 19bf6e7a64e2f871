"""Group runs by task into comparisons, and within each by arm, delay and seed.

An arm is a configuration without its delay and seed; its name is the run's label, or that of its sweep. If other
options differ between runs with the same label and delay, they make several arms, and are part of their names.
Options that differ only between delays, as the learning rates of the paper's tables do, do not split an arm; nor
does the decay of a classical trace, though it is in a run's label.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from cet_rl.report.names import arm_name
from cet_rl.report.reading import Run
from cet_rl.report.statistics import Estimate, Measure, Presentation, estimate, presentation
from cet_rl.report.text import clean, in_seconds
from cet_rl.runs.config import Mark, RunConfig, marked
from cet_rl.runs.task_kinds import TaskKind
from cet_rl.traces.base import FloatArray
from cet_rl.traces.registry import TRACES

NEVER_SPLITS = {"task", "seed", "delay", "alignment"}
"""Options that never split an arm, beside those of the machine."""

NO_DELAY = "no delay"  # added to the name of an arm without delay, if other arms have one
LONGEST_LABEL = 44  # characters of an arm's name; longer names are numbered, and their options are in the table


@dataclass(frozen=True, eq=False)
class ArmAtDelay:
    """Hold the runs of an arm at one delay, in seconds: one for each seed, and repeats, which do not count."""

    delay: float
    runs: tuple[Run, ...]
    repeats: tuple[Run, ...] = ()

    @property
    def config(self) -> RunConfig:
        """Return the configuration of the first run."""
        config = self.runs[0].config
        assert config is not None
        return config

    @property
    def finished(self) -> tuple[Run, ...]:
        """Return the runs that have a result."""
        return tuple(run for run in self.runs if run.status == "finished")

    @property
    def drawn(self) -> tuple[Run, ...]:
        """Return the runs whose curves are drawn: those that are finished or, if none is, all."""
        return tuple(run for run in self.finished or self.runs if run.columns)

    @property
    def speed(self) -> float | None:
        """Return the median of the finished runs' steps per second; None without any."""
        speeds = [run.speed for run in self.finished if run.speed is not None]
        return float(np.median(speeds)) if speeds else None

    def scores(self, measure: Measure) -> FloatArray:
        """Return the value of a measure for each finished run that has one, of shape (runs,)."""
        return np.array([value for run in self.finished if (value := measure.value(run)) is not None])


@dataclass(frozen=True, eq=False)
class Arm:
    """Hold an arm of a comparison."""

    label: str  # unique within the comparison
    at: Mapping[float, ArmAtDelay]  # its runs by delay
    following: tuple[str, ...] = ()  # options that differ between its delays

    @property
    def undelayed(self) -> bool:
        """Tell whether its credit is never delayed."""
        return not any(self.at)

    @property
    def is_perfect(self) -> bool:
        """Tell whether its trace is perfect memory, which does not count as best."""
        return self.config.trace == "perfect"

    @property
    def config(self) -> RunConfig:
        """Return the configuration at the shortest delay."""
        return next(iter(self.at.values())).config


@dataclass(frozen=True, eq=False)
class Comparison:
    """Hold the runs of one task that can be compared with each other."""

    task: str
    tested_on: str  # data that images are tested on, "test" or "validation"; "" for other tasks
    stacked: bool  # whether delays add up from the output layer down
    task_kind: TaskKind
    arms: tuple[Arm, ...]  # in the order in which they are shown
    differing: Mapping[tuple[str, float], str]  # options that differ and no name shows, by label and delay
    _estimates: dict[tuple[str, float, str], Estimate | None] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Return the task, and whether runs were tested on a validation set or have stacked delays."""
        tested = ["tested on a validation set"] * (self.tested_on == "validation")
        return ", ".join([clean(self.task, 80), *tested, *["stacked delays"] * self.stacked])

    @property
    def presentation(self) -> Presentation:
        """Return the measures and words for the task's kind."""
        return presentation(self.task_kind, self.tested_on)

    @cached_property
    def delays(self) -> tuple[float, ...]:
        """Return the delays, in seconds, at which arms are compared; those without delay are compared at each."""
        delayed = [arm for arm in self.arms if not arm.undelayed]
        return tuple(sorted({delay for arm in delayed or self.arms for delay in arm.at}))

    @cached_property
    def references(self) -> tuple[Arm, ...]:
        """Return the arms without delay, if other arms have one."""
        return tuple(arm for arm in self.arms if arm.undelayed) if any(self.delays) else ()

    @cached_property
    def compared(self) -> tuple[Arm, ...]:
        """Return all arms but the references."""
        return tuple(arm for arm in self.arms if arm not in self.references)

    @cached_property
    def all_runs(self) -> tuple[tuple[Arm, ArmAtDelay], ...]:
        """Return each arm at each of its delays, arm by arm."""
        return tuple((arm, at_delay) for arm in self.arms for at_delay in arm.at.values())

    @property
    def counted_runs(self) -> list[Run]:
        """Return all runs but repeats, arm by arm."""
        return [run for _, at_delay in self.all_runs for run in at_delay.runs]

    @cached_property
    def changes(self) -> tuple[str, ...]:
        """Return a sentence on each arm whose decay or budget depends on the delay: "ET: decay 0.5 at 2 s; …"."""
        sentences = []
        for arm, option in product(self.arms, ("decay", "total_steps")):
            delays: dict[str, list[str]] = defaultdict(list)
            for delay, at_delay in arm.at.items() if option in arm.following else ():
                decay, steps = at_delay.config.trace_config.options.get("decay"), at_delay.config.total_steps
                value = f"{steps:,}" if option != "decay" else "its default" if decay is None else f"{decay:g}"
                delays[value].append(f"{delay:g}")
            each = [f"{value} at {', '.join(of_value)} s" for value, of_value in delays.items()]
            sentences += [f"{arm.label}: {option.replace('_', ' ')} {'; '.join(each)}."] * bool(each)
        return tuple(sentences)

    @cached_property
    def missing(self) -> list[str]:
        """Return the pairs of an arm and a delay without any result, as text: "cet5 at 8 s"."""
        wanted = [(arm, delay) for arm in self.compared for delay in self.delays]
        wanted += [(arm, delay) for arm in self.references for delay in arm.at]
        lacking = [(arm, delay) for arm, delay in wanted if self.estimate(arm, delay) is None]
        return [f"{arm.label} at {in_seconds(delay)}" for arm, delay in lacking]

    def estimate(self, arm: Arm, delay: float, measure: Measure | None = None) -> Estimate | None:
        """Return the average of a measure, by default the score, over the seeds of an arm at a delay in seconds.

        It is None where there is no result.
        """
        measure = measure or self.presentation.score
        key = (arm.label, delay, measure.title)
        if key not in self._estimates:
            scores = arm.at[delay].scores(measure) if delay in arm.at else np.empty(0)
            self._estimates[key] = estimate([scores], self.presentation.statistic) if len(scores) else None
        return self._estimates[key]

    @cached_property
    def pooled(self) -> dict[str, Estimate]:
        """Return the average over all delays of each arm that has one, by label; see `over_delays`."""
        return {arm.label: found for arm in self.compared if (found := self.over_delays(arm))}

    def over_delays(self, arm: Arm) -> Estimate | None:
        """Return the average over all seeds at all delays; its interval is a bootstrap within each delay.

        It is None unless the comparison has at least two delays, and the arm has results of equally many seeds at
        each of them, so that no delay has more weight than another.
        """
        if len(self.delays) < 2 or arm in self.references:
            return None
        strata = [arm.at[delay].scores(self.presentation.score) for delay in self.delays if delay in arm.at]
        if len(strata) < len(self.delays) or not len(strata[0]) or len(set(map(len, strata))) > 1:
            return None
        return estimate(strata, self.presentation.statistic)

    def best(self, arms: Sequence[Arm], most: int, delay: float | None = None) -> tuple[Arm, ...]:
        """Return the `most` arms with the best scores, in the given order.

        Their scores are those at a delay in seconds, or the mean over their delays if it is None.
        """
        chosen = sorted(arms, key=lambda arm: self._rank(arm, delay))[:most]
        return tuple(arm for arm in arms if arm in chosen)

    def ranked(self, delay: float) -> list[Arm]:
        """Return the arms with a result at a delay in seconds, best first, without perfect memory."""
        arms = [arm for arm in self.compared if not arm.is_perfect and self.estimate(arm, delay)]
        return sorted(arms, key=lambda arm: self._rank(arm, delay))

    def _rank(self, arm: Arm, delay: float | None) -> float:
        estimates = [self.estimate(arm, each) for each in arm.at if delay in (None, each)]
        centres = [each.centre for each in estimates if each]
        sign = -1 if self.presentation.score.higher_is_better else 1
        return sign * sum(centres) / len(centres) if centres else float("inf")


# -------------------- from runs to comparisons

Values = tuple[Any, ...]
"""A configuration's delay, then its other options."""


def group_runs(runs: Iterable[Run]) -> list[Comparison]:
    """Group runs into comparisons, sorted by task; damaged runs are left out.

    Runs of one comparison have the same task, are tested on the same data, and all or none have stacked delays.
    """
    groups: dict[tuple[str, str, bool], list[Run]] = defaultdict(list)
    for run in runs:
        if run.config is not None and run.status != "damaged":
            groups[run.config.task, run.tested_on, run.config.stacked].append(run)
    return [_comparison(*key, group) for key, group in sorted(groups.items(), key=lambda item: item[0])]


def _comparison(task: str, tested_on: str, stacked: bool, runs: list[Run]) -> Comparison:
    task_kind = runs[0].task_kind
    assert task_kind is not None
    kind = task_kind.config()
    unsplit = NEVER_SPLITS | marked(kind, Mark.MACHINE) | marked(kind, Mark.CHOSEN)
    names = [item.name for item in fields(kind) if item.name not in unsplit]
    configurations: dict[Values, list[Run]] = defaultdict(list)
    for run in runs:
        assert run.config is not None
        delay = float(f"{run.config.delay:.9g}")  # 0.6 and 0.2 · 3 are one delay
        configurations[delay, *(getattr(run.config, name) for name in names)].append(run)
    shown = frozenset() if any(run.arm for run in runs) else marked(kind, Mark.LABELLED)
    different = [len({values[place] for values in configurations}) > 1 for place in range(1, len(names) + 1)]
    varied = [name for name, differs in zip(names, different, strict=True) if differs and name not in shown]
    by_label = _by_label(configurations)
    delays = any(values[0] for values in configurations)
    arms: dict[str, tuple[Values, Arm]] = {}
    for (label, delayed), alike in by_label.items():
        named = any(run.arm for run in next(iter(alike.values())))
        if not delayed and ((label, True) in by_label or (delays and not named and NO_DELAY not in label)):
            label = f"{label}, {NO_DELAY}"
        splitting = _splitting(list(alike))
        rows: dict[Values, dict[float, ArmAtDelay]] = defaultdict(dict)
        for values, of_configuration in alike.items():
            own = tuple(values[place] for place in splitting)
            rows[own][values[0]] = _one_run_a_seed(values[0], of_configuration)
        for own, at in sorted(rows.items(), key=lambda row: list(map(_sortable, row[0]))):
            options = [_option(names[place - 1], value) for place, value in zip(splitting, own, strict=True)]
            name = _unique_label(label, options, arms)
            following = tuple(o for o in varied if len({getattr(each.config, o) for each in at.values()}) > 1)
            arm = Arm(name, dict(sorted(at.items())), following)
            arms[name] = (*_order(arm.config), list(map(_sortable, own)), name), arm
    ordered = tuple(arm for _, arm in sorted(arms.values(), key=lambda pair: pair[0]))
    differing = {
        (arm.label, delay): ", ".join(_option(name, getattr(at_delay.config, name)) for name in varied)
        for arm in ordered
        for delay, at_delay in arm.at.items()
    }
    return Comparison(task, tested_on, stacked, task_kind, ordered, differing)


def _by_label(configurations: Mapping[Values, list[Run]]) -> dict[tuple[str, bool], dict[Values, list[Run]]]:
    """Group configurations by the label of their arm and by whether they have a delay.

    Labels that differ only in a trace's decay become one, without the decay, if there is one decay for each delay.
    """
    alike: dict[tuple[str, bool], list[tuple[str, Values]]] = defaultdict(list)
    for values, runs in configurations.items():
        alike[_label(runs, decay=False), bool(values[0])].append((_label(runs), values))
    found: dict[tuple[str, bool], dict[Values, list[Run]]] = defaultdict(dict)
    for (short, delayed), members in alike.items():
        at_delay: dict[float, set[str]] = defaultdict(set)
        for label, values in members:
            at_delay[values[0]].add(label)
        joined = len({label for label, _ in members}) > 1 and all(len(each) == 1 for each in at_delay.values())
        for label, values in members:
            found[short if joined else label, delayed][values] = configurations[values]
    return found


def _label(runs: list[Run], *, decay: bool = True) -> str:
    """Return the name that a sweep gives to one of a configuration's runs, or else the usual name.

    `decay` is whether the usual name includes the decay of a trace.
    """
    config = runs[0].config
    assert config is not None
    return clean(next((run.arm for run in runs if run.arm), arm_name(config, decay=decay)))


def _unique_label(label: str, options: list[str], taken: Collection[str]) -> str:
    """Return a label with the options that split its arm, or with a number if that is too long or taken."""
    unique = f"{label} ({', '.join(options)})" if options else clean(label, LONGEST_LABEL)
    number = 1
    while len(unique) > LONGEST_LABEL or unique in taken:
        unique = f"{label[: LONGEST_LABEL - 6]} [{number}]"
        number += 1
    return unique


def _splitting(configurations: list[Values]) -> list[int]:
    """Return the places of the first options that together tell all configurations of the same delay apart."""
    chosen: list[int] = []
    kinds = len({values[:1] for values in configurations})
    for place in range(1, len(configurations[0])):
        finer = len({(values[0], *(values[other] for other in (*chosen, place))) for values in configurations})
        if finer > kinds:
            chosen.append(place)
            kinds = finer
    return chosen


def _one_run_a_seed(delay: float, runs: list[Run]) -> ArmAtDelay:
    """Choose one run for each seed: finished before others, those with a log before a CSV's rows, then by path."""
    ordered = sorted(runs, key=lambda run: (run.status != "finished", not run.columns, run.path))
    chosen: dict[int, Run] = {}
    for run in ordered:
        assert run.config is not None
        chosen.setdefault(run.config.seed, run)
    repeats = tuple(run for run in ordered if run not in chosen.values())
    return ArmAtDelay(delay, tuple(run for _, run in sorted(chosen.items())), repeats)


def _order(config: RunConfig) -> Values:
    """Return a sort key for arms: those without delay first, then by agent or rule, then by trace and order."""
    trace = config.trace_config
    others = [_sortable(part) for part in config.arm if part != trace.label]
    kinds = [*TRACES, trace.kind]  # a trace given as module:Class comes last
    return bool(config.delay), others, kinds.index(trace.kind), trace.order_or_default


def _sortable(value: Any) -> tuple[int, Any]:
    """Return a sort key for values of any type: None, then numbers, then text, whose digits count as numbers."""
    if value is None:
        return 0, 0
    if isinstance(value, (bool, int, float)):
        return 1, value
    pieces = re.split(r"(\d+)", str(value))
    return 2, [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _option(name: str, value: Any) -> str:
    shown = "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple):
        shown = " ".join(map(str, value))
    return f"{name.replace('_', '-')} {clean(shown, 60)}"
