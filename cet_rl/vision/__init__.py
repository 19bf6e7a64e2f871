"""Image classification whose credit arrives late: traced layers, models, data and training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cet_rl.runs.plugins import import_on_use

if TYPE_CHECKING:
    from cet_rl.vision.config import VisionConfig
    from cet_rl.vision.conversion import convert, prepare
    from cet_rl.vision.layers import TracedConv2d, TracedLinear, measured, seen_at, traced_layers
    from cet_rl.vision.training import train, train_batch

__all__ = ["TracedConv2d", "TracedLinear", "VisionConfig", "convert", "measured", "prepare", "seen_at"]
__all__ += ["traced_layers", "train", "train_batch"]

__getattr__, __dir__ = import_on_use(__name__, __all__, ("config", "layers", "conversion", "training"))
