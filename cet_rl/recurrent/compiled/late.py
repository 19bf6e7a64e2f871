"""Errors that come late: traces between an eligibility and its signal. See `cet_rl.recurrent.delayed`.

A late kernel has two more states, at the end of its tuple: the trace, (B, K, w), with all w synapses of a sequence
side by side in one row, and a ring of D signals. Of a delay line the K rows are a ring of past eligibilities.
"""

from __future__ import annotations

import numpy as np

from cet_rl.recurrent.compiled.jit import Array, Arrays, Frame, inner
from cet_rl.recurrent.compiled.network import add_outer


@inner
def arrive(ring: Array, signal: Array, share: float, arrived: Array, offset: int) -> None:
    """Send a step's signals off, and take in those of D steps before, times `share`: (B, n)."""
    delay = ring.shape[0]
    place = offset % delay if delay else 0
    for b in range(signal.shape[0]):
        for i in range(signal.shape[1]):
            if delay:
                arrived[b, i] = share * ring[place, b, i]
                ring[place, b, i] = signal[b, i]
            else:
                arrived[b, i] = share * signal[b, i]


@inner
def bridge(trace: Array, eligibility: Array, bridging: tuple[Array, ...], whole: Array, offset: int) -> Array:
    """Take in one sequence's eligibility.

    Args:
        trace: (K, rows · columns).
        eligibility: (rows, columns).
        bridging: the end of the kernel's work: M, the constants [K; C] or the taps of a delay line, and matrices
            to scribble on.
        whole: from 1, the lags of the taps.
        offset: steps before this one in this run.

    Returns:
        What the trace recalls, (rows · columns,); it is overwritten by the next call.
    """
    M, gains, product = bridging[0], bridging[1], bridging[2]
    recalled: Array = bridging[3][0]
    for i in range(recalled.shape[0]):
        recalled[i] = 0
    if M.shape[0]:
        _absorb(trace, eligibility, M, gains, product, recalled)
    else:
        _recall(trace, eligibility, gains, recalled, whole, offset)
    return recalled


@inner
def _absorb(states: Array, eligibility: Array, M: Array, gains: Array, product: Array, recalled: Array) -> None:
    # S ← M S + K h, c = C · S, for all synapses together.
    np.dot(M, states, product)
    rows, columns = eligibility.shape
    for k in range(states.shape[0]):
        gain, weight = gains[0, k], gains[1, k]
        for row in range(rows):
            for i in range(columns):
                place = row * columns + i
                after = product[k, place] + gain * eligibility[row, i]
                states[k, place] = after
                recalled[place] += weight * after


@inner
def _recall(line: Array, eligibility: Array, taps: Array, recalled: Array, whole: Array, offset: int) -> None:
    # What was `lag` steps ago lies `lag` places back in the ring; the oldest is where the new one goes.
    kept, (rows, columns) = line.shape[0], eligibility.shape
    for tap in range(taps.shape[1]):
        value, lag = taps[0, tap], whole[1 + tap]
        past = (offset - lag) % kept if lag else 0
        for row in range(rows):
            for i in range(columns):
                place = row * columns + i
                recalled[place] += value * (line[past, place] if lag else eligibility[row, i])
    newest = offset % kept if kept else 0
    for row in range(rows if kept else 0):
        for i in range(columns):
            line[newest, row * columns + i] = eligibility[row, i]


@inner
def add_recalled(recalled: Array, arrived: Array, gradient: Array) -> None:
    """G_ij += s_i c_ij, for signals of shape (n,), a recalled (m · n,) and a gradient (m, n)."""
    columns = gradient.shape[1]
    for j in range(gradient.shape[0]):
        for i in range(columns):
            gradient[j, i] += arrived[i] * recalled[j * columns + i]


def layer(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """The output layer without delay: G = error ⊗ [r; 1]."""
    _, extended, _, _, error, gradient, _, _ = frame
    scaled, share = arrays[1][-1], arrays[2][0]
    for b in range(error.shape[0]):
        for k in range(error.shape[1]):
            scaled[b, k] = share * error[b, k]
    add_outer(scaled, extended, gradient)


def late_layer(frame: Frame, arrays: Arrays, clock: int, offset: int) -> None:
    """The output layer with a trace of [r; 1] and errors that come late."""
    _, extended, _, _, error, gradient, _, _ = frame
    (trace, errors), work, constants, whole = arrays
    arrived = work[-1]
    arrive(errors, error, constants[0], arrived, offset)
    for b in range(error.shape[0]):
        recalled = bridge(trace[b], extended[b : b + 1], work, whole, offset)
        for k in range(gradient.shape[0]):
            for i in range(gradient.shape[1]):
                gradient[k, i] += arrived[b, k] * recalled[i]
