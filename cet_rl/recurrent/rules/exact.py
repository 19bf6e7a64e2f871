"""Rules that compute the true gradient: real-time recurrent learning and backpropagation through time."""

from __future__ import annotations

import torch
from torch import Tensor

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules.base import DeclaredCost, Rule, State, StepInputs, immediate


class RTRL(Rule):
    """Real-time recurrent learning (Williams, Zipser 1989): every unit's sensitivity to every weight.

    M is kept with k in its last axis, (B, n, m, n), where the product with W_rec is one large matrix product.
    """

    name = "rtrl"
    declared_cost = DeclaredCost("n²m", "n³m", frozenset({"matrix-vector", "matrix-matrix", "Jacobian"}))
    equations = "M_kij ← Σ_l J_kl M_lij + δ_ki e_ij; G_ij = Σ_k c̄_k M_kij"

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Start at M = 0."""
        return {"M": weight.new_zeros(len(rates), *weight.shape, self.cell.units)}

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        """See `Rule.step`."""
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
        self.window = self.count("window", window)

    @property
    def first_gradient(self) -> int:
        """See `Rule.first_gradient`."""
        return self.window

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Start at zeros."""
        batch, n, m = len(rates), self.cell.units, self.cell.columns
        shapes = {"inputs": m, "slope": n, "credit": n}
        return {name: weight.new_zeros(batch, self.window, width) for name, width in shapes.items()}

    def _remember(self, state: State, now: StepInputs) -> State:
        new = {"inputs": now.inputs, "slope": now.slope, "credit": now.credit}
        return {name: torch.cat([state[name][:, 1:], new[name][:, None]], dim=1) for name in new}


class BPTT(_Unrolled):
    """Backpropagation through time over windows that do not overlap: c_t = c̄_t + c_{t+1} J_{t+1}.

    The gradient of a window comes with its last step, for all of its steps together; credit does not go back
    beyond its first.
    """

    name = "bptt"
    declared_cost = DeclaredCost("Tn + Tm", "n² + nm", frozenset({"matrix-vector", "Jacobian", "past activity"}))
    equations = "c_t = c̄_t + c_{t+1} J_{t+1}; G_ij = Σ_t c_ti e_tij"

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        """See `Rule.step`."""
        state = self._remember(state, now)
        if (now.clock + 1) % self.window:
            return state, torch.zeros_like(now.weight)
        gradient = self.flush(state, now.weight)
        return {name: torch.zeros_like(tensor) for name, tensor in state.items()}, gradient

    def flush(self, state: State, weight: Tensor) -> Tensor:
        """Return the gradient of the window as far as it has come."""
        inputs, slope, credit = state["inputs"], state["slope"], state["credit"]
        arriving, signals = credit[:, -1], []
        for step in reversed(range(self.window)):
            signals.append(arriving * slope[:, step])
            if step:
                arriving = credit[:, step - 1] + self.cell.backproject(weight, slope[:, step], arriving)
        return torch.einsum("bti,btj->ij", torch.stack(signals[::-1], dim=1), inputs) / len(inputs)


class FutureBPTT(_Unrolled):
    """Backpropagation through time over a window that slides: each step hears of the T losses that follow it.

    c̄_t goes back through the window at once, J by J, and is added to the credit of every step in it. The
    gradient of a step comes T - 1 steps later, when its credit is complete: future-facing.
    """

    name = "future-bptt"
    declared_cost = DeclaredCost("Tn + Tm", "Tn² + nm", frozenset({"matrix-vector", "Jacobian", "past activity"}))
    equations = "c_s ← c_s + c̄_t J_t ⋯ J_{s+1}; G_ij = c_si e_sij at s = t - T + 1"

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        """See `Rule.step`."""
        state = self._remember(state, now)
        arriving, credit = now.credit, [now.credit]
        for step in reversed(range(1, self.window)):
            arriving = self.cell.backproject(now.weight, state["slope"][:, step], arriving)
            credit.append(state["credit"][:, step - 1] + arriving)
        state["credit"] = torch.stack(credit[::-1], dim=1)
        signal = state["credit"][:, 0] * state["slope"][:, 0]
        return state, signal.mT @ state["inputs"][:, 0] / len(signal)

    def flush(self, state: State, weight: Tensor) -> Tensor:
        """Return the gradient of the T - 1 steps that still wait."""
        signal = (state["credit"] * state["slope"])[:, 1:]
        return torch.einsum("bti,btj->ij", signal, state["inputs"][:, 1:]) / len(signal)
