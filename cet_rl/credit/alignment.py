"""The alignment of a layer's update with the true gradient for the same data (paper, Figs. 5, 8-12)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cet_rl.credit.geometry import Geometry
from cet_rl.credit.signals import Decay, DelayLine, lambda_sums
from cet_rl.credit.synapses import Synapses

NEGLIGIBLE = 1e-4  # share of an event's eligibility below which the true gradient leaves it out

NEGLIGIBLE_PER_WEIGHT = 1e-2
"""The same share, at the largest γλ, where each weight has its own: most are smaller, and the replay is slow."""

LONGEST_REACH = 1000
"""Steps that are recorded at most on top of the delay and the rollout, however slowly eligibility decays."""


class AlignmentProbe(nn.Module):
    """Record a layer's recent activity exactly, and compute from it what its update should have been.

    The events whose credit arrives in a chunk happened a delay ago. Their true gradient is that of the λ-return
    policy loss: what the layer would have accumulated at the time, had the credit been immediate. The probe
    replays them without a delay or a trace. Recording is a copy; the replay runs only when asked for.

    Args:
        geometry: of the layer.
        delay_steps: D of the layer.
        gamma_lam: γλ, one number or one per weight.
        largest_decay: the largest γλ that can occur, None for that of `gamma_lam`. Events are left out if they are
            more than ln(1e-4)/ln(largest_decay) steps before the chunk, with one γλ per weight
            ln(1e-2)/ln(largest_decay), and in any case if more than 1000.
        num_envs: environments.
        rollout: T, steps of a chunk.
        dtype: of the signals.
    """

    decay_per_weight: Tensor | None

    def __init__(
        self,
        geometry: Geometry,
        *,
        delay_steps: int,
        gamma_lam: Decay,
        largest_decay: float | None = None,
        num_envs: int,
        rollout: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        largest_decay = float(torch.as_tensor(gamma_lam).max()) if largest_decay is None else largest_decay
        negligible = NEGLIGIBLE_PER_WEIGHT if isinstance(gamma_lam, Tensor) else NEGLIGIBLE
        reach = math.ceil(math.log(negligible) / math.log(largest_decay)) if largest_decay > 0 else 0
        self.delay_steps, self.shared_decay = delay_steps, None if isinstance(gamma_lam, Tensor) else gamma_lam
        self.register_buffer("decay_per_weight", gamma_lam.to(dtype) if isinstance(gamma_lam, Tensor) else None)
        recorded = min(reach, LONGEST_REACH) + rollout + delay_steps
        pre, post = self.geometry.pre_shape, self.geometry.post_shape
        self.lines = nn.ModuleList(
            DelayLine(recorded, (num_envs, *shape), dtype=dtype) for shape in (pre, post, post, (), ())
        )

    def record(self, *signals: Tensor) -> None:
        """Record x, f', δ, η and s of a chunk, shaped as `Synapses.stage` takes them, and not yet delayed."""
        for line, signal in zip(self.lines, signals, strict=True):
            assert isinstance(line, DelayLine)
            line.push(signal)

    def true_gradient(self, steps: int) -> Tensor:
        """Return ΔW, of `weight_shape`, without delay or trace, for credit that came in the last `steps` steps."""
        recorded = [line.contents() for line in self.lines if isinstance(line, DelayLine)]
        pre, derivative, error, td_error, start = (r[: len(r) - self.delay_steps] for r in recorded)
        td_error = td_error.clone()
        td_error[:-steps] = 0  # those have counted in earlier updates
        if self.shared_decay is not None:  # every event has all its credit at once, and nothing is carried over
            credit = lambda_sums(td_error, start, float(self.shared_decay))
            credit = credit.view(*credit.shape, *[1] * (error.ndim - 2))
            return self.geometry.outer_sum(derivative * (credit * error), pre)
        decay = self.decay_per_weight
        assert decay is not None
        synapses = Synapses(
            geometry=self.geometry, gamma_lam=decay, num_envs=pre.shape[1], rollout=len(pre), dtype=pre.dtype
        ).to(pre.device)
        return synapses(pre, derivative, error, td_error, start)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return a·b / (|a| |b|) of two tensors of one shape; nan if either is zero."""
    a, b = a.flatten(), b.flatten()
    result: Tensor = (a @ b) / (a.norm() * b.norm())
    return result
