"""The tasks for recurrent networks there are; light to import."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cet_rl.runs.plugins import load_plugins

if TYPE_CHECKING:
    from cet_rl.recurrent.tasks import SequenceTask


class TaskSettings(Protocol):
    """What of a run's configuration a task is built from."""

    @property
    def lags(self) -> tuple[int, int]:
        """Of Add, in symbols."""

    @property
    def alpha(self) -> float:
        """α of the network."""

    @property
    def seed(self) -> int:
        """Of the run."""


Build = Callable[[TaskSettings], "SequenceTask"]


@dataclass(frozen=True)
class Task:
    """An entry of the catalogue.

    Attributes:
        summary: a line about it.
        build: called with the run's configuration; returns the task, and raises ValueError with one clear line.
            Or where to import it from, "module:function".
    """

    summary: str
    build: Build | str


TASKS: dict[str, Task] = {
    "add": Task(
        "the sum of two past bits, as a probability: 0.5 + 0.5 x(t - t1) - 0.25 x(t - t2)",
        "cet_rl.recurrent.tasks:build_add",
    ),
    "late-add": Task("Add whose error comes late", "cet_rl.recurrent.tasks:build_add"),
    "mimic": Task(
        "the outputs of a fixed random recurrent network, from its inputs",
        "cet_rl.recurrent.tasks:build_mimic",
    ),
}
"""By name."""


def register_task(name: str, summary: str, build: Build | str) -> None:
    """Add a task to those that `cet-rl train` knows.

    A package registers its own in the function that its entry point names (`cet_rl.runs.plugins`).

    Args:
        name: of the task.
        summary: a line about it.
        build: see `Task`.

    Raises:
        ValueError: if the name is taken, or could be a Gymnasium id.
    """
    if name in TASKS:
        raise ValueError(f"there is a task {name!r} already")
    if not name.replace("-", "").replace("_", "").isalnum() or "-v" in name:
        raise ValueError(f"a task's name is letters, digits, - and _, and no Gymnasium id, got {name!r}")
    TASKS[name] = Task(summary, build)


def summaries() -> dict[str, str]:
    """Name and a line about each, third parties' included."""
    load_plugins()
    return {name: task.summary for name, task in TASKS.items()}


def build_task(name: str, settings: TaskSettings) -> SequenceTask:
    """The task of a name, third parties' included.

    Args:
        name: a key of `TASKS`.
        settings: the run's configuration.

    Raises:
        ValueError: for an unknown name, with the nearest or all names, or settings that the task refuses.
    """
    load_plugins()
    if name not in TASKS:
        near = difflib.get_close_matches(name.lower(), TASKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(TASKS)}"
        raise ValueError(f"unknown task {name!r}; {hint}")
    build = TASKS[name].build
    if isinstance(build, str):
        module, _, function = build.partition(":")
        build = getattr(importlib.import_module(module), function)
    task: SequenceTask = build(settings)
    return task
