"""Run a recurrent network: from configuration to summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from cet_rl.recurrent.config import RecurrentConfig
from cet_rl.recurrent.learner import TEST_SEQUENCES, TEST_STEPS, SequenceLearner, build_online
from cet_rl.recurrent.tasks import build_task
from cet_rl.runs.folder import Status
from cet_rl.runs.process import set_threads
from cet_rl.runs.session import Session, SessionOptions, run
from cet_rl.runs.task_kinds import RECURRENT


def resolve(config: RecurrentConfig) -> RecurrentConfig:
    """Return the configuration with trace, rule options, device and threads filled in, if it can run."""
    config = config.on_this_machine().resolved()
    online = build_online(config, build_task(config.task, config))  # raises ValueError where they do not fit
    if online.rule.first_gradient > config.last_update:
        raise ValueError(
            f"the first gradient of rule {config.rule} comes with step {online.rule.first_gradient:,}, but the "
            f"last update of this run is at step {config.last_update:,}: learn for longer (--total-steps) or use "
            "a shorter window"
        )
    return config


def train(config: RecurrentConfig, run_dir: str | Path | None = None, **options: Unpack[SessionOptions]) -> Status:
    """Run a configuration in a run folder: learn, test, summarise.

    Arguments, result and errors are those of `cet_rl.rl.train`; steps are time steps here.
    """
    config = resolve(config)
    return run([Session(config, RECURRENT, run_dir, config.rule, **options)], SequenceLearner)


def evaluate_run(values: Mapping[str, Any], checkpoint: Path) -> str:
    """Return a line with the test result of a checkpoint of a run, whose configuration has these values."""
    config = resolve(RecurrentConfig(**{**values, "device": "auto"}))
    set_threads(config.threads)
    learner = SequenceLearner(config)
    learner.load(checkpoint)
    baselines = ", ".join(f"{name} {value:.4f}" for name, value in learner.task.baselines.items())
    loss, steps = learner.test(TEST_STEPS), TEST_SEQUENCES * TEST_STEPS
    return f"{config.task}: loss {loss:.4f} over {steps:,} steps, weights frozen; baselines: {baselines}"
