"""`cet-rl train`: run one configuration in a folder, or once for each of several seeds."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from cet_rl.cli import EXIT_INTERRUPTED, options_among, parse_into
from cet_rl.cli.options import Option, long_names, options_of
from cet_rl.runs.config import RunConfig, types_of
from cet_rl.runs.config_files import check_values, read_mapping, tuned_defaults
from cet_rl.runs.files import holds
from cet_rl.runs.folder import RunFolder, default_path
from cet_rl.runs.paper import PAPER, paper_row
from cet_rl.runs.task_kinds import TASK_KINDS, build_config, check_spelling, refuse_foreign, task_kind_of
from cet_rl.runs.tracking import TrackerName
from cet_rl.runs.values import flag
from cet_rl.sweeps.file import KEYS
from cet_rl.traces.registry import find_trace, traces

DESCRIPTION = """\
Learn a task whose credit arrives late.

Writes a run folder: config.yaml, TensorBoard events, metrics.csv, checkpoint/ and, at the end, summary.json. The
defaults shown are those of the task, if one is given.{other}

Examples:
  cet-rl train CartPole-v1 --delay 8 --order 5              # five states a synapse
  cet-rl train CartPole-v1 --delay 8 --order 5 --resume     # continue that run
  cet-rl train CartPole-v1 --delay 8 --trace et -q --seeds 0-4
  cet-rl train digits --delay 6 --trace optimal --order 6   # images
  cet-rl train late-add --rule rflo --trace legendre        # a recurrent network"""
NO_TASK = (
    "name the task first, as in cet-rl train CartPole-v1 --delay 8; leave it out only where it stands in the file "
    "of --config or, with --resume, in the folder of --run-dir"
)

GROUPS = {
    "delay and trace": (
        *("delay", "order", "trace", "stacked", "step_ms", "trace_delay", "trace_options", "normalization"),
        *("decay", "discretization", "jitter", "soma", "salience", "streaming", "streams"),
    ),
    "learning": (),
    "network": (
        *("hidden", "activation", "model", "channels", "actor", "critic", "split_observations", "units"),
        *("alpha", "feedback", "error_at"),
    ),
    "evaluation": ("eval_episodes", "eval_max_steps", "validation", "alignment"),
    "run": (
        *("run_dir", "config", "seeds", "launcher", "resume", "checkpoint_every", "track", "quiet", "seed"),
        *("device", "threads", "precision", "vectorization", "executors", "executor", "compile", "data_dir"),
    ),
}
"""Options by the group in which `--help` shows them; all others join the group "learning"."""

_OF_LAYERS = (
    *("hidden", "actor", "model", "channels", "streaming", "salience", "jitter", "delay", "stacked", "step_ms"),
    *("trace", "order", "decay", "discretization", "trace_delay", "trace_options", "lam", "gamma", "random_lam"),
)
CHOSEN_FOR = {"agent": ("executors", "vectorization"), **dict.fromkeys(_OF_LAYERS, ("executors",))}
"""Choices of a configuration file that are open again where an option is given, as they depend on it."""


@dataclass(frozen=True)
class RunOptions:
    """Choose the configuration file and the folder of a run, and how it is run and logged."""

    config: str | None = None
    """Configuration file, the name of one that comes with the package (`cet-rl list configs`), or paper: the
    paper's hyper-parameters for this task, delay and order."""
    run_dir: str | None = None
    """The run folder itself. Default: runs/TASK-LABEL-SEED."""
    seeds: str | None = None
    """0-4 or 0,2,5: a run for each seed, side by side, as a sweep in runs/TASK-LABEL-seeds. The same command
    continues it; with --resume it also retries runs that have failed."""
    launcher: Literal["local", "batch"] = "local"
    """With --seeds. local: a process for each run; batch: the runs on a processor learn together."""
    resume: bool = False
    """Continue from the folder's checkpoint, with its configuration; start afresh if there is none."""
    checkpoint_every: int | None = None
    """Steps between checkpoints. Default: a tenth of the run, at most 100,000 in reinforcement learning; Ctrl-C
    always saves one. The results do not depend on it."""
    quiet: bool = False
    """Print nothing but errors."""
    track: TrackerName | None = None
    """Also log to Weights & Biases or MLflow; needs cet-rl[wandb] or cet-rl[mlflow]. They read their own
    variables, such as WANDB_MODE=offline and MLFLOW_TRACKING_URI."""


