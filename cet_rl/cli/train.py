"""`cet-rl train`: a run in a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from cet_rl.cli import EXIT_INTERRUPTED
from cet_rl.cli.options import parse
from cet_rl.config import RLConfig, read_config, tuned_defaults
from cet_rl.paper import paper_cell
from cet_rl.runs import RunFolder

PAPER = "paper"
"""The configuration that stands for the row of the paper's tables that fits task, delay and order."""

DESCRIPTION = (
    "Learn a task whose credit arrives late. Writes a run folder: config.yaml, TensorBoard events, metrics.csv, "
    "checkpoint/ and, at the end, summary.json. The defaults shown are those of the task, if one is given."
)


@dataclass(frozen=True)
class RunOptions:
    """Where the run lives, and how much it says."""

    config: str | None = None
    """Configuration file, the name of one that comes with the package (`cet-rl list configs`), or paper: the
    paper's hyper-parameters for this task, delay and order."""
    run_dir: str | None = None
    """The run folder itself. Default runs/TASK-LABEL-SEED."""
    resume: bool = False
    """Go on from the folder's checkpoint, with its configuration; start afresh if there is none."""
    quiet: bool = False
    """Print nothing but errors."""


@dataclass(frozen=True)
class TrainArguments:
    """All of the command's arguments."""

    learning: tyro.conf.OmitArgPrefixes[RLConfig]
    run: tyro.conf.OmitArgPrefixes[RunOptions]
    note: tyro.conf.Suppress[str] = ""  # what the user should know of where the values come from


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    parsed = parse_arguments(arguments)
    # Imported late: torch and Stable-Baselines3 take seconds; `--help` and a misspelt option should not.
    from cet_rl.training import train

    options = parsed.run
    if parsed.note and not options.quiet:
        print(parsed.note, file=sys.stderr)
    status = train(parsed.learning, options.run_dir, resume=options.resume, quiet=options.quiet)
    return 0 if status == "finished" else EXIT_INTERRUPTED


def parse_arguments(arguments: Sequence[str]) -> TrainArguments:
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
    from_file = read_config(named) if named is not None else {}
    task = arguments[0] if arguments and not arguments[0].startswith("-") else from_file.get("task")
    parsed = _parse(arguments, task, from_file)
    if parsed.learning.task != task:  # the task came after the options
        parsed = _parse(arguments, parsed.learning.task, from_file)
    if from_file.get("task", parsed.learning.task) != parsed.learning.task:
        raise ValueError(f"{named} is for task {from_file['task']}, not for {parsed.learning.task}")
    return parsed


def _paper(arguments: Sequence[str]) -> TrainArguments:
    """Arguments over the row of the paper's tables that they name; the tuned defaults have no part in it."""
    asked = _parse(arguments, None, {}).learning
    if asked.agent != "cet":
        raise ValueError(
            f"--config paper is for the paper's agent, not for {asked.agent}: leave out one of the two"
        )
    cell, note = paper_cell(
        asked.task, delay=asked.delay, order=asked.order, stacked=asked.stacked, trace=asked.trace
    )
    return replace(_parse(arguments, None, cell), note=note)


def _parse(arguments: Sequence[str], task: str | None, from_file: dict[str, object]) -> TrainArguments:
    tuned = tuned_defaults(task) if task else {}
    values = {**tuned, "task": task or tyro.MISSING_NONPROP, **from_file}
    return parse(
        TrainArguments,
        arguments,
        prog="cet-rl train",
        description=DESCRIPTION,
        default=TrainArguments(RLConfig.unchecked(values), RunOptions()),
    )


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{option}="):
            return argument.split("=", 1)[1]
    return None
