"""Run a recurrent network: from configuration to summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cet_rl.recurrent.config import RecurrentConfig
from cet_rl.recurrent.learner import TEST_STEPS, TESTED, SequenceLearner, build_online
from cet_rl.recurrent.tasks import build_task
from cet_rl.runs.folder import Status
from cet_rl.runs.process import on_this_machine, set_threads
from cet_rl.runs.session import Session, run
from cet_rl.runs.task_kinds import RECURRENT


def resolve(config: RecurrentConfig) -> RecurrentConfig:
    """Return the configuration with trace, rule options, device and threads filled in.

    Raises:
        ValueError: if the device is not available, or rule, task and delay do not fit together.
    """
    config = on_this_machine(config).with_trace()
    build_online(config, build_task(config.task, config))  # raises ValueError where they do not fit
    return replace(config, rule_options=config.options)


def train(
    config: RecurrentConfig,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    checkpoint_every: int | None = None,
    quiet: bool = False,
) -> Status:
    """Run a configuration in a run folder: learn, test, summarise.

    Args:
        config: what to run.
        run_dir: the run folder itself; None for that of `default_path`.
        resume: resume from the checkpoint of an interrupted run, with the same result as if there had been no
            interruption; without a checkpoint, start a new run.
        checkpoint_every: steps from one checkpoint to the next; None for ten in the run.
        quiet: print nothing.

    Returns:
        "finished" or "interrupted".

    Raises:
        ValueError, OSError: for input that cannot be used, before any work is lost.
        FloatingPointError: if a number is not finite any more; the summary says "failed", and the last checkpoint
            is from before.
    """
    config = resolve(config)
    session = Session(
        config, RECURRENT, run_dir, config.rule, resume=resume, checkpoint_every=checkpoint_every, quiet=quiet
    )
    return run(session, SequenceLearner)


def evaluate_run(values: Mapping[str, Any], checkpoint: Path) -> str:
    """Test the network of a run's checkpoint, for `cet-rl eval`.

    Args:
        values: of the run's configuration.
        checkpoint: the file.

    Returns:
        A line with the result.
    """
    config = resolve(RecurrentConfig(**{**values, "device": "auto"}))
    assert config.threads is not None
    set_threads(config.threads)
    learner = SequenceLearner(config)
    learner.load(checkpoint)
    baselines = ", ".join(f"{name} {value:.4f}" for name, value in learner.task.baselines.items())
    loss, steps = learner.test(TEST_STEPS), TESTED * TEST_STEPS
    return f"{config.task}: loss {loss:.4f} over {steps:,} steps, weights frozen; baselines: {baselines}"
