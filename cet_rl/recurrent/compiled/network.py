"""Compile what all loops share: the network's forward pass, late errors, the output layer, descent.

Weights are transposed, (m, n), so that the units are the last axis everywhere: one row of W holds what all units
get from one input. Functions here are compiled into the loops of `loops.py` and cannot be called from Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from cet_rl.credit.compiling import Function, compile_loop

_njit: Any = numba.njit  # its own annotations leave out the wrappers

Array = npt.NDArray[Any]

# Sums may be reordered, which vector registers need; NaN and infinity keep their meaning, since they are how a
# divergence is noticed.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz"},
    "no_cfunc_wrapper": True,
}

called: Callable[[Function], Function] = _njit(no_cpython_wrapper=True, **OPTIONS)
"""Compile a function into the loops that call it."""

inlined: Callable[[Function], Function] = _njit(no_cpython_wrapper=True, inline="always", **OPTIONS)
"""Inline a part of a loop before it is compiled: calls would count references to all arrays of a tuple."""


def loop(function: Function) -> Function:
    """Compile a loop; its machine code is kept for later processes."""
    return compile_loop(function, **OPTIONS)


class Network(NamedTuple):
    """Hold the arrays and constants of a network that learns; rows of (B, …) are sequences."""

    weight: Array  # W, shape (m, n)
    weight_out: Array  # W_out, shape (n_out, n + 1)
    feedback: Array  # sends the error back in its first n columns, shape (n_out, ≥ n)
    pending: Array  # gradient of W since the last update, shape (m, n)
    pending_out: Array  # that of W_out
    rates: Array  # r, shape (B, n)
    inputs: Array  # r̂ = [r; x; 1], shape (B, m)
    extended: Array  # [r; 1], shape (B, n + 1)
    slope: Array  # D, shape (B, n)
    readout: Array  # z, shape (B, n_out)
    error: Array  # ŷ - y*, shape (B, n_out)
    credit: Array  # c̄, shape (B, n)
    scaled: Array  # scratch, shape (B, n_out)
    share: Any  # 1/B
    alpha: Any  # α
    leak: Any  # 1 - α
    lr: Any  # learning rate
    is_tanh: bool  # φ is tanh, or else the identity
    is_softmax: bool  # the output is a softmax, or else linear
    update_every: int  # steps between updates


class DelayedTrace(NamedTuple):
    """Hold a trace and the signals on their way, for w synapses a sequence (`cet_rl.recurrent.delayed`)."""

    trace: Array  # its P states, or as a ring the P past eligibilities of a delay line, shape (B, P, …), w in all
    signals: Array  # ring of the last D signals, shape (D, B, width)
    M: Array  # transition of the states, shape (P, P); empty for a delay line
    gains: Array  # K and C of the states, shape (2, P), or the taps of a delay line, shape (1, taps)
    lags: Array  # of the taps
    product: Array  # scratch for M S, shape (P, w)
    recalled: Array  # what the trace gives back, shape (w,)
    arrived: Array  # signals of D steps ago, times 1/B, shape (B, width)
    eligibility: Array  # scratch, shape (m, n)


class Data(NamedTuple):
    """Hold the steps of a run: x, labels and noise of shape (T, B, …), and losses to fill in, shape (T,)."""

    x: Array
    label: Array
    noise: Array
    losses: Array


@inlined
def forward(net: Network, data: Data, t: int) -> None:
    """Advance the network by one step: r̂, r, D, z, error and credit, and the mean loss of the sequences."""
    concatenate(net.inputs, net.rates, data.x[t])
    advance(net.weight, net.inputs, net.rates, net.slope, net.alpha, net.is_tanh)
    read(net.weight_out, net.rates, net.extended, net.readout)
    if net.is_softmax:
        loss = cross_entropy(net.readout, data.label[t], net.error)
    else:
        loss = squared_error(net.readout, data.label[t], net.error)
    data.losses[t] = loss / data.losses.dtype.type(net.rates.shape[0])
    for b in range(net.credit.shape[0]):
        for i in range(net.credit.shape[1]):
            net.credit[b, i] = 0
        for k in range(net.error.shape[1]):
            missed = net.error[b, k]
            for i in range(net.credit.shape[1]):
                net.credit[b, i] += missed * net.feedback[k, i]


@called
def copy(source: Array, target: Array) -> None:
    """Write a matrix over another."""
    for row in range(target.shape[0]):
        for i in range(target.shape[1]):
            target[row, i] = source[row, i]


@called
def scale(matrix: Array, factor: float) -> None:
    """Multiply a matrix by a number, in place."""
    for row in range(matrix.shape[0]):
        for i in range(matrix.shape[1]):
            matrix[row, i] *= factor


@called
def concatenate(inputs: Array, rates: Array, x: Array) -> None:
    """Write r̂ = [r; x; 1]."""
    n, entering = rates.shape[1], x.shape[1]
    for b in range(rates.shape[0]):
        for i in range(n):
            inputs[b, i] = rates[b, i]
        for i in range(entering):
            inputs[b, n + i] = x[b, i]
        inputs[b, n + entering] = 1


@called
def advance(weight: Array, inputs: Array, rates: Array, slope: Array, alpha: float, is_tanh: bool) -> None:
    """Replace r by that of the next step, and write D."""
    np.dot(inputs, weight, slope)
    one = weight.dtype.type(1)
    if is_tanh:
        tanh(slope)
    for b in range(rates.shape[0]):
        for i in range(rates.shape[1]):
            active = slope[b, i]
            rates[b, i] += alpha * (active - rates[b, i])
            slope[b, i] = alpha * (one - active * active) if is_tanh else alpha


@called
def read(weight_out: Array, rates: Array, extended: Array, readout: Array) -> None:
    """Write [r; 1] and z = W_out [r; 1]."""
    n = rates.shape[1]
    for b in range(rates.shape[0]):
        for i in range(n):
            extended[b, i] = rates[b, i]
        extended[b, n] = 1
        for k in range(readout.shape[1]):
            total = weight_out[k, n]
            for i in range(n):
                total += weight_out[k, i] * rates[b, i]
            readout[b, k] = total


@called
def cross_entropy(z: Array, label: Array, error: Array) -> Any:
    """Write softmax(z) - y* and return the sum of the losses in nats."""
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


@called
def squared_error(z: Array, label: Array, error: Array) -> Any:
    """Write z - y* and return the sum of the losses, half the mean squared error each."""
    number = z.dtype.type
    total = number(0)
    for b in range(z.shape[0]):
        for k in range(z.shape[1]):
            missed = z[b, k] - label[b, k]
            error[b, k] = missed
            total += missed * missed
    return number(0.5) * total / number(z.shape[1])


@called
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


@called
def jacobian(weight: Array, slope: Array, leak: float, transposed: Array) -> None:
    """Write Jᵀ of one sequence: J_kl = (1 - α) δ_kl + D_k W_kl, for D of shape (n,)."""
    n = slope.shape[0]
    for source in range(n):
        for k in range(n):
            transposed[source, k] = slope[k] * weight[source, k]
        transposed[source, source] += leak


@called
def norm(matrix: Array) -> float:
    """Return the Frobenius norm."""
    flat = matrix.reshape(matrix.size)
    return math.sqrt(np.dot(flat, flat))


@called
def balance(grown: float, shrunk: float, one: float) -> float:
    """Return the root of the ratio, or `one`, of the arrays' type, where that is 0/0 or infinite."""
    if not (grown > 0 and shrunk > 0):
        return one
    ratio = math.sqrt(grown / shrunk)
    return ratio if math.isfinite(ratio) else one


