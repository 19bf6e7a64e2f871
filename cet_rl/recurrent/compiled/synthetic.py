"""Kernels of DNI and DNI(b). See `cet_rl.recurrent.rules.synthetic`; arrays: `table.py`."""

from __future__ import annotations

import numpy as np

from cet_rl.recurrent.compiled.jit import BRIDGING, Arrays, Frame, inner
from cet_rl.recurrent.compiled.late import add_recalled, arrive, bridge
from cet_rl.recurrent.compiled.network import add_outer
from cet_rl.recurrent.compiled.tanh import squash


def dni(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """Learn A by what the Jacobian says of credit to come, and add the gradient."""
    _guess(frame, arrays)
    _pull(frame, arrays)
    _learn(frame, arrays, clock)
    _add_gradient(frame, arrays)


def late_dni(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """The same with a trace behind e."""
    _guess(frame, arrays)
    _pull(frame, arrays)
    _learn(frame, arrays, clock)
    _add_late_gradient(frame, arrays, offset)


def dni_b(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """Learn A by what 𝒥, learned first, says of credit to come, and add the gradient."""
    _guess(frame, arrays)
    _learned_pull(frame, arrays)
    _learn(frame, arrays, clock)
    _add_gradient(frame, arrays)


def late_dni_b(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """The same with a trace behind e."""
    _guess(frame, arrays)
    _learned_pull(frame, arrays)
    _learn(frame, arrays, clock)
    _add_late_gradient(frame, arrays, offset)


@inner
def _guess(frame: Frame, arrays: Arrays) -> None:
    # r̃ = [r; y*; 1] into work[1], A⁻ r̃ into work[0].
    _, _, rates, _, _, _, label, _ = frame
    A_copy, known, guessed = arrays[0][1][0], arrays[1][1], arrays[1][0]
    n, outputs = rates.shape[1], label.shape[1]
    for b in range(rates.shape[0]):
        for i in range(n):
            known[b, i] = rates[b, i]
        for k in range(outputs):
            known[b, n + k] = label[b, k]
        known[b, n + outputs] = 1
    np.dot(known, A_copy, guessed)


@inner
def _pull(frame: Frame, arrays: Arrays) -> None:
    # (A⁻ r̃) J into work[2].
    weight, _, _, slope, _, _, _, _ = frame
    guessed, target, driven, leak = arrays[1][0], arrays[1][2], arrays[1][3], arrays[2][1]
    batch, n = slope.shape
    for b in range(batch):
        for i in range(n):
            driven[b, i] = slope[b, i] * guessed[b, i]
    np.dot(driven, weight[:n].T, target)
    for b in range(batch):
        for i in range(n):
            target[b, i] += leak * guessed[b, i]


@inner
def _learned_pull(frame: Frame, arrays: Arrays) -> None:
    # 𝒥 learns; tanh(A⁻ r̃) 𝒥 into work[2].
    _, inputs, rates, _, _, _, _, _ = frame
    state, work, constants, _ = arrays
    J, guessed, target, missed, before = state[4][0], work[0], work[2], work[3], work[4]
    share, rate = constants[0], constants[4]
    batch, n = rates.shape
    for b in range(batch):
        for i in range(n):
            before[b, i] = inputs[b, i]
    np.dot(before, J.T, missed)
    for b in range(batch):
        for i in range(n):
            missed[b, i] = rate * share * (rates[b, i] - missed[b, i])
    add_outer(missed, before, J)
    squash(guessed)
    np.dot(guessed, J, target)


@inner
def _learn(frame: Frame, arrays: Arrays, clock: int) -> None:
    # A towards its target; what is known now is what was known a step ago to the next; A r̃ into work[0].
    _, _, _, _, credit, _, _, _ = frame
    state, work, constants, whole = arrays
    A, A_copy, before, credit_before = state[0][0], state[1][0], state[2][0], state[3][0]
    signal, known, target, missed = work[0], work[1], work[2], work[3]
    share, rate = constants[0], constants[3]
    batch, n = credit.shape
    np.dot(before, A, missed)
    for b in range(batch):
        for i in range(n):
            missed[b, i] = rate * share * (target[b, i] + credit_before[b, i] - missed[b, i])
            credit_before[b, i] = credit[b, i]
    add_outer(before, missed, A)
    np.dot(known, A, signal)
    for b in range(batch):
        for j in range(known.shape[1]):
            before[b, j] = known[b, j]
    if (clock + 1) % whole[0] == 0:
        for j in range(A.shape[0]):
            for i in range(n):
                A_copy[j, i] = A[j, i]


@inner
def _add_gradient(frame: Frame, arrays: Arrays) -> None:
    _, inputs, _, slope, _, gradient, _, _ = frame
    signal, share = arrays[1][0], arrays[2][0]
    for b in range(slope.shape[0]):
        for i in range(slope.shape[1]):
            signal[b, i] *= share * slope[b, i]
    add_outer(inputs, signal, gradient)


@inner
def _add_late_gradient(frame: Frame, arrays: Arrays, offset: int) -> None:
    _, inputs, _, slope, _, gradient, _, _ = frame
    state, work, constants, whole = arrays
    immediate, arrived = work[5], work[-1]
    arrive(state[-1], work[0], constants[0], arrived, offset)
    for b in range(slope.shape[0]):
        for j in range(inputs.shape[1]):
            for i in range(slope.shape[1]):
                immediate[j, i] = inputs[b, j] * slope[b, i]
        recalled = bridge(state[-2][b], immediate, work[BRIDGING:], whole, offset)
        add_recalled(recalled, arrived[b], gradient)
