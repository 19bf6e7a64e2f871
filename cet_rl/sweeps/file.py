"""Read the file of a sweep; the values of options are checked later, by `cet_rl.sweeps.build`.

A file is a YAML mapping. It holds options of `cet-rl train` with underscores, which hold for all jobs, and

title   what the sweep is about
grid    a mapping from options to lists of values: a job for each combination
arms    a list of mappings, each with the settings of one arm; with `name`, for legends, and a `grid` of its own.
        Every arm is crossed with the grid, except for options that the arm sets itself
seeds   0-4, or a list; every job once for each. Default 0
config  paper: each job starts from the row of the paper's tables for its task, delay and order. An arm may set it
quick   settings, `seeds` and `grid` that replace those above with --quick

Precedence: defaults < tuned defaults of the task, or the paper's row < settings of all jobs < grid < arm < quick.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cet_rl.runs.config import check_seed
from cet_rl.runs.config_files import read_mapping, unknown_key
from cet_rl.runs.paper import PAPER
from cet_rl.runs.task_kinds import TASK_KINDS, task_kind_of
from cet_rl.runs.values import checked

KEYS = ("title", "grid", "arms", "seeds", "config", "quick")
"""Keys of a sweep's file that are no options of `cet-rl train`."""

MOST_JOBS = 100_000  # in one sweep

_ELSEWHERE = {
    "seed": "use seeds",
    "threads": "each run takes one thread",
    "run_dir": "it is an option of the command",
    "resume": "runs are always resumed",
    "quiet": "it is an option of the command",
}
"""Options of `cet-rl train` that a file of many runs cannot have, and why."""


@dataclass(frozen=True)
class Combination:
    """Describe one combination of settings that a file asks for, without seeds."""

    settings: Mapping[str, Any]
    varied: tuple[str, ...]  # options that grid or arm have set, for messages
    name: str | None = None  # of its arm, if the file gives one
    paper: bool = False  # whether it starts from the paper's tables

    def __str__(self) -> str:
        """Return the settings that tell it from the others: "delay 8, order 5"."""
        return ", ".join(f"{key} {self.settings[key]}" for key in self.varied)