@called
def rho1_of(noise: Array, slope: Array, inputs: Array) -> float:
    """Return ρ1 = √(‖ν ⊙ e‖ / √n) of one sequence, for rows (1, n) and (1, m)."""
    number, n = slope.dtype.type, slope.shape[1]
    total = number(0)
    for i in range(n):
        noisy = noise[0, i] * slope[0, i]
        total += noisy * noisy
    # An outer product is as long as its factors are, multiplied.
    return balance(math.sqrt(total) * norm(inputs), math.sqrt(number(n)), number(1))


@inlined
def finish_step(net: Network, delay: DelayedTrace | None, clock: int, t: int) -> None:
    """Add the gradient of W_out, and update both weights where it is time."""
    if delay is None:
        for b in range(net.error.shape[0]):
            for k in range(net.error.shape[1]):
                net.scaled[b, k] = net.share * net.error[b, k]
        add_outer(net.scaled, net.extended, net.pending_out)
    else:
        receive(delay, net.error, net.share, t)
        for b in range(net.error.shape[0]):
            recall(delay, b, net.extended[b : b + 1], t)
            for k in range(net.pending_out.shape[0]):
                for i in range(net.pending_out.shape[1]):
                    net.pending_out[k, i] += delay.arrived[b, k] * delay.recalled[i]
    if (clock + t + 1) % net.update_every == 0:
        descend(net.weight, net.pending, net.lr)
        descend(net.weight_out, net.pending_out, net.lr)


@called
def descend(weight: Array, gradient: Array, rate: float) -> None:
    """Take a step of gradient descent and clear the gradient."""
    for j in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            weight[j, i] -= rate * gradient[j, i]
            gradient[j, i] = 0


