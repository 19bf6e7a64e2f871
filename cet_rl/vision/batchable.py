"""Decide which runs can be batched (`cet_rl.vision.batched`): those of the same shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cet_rl.runs.config import Mark, marked
from cet_rl.vision.config import VisionConfig


def check_batchable(config: VisionConfig) -> None:
    """Raise ValueError unless this run can be part of a batch."""
    if config.streaming or config.salience is not None or config.soma != "exact":
        raise ValueError(
            f"run {config.label}: streaming, salience and soma='trace' keep a past of their own and cannot "
            "be batched; train it alone"
        )
    if config.compile:
        raise ValueError(f"run {config.label}: a batch is not compiled; leave compile out")


def check_batch(configs: Sequence[VisionConfig]) -> None:
    """Raise ValueError unless these runs can be batched together."""
    if not configs:
        raise ValueError("there are no runs to train")
    for config in configs:
        check_batchable(config)
        first, other = shared(configs[0]), shared(config)
        for name in first:
            if other[name] != first[name]:
                raise ValueError(
                    f"runs of one batch must not differ in {name}: {first[name]!r} and {other[name]!r}; "
                    f"they may in {', '.join(sorted(marked(VisionConfig, Mark.BATCHABLE)))}"
                )


def shared(config: VisionConfig) -> dict[str, Any]:
    """Return the values that all runs of a batch must have in common."""
    names = [item.name for item in dataclasses.fields(config)]
    return {name: getattr(config, name) for name in names if name not in marked(VisionConfig, Mark.BATCHABLE)}
