"""Define synaptic traces: what a synapse remembers of its past until the credit signal arrives."""

from cet_rl.traces.base import Normalization, Trace, Transition
from cet_rl.traces.cascade import CET
from cet_rl.traces.exponential import ET, LTPLTD
from cet_rl.traces.finite import FiniteKernel, PerfectMemory
from cet_rl.traces.legendre import Legendre
from cet_rl.traces.optimal import Optimal
from cet_rl.traces.plot import plot_kernels
from cet_rl.traces.sharp import SharpCET

__all__ = ["CET", "ET", "LTPLTD", "FiniteKernel", "Legendre", "Normalization", "Optimal", "PerfectMemory"]
__all__ += ["SharpCET", "Trace", "Transition", "plot_kernels"]
