"""The cells of a sweep, built and checked before any of them starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from importlib import resources

from cet_rl import __version__
from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import check_values
from cet_rl.runs.folder import default_path
from cet_rl.runs.paper import paper_values
from cet_rl.runs.task_kinds import (
    RL,
    TASK_KINDS,
    TaskKind,
    build_config,
    check_spelling,
    refuse_foreign,
    task_kind_of,
)
from cet_rl.sweeps.file import Asked, Spec
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Cell, Sweep, fingerprint
from cet_rl.sweeps.states import read_summary


def build_or_read(spec: Spec, folder: SweepFolder) -> Sweep:
    """All cells of a sweep, read from its folder if they would come out the same.

    Building them takes seconds, for what trains has to be loaded to check them.

    Raises:
        ValueError: as `build` does, or if the folder's sweep.yaml is damaged.
    """
    if folder.spec_file.is_file():
        earlier = folder.read()
        if earlier.made_from == digest(spec):
            return earlier
    return build(spec)


def digest(spec: Spec) -> str:
    """SHA-256 of all that a sweep's cells follow from: its file, and what this version of the package adds."""
    kinds = [task_kind.config() for task_kind in TASK_KINDS]
    items = [item for kind in kinds for item in fields(kind)]
    defaults = [[item.name, repr(item.default)] for item in items if item.default is not dataclasses.MISSING]
    home = resources.files("cet_rl") / "configs"
    added = [file.read_text("utf-8") for name in ("tuned", "paper") for file in (home / name).iterdir()]
    asked = [[*map(repr, sorted(one.settings.items())), one.name, one.paper] for one in spec.asked]
    text = json.dumps([__version__, spec.title, asked, spec.seeds, defaults, sorted(added)])
    return hashlib.sha256(text.encode()).hexdigest()


def build(spec: Spec) -> Sweep:
    """All cells of a sweep.

    Raises:
        ValueError: for a cell that cannot be run, naming file, cell and option, or two that would be the same run.
    """
    cells: list[Cell] = []
    seen: dict[str, Asked] = {}
    for asked in spec.asked:
        where = f"{spec.source}, cell {asked}" if asked.varied else spec.source
        config = _config(asked, where)
        try:
            found = over_seeds(config, spec.seeds, asked.name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        for cell in found:
            if cell.name in seen:
                raise ValueError(f"{spec.source}: {_pair(seen[cell.name], asked)} are the same run: leave out one")
            seen[cell.name] = asked
            cells.append(cell)
    return Sweep(spec.title, tuple(cells), digest(spec))


def over_seeds(config: RunConfig, seeds: Iterable[int], name: str | None = None) -> list[Cell]:
    """One configuration as a cell for each seed.

    Args:
        config: its seed does not matter.
        seeds: of the cells.
        name: of the arm; None for the configuration's label.

    Raises:
        ValueError: for an agent, an environment or a device that is not there.
    """
    cells, resolved = [], _resolve(config)
    for seed in seeds:
        one = dataclasses.replace(resolved, seed=seed)
        values = {key: value for key, value in one.as_data().items() if key != "threads"}
        cells.append(Cell(f"{default_path(one).name}-{fingerprint(values)}", name or one.label, values))
    return cells


def configuration(cell: Cell) -> tuple[TaskKind, RunConfig]:
    """The task kind of a cell's task, and the cell's configuration for one thread.

    Raises:
        ValueError: if sweep.yaml is from another version of this package.
    """
    task_kind = task_kind_of(cell.values["task"])
    values = check_values({**cell.values, "threads": 1}, f"sweep.yaml, {cell.name}", task_kind.config())
    return task_kind, task_kind.config()(**values)


def check_data(cells: Iterable[Cell], folder: SweepFolder) -> None:
    """Look at the data of cells that are not finished, so that not each of them fails for the same reason.

    Raises:
        ValueError, OSError: if some cannot be had.
    """
    seen = set()
    for cell in cells:
        task_kind = task_kind_of(cell.values["task"])
        values = tuple(cell.values.get(name) for name in task_kind.data_fields)
        if not task_kind.data_fields or (task_kind.name, values) in seen:
            continue
        if (read_summary(folder, cell.name) or {}).get("status") != "finished":
            seen.add((task_kind.name, values))
            task_kind.training().check_data(*values)


def _resolve(config: RunConfig) -> RunConfig:
    """The configuration as its run's config.yaml will have it, but for device and threads, the machine's own."""
    task_kind = task_kind_of(config.task)
    if task_kind is RL:
        from cet_rl.envs import find_task

        find_task(config.task)
    resolved: RunConfig = task_kind.training().resolve(dataclasses.replace(config, threads=1))
    return dataclasses.replace(resolved, device=config.device, threads=None)


def _config(asked: Asked, where: str) -> RunConfig:
    """The configuration of one combination, with some seed."""
    settings = asked.settings
    task = settings.get("task")
    if not isinstance(task, str):
        raise ValueError(f"{where} names no task: set task, or put it in the grid")
    try:
        check_spelling(task)
        task_kind = task_kind_of(task)
        own = {item.name for item in fields(task_kind.config())}
        for key in settings:
            refuse_foreign(key, own, task, key)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    values = check_values(settings, where, task_kind.config())
    try:
        return build_config(values, paper_values(values)[0] if asked.paper else None)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _pair(first: Asked, second: Asked) -> str:
    both = (str(first) or first.name or "one arm", str(second) or second.name or "another")
    return f"the cells ({both[0]}) and ({both[1]})"
