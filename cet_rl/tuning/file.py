"""Read the file of a search, and check it before anything starts.

A file is a YAML mapping. It holds options of `cet-rl train` with underscores, which hold for all trials, and

space    a mapping from options to {low, high}, with `log: true` or `step`, or to {choices: [...]}
seeds    0-2, or a list; a trial's score is the mean over them. Default 0
metric   of summary.json, that the search optimises. Default: return of the last training episodes, accuracy on
         images held out of the training set, or test loss
curve    column of metrics.csv by which trials are compared on the way. Default: the metric's, as it is logged
pruner   median (default): a trial stops that is worse than half of the earlier ones; hyperband; none
sampler  tpe (default), or random
trials   how many. Default 50
"""

from __future__ import annotations

import itertools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from cet_rl.runs.config import Mark, RunConfig
from cet_rl.runs.config_files import check_values, read_mapping
from cet_rl.runs.task_kinds import VISION, check_spelling, options_marked, task_kind_of
from cet_rl.runs.values import unknown
from cet_rl.sweeps.build import build
from cet_rl.sweeps.file import Combination, SweepFile, parse_seeds
from cet_rl.sweeps.jobs import Sweep

if TYPE_CHECKING:
    from optuna import Trial

Direction = Literal["maximize", "minimize"]

KEYS = ("title", "space", "seeds", "metric", "curve", "pruner", "sampler", "trials")
"""Keys of a search's file that are no options of `cet-rl train`."""
PRUNERS = ("median", "hyperband", "none")
SAMPLERS = ("tpe", "random")
TRIALS = 50
MOST_COMBINATIONS = 64
"""Most combinations of extreme values tried before a search starts; in larger spaces, one option at a time."""

_FIXED = {
    "task": "a search is for one task",
    "seed": "use seeds",
    "threads": "each run takes one thread",
    **dict.fromkeys(options_marked(Mark.MACHINE) - {"threads"}, "it changes no result"),
    "total_steps": "it is the budget, and trials are compared at the same share of it",
    "validation": "scores on other images cannot be compared",
}
"""Options that cannot be searched, and why."""

_RANGE = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Dimension:
    """Describe one option that is searched.

    Attributes:
        option: its name.
        low: least value; None for choices.
        high: largest value, of the same type as `low`.
        log: draw the logarithm uniformly.
        step: between two values; None for all that there are.
        choices: values to choose from; empty for a range.
    """

    option: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: tuple[Any, ...] = ()

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Return the values to try before a search starts: both ends, or all choices."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: Trial) -> Any:
        """Return the value that a trial of Optuna has, drawn if it has none yet."""
        if self.choices:
            return self.value(trial.suggest_categorical(self.option, [_label(choice) for choice in self.choices]))
        assert self.low is not None
        assert self.high is not None
        if isinstance(self.low, int):
            return trial.suggest_int(self.option, self.low, int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.option, self.low, self.high, step=self.step, log=self.log)

    def value(self, found: Any) -> Any:
        """Return the option's value for what Optuna has stored."""
        return next((c for c in self.choices if _label(c) == found and type(_label(c)) is type(found)), found)

    def as_data(self) -> dict[str, Any]:
        """Return plain data, to tell whether a search is the same."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}


@dataclass(frozen=True)
class SearchFile:
    """Hold what a search's file asks for.

    Attributes:
        source: the file.
        fixed: settings of all trials.
        space: the options that are searched, by name.
        seeds: of a trial's runs.
        metric: of summary.json.
        direction: whether the metric is to be large or small.
        curve: column of metrics.csv.
        curve_direction: whether that is to be large or small.
        pruner: one of PRUNERS.
        sampler: one of SAMPLERS.
        trials: how many.
    """

    source: str
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
        """Return the runs of a trial: one configuration, all seeds.

        Args:
            params: values of the options that are searched.

        Raises:
            ValueError: if they cannot be run.
        """
        combination = Combination({**self.fixed, **params}, tuple(params))
        return build(SweepFile(self.source, "a trial", (combination,), self.seeds))

    def identity(self) -> dict[str, Any]:
        """Return what has to stay as it is for a search to go on."""
        space = {f"space {name}": dimension.as_data() for name, dimension in self.space.items()}
        return {**self.fixed, **space, "seeds": list(self.seeds), "metric": self.metric, "curve": self.curve}


def read_search(source: str) -> SearchFile:
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
    own = {key: data.pop(key) for key in KEYS if key in data}
    options = {item.name for item in fields(task_kind.config())}
    for key in data:
        if key in ("seed", "threads"):
            raise ValueError(f"{source}: {key} has no place in a search: {_FIXED[key]}")
        if key not in options:
            raise unknown(f"{source}: unknown key", key, [*KEYS, *sorted(options)])
    if task_kind is VISION:
        # Hyper-parameters are not chosen by the images that results are reported on.
        data.setdefault("validation", True)
    space = _space(own.get("space"), data, source, task_kind.config())
    held_out = "validation" if data.get("validation") else "test"
    metrics = tuple(score.on(held_out).key for score in task_kind.scores)
    metric = _one_of(own.get("metric", metrics[0]), metrics, f"{source}: metric")
    curve = own.get("curve", task_kind.curve.on(held_out).key)
    if not (isinstance(curve, str) and curve):
        raise ValueError(f"{source}: curve must be a column of metrics.csv, got {curve!r}")
    trials = own.get("trials", TRIALS)
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 1:
        raise ValueError(f"{source}: trials must be a whole number of at least 1, got {trials!r}")
    found = SearchFile(
        source=source,
        fixed=data,
        space=space,
        seeds=parse_seeds(own.get("seeds", 0), f"{source}: seeds"),
        metric=metric,
        direction=_direction(metric),
        curve=curve,
        curve_direction=_direction(curve),
        pruner=_one_of(own.get("pruner", "median"), PRUNERS, f"{source}: pruner"),
        sampler=_one_of(own.get("sampler", "tpe"), SAMPLERS, f"{source}: sampler"),
        trials=trials,
    )
    for params in _extreme_params(space):
        found.sweep(params)  # refuses what cannot be run
    return found


def _direction(name: str) -> Direction:
    return "minimize" if "loss" in name or "error" in name else "maximize"


def _one_of(value: object, known: tuple[str, ...], where: str) -> str:
    if value not in known:
        raise ValueError(f"{where} must be one of {', '.join(known)}, got {value!r}")
    return str(value)


def _extreme_params(space: Mapping[str, Dimension]) -> list[dict[str, Any]]:
    """Return combinations of extreme values: all of them, or each option's with all others at their first."""
    ends = [dimension.extremes for dimension in space.values()]
    combinations = list(itertools.islice(itertools.product(*ends), MOST_COMBINATIONS + 1))
    if len(combinations) > MOST_COMBINATIONS:
        first = [end[0] for end in ends]
        combinations = [
            (*first[:place], value, *first[place + 1 :]) for place, end in enumerate(ends) for value in end
        ]
    return [dict(zip(space, values, strict=True)) for values in combinations]


