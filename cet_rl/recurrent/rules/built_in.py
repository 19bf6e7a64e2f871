"""Define the rules that come with the package. Where a method has no docstring, that of its base class holds."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules.base import (
    DeclaredCost,
    Rule,
    SeparableRule,
    State,
    StepInputs,
    balance,
    draw_signs,
    immediate,
)

# -------------------- the true gradient: real-time recurrent learning and backpropagation through time


class RTRL(Rule):
    """Keep every unit's sensitivity to every weight: real-time recurrent learning (Williams, Zipser 1989).

    M is kept with k in its last axis, (B, n, m, n), where the product with W_rec is one large matrix product.
    """

    name = "rtrl"
    declared_cost = DeclaredCost("n²m", "n³m", frozenset({"matrix-vector", "matrix-matrix", "Jacobian"}))
    equations = "M_kij ← Σ_l J_kl M_lij + δ_ki e_ij; G_ij = Σ_k c̄_k M_kij"

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Start at M = 0."""
        return {"M": weight.new_zeros(len(rates), *weight.shape, self.cell.units)}

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        influence = self.cell.jacobian_vector(now.weight, now.slope, state["M"])
        influence.diagonal(dim1=1, dim2=3).add_(immediate(now).mT)  # of shape (B, m, n)
        gradient = torch.einsum("bk,bijk->ij", now.credit, influence) / len(now.credit)
        return {"M": influence}, gradient


class _Unrolled(Rule):
    """Remember the last T steps: r̂ of shape (B, T, m), D and a credit of shape (B, T, n), oldest first.

    Steps before the first one are zeros, which give no gradient. T is `window`, at least one.
    """

    def __init__(self, cell: RNNCell, window: int = 20) -> None:
        super().__init__(cell)
        self.window = self.checked_count("window", window)

    @property
    def first_gradient(self) -> int:
        return self.window

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Start at zeros."""
        batch, n, m = len(rates), self.cell.units, self.cell.columns
        shapes = {"inputs": m, "slope": n, "credit": n}
        return {name: weight.new_zeros(batch, self.window, width) for name, width in shapes.items()}

    def _remember(self, state: State, now: StepInputs) -> State:
        return {name: torch.cat([old[:, 1:], getattr(now, name)[:, None]], dim=1) for name, old in state.items()}


class BPTT(_Unrolled):
    """Backpropagate through time over windows that do not overlap: c_t = c̄_t + c_{t+1} J_{t+1}.

    The gradient of a window comes with its last step, for all of its steps together; credit does not go back
    beyond its first.
    """

    name = "bptt"
    declared_cost = DeclaredCost("Tn + Tm", "n² + nm", frozenset({"matrix-vector", "Jacobian", "past activity"}))
    equations = "c_t = c̄_t + c_{t+1} J_{t+1}; G_ij = Σ_t c_ti e_tij"

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        state = self._remember(state, now)
        if (now.clock + 1) % self.window:
            return state, torch.zeros_like(now.weight)
        gradient = self.pending_gradient(state, now.weight)
        return {name: torch.zeros_like(tensor) for name, tensor in state.items()}, gradient

    def pending_gradient(self, state: State, weight: Tensor) -> Tensor:
        """Return the gradient of the window as far as it has come."""
        inputs, slope, credit = state["inputs"], state["slope"], state["credit"]
        arriving, signals = credit[:, -1], []
        for step in reversed(range(self.window)):
            signals.append(arriving * slope[:, step])
            if step:
                arriving = credit[:, step - 1] + self.cell.backproject(weight, slope[:, step], arriving)
        return torch.einsum("bti,btj->ij", torch.stack(signals[::-1], dim=1), inputs) / len(inputs)


class FutureBPTT(_Unrolled):
    """Backpropagate through time over a sliding window: each step gets credit for its own and T - 1 later losses.

    c̄_t goes back through the window at once, J by J, and is added to the credit of every step in it. The
    gradient of a step comes T - 1 steps later, when its credit is complete: future-facing.
    """

    name = "future-bptt"
    declared_cost = DeclaredCost("Tn + Tm", "Tn² + nm", frozenset({"matrix-vector", "Jacobian", "past activity"}))
    equations = "c_s ← c_s + c̄_t J_t ⋯ J_{s+1}; G_ij = c_si e_sij at s = t - T + 1"

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        state = self._remember(state, now)
        arriving, credit = now.credit, [now.credit]
        for step in reversed(range(1, self.window)):
            arriving = self.cell.backproject(now.weight, state["slope"][:, step], arriving)
            credit.append(state["credit"][:, step - 1] + arriving)
        state["credit"] = torch.stack(credit[::-1], dim=1)
        signal = state["credit"][:, 0] * state["slope"][:, 0]
        return state, signal.mT @ state["inputs"][:, 0] / len(signal)

    def pending_gradient(self, state: State, weight: Tensor) -> Tensor:
        """Return the gradient of the T - 1 steps that still wait."""
        signal = (state["credit"] * state["slope"])[:, 1:]
        return torch.einsum("bti,btj->ij", signal, state["inputs"][:, 1:]) / len(signal)


# -------------------- an eligibility trace at every synapse, or none at all


class FixedW(Rule):
    """Leave W as it is, so that only the output layer learns: the baseline of all other rules."""

    name = "fixed-w"
    declared_cost = DeclaredCost("0", "0")

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Return no tensors."""
        return {}

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        """Return no gradient."""
        return state, torch.zeros_like(now.weight)


