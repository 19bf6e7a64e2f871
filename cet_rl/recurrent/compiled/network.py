"""The network's own steps, for compiled functions: forward, error, credit, descent.

Weights are transposed, (m, n), so that the units are the last axis everywhere: one row of W holds what all units
get from one input.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cet_rl.recurrent.compiled.jit import Array, inner
from cet_rl.recurrent.compiled.tanh import squash


@inner
def gather(inputs: Array, rates: Array, x: Array) -> None:
    """r̂ = [r; x; 1], (B, m)."""
    n, entering = rates.shape[1], x.shape[1]
    for b in range(rates.shape[0]):
        for i in range(n):
            inputs[b, i] = rates[b, i]
        for i in range(entering):
            inputs[b, n + i] = x[b, i]
        inputs[b, n + entering] = 1


@inner
def advance(weight: Array, inputs: Array, rates: Array, slope: Array, alpha: float, is_tanh: bool) -> None:
    """One step of the network: r in place, and D, (B, n) each."""
    np.dot(inputs, weight, slope)
    one = weight.dtype.type(1)
    if is_tanh:
        squash(slope)
    for b in range(rates.shape[0]):
        for i in range(rates.shape[1]):
            active = slope[b, i]
            rates[b, i] += alpha * (active - rates[b, i])
            slope[b, i] = alpha * (one - active * active) if is_tanh else alpha


@inner
def read(weight_out: Array, rates: Array, extended: Array, z: Array) -> None:
    """[r; 1], (B, n + 1), and z = W_out [r; 1], (B, n_out)."""
    n = rates.shape[1]
    for b in range(rates.shape[0]):
        for i in range(n):
            extended[b, i] = rates[b, i]
        extended[b, n] = 1
        for k in range(z.shape[1]):
            total = weight_out[k, n]
            for i in range(n):
                total += weight_out[k, i] * rates[b, i]
            z[b, k] = total


@inner
def send_back(weight_out: Array, error: Array, credit: Array) -> None:
    """c̄ = W_outᵀ (ŷ - y*), (B, n); of W_out the first n columns."""
    for b in range(credit.shape[0]):
        for i in range(credit.shape[1]):
            credit[b, i] = 0
        for k in range(error.shape[1]):
            missed = error[b, k]
            for i in range(credit.shape[1]):
                credit[b, i] += missed * weight_out[k, i]


@inner
def cross_entropy(z: Array, label: Array, error: Array) -> Any:
    """softmax(z) - y*, (B, n_out), and the sum of the losses in nats."""
    zero = z.dtype.type(0)
    loss = zero
    for b in range(z.shape[0]):
        highest = z[b, 0]
        for k in range(1, z.shape[1]):
            if z[b, k] > highest:
                highest = z[b, k]
        total = zero
        for k in range(z.shape[1]):
            error[b, k] = math.exp(z[b, k] - highest)
            total += error[b, k]
        logarithm = highest + math.log(total)
        for k in range(z.shape[1]):
            loss -= label[b, k] * (z[b, k] - logarithm)
            error[b, k] = error[b, k] / total - label[b, k]
    return loss


@inner
def squared_error(z: Array, label: Array, error: Array) -> Any:
    """z - y*, (B, n_out), and the sum of the losses, half the mean squared error each."""
    number = z.dtype.type
    total = number(0)
    for b in range(z.shape[0]):
        for k in range(z.shape[1]):
            missed = z[b, k] - label[b, k]
            error[b, k] = missed
            total += missed * missed
    return number(0.5) * total / number(z.shape[1])


@inner
def descend(weight: Array, gradient: Array, rate: float) -> None:
    """Take the step that is pending; nothing is pending after it."""
    for j in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            weight[j, i] -= rate * gradient[j, i]
            gradient[j, i] = 0


@inner
def add_outer(left: Array, right: Array, total: Array) -> None:
    """Add the outer products of the rows of left and right: (B, p) and (B, q) to (p, q)."""
    rows, four = left.shape[0], left.shape[0] // 4 * 4
    for b in range(0, four, 4):
        for p in range(total.shape[0]):
            x0, x1, x2, x3 = left[b, p], left[b + 1, p], left[b + 2, p], left[b + 3, p]
            for q in range(total.shape[1]):
                near = x0 * right[b, q] + x1 * right[b + 1, q]
                total[p, q] += near + x2 * right[b + 2, q] + x3 * right[b + 3, q]
    for b in range(four, rows):
        for p in range(total.shape[0]):
            x0 = left[b, p]
            for q in range(total.shape[1]):
                total[p, q] += x0 * right[b, q]
