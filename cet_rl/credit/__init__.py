"""Late credit for the weights of one layer. Start reading at `step.py`, the definition in one short loop.

Letters (paper and `docs/method.md`), for T steps, E environments and one layer:

    x       pre            presynaptic input                                    (T, E, n_in)
    f'      derivative     of the activation at the pre-activation W x          (T, E, n_out)
    h       hebbian        f' x, the Hebbian term of a synapse (Eq. 1)
    δ       error          credit signal that reaches the layer                 (T, E, n_out)
    η       td_error       r + γ V(s') - V(s)                                   (T, E)
    s       start          1 where an episode starts                            (T, E)
    S       states         n states of the synaptic trace at every synapse      (E, n_out, n, n_in)
    c                      C · S, what the synapse remembers of h
    e       eligibility    RL eligibility trace                                 (E, n_out, n_in)
    γλ      decay          decay of e, one number or one per weight
    g       kernel         response of the synaptic trace, g_l = C M^l K

How a credit signal becomes an update: `synapses.py` (`Synapses.advance` delays δ, η and s by D steps and picks an
executor), `signals.py` (the delayed signals and the state that is carried over), then one of four implementations
of the same update: `step.py` (the definition), `chunk.py` (T steps as matrix products), `factored.py` (the same
from the past of f' and x, "history", or also of e, "factored") and `fused.py` or `fused_cuda.py` (one compiled
loop). `geometry.py` holds the shapes and products of dense layers and convolutions.
"""

from cet_rl.credit.geometry import Convolution, Dense, Geometry
from cet_rl.credit.signals import Decay, DelayLine, Signals, SynapseState, lambda_sums
from cet_rl.credit.step import step
from cet_rl.credit.synapses import Executor, Synapses

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
