"""Synaptic traces: what a synapse remembers of its past until the credit signal arrives."""

from cet_rl.traces.base import Normalization, Trace, Transition
from cet_rl.traces.cascade import CET
from cet_rl.traces.exponential import ET, LTPLTD
from cet_rl.traces.legendre import Legendre
from cet_rl.traces.perfect import PerfectMemory
from cet_rl.traces.sharp import SharpCET

__all__ = [
    "CET",
    "ET",
    "LTPLTD",
    "Legendre",
    "Normalization",
    "PerfectMemory",
    "SharpCET",
    "Trace",
    "Transition",
]
