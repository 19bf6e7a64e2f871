"""Describe the kinds of tasks: the options and scores of each, and the functions that train and evaluate it.

The modules of a kind of task are imported on first use.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from typing import Any

from cet_rl.runs.config import OPEN, Mark, RunConfig, marked
from cet_rl.runs.values import nearest


@dataclass(frozen=True)
class Score:
    """Describe a number that tells how good a run is; {held_out} stands for test or validation (images)."""

    key: str  # of a summary's metrics, or a column of metrics.csv
    title: str
    word: str  # short form of the title, for tables and the progress bar
    digits: int  # decimals of the number as it is stored
    higher_is_better: bool = True
    percent: bool = False

    def on(self, held_out: str) -> Score:
        """Return the same score with `held_out`, "test" or "validation", filled in."""
        key, title = (text.format(held_out=held_out) for text in (self.key, self.title))
        return replace(self, key=key, title=title)

    def show(self, number: float) -> str:
        """Return the number as people read it: 0.1234, 98.05%; with an exponent if a run has diverged."""
        if abs(number) >= 1e7:
            return f"{number:.3g}"
        return f"{number:.{self.digits - 2}%}" if self.percent else f"{number:.{self.digits}f}"


@dataclass(frozen=True)
class TaskKind:
    """Describe one kind of task.

    Its package, cet_rl.NAME, has a module `config` with its class of configurations, and a module `training` with

        resolve(config) -> config           with all defaults filled in, as a run's config.yaml has them
        train(config, run_dir, *, resume, checkpoint_every, quiet, track) -> status
        evaluate_run(values, checkpoint, **options) -> str              a line with the result, for `cet-rl eval`
        check_data(*values)                 raises ValueError or OSError if data cannot be loaded

    The function `summaries` of its module `catalogue` returns its tasks with a line about each. Reinforcement
    learning has no catalogue: every task that no other kind of task has is one of its environments.
    """

    name: str
    title: str  # what its tasks are about, in words
    class_name: str  # of its configurations
    scores: tuple[Score, ...]  # of a summary; arms are compared on the first
    curve: Score  # column of metrics.csv that learning curves show
    progress: Score  # column of metrics.csv that is shown while a run goes on
    unit: str  # name of its steps
    catalogue: str | None = None
    checkpoint: str = "agent.zip"  # the file that holds what has been learned
    evaluation_options: tuple[str, ...] = ()  # options of `cet-rl eval` that it takes
    data_fields: tuple[str, ...] = ()  # of a configuration, which `check_data` is called with

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"cet_rl.{self.name}.{name}")

    def config(self) -> type[RunConfig]:
        """Return the class of its configurations."""
        found: type[RunConfig] = getattr(self._module("config"), self.class_name)
        return found

    def training(self) -> Any:
        """Return its module `training`, which takes seconds to import."""
        return self._module("training")

    def tasks(self) -> Mapping[str, str]:
        """Return the names of its tasks and a line about each; empty for the kind of all other tasks."""
        found: Mapping[str, str] = self._module(self.catalogue).summaries() if self.catalogue else {}
        return found

    def describe(self) -> str:
        """Return a short description: "image classification (digits, mnist)"."""
        tasks = ", ".join(self.tasks())
        return f"{self.title} ({tasks})" if tasks else self.title


_LOSS = Score("train/loss", "training loss", "loss", 4, higher_is_better=False)
_RETURN = Score("rollout/ep_rew_mean", "return (last 100 episodes)", "return", 1)
_ACCURACY = Score("{held_out}_accuracy", "{held_out} accuracy", "accuracy", 4, percent=True)

RL = TaskKind(
    "rl",
    "reinforcement learning",
    class_name="RLConfig",
    scores=(
        Score("train_return_mean", "training return (last 100 episodes)", "return", 1),
        Score("eval_return_mean", "evaluation return (deterministic)", "return", 1),
    ),
    curve=_RETURN,
    progress=_RETURN,
    unit="samples",
    evaluation_options=("episodes", "agent", "seed", "video", "render"),
)
VISION = TaskKind(
    "vision",
    "image classification",
    class_name="VisionConfig",
    scores=(_ACCURACY, Score("{held_out}_loss", "{held_out} loss", "loss", 4, higher_is_better=False)),
    curve=replace(_ACCURACY, key="{held_out}/accuracy"),
    progress=_LOSS,
    unit="updates",
    catalogue="datasets",
    checkpoint="network.zip",
    evaluation_options=("data_dir",),
    data_fields=("task", "data_dir", "validation"),
)
RECURRENT = TaskKind(
    "recurrent",
    "recurrent networks",
    class_name="RecurrentConfig",
    scores=(Score("test_loss", "test loss", "loss", 4, higher_is_better=False),),
    curve=_LOSS,
    progress=_LOSS,
    unit="time steps",
    catalogue="config",
    checkpoint="network.zip",
)
TASK_KINDS = (RL, VISION, RECURRENT)

_GYMNASIUM_ID = re.compile(r"[:/]|-v\d+$")  # such as CartPole-v1, MinAtar/Breakout-v1 or package:Env-v0


def task_kind_of(task: str | None) -> TaskKind:
    """Return the kind of a task: reinforcement learning for every name that is in no catalogue."""
    return next((task_kind for task_kind in TASK_KINDS if task in task_kind.tasks()), RL)


def named_tasks() -> list[str]:
    """Return the tasks of all catalogues."""
    return [task for task_kind in TASK_KINDS for task in task_kind.tasks()]


def check_new_task(kind: str, name: str) -> None:
    """Raise ValueError unless a data set or a sequence task, as `kind` says, can be registered under a name.

    The name must not be that of another task, and not look like a Gymnasium id.
    """
    if not re.fullmatch(r"\w[\w-]*", name) or _GYMNASIUM_ID.search(name):
        raise ValueError(f"a {kind}'s name is letters, digits, - and _, and no Gymnasium id, got {name!r}")
    if name in named_tasks():
        raise ValueError(f"there is a task {name!r} already")


def check_spelling(task: str) -> None:
    """Raise ValueError for a name that is close to one in a catalogue and does not look like a Gymnasium id."""
    known = named_tasks()
    near = None if task in known or _GYMNASIUM_ID.search(task) else nearest(task, known)
    if near:
        raise ValueError(f"unknown task {task!r}; did you mean {near}?")


def build_config(values: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> RunConfig:
    """Return a configuration with these values; the others are those of `base`, or the task's tuned defaults."""
    kind = task_kind_of(values["task"]).config()
    plain = {item.name: item.default for item in fields(kind) if item.default is not MISSING}
    return kind(**{**({} if base is None else {**plain, **base}), **values})


