"""Rules that guess the credit that is to come: decoupled neural interfaces, and their plausible form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules.base import DeclaredCost, SeparableRule, State, StepInputs, immediate


class DNI(SeparableRule):
    """Decoupled neural interfaces (Jaderberg et al. 2017): credit as a learned linear function of what is known.

    What is known is r̃_t = [r_t; y*_t; 1], see `equations`. A is shared by all sequences and learns from the mean
    over them, at the rate η; A⁻ is a copy of it, made every `renewal` steps: that is the authors' code's, and the
    paper's equation is `renewal=1`. A starts as N(0, 1/(n + n_out + 1)).
    """

    name = "dni"
    shared: tuple[str, ...] = ("A", "A_copy")
    declared_cost = DeclaredCost("n²", "n² + nm", frozenset({"matrix-vector", "Jacobian"}))
    equations = "c* = c̄_{t-1} + (A⁻ r̃_t) J_t; A ← A - η (A r̃_{t-1} - c*) r̃_{t-1}ᵀ; G_ij = (A r̃_t)_i e_ij"

    def __init__(self, cell: RNNCell, rate: float = 1e-2, renewal: int = 5) -> None:
        super().__init__(cell)
        self.rate, self.renewal = self.number("rate", rate), self.count("renewal", renewal)

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Start at a random A, a copy of it, r̃ = [r_0; 0; 1] and no credit."""
        n, known = self.cell.units, self.cell.units + self.cell.outputs + 1
        guess = (torch.randn(n, known, generator=generator) / math.sqrt(known)).to(weight)
        label = rates.new_zeros(len(rates), self.cell.outputs)
        return {
            "A": guess,
            "A_copy": guess.clone(),
            "known": self._known(rates, label),
            "credit": torch.zeros_like(rates),
        }

    def _known(self, rates: Tensor, label: Tensor) -> Tensor:
        return torch.cat([rates, label, torch.ones_like(rates[:, :1])], dim=1)

    def factors(self, state: State, now: StepInputs) -> tuple[State, Tensor, Tensor]:
        """See `SeparableRule.factors`."""
        known, before = self._known(now.rates, now.label), state["known"]
        target = state["credit"] + self._backwards(state, now, known @ state["A_copy"].mT)
        guess = state["A"] - self.rate / len(known) * (before @ state["A"].mT - target).mT @ before
        renewed = (now.clock + 1) % self.renewal == 0
        after = {
            "A": guess,
            "A_copy": guess.clone() if renewed else state["A_copy"],
            "known": known,
            "credit": now.credit,
        }
        return after, known @ guess.mT, immediate(now)

    def _backwards(self, state: State, now: StepInputs, guessed: Tensor) -> Tensor:
        """Carry credit at t back to t - 1: (B, n) to (B, n)."""
        return self.cell.backproject(now.weight, now.slope, guessed)


class DNIb(DNI):
    """DNI(b), the paper's plausible form: synapses 𝒥 of their own learn to stand in for the Jacobian.

    𝒥 starts at W_rec and learns before it is used. `jacobian_rate` is η_J; None for η.
    """

    name = "dni-b"
    shared = ("A", "A_copy", "jacobian")
    declared_cost = DeclaredCost("n²", "n² + nm", frozenset({"matrix-vector"}))
    equations = (
        "𝒥 ← 𝒥 - η_J (𝒥 r_{t-1} - r_t) r_{t-1}ᵀ; c* = c̄_{t-1} + tanh(A⁻ r̃_t) 𝒥; "
        "A ← A - η (A r̃_{t-1} - c*) r̃_{t-1}ᵀ; G_ij = (A r̃_t)_i e_ij"
    )

    def __init__(
        self, cell: RNNCell, rate: float = 1e-2, jacobian_rate: float | None = None, renewal: int = 5
    ) -> None:
        super().__init__(cell, rate, renewal)
        self.jacobian_rate = self.number("jacobian_rate", rate if jacobian_rate is None else jacobian_rate)

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Start as DNI does, with 𝒥 = W_rec."""
        state = super().init_state(weight, rates, generator)
        return {**state, "jacobian": self.cell.recurrent(weight).clone()}

    def factors(self, state: State, now: StepInputs) -> tuple[State, Tensor, Tensor]:
        """See `SeparableRule.factors`."""
        before, batch = now.inputs[:, : self.cell.units], len(now.rates)
        missed = before @ state["jacobian"].mT - now.rates
        learned = state["jacobian"] - self.jacobian_rate / batch * (missed.mT @ before)
        after, signal, eligibility = super().factors({**state, "jacobian": learned}, now)
        return {**after, "jacobian": learned}, signal, eligibility

    def _backwards(self, state: State, now: StepInputs, guessed: Tensor) -> Tensor:
        """See `DNI._backwards`."""
        return torch.tanh(guessed) @ state["jacobian"]
