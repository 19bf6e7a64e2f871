"""Run image classification: from configuration to summary, alone or many runs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Unpack

from cet_rl.runs.folder import Status
from cet_rl.runs.process import set_threads
from cet_rl.runs.session import Session, SessionOptions, batch_sessions, run
from cet_rl.runs.task_kinds import VISION
from cet_rl.vision.batched import BatchedLearner
from cet_rl.vision.config import VisionConfig
from cet_rl.vision.data import load
from cet_rl.vision.datasets import ImageData
from cet_rl.vision.learner import ImageLearner


def resolve(config: VisionConfig) -> VisionConfig:
    """Fill in trace, network, data folder, device and threads; raise ValueError without such a device."""
    return config.on_this_machine().resolved()


def load_data(config: VisionConfig) -> ImageData:
    """Return the configuration's data on its device; raise ValueError or OSError if they cannot be loaded."""
    return load(config.task, config.data_dir, validation=config.validation).to(config.device)


check_data = load
"""Raises ValueError or OSError if a data set cannot be loaded."""


def train(config: VisionConfig, run_dir: str | Path | None = None, **options: Unpack[SessionOptions]) -> Status:
    """Run a configuration in a run folder: learn, test, summarise.

    Arguments, result and errors are those of `cet_rl.rl.train`; steps are updates here.
    """
    config = resolve(config)
    session = Session(config, VISION, run_dir, config.network, **options)
    return run([session], lambda config: ImageLearner(config, load_data(config)))


def train_batch(
    configs: Sequence[VisionConfig], folders: Sequence[str | Path] | None = None, *, quiet: bool = False
) -> list[Path]:
    """Train many runs at once, and return their folders, with the same results as if each had run alone.

    Alignment is not logged. Arguments and errors are those of `cet_rl.rl.train_batch`.
    """
    configs = [resolve(config) for config in configs]

    def session(config: VisionConfig, path: Path, **options: Any) -> Session:
        return Session(config, VISION, path, config.network, quiet=quiet, **options)

    sessions = batch_sessions(configs, folders, session)
    data = cache(lambda: load_data(configs[0]))
    if run(sessions, lambda config: ImageLearner(config, data()), BatchedLearner) == "interrupted":
        raise KeyboardInterrupt
    return [session.folder.path for session in sessions]


def evaluate_run(values: Mapping[str, Any], checkpoint: Path, **options: Any) -> str:
    """Return a line with the test result of a run's checkpoint; `values` are the run's configuration.

    The option `data_dir` is the folder of the data if it is another one now.
    """
    config = resolve(VisionConfig(**{**values, "device": "auto", **options}))
    set_threads(config.threads)
    learner = ImageLearner(config, load_data(config))
    learner.load(checkpoint)
    accuracy, loss = learner.test()
    images = f"{len(learner.data.test):,} {config.held_out} images"
    return f"{config.task}: {accuracy:.2%} of {images} right, loss {loss:.4f}"
