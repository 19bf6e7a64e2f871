"""An image classification run from configuration to summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cet_rl.runs.folder import RunFolder, Status, default_path
from cet_rl.runs.machine import on_this_machine, set_threads
from cet_rl.runs.session import Words, run
from cet_rl.runs.task_kinds import VISION
from cet_rl.vision.config import VisionConfig
from cet_rl.vision.data import load
from cet_rl.vision.datasets import ImageData
from cet_rl.vision.learner import ImageLearner


def resolve(config: VisionConfig) -> VisionConfig:
    """The configuration with nothing left to choose: trace, network, device and threads of this machine.

    Raises:
        ValueError: for a device that is not there.
    """
    config = on_this_machine(config).with_trace()
    data_dir = None if config.data_dir is None else str(Path(config.data_dir).expanduser().resolve())
    return replace(config, model=config.network, hidden=config.widths, data_dir=data_dir)


def load_data(config: VisionConfig) -> ImageData:
    """The configuration's data on its device.

    Raises:
        ValueError, OSError: if there are none, or fewer images than one batch.
    """
    data = load(config.task, config.data_dir, validation=config.validation)
    return data.to(config.device)


def check_data(task: str, data_dir: str | None, validation: bool) -> None:
    """Raise ValueError or OSError, in one clear line, if a data set cannot be had."""
    load(task, data_dir, validation=validation)


def train(
    config: VisionConfig,
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
        resume: go on from the checkpoint of an interrupted run, with the same result as if there had been no
            interruption; without one, start afresh.
        checkpoint_every: updates from one checkpoint to the next; None for ten in the run.
        quiet: print nothing.

    Returns:
        "finished" or "interrupted".

    Raises:
        ValueError, OSError: for what cannot be, before any work is lost.
        FloatingPointError: if the loss is not finite any more; the summary says "failed".
    """
    config = resolve(config)
    folder = RunFolder(run_dir or default_path(config), VISION.checkpoint)
    words = Words(agent=config.network, unit=VISION.unit, score=VISION.scores[0].on(config.held_out).key)
    return run(
        config,
        folder,
        lambda: ImageLearner(config, load_data(config)),
        words,
        resume=resume,
        checkpoint_every=checkpoint_every,
        quiet=quiet,
    )


def evaluate_run(values: Mapping[str, Any], checkpoint: Path) -> str:
    """Test the network of a run's checkpoint, for `cet-rl eval`.

    Args:
        values: of the run's configuration.
        checkpoint: the file.

    Returns:
        A line with the result.
    """
    config = resolve(VisionConfig(**{**values, "device": "auto"}))
    assert config.threads is not None
    set_threads(config.threads)
    learner = ImageLearner(config, load_data(config))
    learner.load(checkpoint)
    accuracy, loss = learner.test()
    images = f"{len(learner.data.test):,} {config.held_out} images"
    return f"{config.task}: {accuracy:.2%} of {images} right, loss {loss:.4f}"
