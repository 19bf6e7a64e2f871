"""Cascading eligibility traces: learning when credit arrives late.

The names below are imported on first use, so that `import cet_rl` stays cheap.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from cet_rl.runs.lazy import lazy_names

if TYPE_CHECKING:
    from cet_rl.traces import CET as CET
    from cet_rl.traces import ET as ET
    from cet_rl.traces import LTPLTD as LTPLTD
    from cet_rl.traces import Legendre as Legendre
    from cet_rl.traces import PerfectMemory as PerfectMemory
    from cet_rl.traces import SharpCET as SharpCET
    from cet_rl.traces.timing import CreditTiming as CreditTiming

try:
    __version__ = version("cet-rl")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

_HOME = {
    "CreditTiming": "traces.timing",
    "CET": "traces",
    "ET": "traces",
    "LTPLTD": "traces",
    "Legendre": "traces",
    "PerfectMemory": "traces",
    "SharpCET": "traces",
}

__all__ = ["CET", "ET", "LTPLTD", "CreditTiming", "Legendre", "PerfectMemory", "SharpCET", "__version__"]

__getattr__ = lazy_names(__name__, _HOME)
