"""What the file of a search asks for, checked before anything starts.

A file is a YAML mapping. It holds options of `cet-rl train` with underscores, which hold for all trials, and

space    a mapping from options to {low, high}, with `log: true` or `step`, or to {choices: [...]}
seeds    0-2, or a list; a trial's score is the mean over them. Default 0
metric   of summary.json, that is to be best. Default: return of the last training episodes, accuracy on images
         held out of the training set, or test loss
curve    column of metrics.csv by which trials are compared on the way. Default: the same, as far as it is logged
pruner   median (default): a trial stops that is worse than half of the earlier ones; hyperband; none
sampler  tpe (default), or random
trials   how many. Default 50
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from cet_rl.runs.config import Mark
from cet_rl.runs.config_files import read_mapping
from cet_rl.runs.task_kinds import VISION, TaskKind, check_spelling, options_marked, task_kind_of
from cet_rl.runs.values import unknown
from cet_rl.sweeps.build import build
from cet_rl.sweeps.file import Asked, Spec, parse_seeds
from cet_rl.sweeps.jobs import Sweep
from cet_rl.tuning.space import Dimension, read_dimension

Direction = Literal["maximize", "minimize"]

OWN = ("title", "space", "seeds", "metric", "curve", "pruner", "sampler", "trials")
PRUNERS = ("median", "hyperband", "none")
SAMPLERS = ("tpe", "random")
TRIALS = 50
MOST_COMBINATIONS = 64
"""Of extreme values that are tried before a search starts; in larger spaces, one option at a time."""

_FIXED = {
    "task": "a search is for one task",
    "seed": "use seeds",
    "threads": "each run takes one thread",
    **dict.fromkeys(options_marked(Mark.MACHINE) - {"threads"}, "it changes no result"),
    "total_steps": "it is the budget, and trials are compared at the same share of it",
    "validation": "scores on other images cannot be compared",
}
"""Options that cannot be searched, and why."""


@dataclass(frozen=True)
class TuningSpec:
    """What a search's file asks for.

    Attributes:
        source: the file.
        task_kind: of the task.
        fixed: settings of all trials.
        space: the options that are searched, by name.
        seeds: of a trial's runs.
        metric: of summary.json.
        direction: whether it is to be large or small.
        curve: column of metrics.csv.
        curve_direction: whether that is to be large or small.
        pruner: one of PRUNERS.
        sampler: one of SAMPLERS.
        trials: how many.
    """

    source: str
    task_kind: TaskKind
    fixed: Mapping[str, Any]
    space: Mapping[str, Dimension]
    seeds: tuple[int, ...]
    metric: str
    direction: Direction
    curve: str
    curve_direction: Direction
    pruner: str
    sampler: str
    trials: int

    def sweep(self, params: Mapping[str, Any]) -> Sweep:
        """The runs of a trial: one configuration, all seeds.

        Args:
            params: values of the options that are searched.

        Raises:
            ValueError: if they cannot be run.
        """
        asked = Asked({**self.fixed, **params}, tuple(params), None, False)
        return build(Spec(self.source, "a trial", (asked,), self.seeds))

    def identity(self) -> dict[str, Any]:
        """What has to stay as it is for a search to go on."""
        space = {name: dimension.as_data() for name, dimension in self.space.items()}
        same = {"seeds": list(self.seeds), "metric": self.metric, "curve": self.curve}
        return {**self.fixed, **{f"space {name}": data for name, data in space.items()}, **same}


def read_tuning(source: str) -> TuningSpec:
    """Read and check the file of a search.

    Raises:
        ValueError: if there is none, or for what cannot be searched, naming file and key.
    """
    data = dict(read_mapping(source))
    swept = [key for key in ("grid", "arms") if key in data]
    if swept and "space" not in data:
        raise ValueError(f"{source} is a sweep, as it has {swept[0]}: run it with cet-rl sweep {source}")
    task = data.get("task")
    if not isinstance(task, str):
        raise ValueError(f"{source} names no task: set task")
    check_spelling(task)
    task_kind = task_kind_of(task)
    own = {key: data.pop(key) for key in OWN if key in data}
    _check_keys(data, source, task_kind)
    if task_kind is VISION:
        # Hyper-parameters are not chosen by the images that results are reported on.
        data.setdefault("validation", True)
    space = _space(own.get("space"), data, source, task_kind)
    held_out = "validation" if data.get("validation") else "test"
    scores = tuple(score.on(held_out).key for score in task_kind.scores)
    metric = _one_of(own.get("metric", scores[0]), scores, f"{source}: metric")
    curve = own.get("curve", task_kind.curve.on(held_out).key)
    if not (isinstance(curve, str) and curve):
        raise ValueError(f"{source}: curve must be a column of metrics.csv, got {curve!r}")
    trials = own.get("trials", TRIALS)
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 1:
        raise ValueError(f"{source}: trials must be a whole number of at least 1, got {trials!r}")
    spec = TuningSpec(
        source=source,
        task_kind=task_kind,
        fixed=data,
        space=space,
        seeds=parse_seeds(own.get("seeds", 0), f"{source}: seeds"),
        metric=metric,
        direction=_direction_of(metric),
        curve=curve,
        curve_direction=_direction_of(curve),
        pruner=_one_of(own.get("pruner", "median"), PRUNERS, f"{source}: pruner"),
        sampler=_one_of(own.get("sampler", "tpe"), SAMPLERS, f"{source}: sampler"),
        trials=trials,
    )
    for params in _to_try(space):
        spec.sweep(params)  # refuses what cannot be run
    return spec


def _check_keys(data: Mapping[str, Any], source: str, task_kind: TaskKind) -> None:
    options = {item.name for item in fields(task_kind.config())}
    for key in data:
        if key in ("seed", "threads"):
            raise ValueError(f"{source}: {key} has no place in a search: {_FIXED[key]}")
        if key not in options:
            raise unknown(f"{source}: unknown key", key, [*OWN, *sorted(options)])


def _space(value: object, fixed: Mapping[str, Any], source: str, task_kind: TaskKind) -> dict[str, Dimension]:
    if not (isinstance(value, Mapping) and value):
        raise ValueError(f"{source}: space must name options to search, such as lr: {{low: 1e-4, high: 1e-2}}")
    options = {item.name for item in fields(task_kind.config())}
    space = {}
    for option, entry in value.items():
        where = f"{source}, space: {option}"
        if option in _FIXED:
            raise ValueError(f"{where} cannot be searched: {_FIXED[option]}")
        if option not in options:
            raise unknown(f"{source}, space: unknown option of {fixed['task']}", option, sorted(options))
        if option in fixed:
            raise ValueError(f"{where} is also set for all trials: leave out one of the two")
        space[option] = read_dimension(option, entry, where, task_kind.config())
    return space


def _direction_of(name: str) -> Direction:
    return "minimize" if "loss" in name or "error" in name else "maximize"


def _one_of(value: object, known: tuple[str, ...], where: str) -> str:
    if value not in known:
        raise ValueError(f"{where} must be one of {', '.join(known)}, got {value!r}")
    return str(value)


def _to_try(space: Mapping[str, Dimension]) -> list[dict[str, Any]]:
    """Combinations of extreme values: all of them, or each option's with all others at their first."""
    ends = [dimension.extremes for dimension in space.values()]
    combinations = list(itertools.islice(itertools.product(*ends), MOST_COMBINATIONS + 1))
    if len(combinations) > MOST_COMBINATIONS:
        first = [end[0] for end in ends]
        combinations = [
            (*first[:place], value, *first[place + 1 :]) for place, end in enumerate(ends) for value in end
        ]
    return [dict(zip(space, values, strict=True)) for values in combinations]
