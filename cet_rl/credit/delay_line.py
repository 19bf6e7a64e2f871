"""Signals on their way: what goes in comes out a fixed number of steps later."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DelayLine(nn.Module):
    """First in, first out, over the leading (time) axis.

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
        self.steps = steps
        self._position = 0
        self.register_buffer("line", torch.full((steps, *shape), fill, dtype=dtype))

    def forward(self, signal: Tensor) -> Tensor:
        """Push T steps and pop T: shape (T, *shape) to (T, *shape), the input of D steps before."""
        steps = len(signal)
        if self.steps == 0:
            return signal
        if steps >= self.steps:
            out = torch.cat([self.contents(), signal[: steps - self.steps]])
            self.line.copy_(signal[steps - self.steps :])
            if self._position:  # setting what a module has is dear
                self._position = 0
            return out
        end = min(self._position + steps, self.steps)
        first = end - self._position
        out = torch.cat([self.line[self._position : end], self.line[: steps - first]])
        self.line[self._position : end] = signal[:first]
        self.line[: steps - first] = signal[first:]
        self._position = (self._position + steps) % self.steps
        return out

    def push(self, signal: Tensor) -> None:
        """Push T steps, as `forward` does, and let go of what comes out."""
        signal = signal[-self.steps :] if self.steps else signal[:0]
        end = min(self._position + len(signal), self.steps)
        first = end - self._position
        self.line[self._position : end] = signal[:first]
        self.line[: len(signal) - first] = signal[first:]
        self._position = (self._position + len(signal)) % max(self.steps, 1)

    def contents(self) -> Tensor:
        """What is on its way, oldest first; shape (D, *shape). Not to be written, nor kept over the next push."""
        if self._position == 0:
            return self.line
        return torch.cat([self.line[self._position :], self.line[: self._position]])

    def get_extra_state(self) -> Tensor:
        """The ring's position, as a tensor so that every saved value is one."""
        return torch.tensor(self._position)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the ring's position."""
        self._position = int(state)
