"""The definition over T steps in closed form: n + 2 matrix products, whatever the delay.

Weights are fixed within a rollout, so the step recursion unrolls. With A_u = η_u + γλ(1 - s_{u+1}) A_{u+1},
B_u = Π_{v>u} γλ(1 - s_v) and q_u = C M^{u+1},

    p_τ = f'_τ ⊙ Σ_{u≥τ} g_{u-τ} A_u δ_u
    ΔW  = Σ_env [ Σ_τ p_τ x_τᵀ + Σ_k diag(Σ_u A_u q_{u,k} δ_u) S⁰_k + γλ(1 - s_0) A_0 e⁰ ]
    S_k = Σ_l (M^T)_{kl} S⁰_l + Σ_τ (M^{T-1-τ} K)_k f'_τ x_τᵀ
    e   = ΔW's form per environment, with B in the place of A

which needs one γλ for all weights of the layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cet_rl.credit.geometry import is_for_numpy, matmul
from cet_rl.credit.signals import Signals, SynapseState, lambda_sums
from cet_rl.traces.base import FloatArray, Transition

Times = npt.NDArray[np.int64]

Pattern = tuple[tuple[int, ...], ...]
"""For each entry of [M; C], the index of its value among the distinct ones; -1 for a zero."""

CACHE_SIZE = 4  # entries

_BLOCK = 1 << 18
"""Floats of the largest matrix of a block: one megabyte, so that all of them fit a core's own cache."""


def correlation_matrix(kernel: FloatArray, rows: int, columns: int, shift: int) -> FloatArray:
    """Return g_{u + shift - s} at [s, u], s = 0 … rows - 1 and u = 0 … columns - 1; zero outside the kernel."""
    return event_matrix(kernel, np.arange(rows), np.arange(columns) + shift)


def event_matrix(kernel: FloatArray, happened: Times, arrives: Times) -> FloatArray:
    """Return g at [a, b] of the steps from event a, (A,), to the arrival of error b, (B,); zero outside of it."""
    lag = arrives[None, :] - happened[:, None]
    return np.where((lag >= 0) & (lag < len(kernel)), kernel[np.clip(lag, 0, len(kernel) - 1)], 0.0)


def forget_oldest(cache: dict[Any, Any]) -> None:
    """Delete a full cache's oldest entry: matrices of every chunk length, for one, would fill the memory."""
    if len(cache) >= CACHE_SIZE:
        del cache[next(iter(cache))]


@dataclass(frozen=True)
class ChunkConstants:
    """Hold the constants of T steps in closed form.

    Row u of the gains is what the error of step u adds: to event τ of the chunk g_{u-τ}, zero for u < τ, in the
    first T columns; to the states before the chunk q_u = C M^{u+1}, in the last n. One product takes both.
    """

    gains: Tensor  # shape (T, T + n)
    absorb: Tensor  # (M^{T-1-τ} K)_k at [k, τ], shape (n, T)
    power: Tensor  # M^T, shape (n, n)


@dataclass
class StateConstants:
    """Hold (M, K, C) of a trace in a layer's type, and its closed forms by chunk length."""

    transition: Transition
    dtype: torch.dtype
    device: torch.device
    _chunks: dict[int, ChunkConstants] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.M = self._tensor(self.transition.M)
        self.K = self._tensor(self.transition.K)
        self.C = self._tensor(self.transition.C)

    def _tensor(self, array: FloatArray) -> Tensor:
        return torch.from_numpy(array.copy()).to(self.device, self.dtype)

    @cached_property
    def coefficients(self) -> tuple[Pattern, Tensor]:
        """Return the `Pattern` of [M; C] and its distinct nonzero values: a cascade's M has n among n² entries."""
        places = {0.0: -1}  # numbered as they appear, so that traces of one kind and order share a compiled loop
        table = torch.cat([self.M, self.C[None]]).tolist()
        pattern = tuple(tuple(places.setdefault(value, len(places) - 1) for value in row) for row in table)
        return pattern, torch.tensor([*places][1:], dtype=self.dtype, device=self.device)

    def chunk(self, steps: int) -> ChunkConstants:
        """Return the closed form of `steps` steps, computed in float64."""
        if steps not in self._chunks:
            M, K, C = self.transition.M, self.transition.K, self.transition.C
            responses = np.empty((steps, len(K)))  # M^l K
            readout = np.empty((steps, len(K)))  # C M^{l+1}
            power, response, read = np.eye(len(K)), K, C
            for lag in range(steps):
                read = read @ M
                responses[lag], readout[lag] = response, read
                power, response = power @ M, M @ response
            forget_oldest(self._chunks)
            toeplitz = correlation_matrix(responses @ C, steps, steps, 0)
            self._chunks[steps] = ChunkConstants(
                gains=self._tensor(np.concatenate([toeplitz.T, readout], 1)),
                absorb=self._tensor(responses[::-1].T),
                power=self._tensor(power),
            )
        return self._chunks[steps]


def error_weights(signals: Signals, decay: float) -> tuple[Tensor | None, Tensor | None]:
    """Return A and B of the module's formulas, the weights of δ in ΔW and in e, each (T, E).

    B is None where γλ = 0, as there is no trace to carry over; A is None as well if all its entries are one.
    """
    if decay == 0:
        return signals.td_error, None
    td_error, start = signals.modulation()
    if not is_for_numpy(td_error):  # where a comparison would wait for the device
        return _error_weights(td_error, start, decay)
    # Layers whose credit is as late have the same η and s, and their weights cost as much as a small layer.
    global _latest
    given = decay, td_error.dtype, td_error.shape, td_error.numpy().tobytes(), start.numpy().tobytes()
    latest = _latest  # which another thread may replace at any time
    if latest[0] != given:
        _latest = latest = given, _error_weights(td_error, start, decay)
    return latest[1]


