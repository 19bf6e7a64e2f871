"""Rules with an eligibility trace at every synapse: RFLO and KeRNL; and none at all, fixed-W."""

from __future__ import annotations

import torch
from torch import Tensor

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules.base import DeclaredCost, Rule, SeparableRule, State, StepInputs, immediate


class FixedW(Rule):
    """Leave W as it is: only the output layer learns. What every other rule has to beat."""

    name = "fixed-w"
    declared_cost = DeclaredCost("0", "0")

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Return no tensors."""
        return {}

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        """Return no gradient."""
        return state, torch.zeros_like(now.weight)


class RFLO(SeparableRule):
    """Random feedback local online learning (Murray 2019): the Jacobian's leak is all that is kept of it."""

    name = "rflo"
    declared_cost = DeclaredCost("nm", "nm")
    equations = "B ← (1 - α) B + e; G_ij = c̄_i B_ij"

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Start at B = 0."""
        return {"B": weight.new_zeros(len(rates), *weight.shape)}

    def factors(self, state: State, now: StepInputs) -> tuple[State, Tensor, Tensor]:
        """See `SeparableRule.factors`."""
        trace = (1 - self.cell.alpha) * state["B"] + immediate(now)
        return {"B": trace}, now.credit, trace


class KeRNL(SeparableRule):
    """Kernel RNN learning (Roth, Kanitscheider, Fiete 2019): sensitivities A and time scales learned from noise.

    A copy r̃ of the network gets noise ζ on its rates, see `equations`; κ_i and α_i stop at zero. The authors' Ω is
    a step ahead of their perturbed network; here both have felt the same noise.

    The rate η is for noise in units of its standard deviation σ (with noise as it is, the rate would be η/σ²). In
    float32 rounding adds about 5e-8/σ to ε/σ: below σ = 1e-5 little is left to learn from. Each α_i starts at
    `timescale`.
    """

    name = "kernl"
    shared = ("A", "timescale")
    declared_cost = DeclaredCost("n² + nm", "n² + nm", frozenset({"matrix-vector", "noise", "perturbed copy"}))
    equations = (
        "κ_i = 1 - α_i; r̃ ← f(r̃, x) + ζ; Ω ← κ Ω + ζ; Γ ← κ Γ - Ω_old; ε = A Ω - (r̃ - r); "
        "A ← A - η ε Ωᵀ; α_i ← α_i - η (ε A)_i Γ_i; B_ij ← κ_i B_ij + e_ij; G_ij = (c̄ A)_i B_ij"
    )

    def __init__(self, cell: RNNCell, rate: float = 1e-3, sigma: float = 1e-3, timescale: float = 0.8) -> None:
        super().__init__(cell)
        self.rate, self.timescale = self.number("rate", rate), self.number("timescale", timescale)
        self.sigma = self.number("sigma", sigma, positive=True)

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Start at A = I, every α_i at its start, r̃ = r_0, all else 0."""
        n = self.cell.units
        return {
            "A": torch.eye(n, dtype=weight.dtype, device=weight.device),
            "timescale": weight.new_full((n,), self.timescale),
            "B": weight.new_zeros(len(rates), *weight.shape),
            "perturbed": rates.clone(),
            "Omega": torch.zeros_like(rates),
            "Gamma": torch.zeros_like(rates),
        }

    def draw(self, batch: int, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ζ/σ, standard normal, shape (T, B, n)."""
        return torch.randn(steps, batch, self.cell.units, generator=generator)

    def factors(self, state: State, now: StepInputs) -> tuple[State, Tensor, Tensor]:
        """See `SeparableRule.factors`."""
        assert now.noise is not None
        n, sensitivity, batch = self.cell.units, state["A"], len(now.rates)
        noise = now.noise.to(now.rates)  # of one type for both that feel it
        kept = (1 - state["timescale"]).clamp(min=0)
        perturbed = self.cell.advance(now.weight, state["perturbed"], now.inputs[:, n:-1]).rates
        perturbed = perturbed + self.sigma * noise
        filtered = kept * state["Omega"] + noise  # Ω and Γ in units of σ
        slowed = kept * state["Gamma"] - state["Omega"]
        missed = filtered @ sensitivity.mT - (perturbed - now.rates) / self.sigma
        trace = kept[:, None] * state["B"] + immediate(now)
        faster = (missed @ sensitivity) * slowed
        sensitivity = sensitivity - self.rate / batch * (missed.mT @ filtered)
        after = {
            "A": sensitivity,
            "timescale": (state["timescale"] - self.rate * faster.mean(0)).clamp(min=0),
            "B": trace,
            "perturbed": perturbed,
            "Omega": filtered,
            "Gamma": slowed,
        }
        return after, now.credit @ sensitivity, trace
