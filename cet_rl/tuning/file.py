"""Read the file of a search, and check it before anything starts.

A file is a YAML mapping. It holds options of `cet-rl train` with underscores, which hold for all trials, and

space    a mapping from options to {low, high}, with `log: true` or `step`, or to {choices: [...]}
seeds    0-2, or a list; a trial's score is the mean over them. Default 0
metric   the metric of summary.json that the search optimises. Default: return of the last training episodes,
         accuracy on images held out of the training set, or test loss
pruner   median (default) stops a trial that is worse than half of the earlier ones; hyperband; none
sampler  tpe (default), or random
trials   the number of trials. Default 50
title    what the search is about, for the reader
"""

from __future__ import annotations

import itertools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cet_rl.runs.config import Mark, RunConfig, types_of
from cet_rl.runs.config_files import check_values, read_mapping
from cet_rl.runs.task_kinds import VISION, Score, check_spelling, options_marked, task_kind_of
from cet_rl.runs.values import checked, unknown
from cet_rl.sweeps.build import build
from cet_rl.sweeps.file import Combination, SweepFile, check_keys, parse_seeds
from cet_rl.sweeps.folder import Sweep

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Pruner = Literal["median", "hyperband", "none"]
Sampler = Literal["tpe", "random"]

KEYS = ("title", "space", "seeds", "metric", "pruner", "sampler", "trials")
"""Keys of a search's file that are no options of `cet-rl train`."""
TRIALS = 50
MOST_COMBINATIONS = 64  # of extreme values that are all checked beforehand; of more, one option's at a time

_FIXED = {
    "task": "a search is for one task",
    "seed": "use seeds",
    **dict.fromkeys(options_marked(Mark.MACHINE), "it changes no result"),
    "threads": "each run takes one thread",
    "total_steps": "it is the budget, and trials are compared at the same share of it",
    "validation": "scores on other images cannot be compared",
}
"""Options that cannot be searched, and why."""


@dataclass(frozen=True)
class SearchFile:
    """Hold the contents of a search's file.

    `space` maps the options that are searched to Optuna's distributions, in which a choice that is a list is JSON.
    Finished trials are compared by `metric`, a number of summary.json, and trials under way by `curve`, a column
    of metrics.csv.
    """

    source: str
    fixed: Mapping[str, Any]
    space: Mapping[str, BaseDistribution]
    seeds: tuple[int, ...]
    metric: Score
    curve: Score
    pruner: Pruner
    sampler: Sampler
    trials: int

    def sweep(self, params: Mapping[str, Any]) -> Sweep:
        """Return the runs of a trial with these values, as Optuna has them; raise ValueError for wrong ones."""
        settings = {**self.fixed, **{name: plain(value) for name, value in params.items()}}
        return build(SweepFile(self.source, "a trial", (Combination(settings, tuple(params)),), self.seeds))

    def identity(self) -> dict[str, Any]:
        """Return the settings that must be the same for a search to be resumed."""
        from optuna.distributions import distribution_to_json

        space = {f"space {name}": json.loads(distribution_to_json(found)) for name, found in self.space.items()}
        return {**self.fixed, **space, "seeds": list(self.seeds), "metric": self.metric.key}


def plain(value: Any) -> Any:
    """Return an option's value from the one that Optuna has stored, in which lists are JSON."""
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value