_latest: tuple[Any, tuple[Tensor | None, Tensor | None]] = None, (None, None)
"""The arguments of the latest call of `error_weights`, and its results, which are never written to."""


def _error_weights(td_error: Tensor, start: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    kept = decay * (1 - start)
    kept[:-1], kept[-1] = kept[1:].clone(), 1
    return lambda_sums(td_error, start, decay), kept.flip(0).cumprod(0).flip(0)


def sum_of_environments(weights: Tensor, each: Tensor) -> Tensor:
    """Return Σ_env w_env X_env of weights (E,) and tensors (E, …)."""
    return matmul(weights[None], each.flatten(1)).view(each.shape[1:])


def chunk(constants: StateConstants, state: SynapseState, signals: Signals, decay: float) -> Tensor:
    """Run T steps at once. Same arguments and result as `step`, with one `decay` for all weights."""
    assert state.states is not None
    steps, envs, n_in = signals.pre.shape
    n_out, order = signals.error.shape[2], len(constants.K)
    closed = constants.chunk(steps)

    # From here time comes last: the layout in which products over it run fastest.
    A, B = error_weights(signals, decay)
    error, derivative = _time_last(signals.error), _time_last(signals.derivative)
    weighted = error[:, None]  # (E, 1 or 2, n_out, T)
    if A is not None:
        weights = (A.T[:, None] if B is None else torch.stack([A.T, B.T], dim=1)).contiguous()
        weighted = weights[:, :, None] * weighted
    values = matmul(weighted.view(-1, steps), closed.gains).view(*weighted.shape[:3], steps + order)
    p = torch.mul(derivative[:, None], values[..., :steps], out=torch.empty_like(weighted))
    reads = values[..., steps:]  # Σ_u A_u q_{u,k} δ_u

    if A is None or B is None:
        each = [
            _without_eligibility(
                state.states[env], closed, derivative[env], p[env, 0], reads[env, 0], signals.pre[:, env]
            )
            for env in range(envs)
        ]
        # New tensors: the old states must stay as they are until `Synapses` has advanced.
        state.states = each[0][1][None] if envs == 1 else torch.stack([states for _, states in each])
        return each[0][0] if envs == 1 else torch.stack([part for part, _ in each]).sum(0)

    kept = decay * (1 - signals.modulation()[1][0])
    gradient = sum_of_environments(kept * A[0], state.eligibility)
    state.eligibility *= (kept * B[0]).view(-1, 1, 1)
    # Units are taken in blocks that stay in a CPU's cache from one product to the next.
    on_cpu = p.device.type == "cpu"
    block = max(1, min(n_out, _BLOCK // (order * max(n_in, steps)))) if on_cpu else n_out
    operators = p.new_empty(n_out, order + weighted.shape[1], order)
    operators[:, :order] = closed.power
    # Of the factors of a step's Hebbian term, the one with fewer entries is multiplied by M^{T-1-τ} K.
    scale_inputs = n_in <= n_out
    scaled = p.new_empty((steps, order, n_in) if scale_inputs else (n_out, order, steps))
    for env in range(envs):
        pre = signals.pre[:, env].contiguous()
        if scale_inputs:
            torch.mul(pre[:, None], closed.absorb.T[:, :, None], out=scaled)
        else:
            torch.mul(derivative[env][:, None], closed.absorb, out=scaled)
        outer = matmul(p[env].view(-1, steps), pre).view(-1, n_out, n_in)
        operators[:, order:] = reads[env].transpose(0, 1)
        for first in range(0, n_out, block):
            units = slice(first, min(first + block, n_out))
            if scale_inputs:
                absorbed = matmul(derivative[env, units], scaled.view(steps, -1))
            else:
                absorbed = matmul(scaled[units].view(-1, steps), pre)
            states = state.states[env, units]
            # For each unit: its n states carried over, then what they add to its ΔW and e.
            from_states = matmul(operators[units], states)
            torch.add(absorbed.view(states.shape), from_states[:, :order], out=states)
            outer[:, units] += from_states[:, order:].transpose(0, 1)
        gradient += outer[0]
        state.eligibility[env] += outer[1]
    return gradient


def _time_last(signal: Tensor) -> Tensor:
    """Return a signal (T, E, n) as (E, n, T), contiguous."""
    steps, envs, units = signal.shape
    # As a plain transpose, which torch does block by block.
    return signal.reshape(steps, -1).T.contiguous().view(envs, units, steps)


def _without_eligibility(
    states: Tensor, closed: ChunkConstants, derivative: Tensor, p: Tensor, reads: Tensor, pre: Tensor
) -> tuple[Tensor, Tensor]:
    """Return one environment's ΔW where γλ = 0, and its new states.

    Its derivative f' and p have shape (n_out, T), its reads Σ_u A_u q_{u,k} δ_u have (n_out, n).
    """
    gradient = matmul(p, pre)
    gradient[:, None].baddbmm_(reads[:, None], states)
    scaled = derivative[:, None] * closed.absorb
    new = matmul(scaled.reshape(-1, len(pre)), pre).view(states.shape)
    new.baddbmm_(closed.power.expand(len(new), -1, -1), states)
    return gradient, new
