"""`cet-rl train`: a run in a folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

import tyro

from cet_rl.cli import EXIT_INTERRUPTED
from cet_rl.cli.options import parse
from cet_rl.rl.config import RLConfig
from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import check_values, read_mapping, tuned_defaults
from cet_rl.runs.folder import RunFolder, default_path
from cet_rl.runs.paper import paper_cell
from cet_rl.runs.task_kinds import TASK_KINDS, TaskKind, check_spelling, named_tasks, refuse_foreign, task_kind_of
from cet_rl.runs.values import flag
from cet_rl.sweeps.file import KEYS

PAPER = "paper"
"""The configuration that stands for the row of the paper's tables that fits task, delay and order."""

DESCRIPTION = (
    "Learn a task whose credit arrives late. Writes a run folder: config.yaml, TensorBoard events, metrics.csv, "
    "checkpoint/ and, at the end, summary.json. The defaults shown are those of the task, if one is given."
)

C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True)
class RunOptions:
    """Where the run lives, and how much it says."""

    config: str | None = None
    """Configuration file, the name of one that comes with the package (`cet-rl list configs`), or paper: the
    paper's hyper-parameters for this task, delay and order."""
    run_dir: str | None = None
    """The run folder itself. Default runs/TASK-LABEL-SEED."""
    seeds: str | None = None
    """0-4 or 0,2,5: a run for each seed, side by side, as a sweep in runs/TASK-LABEL-seeds. Typed again it goes on
    where it was; with --resume it also retries runs that have failed."""
    resume: bool = False
    """Go on from the folder's checkpoint, with its configuration; start afresh if there is none."""
    checkpoint_every: int | None = None
    """Steps from one checkpoint to the next. Default: ten in a run, more in a long one of reinforcement learning;
    one is always taken on Ctrl-C. The results do not depend on it."""
    quiet: bool = False
    """Print nothing but errors."""


@dataclass(frozen=True)
class TrainArguments(Generic[C]):
    """All of the command's arguments; C is the class of configurations of the task's kind."""

    learning: tyro.conf.OmitArgPrefixes[C]
    run: tyro.conf.OmitArgPrefixes[RunOptions]
    note: tyro.conf.Suppress[str] = ""  # what the user should know of where the values come from


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    parsed = parse_arguments(arguments)
    options = parsed.run
    if parsed.note and not options.quiet:
        print(parsed.note, file=sys.stderr)
    if options.seeds is not None:
        return _run_seeds(parsed, options.seeds, arguments)
    # What trains is imported here at the earliest: it takes seconds; `--help` and a misspelt option should not.
    train = task_kind_of(parsed.learning.task).train
    status = train(
        parsed.learning,
        options.run_dir,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        quiet=options.quiet,
    )
    return 0 if status == "finished" else EXIT_INTERRUPTED


def _run_seeds(parsed: TrainArguments[RunConfig], seeds: str, arguments: Sequence[str]) -> int:
    """A sweep over the seeds of one configuration; its exit status."""
    if _value_of("--seed", arguments) is not None:
        raise ValueError("--seeds and --seed exclude each other: leave out one of the two")
    if _value_of("--threads", arguments) is not None:
        raise ValueError("--threads does not go with --seeds, which runs each seed on one thread: leave it out")
    if parsed.run.checkpoint_every is not None:
        raise ValueError("--checkpoint-every does not go with --seeds, which takes ten in each run: leave it out")
    from cet_rl.sweeps.build import over_seeds
    from cet_rl.sweeps.file import parse_seeds
    from cet_rl.sweeps.folder import SweepFolder
    from cet_rl.sweeps.jobs import Sweep
    from cet_rl.sweeps.launcher import LocalLauncher
    from cet_rl.sweeps.scheduler import run_sweep

    config, options = parsed.learning, parsed.run
    cells = over_seeds(config, parse_seeds(seeds, "--seeds"))
    arm = default_path(config).name.removesuffix(f"-{config.seed}")
    folder = SweepFolder(options.run_dir or Path("runs") / f"{arm}-seeds")
    return run_sweep(Sweep(arm, tuple(cells)), folder, LocalLauncher(), retry=options.resume, quiet=options.quiet)


