"""Cascading eligibility traces: learning when credit arrives late.

The traces themselves are here; `cet_rl.credit` computes with them at synapses, and `cet_rl.agents`,
`cet_rl.vision` and `cet_rl.recurrent` learn with them.
"""

from importlib.metadata import PackageNotFoundError, version

from cet_rl.traces import CET, ET, LTPLTD, FiniteKernel, Legendre, Optimal, PerfectMemory, SharpCET
from cet_rl.traces.base import Trace, Transition
from cet_rl.traces.registry import register_trace
from cet_rl.traces.timing import CreditTiming

try:
    __version__ = version("cet-rl")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["CET", "ET", "LTPLTD", "CreditTiming", "FiniteKernel", "Legendre", "Optimal", "PerfectMemory"]
__all__ += ["SharpCET", "Trace", "Transition", "__version__", "register_trace"]