class RFLO(SeparableRule):
    """Keep only the leak of the Jacobian: random feedback local online learning (Murray 2019)."""

    name = "rflo"
    declared_cost = DeclaredCost("nm", "nm")
    equations = "B ← (1 - α) B + e; G_ij = c̄_i B_ij"

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Start at B = 0."""
        return {"B": weight.new_zeros(len(rates), *weight.shape)}

    def factors(self, state: State, now: StepInputs) -> tuple[State, Tensor, Tensor]:
        trace = (1 - self.cell.alpha) * state["B"] + immediate(now)
        return {"B": trace}, now.credit, trace


class KeRNL(SeparableRule):
    """Learn sensitivities A and time scales from noise: kernel RNN learning (Roth, Kanitscheider, Fiete 2019).

    A copy r̃ of the network gets noise ζ on its rates, see `equations`; κ_i and α_i do not go below zero. The
    authors' Ω is a step ahead of their perturbed network; here both have received the same noise.

    The rate η is for noise in units of its standard deviation σ (for the noise itself the rate would be η/σ²). In
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
        self.rate, self.timescale = self.checked_number("rate", rate), self.checked_number("timescale", timescale)
        self.sigma = self.checked_number("sigma", sigma, positive=True)

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
        assert now.noise is not None
        n, sensitivity, batch = self.cell.units, state["A"], len(now.rates)
        noise = now.noise.to(now.rates)  # converted once: r̃ and Ω receive the same noise
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


# -------------------- a random product in the place of RTRL's influence tensor


class _Stochastic(Rule):
    """Keep a random product A B in the place of RTRL's influence tensor, equal to it on average.

    ν are independent ±1; ρ0 and ρ1 keep the two factors equally long, which makes the variance smallest. Each
    sequence has its own. `start` is the standard deviation of the factors before the first step: 1 in the paper,
    and 0 where the estimate has to be unbiased from the first step on.
    """

    axes: ClassVar[tuple[str, str]]  # of A and B, a letter an axis: b sequences, n units, m columns

    def __init__(self, cell: RNNCell, start: float = 1.0) -> None:
        super().__init__(cell)
        self.start = self.checked_number("start", start)

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Draw A and B."""
        sizes = {"b": len(rates), "n": self.cell.units, "m": self.cell.columns}
        drawn = (torch.randn([sizes[axis] for axis in axes], generator=generator) for axes in self.axes)
        return {name: (self.start * tensor).to(weight) for name, tensor in zip("AB", drawn, strict=True)}

    def draw(self, batch: int, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ν, a sign for each unit: shape (T, B, n)."""
        return draw_signs((steps, batch, self.cell.units), generator)

    def _rho1(self, projected: Tensor) -> Tensor:
        """Return ρ1 = √(‖ν ⊙ e‖ / √n) of each sequence; 1 where nothing comes in. Shape (B,)."""
        return balance(projected, projected.new_ones(len(projected), self.cell.units))


class UORO(_Stochastic):
    """Keep M_kij ≈ A_k B_ij: unbiased online recurrent optimisation (Tallec, Ollivier 2017)."""

    name = "uoro"
    axes = ("bn", "bnm")
    declared_cost = DeclaredCost("nm", "n² + nm", frozenset({"matrix-vector", "Jacobian", "noise"}))
    equations = "A ← ρ0 J A + ρ1 ν; B_ij ← B_ij/ρ0 + ν_i e_ij/ρ1; G = (c̄ · A) B"

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        assert now.noise is not None
        pushed = self.cell.jacobian_vector(now.weight, now.slope, state["A"])
        projected = now.noise[:, :, None] * immediate(now)
        rho0, rho1 = balance(state["B"], pushed), self._rho1(projected)
        units = rho0[:, None] * pushed + rho1[:, None] * now.noise
        synapses = state["B"] / rho0[:, None, None] + projected / rho1[:, None, None]
        signal = (now.credit * units).sum(1)
        return {"A": units, "B": synapses}, torch.einsum("b,bij->ij", signal, synapses) / len(signal)


