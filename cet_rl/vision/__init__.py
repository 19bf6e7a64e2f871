"""Image classification whose credit arrives late: traced layers, models, data and training.

The names below are imported on first use, so that listing data sets stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cet_rl.runs.lazy import lazy_names

if TYPE_CHECKING:
    from cet_rl.vision.cells import train_cells as train_cells
    from cet_rl.vision.config import VisionConfig as VisionConfig
    from cet_rl.vision.conversion import convert as convert
    from cet_rl.vision.conversion import prepare as prepare
    from cet_rl.vision.layers import TracedConv2d as TracedConv2d
    from cet_rl.vision.layers import TracedLinear as TracedLinear
    from cet_rl.vision.layers import measured as measured
    from cet_rl.vision.layers import seen_at as seen_at
    from cet_rl.vision.layers import traced_layers as traced_layers
    from cet_rl.vision.training import train as train

_HOME = {
    "TracedConv2d": "layers",
    "TracedLinear": "layers",
    "VisionConfig": "config",
    "convert": "conversion",
    "measured": "layers",
    "prepare": "conversion",
    "seen_at": "layers",
    "train": "training",
    "train_cells": "cells",
    "traced_layers": "layers",
}

__all__ = [
    "TracedConv2d",
    "TracedLinear",
    "VisionConfig",
    "convert",
    "measured",
    "prepare",
    "seen_at",
    "traced_layers",
    "train",
    "train_cells",
]

__getattr__ = lazy_names(__name__, _HOME)