@dataclass(frozen=True)
class SweepFile:
    """Hold the contents of a sweep's file: combinations of settings, arm by arm, and seeds for each of them."""

    source: str
    title: str
    combinations: tuple[Combination, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Arm:
    """Hold an arm of a sweep's file, or the settings of all of its jobs; `paper` is None where it is not set."""

    settings: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    name: str | None = None
    paper: bool | None = None


def read_sweep(source: str, *, quick: bool = False, **settings: Any) -> SweepFile:
    """Read the file of a sweep, by its path or by the name of one that comes with the package.

    With `quick` the file's quick settings replace the others; `settings` replace those of all jobs whose kind of
    task has them. Raises ValueError, naming file and key, for anything that a sweep cannot have.
    """
    data = dict(read_mapping(source))
    check_keys(data, source, KEYS)
    title = checked(data.pop("title", Path(source).stem), str, f"{source}: title")
    where = f"{source}, quick"
    override = _mapping(data.pop("quick", {}), where, ("grid", "seeds"))
    if quick and not override:
        raise ValueError(f"{source} has no quick settings: leave out --quick")
    override = override if quick else {}
    seeds = parse_seeds(override.pop("seeds", data.pop("seeds", 0)), f"{source}: seeds")
    items = data.pop("arms", [{}])
    if not (isinstance(items, list) and items):
        raise ValueError(f"{source}: arms must be a list of mappings, got {items!r}")
    arms = [_arm(data, source), *(_arm(item, f"{source}, arm {number}") for number, item in enumerate(items, 1))]
    grid = _grid(override.pop("grid", {}), f"{where}, grid")
    shared, *arms = [replace(arm, grid={k: grid.get(k, values) for k, values in arm.grid.items()}) for arm in arms]
    crossed = {option for arm in (shared, *arms) for option in arm.grid}
    for option in grid:
        if option not in crossed:
            raise ValueError(f"{where}: {option} is in no grid of the file: set it beside quick's grid")
    for option in override:
        if option in crossed:
            raise ValueError(f"{where}: {option} is in the grid: give its values in the grid of quick, as a list")
    every = (one for arm in arms for one in _cross(shared, arm, override, settings))
    found = tuple(itertools.islice(every, MOST_JOBS // len(seeds) + 1))
    for option in settings:
        if not any(option in one.settings for one in found):
            raise ValueError(f"{option} does not apply to any task of {source}")
    if len(found) * len(seeds) > MOST_JOBS:
        raise ValueError(f"{source} asks for more than {MOST_JOBS:,} jobs: make several sweeps of it")
    return SweepFile(source, title, found, seeds)


def parse_seeds(value: object, where: str) -> tuple[int, ...]:
    """Return the seeds in "0-4", "0,2,5-7", a number, or a list of numbers.

    Raises ValueError, with a message that begins with `where`, for anything else or a seed given twice.
    """
    seeds: list[int] = []
    for part in value if isinstance(value, list) else str(value).split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", str(part).strip())
        if span is None:
            raise ValueError(f"{where} must be a range such as 0-4, or a list such as 0,2,5; got {value!r}")
        low, high = int(span[1]), int(span[2] or span[1])
        check_seed(high)
        if not low <= high < low + MOST_JOBS:
            reason = "ends before it begins" if high < low else f"has more than {MOST_JOBS:,} seeds"
            raise ValueError(f"{where}: {span[0]} {reason}")
        seeds += range(low, high + 1)
    if not seeds:
        raise ValueError(f"{where} must name at least one seed")
    seed, times = Counter(seeds).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{where}: {seed} is given twice")
    return tuple(seeds)


def check_keys(mapping: Mapping[str, Any], where: str, own: Sequence[str]) -> None:
    """Raise ValueError for a key that is neither one of the file's own nor an option of any kind of task."""
    options = {item.name for task_kind in TASK_KINDS for item in fields(task_kind.config())}
    known = {*own, *options} - _ELSEWHERE.keys()
    for key in mapping:
        if key in _ELSEWHERE:
            raise ValueError(f"{where}: {key} has no place here: {_ELSEWHERE[key]}")
        if key not in known:
            raise unknown_key(where, key, sorted(known))


def _cross(shared: Arm, arm: Arm, override: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Combination]:
    # What an arm sets itself replaces the grid's values, and is not crossed with them.
    grid = {name: values for name, values in shared.grid.items() if name not in arm.settings} | dict(arm.grid)
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        settings = {**shared.settings, **point, **arm.settings, **override}
        kind = task_kind_of(str(settings.get("task"))).config() if given else None
        settings |= {name: value for name, value in given.items() if hasattr(kind, name)}
        varied = tuple(key for key in settings if key in point or key in arm.settings)
        own = (f"{key} {point[key]}" for key in arm.grid if key not in ("task", "delay"))  # an arm has all delays
        name = ", ".join([arm.name, *own]) if arm.name else None
        yield Combination(settings, varied, name, bool(shared.paper if arm.paper is None else arm.paper))


def _arm(value: object, where: str) -> Arm:
    settings = _mapping(value, where, ("name", "grid", "config"))
    paper = None
    if "config" in settings:
        config = settings.pop("config")
        paper = config == PAPER
        if config not in (PAPER, None):
            raise ValueError(f"{where}: config must be {PAPER}, got {config!r}: write its settings out")
    name = checked(settings.pop("name", None), str | None, f"{where}: name")
    grid = _grid(settings.pop("grid", {}), f"{where}, grid")
    for option in grid:
        if option in settings:
            raise ValueError(f"{where}: {option} is set and in the grid: leave out one of the two")
    return Arm(settings, grid, name, paper)


def _grid(value: object, where: str) -> dict[str, Sequence[Any]]:
    grid = _mapping(value, where, ())
    for option, values in grid.items():
        if not (isinstance(values, list) and values):
            raise ValueError(f"{where}: {option} must be a list of values, got {values!r}")
    return grid


def _mapping(value: object, where: str, own: Sequence[str]) -> dict[str, Any]:
    """Return a mapping of options, or of the file's own keys, to values."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping of options to values, got {value!r}")
    check_keys(value, where, own)
    return dict(value)
