"""How well a layer's update points along the true gradient for the same data (paper, Figs. 5, 8-12)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cet_rl.credit.delay_line import DelayLine
from cet_rl.credit.synapses import Synapses

NEGLIGIBLE = 1e-4
"""Share of an event's eligibility below which the true gradient leaves it out."""

LONGEST_REACH = 1000
"""Steps that are recorded at most on top of the delay and the rollout, however slowly eligibility decays."""


class AlignmentProbe(nn.Module):
    """Remembers a layer's recent activity exactly, to say what its update should have been.

    The events whose credit arrives in a chunk happened a delay ago. Their true gradient is that of the λ-return
    policy loss: what the layer would have accumulated at the time, had the credit been immediate. The probe
    replays them without a delay or a trace. Recording is a copy; the replay runs only when asked for.

    Args:
        n_in: presynaptic units.
        n_out: postsynaptic units.
        delay_steps: D of the layer.
        gamma_lam: γλ; events older than ln(1e-4)/ln(γλ), or 1000, steps before the chunk are left out.
        num_envs: environments.
        rollout: T, steps of a chunk.
        dtype: of the signals.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        delay_steps: int,
        gamma_lam: float,
        num_envs: int,
        rollout: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        reach = math.ceil(math.log(NEGLIGIBLE) / math.log(gamma_lam)) if gamma_lam > 0 else 0
        reach = min(reach, LONGEST_REACH)
        self.delay_steps, self.gamma_lam = delay_steps, gamma_lam
        recorded = reach + rollout + delay_steps
        self.lines = nn.ModuleList(
            DelayLine(recorded, (num_envs, *shape), dtype=dtype) for shape in ((n_in,), (n_out,), (n_out,), (), ())
        )

    def record(self, *signals: Tensor) -> None:
        """Remember a chunk: the arguments of `Synapses`."""
        for line, signal in zip(self.lines, signals, strict=True):
            line(signal)

    def true_gradient(self, steps: int) -> Tensor:
        """ΔW without delay or trace, of the events whose credit arrived in the last `steps` steps."""
        recorded = [line.contents() for line in self.lines if isinstance(line, DelayLine)]
        pre, derivative, error, td_error, start = (r[: len(r) - self.delay_steps] for r in recorded)
        td_error = td_error.clone()
        td_error[:-steps] = 0  # earlier updates have made use of these
        synapses = Synapses(
            pre.shape[2], error.shape[2], gamma_lam=self.gamma_lam, num_envs=pre.shape[1], dtype=pre.dtype
        ).to(pre.device)
        return synapses(pre, derivative, error, td_error, start)

    def cosine(self, update: Tensor, steps: int) -> Tensor:
        """Cosine between `update` and the true gradient for the same data; nan while either is zero."""
        return cosine(update, self.true_gradient(steps))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """a·b / (|a| |b|) of two tensors of one shape; nan if either is zero."""
    a, b = a.flatten(), b.flatten()
    result: Tensor = (a @ b) / (a.norm() * b.norm())
    return result
