"""Build the jobs of a sweep, and check them before any of them starts."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Iterable
from dataclasses import fields
from importlib import resources
from typing import Any

from cet_rl import __version__
from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import check_values
from cet_rl.runs.files import holds
from cet_rl.runs.folder import default_path
from cet_rl.runs.paper import paper_row
from cet_rl.runs.task_kinds import (
    RL,
    TASK_KINDS,
    TaskKind,
    build_config,
    check_spelling,
    refuse_foreign,
    task_kind_of,
)
from cet_rl.sweeps.file import Combination, SweepFile
from cet_rl.sweeps.folder import Job, Sweep, SweepFolder
from cet_rl.sweeps.known import fingerprint


def build_or_read(file: SweepFile, folder: SweepFolder) -> Sweep:
    """Return the sweep of a file, read from its folder if that has been built from the same file and defaults.

    Building a sweep takes seconds, since it imports the modules that train. Raises ValueError as `build` does, and
    if the folder holds something else or its sweep.yaml is damaged.
    """
    if holds(folder.path, folder.sweep_file.name, "sweep"):
        earlier = folder.read()
        if earlier.made_from == digest(file):
            return earlier
    return build(file)


def digest(file: SweepFile) -> str:
    """Return the SHA-256 of all that determines a sweep's jobs: its file, and the defaults of this version."""
    defaults = [str(inspect.signature(task_kind.config())) for task_kind in TASK_KINDS]
    home = resources.files("cet_rl") / "configs"
    added = sorted(entry.read_text("utf-8") for name in ("tuned", "paper") for entry in (home / name).iterdir())
    asked = dataclasses.replace(file, source="")
    return hashlib.sha256(repr((__version__, asked, defaults, added)).encode()).hexdigest()


def build(file: SweepFile) -> Sweep:
    """Return a sweep with all of its jobs; ValueError, saying which, if one cannot be run or two are the same."""
    jobs: list[Job] = []
    seen: dict[str, Combination] = {}
    for combination in file.combinations:
        where = f"{file.source}, job {combination}" if combination.varied else file.source
        try:
            found = over_seeds(_config(combination, where), file.seeds, combination.name)
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None
        for job in found:
            if job.name in seen:
                first, second = seen[job.name], combination
                both = f"({str(first) or first.name or 'one arm'}) and ({str(second) or second.name or 'another'})"
                raise ValueError(f"{file.source}: the jobs {both} are the same run: leave out one")
            seen[job.name] = combination
            jobs.append(job)
    return Sweep(file.title, tuple(jobs), digest(file))


def over_seeds(config: RunConfig, seeds: Iterable[int], name: str | None = None) -> list[Job]:
    """Return a job for each seed of one configuration, in an arm called `name`, by default the label.

    Raises ValueError for an agent, an environment or a device that does not exist here.
    """
    jobs, resolved = [], _resolve(config)
    for seed in seeds:
        one = dataclasses.replace(resolved, seed=seed)
        values = {key: value for key, value in one.as_data().items() if key != "threads"}
        jobs.append(Job(f"{default_path(one).name}-{fingerprint(values)}", name or one.label, values))
    return jobs


def configuration(job: Job) -> tuple[TaskKind, RunConfig]:
    """Return a job's kind of task and its configuration for one thread; ValueError for unknown options."""
    task_kind = task_kind_of(job.values["task"])
    values = check_values({**job.values, "threads": 1}, f"sweep.yaml, {job.name}", task_kind.config())
    return task_kind, task_kind.config()(**values)


def check_data(jobs: Iterable[Job], folder: SweepFolder) -> None:
    """Raise ValueError or OSError unless the data of all jobs that are not finished can be loaded."""
    data: dict[tuple[TaskKind, tuple[Any, ...]], None] = {}
    for job in jobs:
        task_kind = task_kind_of(job.values["task"])
        values = tuple(job.values.get(name) for name in task_kind.data_fields)
        if values and folder.summary(job.name).get("status") != "finished":
            data[task_kind, values] = None
    for task_kind, values in data:
        task_kind.training().check_data(*values)


def _resolve(config: RunConfig) -> RunConfig:
    """Return the configuration with its defaults filled in, except for device and threads."""
    task_kind = task_kind_of(config.task)
    if task_kind is RL:
        from cet_rl.envs import find_task

        find_task(config.task)
    resolved: RunConfig = task_kind.training().resolve(dataclasses.replace(config, threads=1))
    return dataclasses.replace(resolved, device=config.device, threads=None)


def _config(combination: Combination, where: str) -> RunConfig:
    """Return the configuration of one combination, with some seed."""
    settings = combination.settings
    task = settings.get("task")
    if not isinstance(task, str):
        raise ValueError(f"{where} names no task: set task, or put it in the grid")
    check_spelling(task)
    kind = task_kind_of(task).config()
    own = {item.name for item in fields(kind)}
    for key in settings:
        refuse_foreign(key, own, task, key)
    values = check_values(settings, where, kind)
    return build_config(values, paper_row(**values)[0] if combination.paper else None)