@dataclass(frozen=True)
class TrainArguments:
    """Hold the configuration, the options of the run, the names of the options given, and a note to print."""

    config: RunConfig
    run: RunOptions
    given: frozenset[str]
    note: str = ""


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    parsed = parse_arguments(arguments)
    options = parsed.run
    if parsed.note and not options.quiet:
        print(parsed.note, file=sys.stderr)
    if options.seeds is not None:
        return _run_seeds(parsed, options.seeds)
    if options.launcher != "local":
        raise ValueError(f"--launcher {options.launcher} goes with --seeds: add it, or leave out --launcher")
    # Training is imported last, as that takes seconds: a folder that cannot be used should be refused at once.
    config, kind = parsed.config, task_kind_of(parsed.config.task)
    folder = RunFolder(options.run_dir or default_path(config), kind.checkpoint)
    # Other agents resolve the options of traces themselves.
    ours = getattr(config, "agent", "cet") == "cet"
    folder.check_usable(config.resolved().as_data() if ours else None, resume=options.resume)
    folder.check_free()
    if line := folder.finished:
        if not options.quiet:
            print(line, file=sys.stderr)
        return 0
    more: dict[str, Any] = {key: getattr(options, key) for key in ("resume", "checkpoint_every", "quiet", "track")}
    status = kind.training().train(config, options.run_dir, **more)
    return 0 if status == "finished" else EXIT_INTERRUPTED


def _run_seeds(parsed: TrainArguments, seeds: str) -> int:
    """Run a sweep over the seeds of one configuration, and return its exit status."""
    for option, why in {
        "seed": "names the one seed of a run",
        "threads": "is for a single run: with --seeds each runs on one thread",
        "checkpoint_every": "is for a single run: with --seeds each takes ten checkpoints",
        "track": "is for a single run",
    }.items():
        if option in parsed.given:
            raise ValueError(f"{flag(option)} does not go with --seeds, as it {why}: leave out one of the two")
    from cet_rl.sweeps.build import check_data, over_seeds
    from cet_rl.sweeps.file import parse_seeds
    from cet_rl.sweeps.folder import Sweep, SweepFolder
    from cet_rl.sweeps.scheduler import run_sweep
    from cet_rl.sweeps.worker import Launcher, batch_launcher

    config, options = parsed.config, parsed.run
    arm = default_path(config).name.removesuffix(f"-{config.seed}")
    folder = SweepFolder(options.run_dir or Path("runs") / f"{arm}-seeds")
    holds(folder.path, folder.sweep_file.name, "sweep")  # checked first: building the jobs takes seconds
    jobs = over_seeds(config, parse_seeds(seeds, "--seeds"))
    check_data(jobs, folder)
    launcher = batch_launcher(jobs) if options.launcher == "batch" else Launcher()
    return run_sweep(Sweep(arm, tuple(jobs)), folder, launcher, retry=options.resume, quiet=options.quiet)


