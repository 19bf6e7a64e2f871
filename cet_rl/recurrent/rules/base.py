"""Define an online learning rule: tensors of its own, their update, and a gradient of the recurrent weights.

Rules hold constants only. What they remember is a dict of tensors that goes in and comes out, so that a rule can
be mapped over seeds with `torch.func.vmap`, replayed, saved, and looked at from outside.

Source of the equations: Marschall, Cho, Savin, "Evaluating biological plausibility of learning algorithms the lazy
way" (2019), Table 1 and Appendix A, with its typographical errors corrected (docs/rules.md).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from cet_rl.recurrent.cell import RNNCell
from cet_rl.traces.base import check_whole

State = dict[str, Tensor]
"""Tensors that a rule remembers, by name. Axes of sequences come first, except in `Rule.shared` tensors."""


class StepInputs(NamedTuple):
    """Hold what a rule sees of one step, B sequences side by side."""

    weight: Tensor  # W, shape (n, m), as the forward pass has used it
    inputs: Tensor  # r̂_t = [r_{t-1}; x_t; 1], shape (B, m)
    rates: Tensor  # r_t, shape (B, n)
    slope: Tensor  # D_t = α φ'(v_t), shape (B, n)
    credit: Tensor  # c̄_t = W_outᵀ (ŷ_t - y*_t), shape (B, n)
    label: Tensor  # y*_t, shape (B, n_out)
    noise: Tensor | None = None  # a row of what the rule's `draw` makes; None for a rule without
    clock: int = 0  # steps before this one

    @property
    def in_dims(self) -> StepInputs:
        """Return the axes for `torch.func.vmap(rule.step, (0, now.in_dims))(states, now)` over seeds, in front."""
        axes: list[Any] = [0 if isinstance(value, Tensor) else None for value in self]
        return StepInputs(*axes)


class DeclaredCost(NamedTuple):
    """Hold the cost that a rule declares, which `cet_rl.recurrent.audit` compares with what it observes.

    Orders are sums of products of n (units), m = n + n_in + 1 and T (steps), such as "n²m" or "n² + nm"; or "0".
    """

    memory: str  # order of the numbers that it keeps for a sequence
    time: str  # order of its multiplications in a step, the network's own left out
    needs: frozenset[str] = frozenset()  # which of `cet_rl.recurrent.audit.OPERATIONS`


class Rule(ABC):
    """Define a learning rule for the recurrent weights W of an `RNNCell`.

    `name` is the word that `--rule` takes. `shared` names the tensors of the state that are learned, like weights,
    and so have no axis of sequences. The audit checks `declared_cost`, and prints `equations`: updates and
    gradient, separated by semicolons.
    """

    name: str
    shared: tuple[str, ...] = ()
    declared_cost: ClassVar[DeclaredCost | None] = None
    equations: ClassVar[str] = ""

    def __init__(self, cell: RNNCell) -> None:
        self.cell = cell

    def checked_number(self, name: str, value: float, *, positive: bool = False) -> float:
        """Return an option; raise ValueError unless it is finite and positive, or zero where that is allowed."""
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            least = "positive" if positive else "zero or positive"
            raise ValueError(f"{name} of {self.name} must be {least}, got {value:g}")
        return value

    def checked_count(self, name: str, value: int) -> int:
        """Return an option; raise ValueError unless it is a whole number from one on."""
        check_whole(value, f"{name} of {self.name}", at_least=1)
        return value

    @property
    def first_gradient(self) -> int:
        """Return the first step, counted from 1, that gives a gradient; above 1 for rules that wait."""
        return 1

    @abstractmethod
    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Return the state before the first step, for W and r_0 of shape (B, n), of W's type and device.

        Random numbers come from the generator, on the CPU; None for torch's global one.
        """

    def draw(self, batch: int, steps: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Return the random numbers of T steps, (T, B, …), float32, on the CPU; None if the rule has none."""
        return None

    @abstractmethod
    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        """Return the state after a step, and the gradient of the loss by W, shape (n, m), mean over sequences.

        The given state is not modified. Learning subtracts the gradient.
        """

    def pending_gradient(self, state: State, weight: Tensor) -> Tensor:
        """Return the gradient that is pending after the last step, shape (n, m); zero unless the rule waits."""
        return torch.zeros_like(weight)

    def total(self, state: State, inputs: Sequence[StepInputs]) -> Tensor:
        """Return the sum of the gradients of steps with the same W, with the one that is pending at the end."""
        gradient = torch.zeros_like(inputs[0].weight)
        for now in inputs:
            state, new = self.step(state, now)
            gradient = gradient + new
        return gradient + self.pending_gradient(state, inputs[-1].weight)


class SeparableRule(Rule):
    """Define a rule whose gradient is a signal of each unit times an eligibility of each synapse, G_ij = s_i E_ij.

    For such a rule a trace can bridge a delay: it keeps the eligibility until the signal arrives.
    """

    @abstractmethod
    def factors(self, state: State, now: StepInputs) -> tuple[State, Tensor, Tensor]:
        """Return the state after a step, the signal s, shape (B, n), and the eligibility E, shape (B, n, m)."""

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        state, signal, eligibility = self.factors(state, now)
        return state, combine(signal, eligibility)


def combine(signal: Tensor, eligibility: Tensor) -> Tensor:
    """Return G_ij = s_i E_ij, mean over sequences: (B, n) and (B, n, m) to (n, m)."""
    return torch.einsum("bi,bij->ij", signal, eligibility) / len(signal)


def immediate(now: StepInputs) -> Tensor:
    """Return e_ij = D_i r̂_j, how W_ij changes r_i within the step: shape (B, n, m)."""
    return now.slope[:, :, None] * now.inputs[:, None, :]


def draw_signs(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Return independent random signs ±1, float32."""
    return torch.randint(0, 2, shape, generator=generator).mul_(2).sub_(1).float()


def balance(grown: Tensor, shrunk: Tensor) -> Tensor:
    """Return √(‖grown‖ / ‖shrunk‖), which makes both equally long; 1 where one has no length. (B, …) to (B,)."""
    long, short = (torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (grown, shrunk))
    ratio = torch.sqrt(long / short)
    return torch.where((long > 0) & (short > 0) & torch.isfinite(ratio), ratio, torch.ones_like(ratio))
