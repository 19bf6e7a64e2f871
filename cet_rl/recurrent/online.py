"""Define online learning: forward pass, error, rule, output layer and optimiser, step by step.

`cet_rl.recurrent.compiled` computes the same as one compiled loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.delayed import Readout
from cet_rl.recurrent.rules.base import Rule, State, StepInputs
from cet_rl.traces.base import check_whole


class Memory(NamedTuple):
    """Hold everything that changes as a network learns, as tensors."""

    weight: Tensor  # W, shape (n, m)
    weight_out: Tensor  # W_out, shape (n_out, n + 1)
    rates: Tensor  # r, shape (B, n)
    rule: State  # the rule's
    readout: State  # the output layer's
    pending: Tensor  # gradient of W since the last update, shape (n, m)
    pending_out: Tensor  # gradient of W_out since the last update

    def named(self) -> dict[str, Tensor]:
        """Return all tensors by name, those of states as "rule.B"."""
        plain = {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
        states = {"rule": self.rule, "readout": self.readout}
        return plain | {f"{part}.{name}": each for part, state in states.items() for name, each in state.items()}

    @classmethod
    def from_named(cls, tensors: dict[str, Tensor]) -> Memory:
        """Undo `named`."""
        states: dict[str, State] = {"rule": {}, "readout": {}}
        for name, tensor in tensors.items():
            part, _, key = name.partition(".")
            if key:
                states[part][key] = tensor
        return cls(**{name: tensor for name, tensor in tensors.items() if "." not in name}, **states)  # type: ignore[arg-type]


def checked_step(rule: Rule, state: State, now: StepInputs) -> tuple[State, Tensor]:
    """Return a rule's new state and gradient; raise ValueError unless they are a dict, and like the weight."""
    found: Any = rule.step(state, now)
    if not (isinstance(found, tuple) and [*map(type, found)] == [dict, Tensor]):
        raise ValueError(f"step of rule {rule.name} must return its new state, a dict, and the gradient, a tensor")
    gradient, weight = found[1], now.weight
    if (gradient.shape, gradient.dtype) != (weight.shape, weight.dtype):  # torch would spread a smaller one
        needs, given = (f"{tuple(each.shape)} {each.dtype}" for each in (weight, gradient))
        raise ValueError(f"the gradient of rule {rule.name} must be like the weight, {needs}, got {given}")
    return found[0], gradient


@dataclass
class Online:
    """Describe how a network learns: constants only, see `Memory` for what changes.

    Learning is plain stochastic gradient descent with the sum of the gradients of `update_every` steps, as in the
    paper. Raises ValueError unless that is a whole number from 1 on.
    """

    cell: RNNCell
    rule: Rule  # for W
    readout: Readout = field(default_factory=Readout)  # for W_out
    lr: float = field(default=1e-3, kw_only=True)  # of both
    update_every: int = field(default=1, kw_only=True)  # steps with the same weights
    feedback: Tensor | None = field(default=None, kw_only=True)  # (n_out, n), in the place of W_out in c̄

    def __post_init__(self) -> None:
        check_whole(self.update_every, "update_every", at_least=1)

    def begin(
        self, weight: Tensor, weight_out: Tensor, rates: Tensor, generator: torch.Generator | None = None
    ) -> Memory:
        """Return the memory before the first step; the generator draws the rule's random start."""
        return Memory(
            weight,
            weight_out,
            rates,
            self.rule.init_state(weight, rates, generator),
            self.readout.init_state(rates, self.cell.outputs),
            torch.zeros_like(weight),
            torch.zeros_like(weight_out),
        )

    def step_inputs(
        self,
        weights: tuple[Tensor, Tensor],
        rates: Tensor,
        x: Tensor,
        label: Tensor,
        noise: Tensor | None = None,
        clock: int = 0,
    ) -> tuple[StepInputs, Tensor, Tensor]:
        """Return what the rule sees of a step with W and W_out, the readout z and the error, both (B, n_out)."""
        cell, (weight, weight_out) = self.cell, weights
        inputs, rates, slope = cell.advance(weight, rates, x)
        readout = cell.read(weight_out, rates)
        error = cell.error(readout, label)
        credit = cell.credit(weight_out, error) if self.feedback is None else error @ self.feedback
        return StepInputs(weight, inputs, rates, slope, credit, label, noise, clock), readout, error

    def step(
        self, memory: Memory, clock: int, x: Tensor, label: Tensor, noise: Tensor | None
    ) -> tuple[Memory, Tensor]:
        """Return the memory after a step and its mean loss; arguments are those of `run`, without axes of time."""
        weight, weight_out = memory[:2]
        now, readout, error = self.step_inputs(memory[:2], memory.rates, x, label, noise, clock)
        rule, gradient = checked_step(self.rule, memory.rule, now)
        layer, gradient_out = self.readout.step(memory.readout, error, now.rates, clock)
        pending, pending_out = memory.pending + gradient, memory.pending_out + gradient_out
        if (clock + 1) % self.update_every == 0:
            weight, weight_out = weight - self.lr * pending, weight_out - self.lr * pending_out
            pending, pending_out = torch.zeros_like(pending), torch.zeros_like(pending_out)
        loss = self.cell.loss(readout, label).mean()
        return Memory(weight, weight_out, now.rates, rule, layer, pending, pending_out), loss

    @torch.no_grad()
    def run(
        self, memory: Memory, clock: int, x: Tensor, label: Tensor, noise: Tensor | None
    ) -> tuple[Memory, Tensor]:
        """Return the memory after T steps, and their losses, shape (T,), each before its update.

        Args:
            memory: before them; left untouched.
            clock: steps before these.
            x: shape (T, B, n_in).
            label: shape (T, B, n_out).
            noise: shape (T, B, …) as the rule's `draw` makes it; None for a rule without.
        """
        losses = []
        for offset in range(len(x)):
            drawn = None if noise is None else noise[offset]
            memory, loss = self.step(memory, clock + offset, x[offset], label[offset], drawn)
            losses.append(loss)
        return memory, torch.stack(losses)
