"""Kernels of RTRL and the two forms of BPTT. See `cet_rl.recurrent.rules.exact`; arrays: `table.py`."""

from __future__ import annotations

import numpy as np

from cet_rl.recurrent.compiled.jit import Array, Arrays, Frame, inner
from cet_rl.recurrent.compiled.network import add_outer


@inner
def jacobian(weight: Array, slope: Array, leak: float, transposed: Array) -> None:
    """Jᵀ of one sequence: J_kl = (1 - α) δ_kl + D_k W_kl, with D of shape (n,), into (n, n)."""
    n = slope.shape[0]
    for source in range(n):
        for k in range(n):
            transposed[source, k] = slope[k] * weight[source, k]
        transposed[source, source] += leak


def rtrl(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """M ← J M + e, the rows of one input at a time so that they stay in cache."""
    weight, inputs, _, slope, credit, gradient, _, _ = frame
    M, leak, share = arrays[0][0], arrays[2][1], arrays[2][0]
    transposed, pushed, column = arrays[1][0], arrays[1][1], arrays[1][2][0]
    n = slope.shape[1]
    for b in range(M.shape[0]):
        jacobian(weight, slope[b], leak, transposed)
        for j in range(inputs.shape[1]):
            influence = M[b, j * n : (j + 1) * n]
            np.dot(influence, transposed, pushed)
            for i in range(n):
                pushed[i, i] += slope[b, i] * inputs[b, j]
            np.dot(pushed, credit[b], column)
            for i in range(n):
                gradient[j, i] += share * column[i]
                for k in range(n):
                    influence[i, k] = pushed[i, k]


def bptt(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """Remember the step; at the end of a window go back through it, newest first."""
    weight, _, _, _, _, gradient, _, _ = frame
    inputs, slope, credit = arrays[0][0], arrays[0][1], arrays[0][2]
    arriving, signal, pulled = arrays[1][0], arrays[1][1], arrays[1][2]
    share, leak = arrays[2][0], arrays[2][1]
    window, place = _remember(frame, arrays, offset)
    if (clock + 1) % window:
        return
    batch, n = arriving.shape
    for b in range(batch):
        for i in range(n):
            arriving[b, i] = credit[place, b, i]
    for back in range(window):
        now, before = (place - back) % window, (place - back - 1) % window
        for b in range(batch):
            for i in range(n):
                signal[b, i] = arriving[b, i] * slope[now, b, i]
        if back + 1 < window:
            np.dot(signal, weight[:n].T, pulled)
            for b in range(batch):
                for i in range(n):
                    arriving[b, i] = credit[before, b, i] + leak * arriving[b, i] + pulled[b, i]
        for b in range(batch):
            for i in range(n):
                signal[b, i] *= share
        add_outer(inputs[now], signal, gradient)
    for step in range(window):
        for b in range(batch):
            for i in range(n):
                slope[step, b, i] = 0
                credit[step, b, i] = 0
            for j in range(inputs.shape[2]):
                inputs[step, b, j] = 0


def future_bptt(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """Remember the step, tell all of the window of its loss, and take the gradient of the oldest."""
    weight, _, _, _, _, gradient, _, _ = frame
    inputs, slope, credit = arrays[0][0], arrays[0][1], arrays[0][2]
    arriving, signal, pulled = arrays[1][0], arrays[1][1], arrays[1][2]
    share, leak = arrays[2][0], arrays[2][1]
    window, place = _remember(frame, arrays, offset)
    batch, n = arriving.shape
    for b in range(batch):
        for i in range(n):
            arriving[b, i] = credit[place, b, i]
    for back in range(window - 1):
        now, before = (place - back) % window, (place - back - 1) % window
        for b in range(batch):
            for i in range(n):
                signal[b, i] = arriving[b, i] * slope[now, b, i]
        np.dot(signal, weight[:n].T, pulled)
        for b in range(batch):
            for i in range(n):
                arriving[b, i] = leak * arriving[b, i] + pulled[b, i]
                credit[before, b, i] += arriving[b, i]
    oldest = (place + 1) % window
    for b in range(batch):
        for i in range(n):
            signal[b, i] = share * credit[oldest, b, i] * slope[oldest, b, i]
    add_outer(inputs[oldest], signal, gradient)


@inner
def _remember(frame: Frame, arrays: Arrays, offset: int) -> tuple[int, int]:
    # The newest step takes the place of the oldest; returns the window's length and that place.
    _, new_inputs, _, new_slope, new_credit, _, _, _ = frame
    inputs, slope, credit = arrays[0][0], arrays[0][1], arrays[0][2]
    window = slope.shape[0]
    place = offset % window
    for b in range(slope.shape[1]):
        for i in range(slope.shape[2]):
            slope[place, b, i] = new_slope[b, i]
            credit[place, b, i] = new_credit[b, i]
        for j in range(inputs.shape[2]):
            inputs[place, b, j] = new_inputs[b, j]
    return window, place
