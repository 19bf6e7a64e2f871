"""Which runs can be the cells of one batched model (`cet_rl.vision.cells`): those of the same shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cet_rl.runs.config import Mark, marked
from cet_rl.vision.config import VisionConfig


def check_cell(config: VisionConfig) -> None:
    """Raise ValueError unless this run can be a cell of some batch."""
    if config.streaming or config.salience is not None or config.soma != "exact":
        raise ValueError(
            f"cell {config.label}: streaming, salience and soma='trace' keep a past of their own and cannot "
            "be batched; train it alone"
        )
    if config.compile:
        raise ValueError(f"cell {config.label}: a batch of cells is not compiled; leave compile out")


def check_cells(configs: Sequence[VisionConfig]) -> None:
    """Raise ValueError unless these runs can be cells of one batch."""
    if not configs:
        raise ValueError("there are no cells to train")
    for config in configs:
        check_cell(config)
        there, here = shared(configs[0]), shared(config)
        for name in there:
            if here[name] != there[name]:
                raise ValueError(
                    f"cells of one batch must not differ in {name}: {there[name]!r} and {here[name]!r}; "
                    f"they may in {', '.join(sorted(marked(VisionConfig, Mark.BATCHABLE)))}"
                )


def shared(config: VisionConfig) -> dict[str, Any]:
    """All of a run that cells of its batch have in common."""
    names = [item.name for item in dataclasses.fields(config)]
    return {name: getattr(config, name) for name in names if name not in marked(VisionConfig, Mark.BATCHABLE)}