@called
def receive(delay: DelayedTrace, signal: Array, share: float, t: int) -> None:
    """Send off a step's signals, (B, width), and write those of D steps ago, times `share`, to `arrived`."""
    steps = delay.signals.shape[0]
    place = t % steps if steps else 0
    for b in range(signal.shape[0]):
        for i in range(signal.shape[1]):
            if steps:
                delay.arrived[b, i] = share * delay.signals[place, b, i]
                delay.signals[place, b, i] = signal[b, i]
            else:
                delay.arrived[b, i] = share * signal[b, i]


@called
def recall(delay: DelayedTrace, b: int, eligibility: Array, t: int) -> None:
    """Put one sequence's eligibility, (rows, columns), into the trace, and write what it gives to `recalled`."""
    rows, columns = eligibility.shape
    M, gains, recalled, product = delay.M, delay.gains, delay.recalled, delay.product
    states = delay.trace[b].reshape(delay.trace.shape[1], rows * columns)
    kept = states.shape[0]
    for i in range(rows * columns):
        recalled[i] = 0
    if M.shape[0]:  # S ← M S + K h, c = C · S
        np.dot(M, states, product)
        for k in range(kept):
            gain, weight = gains[0, k], gains[1, k]
            for row in range(rows):
                for i in range(columns):
                    place = row * columns + i
                    after = product[k, place] + gain * eligibility[row, i]
                    states[k, place] = after
                    recalled[place] += weight * after
        return
    # What was `lag` steps ago lies `lag` places back in the ring; the newest takes the place of the oldest.
    for tap in range(gains.shape[1]):
        value, lag = gains[0, tap], delay.lags[tap]
        past = (t - lag) % kept if lag else 0
        for row in range(rows):
            for i in range(columns):
                place = row * columns + i
                recalled[place] += value * (states[past, place] if lag else eligibility[row, i])
    newest = t % kept if kept else 0
    for row in range(rows if kept else 0):
        for i in range(columns):
            states[newest, row * columns + i] = eligibility[row, i]


@called
def add_recalled(net: Network, delay: DelayedTrace, b: int) -> None:
    """Add G_ij = s_i c_ij of one sequence, for the signals that have arrived and what the trace has recalled."""
    columns = net.pending.shape[1]
    for j in range(net.pending.shape[0]):
        for i in range(columns):
            net.pending[j, i] += delay.arrived[b, i] * delay.recalled[j * columns + i]


# --- tanh ------------------------------------------------------------------------------------------------------
# The C library's takes one number at a time, ten nanoseconds each: as long as all the rest of a small network.
#
#     tanh |x| = e/(e + 2)      e = exp(2|x|) - 1 = 2^k p + (2^k - 1)      p = exp(r) - 1,  2|x| = k ln 2 + r
#
# p is a Taylor polynomial on |r| ≤ ln(2)/2. Within 2.5 units in the last place; NaN stays NaN.


def tanh(values: Array) -> None:
    """Replace each number of a matrix, float32 or float64, by its tanh, in vector registers."""
    raise NotImplementedError("for compiled functions only")


def _tanh_of(number: Any, whole: Any, digits: int, degree: int, coarse: float, fine: float) -> Callable[..., None]:
    # ln 2 = coarse + fine; coarse has so few digits that its products with k are exact.
    bias, shift = whole(np.finfo(number).maxexp - 1), whole(digits)
    rounding = number(1.5 * 2.0**digits)  # added and taken away again, it leaves a whole number
    octaves, ln2, rest = number(1 / math.log(2)), number(coarse), number(fine)
    one, two, large = number(1), number(2), number(digits)  # tanh is 1 beyond digits/2
    first, second = number(1 / math.factorial(degree)), number(1 / math.factorial(degree - 1))
    others = tuple(number(1 / math.factorial(k)) for k in reversed(range(2, degree - 1)))

    def replace(values: Any) -> None:
        for row in range(values.shape[0]):
            for i in range(values.shape[1]):
                x = values[row, i]
                y = two * abs(x)
                y = large if y > large else y
                shifted = y * octaves + rounding  # k in its lowest bits
                k = shifted - rounding
                r = y - k * ln2 - k * rest
                p = first * r + second
                for coefficient in others:
                    p = p * r + coefficient
                p = p * (r * r) + r
                power = whole((number(shifted).view(whole) + bias) << shift).view(number)
                e = power * p + (power - one)
                values[row, i] = math.copysign(e / (e + two), x)

    return replace


_SINGLE = _tanh_of(np.float32, np.int32, 23, 7, 355 / 512, math.log(2) - 355 / 512)
_DOUBLE = _tanh_of(np.float64, np.int64, 52, 13, 0x162E42FEE / 2**33, 1.9082149292705877e-10)


# Sums keep their order in here: the rounding by a large number rests on it.
@overload(tanh, jit_options={"fastmath": {"contract"}, "error_model": "numpy", "nogil": True})
def _tanh(values: Any) -> Any:
    return _SINGLE if values.dtype == types.float32 else _DOUBLE
