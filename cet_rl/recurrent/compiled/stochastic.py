"""Kernels of UORO, KF-RTRL and R-KF. See `cet_rl.recurrent.rules.stochastic`; arrays: `table.py`."""

from __future__ import annotations

import math

import numpy as np

from cet_rl.recurrent.compiled.exact import jacobian
from cet_rl.recurrent.compiled.jit import Array, Arrays, Frame, inner
from cet_rl.recurrent.compiled.network import add_outer


@inner
def _length(matrix: Array) -> float:
    flat = matrix.reshape(matrix.size)
    return math.sqrt(np.dot(flat, flat))


@inner
def _balance(grown: float, shrunk: float, one: float) -> float:
    # The root of the ratio, or 1 where that is 0/0 or infinite; a 1 of the arrays' type, which a plain 1 is not.
    if not (grown > 0 and shrunk > 0):
        return one
    ratio = math.sqrt(grown / shrunk)
    return ratio if math.isfinite(ratio) else one


@inner
def _blend(noise: Array, slope: Array, inputs: Array) -> float:
    # ρ1 = √(‖ν ⊙ e‖ / √n) of one sequence, rows (1, n) and (1, m); an outer product is as long as its factors are.
    number, n = slope.dtype.type, slope.shape[1]
    total = number(0)
    for i in range(n):
        noisy = noise[0, i] * slope[0, i]
        total += noisy * noisy
    return _balance(math.sqrt(total) * _length(inputs), math.sqrt(number(n)), number(1))


def uoro(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """A ← ρ0 J A + ρ1 ν, then B and its share of the gradient in one pass."""
    weight, inputs, _, slope, credit, gradient, _, noise = frame
    state, work, constants, _ = arrays
    A, B, pushed, gain = state[0][0], state[1], work[0], work[1][0]
    share, leak, one = constants[0], constants[1], constants.dtype.type(1)
    batch, n = A.shape
    np.dot(A, weight[:n], pushed)
    for b in range(batch):
        for i in range(n):
            pushed[b, i] = leak * A[b, i] + slope[b, i] * pushed[b, i]
        kept = _balance(_length(B[b]), _length(pushed[b : b + 1]), one)
        taken = _blend(noise[b : b + 1], slope[b : b + 1], inputs[b : b + 1])
        signal = share * constants.dtype.type(0)
        for i in range(n):
            A[b, i] = kept * pushed[b, i] + taken * noise[b, i]
            signal += share * credit[b, i] * A[b, i]
            gain[i] = noise[b, i] * slope[b, i] / taken
        kept = one / kept
        for j in range(B.shape[1]):
            x = inputs[b, j]
            for i in range(n):
                synapse = kept * B[b, j, i] + x * gain[i]
                B[b, j, i] = synapse
                gradient[j, i] += signal * synapse


def kf_rtrl(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """A_j ← ν0 ρ0 A_j + ν1 ρ1 r̂_j, B ← ν0 J B/ρ0 + ν1 diag(D)/ρ1, and the gradient (c̄ B) A."""
    weight, inputs, _, slope, credit, gradient, _, noise = frame
    state, work, constants, _ = arrays
    A, B, transposed, pushed, signal = state[0][0], state[1], work[0], work[1], work[2]
    share, leak, one = constants[0], constants[1], constants.dtype.type(1)
    batch, n = slope.shape
    for b in range(batch):
        first, second = noise[b, 0], noise[b, 1]
        jacobian(weight, slope[b], leak, transposed)
        np.dot(B[b], transposed, pushed)
        kept = _balance(_length(pushed), _length(A[b : b + 1]), one)
        taken = _balance(_length(slope[b : b + 1]), _length(inputs[b : b + 1]), one)
        for j in range(A.shape[1]):
            A[b, j] = first * kept * A[b, j] + second * taken * inputs[b, j]
        for i in range(n):
            for k in range(n):
                B[b, i, k] = first / kept * pushed[i, k]
            B[b, i, i] += second / taken * slope[b, i]
        np.dot(B[b], credit[b], signal[b])
        for i in range(n):
            signal[b, i] *= share
    add_outer(A, signal, gradient)


def r_kf(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """A_i ← ρ0 A_i + ρ1 ν_i, B ← J B/ρ0 + ν e/ρ1, and the gradient A (c̄ B)."""
    weight, inputs, _, slope, credit, gradient, _, noise = frame
    state, work, constants, _ = arrays
    A, B, transposed, pushed, signal, scaled = state[0][0], state[1], work[0], work[1], work[2], work[3]
    share, leak, one = constants[0], constants[1], constants.dtype.type(1)
    batch, n = slope.shape
    for b in range(batch):
        jacobian(weight, slope[b], leak, transposed)
        np.dot(B[b], transposed, pushed)
        kept = _balance(_length(pushed), _length(A[b : b + 1]), one)
        taken = _blend(noise[b : b + 1], slope[b : b + 1], inputs[b : b + 1])
        gain = scaled[b]
        for i in range(n):
            A[b, i] = kept * A[b, i] + taken * noise[b, i]
            gain[i] = noise[b, i] * slope[b, i] / taken
        kept = one / kept
        for j in range(B.shape[1]):
            x = inputs[b, j]
            for k in range(n):
                B[b, j, k] = kept * pushed[j, k] + x * gain[k]
        np.dot(B[b], credit[b], signal[b])
        for i in range(n):
            scaled[b, i] = share * A[b, i]
    add_outer(signal, scaled, gradient)
