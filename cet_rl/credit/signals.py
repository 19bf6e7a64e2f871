"""What reaches the synapses of one layer over a chunk of time, and what they carry from chunk to chunk.

Letters follow the paper: x presynaptic input, f' derivative of the activation, δ error, η TD error, s episode
start, e RL eligibility trace. Shapes: T steps, E environments, n trace states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Signals:
    """The inputs of T steps. δ, η and s are those *arriving* now, so already delayed; x and f' are of now.

    A step that is no transition (a vector environment resetting itself) has f' = δ = η = 0. Without η and s,
    where an error counts as it is and nothing ends, η is 1 and s is 0.

    Attributes:
        pre: x, shape (T, E, n_in). Units may have more axes than one, until they are flattened.
        derivative: f'(W x), shape (T, E, n_out).
        error: δ, shape (T, E, n_out).
        td_error: η, shape (T, E), or None.
        start: s, shape (T, E), of the same float type: 1 where the arriving event opened an episode, else 0; or
            None, where η is.
    """

    pre: Tensor
    derivative: Tensor
    error: Tensor
    td_error: Tensor | None = None
    start: Tensor | None = None

    def __post_init__(self) -> None:
        steps, envs = self.pre.shape[:2]
        post = self.derivative.shape[2:]
        if (self.td_error is None) != (self.start is None):
            raise ValueError("td_error and start come together or not at all")
        for name, shape in {
            "derivative": (steps, envs, *post),
            "error": (steps, envs, *post),
            "td_error": (steps, envs),
            "start": (steps, envs),
        }.items():
            found = getattr(self, name)
            if found is not None and found.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(found.shape)}, expected {shape} (pre: {tuple(self.pre.shape)})"
                )

    def modulation(self) -> tuple[Tensor, Tensor]:
        """η and s, shape (T, E) each, written out where they are None."""
        if self.td_error is None or self.start is None:
            one = self.error.new_ones(self.error.shape[:2])
            return one, torch.zeros_like(one)
        return self.td_error, self.start


@dataclass
class SynapseState:
    """What the synapses of one layer carry over, zero at the start. Executors replace or overwrite its tensors.

    A layer has either `states`, one cascade per synapse, or the pair `past_pre`, `past_derivative`, the factors
    of its Hebbian term for as long as the kernel reaches back, flat (`Geometry.flatten_pre`, `flatten_post`).

    Attributes:
        eligibility: e, shape (E, *weight_shape), (E, n_out, n_in) if dense; of no meaning where γλ = 0.
        states: S, shape (E, n_out, n, n_in).
        past_pre: x of the last L steps, oldest first, shape (L, E, n_in).
        past_derivative: f' of the last L steps, shape (L, E, n_out).
    """

    eligibility: Tensor
    states: Tensor | None = None
    past_pre: Tensor | None = None
    past_derivative: Tensor | None = None


Decay = float | Tensor
"""γλ: one number, or one per weight, shape (n_out, n_in), a convolution's (C_out, C_in, k, k)."""


def lambda_sums(values: Tensor, start: Tensor, decay: float) -> Tensor:
    """A_t = v_t + γλ (1 - s_{t+1}) A_{t+1}, the sum cut where the next episode starts; A_{T-1} = v_{T-1}.

    With v the TD errors this is the λ-return less the value (generalised advantage estimation). It runs as a
    scan by doubling, in log₂ T steps on any device.

    Args:
        values: v, shape (T, ...).
        start: s, shape (T, ...).
        decay: γλ.

    Returns:
        A, shape (T, ...).
    """
    sums = values.clone()
    steps = len(values)
    if decay == 0:
        return sums
    carry = torch.zeros_like(start)
    carry[:-1] = decay * (1 - start[1:])
    span = 1
    while span < steps:
        # sums[t] covers t … t+span-1 and carry[t] is the product of their decays. New tensors: no aliasing.
        reach = sums[:-span] + carry[:-span] * sums[span:]
        carry = torch.cat([carry[:-span] * carry[span:], torch.zeros_like(carry[-span:])])
        sums = torch.cat([reach, sums[-span:]])
        span *= 2
    return sums