def parse_arguments(arguments: Sequence[str]) -> TrainArguments[RunConfig]:
    """Arguments over configuration file over the task's tuned defaults.

    Raises:
        ValueError: for what does not fit, in one line.
    """
    if sum(argument == "--config" or argument.startswith("--config=") for argument in arguments) > 1:
        raise ValueError("--config can be given once")
    named = _value_of("--config", arguments)
    folder = _value_of("--run-dir", arguments)
    if named is None and folder and "--resume" in arguments:
        saved = RunFolder(folder).config_file
        named = str(saved) if saved.is_file() else None
    if named == PAPER and not Path(PAPER).is_file():
        return _paper(arguments)
    file = read_mapping(named) if named is not None else {}
    if not file.keys().isdisjoint(KEYS):
        raise ValueError(f"{named} asks for more than one run: cet-rl sweep {named}")
    task = _task_among(arguments) or file.get("task")
    if named is None and folder and "--resume" in arguments and _no_words(arguments):
        raise ValueError(
            f"{folder} holds no run to go on with, as it has no config.yaml: name the task of a new one"
        )
    parsed = _over_defaults(arguments, task, file, str(named))
    if parsed.learning.task != task:  # the task came after the options
        parsed = _over_defaults(arguments, parsed.learning.task, file, str(named))
    return parsed


def _over_defaults(
    arguments: Sequence[str], task: str | None, file: Mapping[str, Any], name: str
) -> TrainArguments[RunConfig]:
    """Arguments over what the file holds, over the tuned defaults of the task as far as it is known."""
    if file.get("task", task) != task:
        raise ValueError(f"{name} is for task {file['task']}, not for {task}")
    kind = _task_kind(task).config()
    tuned = tuned_defaults(task, kind) if task else {}
    return _parse(arguments, kind, task, {**tuned, **check_values(file, name, kind)})


def _paper(arguments: Sequence[str]) -> TrainArguments[RunConfig]:
    """Arguments over the row of the paper's tables that they name; the tuned defaults have no part in it."""
    task = _task_among(arguments)
    task_kind = _task_kind(task)
    # What is asked for may not fit together before the row's values are under it.
    asked = _parse(arguments, _unchecked(task_kind.config()), task, {}).learning
    if isinstance(asked, RLConfig) and asked.agent != "cet":
        raise ValueError(
            f"--config paper is for the paper's agent, not for {asked.agent}: leave out one of the two"
        )
    cell, note = paper_cell(
        asked.task, delay=asked.delay, order=asked.order, stacked=asked.stacked, trace=asked.trace
    )
    return replace(_parse(arguments, task_kind.config(), task, cell), note=note)


def _unchecked(kind: type[RunConfig]) -> type[RunConfig]:
    """The same class with no check of its values."""
    return type(kind.__name__, (kind,), {"__doc__": kind.__doc__, "__post_init__": lambda self: None})


def _parse(
    arguments: Sequence[str], kind: type[RunConfig], task: str | None, values: Mapping[str, Any]
) -> TrainArguments[RunConfig]:
    """Arguments over values, as far as they are given."""
    _refuse_foreign_options(arguments, kind, task)
    default = object.__new__(kind)
    for item in fields(kind):
        value = task or tyro.MISSING_NONPROP if item.name == "task" else values.get(item.name, item.default)
        object.__setattr__(default, item.name, value)
    parsed: TrainArguments[RunConfig] = parse(
        TrainArguments[kind],  # type: ignore[valid-type]
        arguments,
        prog="cet-rl train",
        description=DESCRIPTION if task else DESCRIPTION + _other_options(),
        default=TrainArguments(default, RunOptions()),
    )
    return parsed


def _other_options() -> str:
    """Where the options of tasks are that are known by name."""
    named = [task_kind for task_kind in TASK_KINDS if task_kind.tasks()]
    return "".join(f" Options of {f.describe()}: cet-rl train {next(iter(f.tasks()))} --help." for f in named)


def _task_kind(task: str | None) -> TaskKind:
    if task is not None:
        check_spelling(task)
    return task_kind_of(task)


def _task_among(arguments: Sequence[str]) -> str | None:
    """The task, if it comes first or is one that is known by name: which options there are depends on it."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0]
    known = named_tasks()
    for option, word in pairwise(arguments):
        if word in known and option not in ("--config", "--run-dir"):
            return word
    return None


def _refuse_foreign_options(arguments: Sequence[str], kind: type[RunConfig], task: str | None) -> None:
    """Raise ValueError, saying so, for an option that only other task kinds have."""
    own = {"help", *(item.name for options in (kind, RunOptions) for item in fields(options))}
    subject = task or "environments"
    for argument in arguments:
        name = argument[2:].split("=")[0].replace("-", "_").removeprefix("no_")
        if argument.startswith("--"):
            refuse_foreign(name, own, subject, flag(name))


def _no_words(arguments: Sequence[str]) -> bool:
    """Whether there are only --run-dir, with its folder, and options that stand alone: nothing can be a task."""
    rest = [word for word in arguments if not word.startswith("--")]
    return rest == ([_value_of("--run-dir", arguments)] if "--run-dir" in arguments else [])


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{option}="):
            return argument.split("=", 1)[1]
    return None
