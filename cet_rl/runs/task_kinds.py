"""Kinds of tasks: what is learned decides which options there are, and who trains and evaluates.

Nothing of a task kind is imported before it is needed.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cet_rl.runs.config import RunConfig, check_values, read_mapping
from cet_rl.runs.folder import RunFolder, Status

if TYPE_CHECKING:
    from cet_rl.cli.evaluate import EvalArguments


@dataclass(frozen=True)
class TaskKind:
    """One kind of task.

    Attributes:
        name: short, for programs.
        title: what its tasks are about, for people.
        home: "module:Class" of its configuration.
        resolver: "module:function" of `resolve`.
        trainer: "module:function" of `train`.
        evaluator: "module:function" of `evaluate_run`.
        catalogue: "module:function" that returns its tasks and a line about each; None if its tasks are all those
            that no other task kind knows.
        checkpoint: name of the file that holds what has been learned.
        evaluation_options: which options of `cet-rl eval` mean anything to it.
        data: "module:function", called with the values of some of a configuration's fields, that raises ValueError
            or OSError if the data they name cannot be had; None where there are none to be had.
        data_fields: these fields.
    """

    name: str
    title: str
    home: str
    resolver: str
    trainer: str
    evaluator: str
    catalogue: str | None = None
    checkpoint: str = "agent.zip"
    evaluation_options: tuple[str, ...] = ()
    data: str | None = None
    data_fields: tuple[str, ...] = ()

    def config(self) -> type[RunConfig]:
        """The class of its configurations."""
        found: type[RunConfig] = _load(self.home)
        return found

    def tasks(self) -> Mapping[str, str]:
        """Names of its tasks and a line about each; empty for the task kind of all other tasks."""
        found: Mapping[str, str] = _load(self.catalogue)() if self.catalogue else {}
        return found

    def describe(self) -> str:
        """In a few words: "image classification (digits, mnist)"."""
        tasks = ", ".join(self.tasks())
        return f"{self.title} ({tasks})" if tasks else self.title

    def resolve(self, config: RunConfig) -> RunConfig:
        """The configuration with nothing left to choose, as a run's config.yaml has it.

        Raises:
            ValueError: for what cannot be run on this machine.
        """
        resolved: RunConfig = _load(self.resolver)(config)
        return resolved

    def check_data(self, *values: Any) -> None:
        """Raise ValueError or OSError if data cannot be had; `values` are those of `data_fields`."""
        if self.data is not None:
            _load(self.data)(*values)

    def train(
        self,
        config: RunConfig,
        run_dir: str | Path | None = None,
        *,
        resume: bool = False,
        checkpoint_every: int | None = None,
        quiet: bool = False,
    ) -> Status:
        """Run a configuration in a run folder; see `cet_rl.rl.training.train`."""
        status: Status = _load(self.trainer)(
            config, run_dir, resume=resume, checkpoint_every=checkpoint_every, quiet=quiet
        )
        return status

    def evaluate_run(self, folder: RunFolder, values: Mapping[str, Any], options: EvalArguments) -> str:
        """Evaluate what a run has learned.

        Args:
            folder: of the run.
            values: of its configuration.
            options: as given to `cet-rl eval`, None where they are not.

        Returns:
            The line that says what came out.
        """
        line: str = _load(self.evaluator)(folder, values, options)
        return line


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


RL = TaskKind(
    "rl",
    "reinforcement learning",
    home="cet_rl.rl.config:RLConfig",
    resolver="cet_rl.rl.training:resolve",
    trainer="cet_rl.rl.training:train",
    evaluator="cet_rl.rl.training:evaluate_run",
    evaluation_options=("episodes", "agent", "seed"),
)
VISION = TaskKind(
    "vision",
    "image classification",
    home="cet_rl.vision.config:VisionConfig",
    resolver="cet_rl.vision.training:resolve",
    trainer="cet_rl.vision.training:train",
    evaluator="cet_rl.vision.training:evaluate_run",
    catalogue="cet_rl.vision.datasets:summaries",
    checkpoint="network.zip",
    data="cet_rl.vision.training:check_data",
    data_fields=("task", "data_dir", "validation"),
)
RECURRENT = TaskKind(
    "recurrent",
    "recurrent networks",
    home="cet_rl.recurrent.config:RecurrentConfig",
    resolver="cet_rl.recurrent.training:resolve",
    trainer="cet_rl.recurrent.training:train",
    evaluator="cet_rl.recurrent.training:evaluate_run",
    catalogue="cet_rl.recurrent.config:summaries",
    checkpoint="network.zip",
)
TASK_KINDS = (RL, VISION, RECURRENT)


def task_kind_of(task: str | None) -> TaskKind:
    """The task kind that a task belongs to: reinforcement learning for every name that is in no catalogue."""
    return next((task_kind for task_kind in TASK_KINDS if task in task_kind.tasks()), RL)


def named_tasks() -> list[str]:
    """The tasks of all catalogues."""
    return [task for task_kind in TASK_KINDS for task in task_kind.tasks()]


def check_spelling(task: str) -> None:
    """Raise ValueError for a name that is close to one in a catalogue and does not look like a Gymnasium id."""
    known = {name.lower(): name for name in named_tasks()}
    if task in known.values() or re.search(r"[:/]|-v\d+$", task):
        return
    near = difflib.get_close_matches(task.lower(), known, n=1, cutoff=0.75)
    if near:
        raise ValueError(f"unknown task {task!r}: did you mean {known[near[0]]}?")


def refuse_foreign(name: str, own: Collection[str], subject: str, shown: str) -> None:
    """Raise ValueError, saying whose it is, for an option that only other task kinds have.

    Args:
        name: of the option's field.
        own: names that there are.
        subject: what it does not apply to.
        shown: the option as it was written.
    """
    if name in own:
        return
    for other in TASK_KINDS:
        if name in {item.name for item in fields(other.config())}:
            raise ValueError(f"{shown} does not apply to {subject}: it is an option of {other.describe()}")


def read_run(path: str | os.PathLike[str]) -> tuple[TaskKind, RunFolder, dict[str, Any]]:
    """The task kind of a run folder's task, the folder as that task kind has it, and the values of its configuration.

    Raises:
        ValueError: if it is no run folder, or its configuration is damaged.
    """
    file = RunFolder(path).config_file
    if not file.is_file():
        raise ValueError(f"{file.parent} is no run folder: it has no {file.name}")
    mapping = read_mapping(str(file))
    if "task" not in mapping:
        raise ValueError(f"{file} is damaged: it names no task")
    task_kind = task_kind_of(mapping["task"])
    return task_kind, RunFolder(path, task_kind.checkpoint), check_values(mapping, str(file), task_kind.config())
