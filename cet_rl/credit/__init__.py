"""The credit assignment itself: one definition at the synapse, and the executors that run it fast."""

from cet_rl.credit.delay_line import DelayLine
from cet_rl.credit.executors import Executor
from cet_rl.credit.geometry import Convolution, Dense, Geometry
from cet_rl.credit.signals import Decay, Signals, SynapseState, lambda_sums
from cet_rl.credit.step import step
from cet_rl.credit.synapses import Synapses

__all__ = [
    "Convolution",
    "Decay",
    "DelayLine",
    "Dense",
    "Executor",
    "Geometry",
    "Signals",
    "SynapseState",
    "Synapses",
    "lambda_sums",
    "step",
]