def refuse_foreign(name: str, own: Collection[str], subject: str, shown: str) -> None:
    """Raise ValueError for an option, written as `shown`, that `subject` lacks and another kind of task has."""
    if name in own:
        return
    for other in TASK_KINDS:
        if name in {item.name for item in fields(other.config())}:
            raise ValueError(f"{shown} does not apply to {subject}: it is an option of {other.describe()}")


@cache
def options_marked(mark: Mark) -> frozenset[str]:
    """Return the options of all kinds of tasks that have a mark."""
    return frozenset().union(*(marked(task_kind.config(), mark) for task_kind in TASK_KINDS))


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by which runs are told apart: all but those of the machine and choices left open."""
    machine, chosen = options_marked(Mark.MACHINE), options_marked(Mark.CHOSEN)
    return {
        key: value for key, value in values.items() if key not in machine and not (key in chosen and value in OPEN)
    }


UNRECORDED = {"vectorization": "each"}
"""Choices of runs whose config.yaml is older than the option."""


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each option in which two configurations differ, such as "lr 0.001 there, 0.01 here"."""
    there, here = ({**UNRECORDED, **values} for values in (there, here))
    either, chosen = identity(there | here), options_marked(Mark.CHOSEN)
    pairs = [(key, there.get(key), here.get(key)) for key in either]
    return [
        f"{key} {theirs!r} there, {ours!r} here"
        for key, theirs, ours in pairs
        if theirs != ours and not (key in chosen and (theirs in OPEN or ours in OPEN))
    ]