def parse_arguments(arguments: Sequence[str]) -> TrainArguments:
    """Return what to run, from defaults < tuned defaults or the paper's < configuration file < options."""
    arguments = with_trace_options(long_names(arguments))
    given = options_among(arguments)
    if given.count("config") > 1:
        raise ValueError("--config can be given once")
    words = [word for word in arguments if word not in ("-h", "--help")]
    named = words[0] if words and not words[0].startswith("-") else None
    source, file = _configuration_file(words, named)
    task = named or file.get("task")
    if task is None and len(words) == len(arguments):
        raise ValueError(NO_TASK)
    if task is not None:
        check_spelling(task)
    kind = task_kind_of(task).config()
    options = {**options_of(kind), **options_of(RunOptions)}
    names = [name if name in options else name.removeprefix("no_") for name in given]
    for name in names:
        refuse_foreign(name, {"help", *options}, task or "environments", flag(name))
    if file.get("task", task) != task:
        raise ValueError(f"{source} is for task {file['task']}, not for {task}")
    values = check_values(file, source, kind)
    reopened = {choice for name in names for choice in CHOSEN_FOR.get(name, ())}
    values = {name: value for name, value in values.items() if name not in reopened}
    # Only `build_config` checks values against each other, once those of the paper are under them.
    options |= options_of(kind, {**(tuned_defaults(task, kind) if task else {}), **values})
    del options["task"]
    found = parse_into(
        _groups(options),
        arguments[1:] if task == arguments[0] else arguments,
        "cet-rl train TASK",
        DESCRIPTION.format(other="" if task else _other_options()),
    )
    values |= {name: found[name] for name in types_of(kind) if name in names}
    values["task"] = task
    base, note = paper_row(**values) if source == PAPER and not file else (None, "")
    run = RunOptions(**{item.name: found[item.name] for item in fields(RunOptions)})
    return TrainArguments(build_config(values, base), run, frozenset(names), note)


def _groups(options: Mapping[str, Option]) -> dict[str, dict[str, Option]]:
    """Return the options by the group in which `--help` shows them."""
    others = [name for name in options if not any(name in names for names in GROUPS.values())]
    groups = {**GROUPS, "learning": others}
    return {title: {name: options[name] for name in names if name in options} for title, names in groups.items()}


def with_trace_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the traces' own options, such as --tolerance 0.1, moved into --trace-options."""
    text = " ".join(arguments)
    kinds = list(traces().values()) + [find_trace(name) for name in re.findall(r"--trace[= ]([\w.]+:\w+)", text)]
    own = {name for kind in (RunOptions, *(each.config() for each in TASK_KINDS)) for name in types_of(kind)}
    known = {name for kind in kinds for name in kind.options} - own  # these are given by --trace-options
    kept: list[str] = []
    moved: list[str] = []
    words = iter(arguments)
    for word in words:
        option, sign, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if option.startswith("--") and name in known:
            value = value if sign else next(words, "")
            if not value or value.startswith("--"):
                raise ValueError(f"{option} needs a value")
            moved.append(f"{name}={value}")
        elif option in ("--trace-options", "--trace_options"):
            kept += ["--trace-options", *[value] * bool(sign)]
        else:
            kept.append(word)
    if moved and "--trace-options" not in kept:
        kept.append("--trace-options")
    place = kept.index("--trace-options") + 1 if moved else 0
    return [*kept[:place], *moved, *kept[place:]]


def _configuration_file(words: Sequence[str], task: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return name and content of the configuration file; no content without one or for the paper's tables."""
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--config", nargs="?")
    look.add_argument("--run-dir", "--run_dir", nargs="?")
    look.add_argument("--resume", nargs="?", const=True)
    seen, _ = look.parse_known_args(words)
    source = seen.config
    if source is None and seen.run_dir and seen.resume:
        saved = RunFolder(seen.run_dir).config_file
        if not saved.is_file() and task is None:
            raise ValueError(f"{seen.run_dir} holds no run to resume, no config.yaml: name a new run's task")
        source = str(saved) if saved.is_file() else None
    if source is None or (source == PAPER and not Path(PAPER).is_file()):
        return source or "", {}
    file = read_mapping(source)
    if seen.config is None and "task" not in file:
        raise ValueError(f"{source} is damaged: it names no task")
    if not file.keys().isdisjoint(KEYS):
        raise ValueError(f"{source} asks for more than one run: cet-rl sweep {source}")
    return source, file


def _other_options() -> str:
    """Return sentences on where to find the options of other kinds of tasks."""
    named = [task_kind for task_kind in TASK_KINDS if task_kind.tasks()]
    return "".join(f" Options of {f.describe()}: cet-rl train {next(iter(f.tasks()))} --help." for f in named)