class KFRTRL(_Stochastic):
    """Keep M_kij ≈ A_j B_ki, with k in the last axis of B: Kronecker-factored RTRL (Mujika et al. 2018)."""

    name = "kf-rtrl"
    axes = ("bm", "bnn")
    declared_cost = DeclaredCost("n²", "n³", frozenset({"matrix-vector", "matrix-matrix", "Jacobian", "noise"}))
    equations = "A_j ← ν0 ρ0 A_j + ν1 ρ1 r̂_j; B ← ν0 J B/ρ0 + ν1 diag(D)/ρ1; G_ij = (c̄ B)_i A_j"

    def draw(self, batch: int, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ν0 and ν1: shape (T, B, 2)."""
        return draw_signs((steps, batch, 2), generator)

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        assert now.noise is not None
        nu0, nu1 = now.noise[:, :1], now.noise[:, 1:]
        pushed = self.cell.jacobian_vector(now.weight, now.slope, state["B"])
        rho0, rho1 = balance(pushed, state["A"])[:, None], balance(now.slope, now.inputs)[:, None]
        columns = nu0 * rho0 * state["A"] + nu1 * rho1 * now.inputs
        units = (nu0 / rho0)[:, :, None] * pushed
        units = units + torch.diag_embed(nu1 / rho1 * now.slope)
        signal = torch.einsum("bik,bk->bi", units, now.credit)
        return {"A": columns, "B": units}, signal.mT @ columns / len(signal)


class RKF(_Stochastic):
    """Keep M_kij ≈ A_i B_kj, with k in the last axis of B: reverse KF-RTRL (Marschall, Cho, Savin 2019)."""

    name = "r-kf"
    axes = ("bn", "bmn")
    declared_cost = DeclaredCost("nm", "n²m", frozenset({"matrix-vector", "matrix-matrix", "Jacobian", "noise"}))
    equations = "A_i ← ρ0 A_i + ρ1 ν_i; B_kj ← (J B)_kj/ρ0 + ν_k e_kj/ρ1; G_ij = A_i (c̄ B)_j"

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        assert now.noise is not None
        pushed = self.cell.jacobian_vector(now.weight, now.slope, state["B"])
        projected = (now.noise[:, :, None] * immediate(now)).mT
        rho0, rho1 = balance(pushed, state["A"]), self._rho1(projected)
        units = rho0[:, None] * state["A"] + rho1[:, None] * now.noise
        columns = pushed / rho0[:, None, None] + projected / rho1[:, None, None]
        signal = torch.einsum("bjk,bk->bj", columns, now.credit)
        return {"A": units, "B": columns}, units.mT @ signal / len(signal)


# -------------------- a guess of the credit that is to come


class DNI(SeparableRule):
    """Predict credit as a learned linear function: decoupled neural interfaces (Jaderberg et al. 2017).

    The function takes r̃_t = [r_t; y*_t; 1], see `equations`. A is shared by all sequences and learns from the mean
    over them, at the rate η; A⁻ is a copy of it, made every `renewal` steps as in the authors' code; the paper's
    equation is `renewal=1`. A starts as N(0, 1/(n + n_out + 1)).
    """

    name = "dni"
    shared: tuple[str, ...] = ("A", "A_copy")
    declared_cost = DeclaredCost("n²", "n² + nm", frozenset({"matrix-vector", "Jacobian"}))
    equations = "c* = c̄_{t-1} + (A⁻ r̃_t) J_t; A ← A - η (A r̃_{t-1} - c*) r̃_{t-1}ᵀ; G_ij = (A r̃_t)_i e_ij"

    def __init__(self, cell: RNNCell, rate: float = 1e-2, renewal: int = 5) -> None:
        super().__init__(cell)
        self.rate, self.renewal = self.checked_number("rate", rate), self.checked_count("renewal", renewal)

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
        known, before = self._known(now.rates, now.label), state["known"]
        target = state["credit"] + self._backwards(state, now, known @ state["A_copy"].mT)
        guess = state["A"] - self.rate / len(known) * (before @ state["A"].mT - target).mT @ before
        copy = state["A_copy"] if (now.clock + 1) % self.renewal else guess.clone()
        after = {"A": guess, "A_copy": copy, "known": known, "credit": now.credit}
        return after, known @ guess.mT, immediate(now)

    def _backwards(self, state: State, now: StepInputs, guessed: Tensor) -> Tensor:
        """Return credit at t carried back to t - 1: (B, n) to (B, n)."""
        return self.cell.backproject(now.weight, now.slope, guessed)


class DNIb(DNI):
    """Predict credit as DNI does, with learned synapses 𝒥 in place of the Jacobian: DNI(b) of the audit paper.

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
        self.jacobian_rate = self.checked_number("jacobian_rate", rate if jacobian_rate is None else jacobian_rate)

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Start as DNI does, with 𝒥 = W_rec."""
        state = super().init_state(weight, rates, generator)
        return {**state, "jacobian": self.cell.recurrent(weight).clone()}

    def factors(self, state: State, now: StepInputs) -> tuple[State, Tensor, Tensor]:
        before, batch = now.inputs[:, : self.cell.units], len(now.rates)
        missed = before @ state["jacobian"].mT - now.rates
        learned = state["jacobian"] - self.jacobian_rate / batch * (missed.mT @ before)
        after, signal, eligibility = super().factors({**state, "jacobian": learned}, now)
        return {**after, "jacobian": learned}, signal, eligibility

    def _backwards(self, state: State, now: StepInputs, guessed: Tensor) -> Tensor:
        return torch.tanh(guessed) @ state["jacobian"]