def read_search(source: str) -> SearchFile:
    """Return the contents of a search's file; raise ValueError, naming file and key, for anything impossible."""
    data = dict(read_mapping(source))
    swept = [key for key in ("grid", "arms") if key in data]
    if swept and "space" not in data:
        raise ValueError(f"{source} is a sweep, as it has {swept[0]}: run it with cet-rl sweep {source}")
    check_keys(data, source, KEYS)
    own = {key: data.pop(key) for key in KEYS if key in data}
    if "task" not in data:
        raise ValueError(f"{source} names no task: set task")
    check_spelling(data["task"])
    task_kind = task_kind_of(data["task"])
    if task_kind is VISION:
        # Results are reported on the test images, so hyper-parameters must not be chosen by them.
        data.setdefault("validation", True)
    held_out = "validation" if data.get("validation") else "test"
    metrics = {score.key: score for score in (score.on(held_out) for score in task_kind.scores)}
    one_of: Any = Literal[tuple(metrics)]
    trials = checked(own.get("trials", TRIALS), int, f"{source}: trials")
    if trials < 1:
        raise ValueError(f"{source}: trials must be at least 1, got {trials}")
    found = SearchFile(
        source=source,
        fixed=data,
        space=_space(own.get("space"), data, source, task_kind.config()),
        seeds=parse_seeds(own.get("seeds", 0), f"{source}: seeds"),
        metric=metrics[checked(own.get("metric", next(iter(metrics))), one_of, f"{source}: metric")],
        curve=task_kind.curve.on(held_out),
        pruner=checked(own.get("pruner", "median"), Pruner, f"{source}: pruner"),
        sampler=checked(own.get("sampler", "tpe"), Sampler, f"{source}: sampler"),
        trials=trials,
    )
    for params in params_to_try(found.space):
        found.sweep(params)  # refuses what cannot be run
    return found


def params_to_try(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return combinations of low, inner and high values: all, or if those are too many, one option's at a time."""
    ends = {
        name: getattr(x, "choices", ()) or (x.low, x.low + (x.step or 0.382 * (x.high - x.low)), x.high)
        for name, x in space.items()
    }
    if math.prod(map(len, ends.values())) <= MOST_COMBINATIONS:
        return [dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values())]
    first = {name: end[0] for name, end in ends.items()}
    return [{**first, name: value} for name, end in ends.items() for value in end]


def _space(
    value: object, fixed: Mapping[str, Any], source: str, kind: type[RunConfig]
) -> dict[str, BaseDistribution]:
    if not (isinstance(value, Mapping) and value):
        raise ValueError(f"{source}: space must name options to search, such as lr: {{low: 1e-4, high: 1e-2}}")
    space = {}
    for option, entry in value.items():
        where = f"{source}, space: {option}"
        if option in _FIXED:
            raise ValueError(f"{where} cannot be searched: {_FIXED[option]}")
        if option not in types_of(kind):
            raise unknown(f"{source}, space: unknown option of {fixed['task']}", option, sorted(types_of(kind)))
        if option in fixed:
            raise ValueError(f"{where} is also set for all trials: leave out one of the two")
        space[option] = _distribution(option, entry, where, kind)
    return space


def _distribution(option: str, entry: object, where: str, kind: type[RunConfig]) -> BaseDistribution:
    """Return one entry of `space`: {low, high}, with log or step, or {choices}."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def value(given: object) -> Any:
        return check_values({option: given}, where, kind)[option]

    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be {{low: …, high: …}} or {{choices: […]}}, got {entry!r}")
    for key in entry:
        if key not in ("low", "high", "log", "step", "choices"):
            raise unknown(f"{where}: unknown key", key, ("low", "high", "log", "step", "choices"))
    if "choices" in entry:
        choices = entry["choices"]
        if not (isinstance(choices, list) and choices and len(entry) == 1):
            raise ValueError(f"{where}: choices must be a list of values, without low, high, log and step")
        found = [value(choice) for choice in choices]
        for choice in found:
            if found.count(choice) > 1:
                raise ValueError(f"{where}: the choice {choice!r} is given twice")
        return CategoricalDistribution([json.dumps(one) if isinstance(one, tuple) else one for one in found])
    hint = types_of(kind)[option]
    hint = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint  # None is no end of a range
    if hint not in (int, float):
        raise ValueError(f"{where} is no number: give choices")
    if "low" not in entry or "high" not in entry:
        raise ValueError(f"{where} needs low and high, or choices")
    given: list[Any] = [None if entry.get(key) is None else value(entry[key]) for key in ("low", "high", "step")]
    low, high, step = given
    if None in (low, high) or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{where}: low must be less than high, and both finite, got {low!r} and {high!r}")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"{where}: step must be positive and not larger than high - low, got {step!r}")
    log = checked(entry.get("log", False), bool, f"{where}: log")
    try:
        return (
            IntDistribution(low, high, log, step or 1) if hint is int else FloatDistribution(low, high, log, step)
        )
    except ValueError as error:  # log together with step, or with a low of zero
        raise ValueError(f"{where}: {error}") from None
