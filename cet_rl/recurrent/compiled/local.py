"""Kernels of fixed-W, RFLO and KeRNL. See `cet_rl.recurrent.rules.local`; arrays: `table.py`."""

from __future__ import annotations

import numpy as np

from cet_rl.recurrent.compiled.jit import BRIDGING, Arrays, Frame, inner
from cet_rl.recurrent.compiled.late import add_recalled, arrive, bridge
from cet_rl.recurrent.compiled.network import add_outer, advance


def fixed_w(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """Only the output layer learns."""


def rflo(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """B ← (1 - α) B + e and its share of the gradient, in one pass."""
    _, inputs, _, slope, credit, gradient, _, _ = frame
    B, share, leak = arrays[0][0], arrays[2][0], arrays[2][1]
    signal = arrays[1][0][0]
    for b in range(B.shape[0]):
        for i in range(B.shape[2]):
            signal[i] = share * credit[b, i]
        for j in range(B.shape[1]):
            x = inputs[b, j]
            for i in range(B.shape[2]):
                eligibility = leak * B[b, j, i] + x * slope[b, i]
                B[b, j, i] = eligibility
                gradient[j, i] += signal[i] * eligibility


def late_rflo(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """The same with a trace behind B."""
    _, inputs, _, slope, credit, gradient, _, _ = frame
    state, work, constants, whole = arrays
    B, share, leak, arrived = state[0], constants[0], constants[1], work[-1]
    arrive(state[-1], credit, share, arrived, offset)
    for b in range(B.shape[0]):
        for j in range(B.shape[1]):
            x = inputs[b, j]
            for i in range(B.shape[2]):
                B[b, j, i] = leak * B[b, j, i] + x * slope[b, i]
        recalled = bridge(state[-2][b], B[b], work[BRIDGING:], whole, offset)
        add_recalled(recalled, arrived[b], gradient)


def kernl(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """KeRNL: perturb, learn A and the time scales, filter e, and add the gradient."""
    _, inputs, _, slope, _, gradient, _, _ = frame
    state, work, constants, _ = arrays
    B, signals, kept, share = state[2], work[4], work[5][0], constants[0]
    _sense(frame, arrays)
    for b in range(B.shape[0]):
        for j in range(B.shape[1]):
            x = inputs[b, j]
            for i in range(B.shape[2]):
                eligibility = kept[i] * B[b, j, i] + x * slope[b, i]
                B[b, j, i] = eligibility
                gradient[j, i] += share * signals[b, i] * eligibility


def late_kernl(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """The same with a trace behind B."""
    _, inputs, _, slope, _, gradient, _, _ = frame
    state, work, constants, whole = arrays
    B, kept, arrived = state[2], work[5][0], work[-1]
    _sense(frame, arrays)
    arrive(state[-1], work[4], constants[0], arrived, offset)
    for b in range(B.shape[0]):
        for j in range(B.shape[1]):
            x = inputs[b, j]
            for i in range(B.shape[2]):
                B[b, j, i] = kept[i] * B[b, j, i] + x * slope[b, i]
        recalled = bridge(state[-2][b], B[b], work[BRIDGING:], whole, offset)
        add_recalled(recalled, arrived[b], gradient)


@inner
def _sense(frame: Frame, arrays: Arrays) -> None:
    # The perturbed network and what is learned from it; leaves κ in work[5] and the signals in work[4].
    weight, inputs, rates, _, credit, _, _, noise = frame
    state, work, constants, whole = arrays
    A, timescale, perturbed, omega, gamma = state[0][0], state[1][0, 0], state[3][0], state[4][0], state[5][0]
    entering, slope, missed, faster, signal, kept = work[0], work[1], work[2], work[3], work[4], work[5][0]
    share, alpha, rate, sigma = constants[0], constants[2], constants[3], constants[4]
    one, zero = constants.dtype.type(1), constants.dtype.type(0)
    batch, n = rates.shape
    for i in range(n):
        kept[i] = one - timescale[i]
        if kept[i] < zero:
            kept[i] = zero
    for b in range(batch):
        for i in range(n):
            entering[b, i] = perturbed[b, i]
        for j in range(n, inputs.shape[1]):
            entering[b, j] = inputs[b, j]
    advance(weight, entering, perturbed, slope, alpha, whole[0] != 0)
    for b in range(batch):
        for i in range(n):
            perturbed[b, i] += sigma * noise[b, i]
            gamma[b, i] = kept[i] * gamma[b, i] - omega[b, i]
            omega[b, i] = kept[i] * omega[b, i] + noise[b, i]
    np.dot(omega, A.T, missed)
    for b in range(batch):
        for i in range(n):
            missed[b, i] -= (perturbed[b, i] - rates[b, i]) / sigma
    np.dot(missed, A, faster)
    for i in range(n):
        total = zero
        for b in range(batch):
            total += faster[b, i] * gamma[b, i]
        timescale[i] -= rate * (share * total)
        if timescale[i] < zero:
            timescale[i] = zero
    for b in range(batch):
        for i in range(n):
            missed[b, i] *= -rate * share
    add_outer(missed, omega, A)
    np.dot(credit, A, signal)
