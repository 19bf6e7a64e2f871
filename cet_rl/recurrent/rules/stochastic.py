"""Rules that keep a random product in the place of RTRL's influence tensor, equal to it on average.

ν are independent ±1; ρ0 and ρ1 keep the two factors equally long, which makes the variance smallest. All numbers
are of each sequence. `start` is the standard deviation of the factors before the first step: 1 in the paper, and
0 where the estimate has to be unbiased from the first step on.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules.base import DeclaredCost, Rule, State, StepInputs, balance, draw_signs, immediate


class _Stochastic(Rule):
    """Draw two factors A and B from N(0, start²) before the first step."""

    axes: ClassVar[tuple[str, str]]  # of A and B, a letter an axis: b sequences, n units, m columns

    def __init__(self, cell: RNNCell, start: float = 1.0) -> None:
        super().__init__(cell)
        self.start = self.number("start", start)

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Draw A and B."""
        sizes = {"b": len(rates), "n": self.cell.units, "m": self.cell.columns}
        drawn = (torch.randn([sizes[axis] for axis in axes], generator=generator) for axes in self.axes)
        return {name: (self.start * tensor).to(weight) for name, tensor in zip("AB", drawn, strict=True)}

    def draw(self, batch: int, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ν, a sign for each unit: shape (T, B, n)."""
        return draw_signs((steps, batch, self.cell.units), generator)

    def _blend(self, projected: Tensor) -> Tensor:
        """Return ρ1 = √(‖ν ⊙ e‖ / √n) of each sequence; 1 where nothing comes in. Shape (B,)."""
        return balance(projected, projected.new_ones(len(projected), self.cell.units))


class UORO(_Stochastic):
    """Unbiased online recurrent optimisation (Tallec, Ollivier 2017): M_kij ≈ A_k B_ij."""

    name = "uoro"
    axes = ("bn", "bnm")
    declared_cost = DeclaredCost("nm", "n² + nm", frozenset({"matrix-vector", "Jacobian", "noise"}))
    equations = "A ← ρ0 J A + ρ1 ν; B_ij ← B_ij/ρ0 + ν_i e_ij/ρ1; G = (c̄ · A) B"

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        """See `Rule.step`."""
        assert now.noise is not None
        pushed = self.cell.jacobian_vector(now.weight, now.slope, state["A"])
        projected = now.noise[:, :, None] * immediate(now)
        kept, taken = balance(state["B"], pushed), self._blend(projected)
        units = kept[:, None] * pushed + taken[:, None] * now.noise
        synapses = state["B"] / kept[:, None, None] + projected / taken[:, None, None]
        signal = (now.credit * units).sum(1)
        return {"A": units, "B": synapses}, torch.einsum("b,bij->ij", signal, synapses) / len(signal)


class KFRTRL(_Stochastic):
    """Kronecker-factored RTRL (Mujika, Meier, Steger 2018): M_kij ≈ A_j B_ki; B has k in its last axis."""

    name = "kf-rtrl"
    axes = ("bm", "bnn")
    declared_cost = DeclaredCost("n²", "n³", frozenset({"matrix-vector", "matrix-matrix", "Jacobian", "noise"}))
    equations = "A_j ← ν0 ρ0 A_j + ν1 ρ1 r̂_j; B ← ν0 J B/ρ0 + ν1 diag(D)/ρ1; G_ij = (c̄ B)_i A_j"

    def draw(self, batch: int, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ν0 and ν1: shape (T, B, 2)."""
        return draw_signs((steps, batch, 2), generator)

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        """See `Rule.step`."""
        assert now.noise is not None
        first, second = now.noise[:, :1], now.noise[:, 1:]
        pushed = self.cell.jacobian_vector(now.weight, now.slope, state["B"])
        kept, taken = balance(pushed, state["A"])[:, None], balance(now.slope, now.inputs)[:, None]
        columns = first * kept * state["A"] + second * taken * now.inputs
        units = (first / kept)[:, :, None] * pushed
        units = units + torch.diag_embed(second / taken * now.slope)
        signal = torch.einsum("bik,bk->bi", units, now.credit)
        return {"A": columns, "B": units}, signal.mT @ columns / len(signal)


class RKF(_Stochastic):
    """Reverse KF-RTRL (Marschall, Cho, Savin 2019): M_kij ≈ A_i B_kj; B has k in its last axis."""

    name = "r-kf"
    axes = ("bn", "bmn")
    declared_cost = DeclaredCost("nm", "n²m", frozenset({"matrix-vector", "matrix-matrix", "Jacobian", "noise"}))
    equations = "A_i ← ρ0 A_i + ρ1 ν_i; B_kj ← (J B)_kj/ρ0 + ν_k e_kj/ρ1; G_ij = A_i (c̄ B)_j"

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        """See `Rule.step`."""
        assert now.noise is not None
        pushed = self.cell.jacobian_vector(now.weight, now.slope, state["B"])
        projected = (now.noise[:, :, None] * immediate(now)).mT
        kept, taken = balance(pushed, state["A"]), self._blend(projected)
        units = kept[:, None] * state["A"] + taken[:, None] * now.noise
        columns = pushed / kept[:, None, None] + projected / taken[:, None, None]
        signal = torch.einsum("bjk,bk->bj", columns, now.credit)
        return {"A": units, "B": columns}, units.mT @ signal / len(signal)
