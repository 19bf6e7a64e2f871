"""The signals that reach the synapses of one layer, the state the synapses carry over, and the delay of a signal.

Letters and shapes: `cet_rl.credit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cet_rl.credit.geometry import is_for_numpy
from cet_rl.traces.base import check_whole

Decay = float | Tensor
"""γλ: one number, or one per weight, shape (n_out, n_in), a convolution's (C_out, C_in, k, k)."""


@dataclass
class Signals:
    """Hold T steps of signals: x and f' of these steps, and δ, η and s that arrive in them, already delayed.

    A step that is no transition (a vector environment resetting itself) has f' = δ = η = 0. Supervised signals
    have neither η nor s, which stands for η = 1 and s = 0. Units may have several axes until they are flattened.

    Raises ValueError if shapes disagree, or only one of η and s is given.
    """

    pre: Tensor  # x, shape (T, E, n_in)
    derivative: Tensor  # f'(W x), shape (T, E, n_out)
    error: Tensor  # δ, of the same shape
    td_error: Tensor | None = None  # η, shape (T, E)
    start: Tensor | None = None  # s, shape (T, E), as float: 1 where the arriving event opened an episode, else 0
    immediate: Tensor | None = None  # b, shaped like δ: Σ b xᵀ is added to the update, without delay and trace

    def __post_init__(self) -> None:
        steps, envs = self.pre.shape[:2]
        post = (steps, envs, *self.derivative.shape[2:])
        if (self.td_error is None) != (self.start is None):
            raise ValueError("td_error and start come together or not at all")
        expected = {"td_error": (steps, envs), "start": (steps, envs)}
        expected |= dict.fromkeys(("derivative", "error", "immediate"), post)
        for name, shape in expected.items():
            found = getattr(self, name)
            if found is not None and found.shape != shape:
                pre = tuple(self.pre.shape)
                raise ValueError(f"{name} has shape {tuple(found.shape)}, expected {shape} (pre: {pre})")

    def modulation(self) -> tuple[Tensor, Tensor]:
        """Return η and s, shape (T, E) each, as tensors even where they are None."""
        if self.td_error is None or self.start is None:
            one = self.error.new_ones(self.error.shape[:2])
            return one, torch.zeros_like(one)
        return self.td_error, self.start


@dataclass
class SynapseState:
    """Hold what a layer's synapses carry from chunk to chunk, zero at first. Executors replace or overwrite it.

    A layer has either `states`, or `past_pre` and `past_derivative`, the factors of its Hebbian term for as long
    as the kernel reaches back, flattened by its geometry. With `past_eligibility` it has no e, and `past_pre`
    reaches back for R steps, too.
    """

    eligibility: Tensor  # e, shape (E, *weight_shape), (E, n_out, n_in) if dense; unused where γλ = 0
    states: Tensor | None = None  # S, shape (E, n_out, n, n_in)
    past_pre: Tensor | None = None  # x of the last L or R steps, oldest first, shape (L, E, n_in)
    past_derivative: Tensor | None = None  # f' of the last L steps, shape (L, E, n_out)
    past_eligibility: Tensor | None = None  # ε of the last R steps, e = Σ_τ ε_τ x_τᵀ, shape (R, E, n_out)


def lambda_sums(values: Tensor, start: Tensor, decay: float) -> Tensor:
    """Return A_t = v_t + γλ (1 - s_{t+1}) A_{t+1}, sums cut where the next episode starts; A_{T-1} = v_{T-1}.

    With v the TD errors this is the λ-return less the value (generalised advantage estimation). The scan doubles
    its span: log₂ T steps on any device. Values v, starts s and sums A have shape (T, ...); the decay is γλ.
    """
    found = values.clone()
    if decay == 0:
        return found
    both: Any = found, decay * (1 - start[1:])
    sums, kept = (x.numpy() for x in both) if is_for_numpy(found) else both
    span = 1
    while span < len(values):
        # sums[t] covers t … t+span-1 and kept[t] is the product of their decays; the products are new tensors.
        sums[:-span] += kept * sums[span:]
        kept = kept[:-span] * kept[span:]
        span *= 2
    return found


class DelayLine(nn.Module):
    """Delay a signal by a fixed number of steps of its leading axis.

    The line is kept as a ring, so that a chunk costs its own length however long the delay. Its contents and
    position are part of `state_dict`.

    Args:
        steps: D ≥ 0, the delay.
        shape: of one step's signal.
        fill: what comes out before anything has travelled the whole line.
        dtype: of the signal.
    """

    line: Tensor

    def __init__(self, steps: int, shape: tuple[int, ...], *, fill: float = 0.0, dtype: torch.dtype) -> None:
        super().__init__()
        check_whole(steps, "steps", at_least=0)
        self.steps = steps
        self._position = 0
        self.register_buffer("line", torch.full((steps, *shape), fill, dtype=dtype))

    def forward(self, signal: Tensor) -> Tensor:
        """Push T steps and return those of D steps before: shape (T, *shape) to (T, *shape)."""
        out = self.peek(signal)
        self.push(signal)
        return out

    def peek(self, signal: Tensor) -> Tensor:
        """Return what `forward` does, and leave the line as it is."""
        if self.steps == 0:
            return signal
        steps, position = len(signal), self._position
        end = min(position + steps, self.steps)
        later = self.line[: min(steps - (end - position), position)]
        return torch.cat([self.line[position:end], later, signal[: max(steps - self.steps, 0)]])

    def push(self, signal: Tensor) -> None:
        """Push T steps, as `forward` does, and drop what comes out."""
        if self.steps == 0:
            return
        signal, position = signal[max(len(signal) - self.steps, 0) :], self._position
        first = min(len(signal), self.steps - position)
        self.line[position : position + first] = signal[:first]
        if first < len(signal):
            self.line[: len(signal) - first] = signal[first:]
        if (end := (position + len(signal)) % self.steps) != position:  # setting an attribute of a module is slow
            self._position = end

    def contents(self) -> Tensor:
        """Return the signals on their way, oldest first, (D, *shape), valid until the next push; read only."""
        if self._position == 0:
            return self.line
        return torch.cat([self.line[self._position :], self.line[: self._position]])

    def get_extra_state(self) -> Tensor:
        """Return the ring's position, as a tensor so that every saved value is one."""
        return torch.tensor(self._position)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the ring's position."""
        self._position = int(state)