def _space(value: object, fixed: Mapping[str, Any], source: str, kind: type[RunConfig]) -> dict[str, Dimension]:
    if not (isinstance(value, Mapping) and value):
        raise ValueError(f"{source}: space must name options to search, such as lr: {{low: 1e-4, high: 1e-2}}")
    options = {item.name for item in fields(kind)}
    space = {}
    for option, entry in value.items():
        where = f"{source}, space: {option}"
        if option in _FIXED:
            raise ValueError(f"{where} cannot be searched: {_FIXED[option]}")
        if option not in options:
            raise unknown(f"{source}, space: unknown option of {fixed['task']}", option, sorted(options))
        if option in fixed:
            raise ValueError(f"{where} is also set for all trials: leave out one of the two")
        space[option] = _dimension(option, entry, where, kind)
    return space


def _dimension(option: str, entry: object, where: str, kind: type[RunConfig]) -> Dimension:
    """Return one entry of `space`: {low, high}, with log or step, or {choices}."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be {{low: …, high: …}} or {{choices: […]}}, got {entry!r}")
    unknown = [key for key in entry if key not in (*_RANGE, "choices")]
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(_RANGE)} and choices")
    if "choices" in entry:
        if len(entry) > 1:
            raise ValueError(f"{where}: choices go without low, high, log and step")
        return Dimension(option, choices=_choices(option, entry["choices"], where, kind))
    if not _is_number(option, kind):
        raise ValueError(f"{where} is no number: give choices")
    if "low" not in entry or "high" not in entry:
        raise ValueError(f"{where} needs low and high, or choices")
    low, high = (check_values({option: entry[end]}, where, kind)[option] for end in ("low", "high"))
    log, step = entry.get("log", False), entry.get("step")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{where}: low must be less than high, and both finite, got {low!r} and {high!r}")
    if not isinstance(log, bool):
        raise ValueError(f"{where}: log must be true or false, got {log!r}")
    if log and low <= 0:
        raise ValueError(f"{where}: low must be positive for log: true, got {low!r}")
    if step is not None:
        step = check_values({option: step}, f"{where}, step", kind)[option]
        if not (math.isfinite(step) and 0 < step <= high - low):
            raise ValueError(f"{where}: step must be positive and not larger than high - low, got {step!r}")
        if log:
            raise ValueError(f"{where}: log and step exclude each other")
    return Dimension(option, low, high, log, step)


def _choices(option: str, values: object, where: str, kind: type[RunConfig]) -> tuple[Any, ...]:
    if not (isinstance(values, list) and values):
        raise ValueError(f"{where}: choices must be a list of values, got {values!r}")
    found = [check_values({option: value}, where, kind)[option] for value in values]
    plain = [list(value) if isinstance(value, tuple) else value for value in found]
    for place, value in enumerate(plain):
        if value in plain[:place]:
            raise ValueError(f"{where}: the choice {value!r} is given twice")
    return tuple(plain)


def _is_number(option: str, kind: type[RunConfig]) -> bool:
    """Tell whether an option is an int or a float, perhaps None."""
    hint = typing.get_type_hints(kind)[option]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    return hint in (int, float)


def _label(choice: Any) -> Any:
    """Return a choice as Optuna can store it: lists as JSON."""
    return json.dumps(choice) if isinstance(choice, list) else choice
