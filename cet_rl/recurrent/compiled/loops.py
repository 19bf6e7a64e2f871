"""Compile a loop for each learning rule: what `cet_rl.recurrent.rules` defines, step after step on one core.

Every loop takes the network, the traces for late errors in front of W and of W_out (or None), the data of T steps,
the number of steps before them, the rule's tensors, and its constants, and changes arrays in place. Tensors lie as
`cet_rl.recurrent.compiled.LOOPS` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cet_rl.recurrent.compiled.network import (
    Array,
    Data,
    DelayedTrace,
    Network,
    add_outer,
    add_recalled,
    advance,
    balance,
    concatenate,
    copy,
    finish_step,
    forward,
    inlined,
    jacobian,
    loop,
    norm,
    recall,
    receive,
    rho1_of,
    scale,
    tanh,
)

State = tuple[Array, ...]
Delay = DelayedTrace | None

NETWORK_DIGEST = "6d9a894b5f37cff8"
"""First digits of the SHA-256 of network.py, as numba's cache notices only that this file has changed."""


@loop
def fixed_w(net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, _: Any) -> None:
    """Train the output layer only."""
    for t in range(len(data.x)):
        forward(net, data, t)
        finish_step(net, output, clock, t)


@inlined
def add_traced(net: Network, delay: Delay, B: Array, kept: Array, signal: Array, t: int) -> None:
    """Update B_ij ← κ_i B_ij + e_ij and add G_ij = s_i B_ij, or through a trace; `signal` is overwritten."""
    inputs, slope, gradient = net.inputs, net.slope, net.pending
    if delay is None:
        for b in range(B.shape[0]):
            for i in range(B.shape[2]):
                signal[b, i] *= net.share
            for j in range(B.shape[1]):
                x = inputs[b, j]
                for i in range(B.shape[2]):
                    eligibility = kept[i] * B[b, j, i] + x * slope[b, i]
                    B[b, j, i] = eligibility
                    gradient[j, i] += signal[b, i] * eligibility
    else:
        receive(delay, signal, net.share, t)
        for b in range(B.shape[0]):
            for j in range(B.shape[1]):
                x = inputs[b, j]
                for i in range(B.shape[2]):
                    B[b, j, i] = kept[i] * B[b, j, i] + x * slope[b, i]
            recall(delay, b, B[b], t)
            add_recalled(net, delay, b)


@loop
def rflo(net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, _: Any) -> None:
    """Run RFLO: B ← (1 - α) B + e; G_ij = c̄_i B_ij."""
    kept = np.empty_like(net.credit[0])
    for i in range(len(kept)):
        kept[i] = net.leak
    for t in range(len(data.x)):
        forward(net, data, t)
        add_traced(net, hidden, state[0], kept, net.credit, t)
        finish_step(net, output, clock, t)


@loop
def kernl(
    net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, constants: Any
) -> None:
    """Run KeRNL: perturb a copy, learn A and the time scales, filter e; G_ij = (c̄ A)_i B_ij."""
    A, timescale, B, perturbed, omega, gamma = state
    rate, sigma = constants
    slope, share = net.slope, net.share
    entering, flank, kept = np.empty_like(net.inputs), np.empty_like(slope), np.empty_like(timescale)
    missed, faster, signal = np.empty_like(slope), np.empty_like(slope), np.empty_like(slope)
    one, zero = net.weight.dtype.type(1), net.weight.dtype.type(0)
    batch, n = slope.shape
    for t in range(len(data.x)):
        forward(net, data, t)
        noise = data.noise[t]
        for i in range(n):
            kept[i] = one - timescale[i]
            if kept[i] < zero:
                kept[i] = zero
        concatenate(entering, perturbed, data.x[t])
        advance(net.weight, entering, perturbed, flank, net.alpha, net.is_tanh)
        for b in range(batch):
            for i in range(n):
                perturbed[b, i] += sigma * noise[b, i]
                gamma[b, i] = kept[i] * gamma[b, i] - omega[b, i]
                omega[b, i] = kept[i] * omega[b, i] + noise[b, i]
        np.dot(omega, A.T, missed)
        for b in range(batch):
            for i in range(n):
                missed[b, i] -= (perturbed[b, i] - net.rates[b, i]) / sigma
        np.dot(missed, A, faster)
        for i in range(n):
            total = zero
            for b in range(batch):
                total += faster[b, i] * gamma[b, i]
            timescale[i] -= rate * (share * total)
            if timescale[i] < zero:
                timescale[i] = zero
        scale(missed, -rate * share)
        add_outer(missed, omega, A)
        np.dot(net.credit, A, signal)
        add_traced(net, hidden, B, kept, signal, t)
        finish_step(net, output, clock, t)


@loop
def rtrl(net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, _: Any) -> None:
    """Run RTRL: M ← J M + e, the rows of one input at a time so that they stay in cache."""
    (M,) = state
    slope, n = net.slope, net.slope.shape[1]
    transposed, product = np.empty_like(net.weight[:n]), np.empty_like(net.weight[:n])
    column = np.empty_like(slope[0])
    for t in range(len(data.x)):
        forward(net, data, t)
        for b in range(len(M)):
            jacobian(net.weight, slope[b], net.leak, transposed)
            for j in range(M.shape[1]):
                influence = M[b, j]
                np.dot(influence, transposed, product)
                for i in range(n):
                    product[i, i] += slope[b, i] * net.inputs[b, j]
                np.dot(product, net.credit[b], column)
                for i in range(n):
                    net.pending[j, i] += net.share * column[i]
                copy(product, influence)
        finish_step(net, output, clock, t)


@inlined
def remember(net: Network, state: State, t: int) -> tuple[int, int]:
    """Write the newest step over the oldest; return the length of the window and that place."""
    inputs, slope, credit = state
    window = len(slope)
    place = t % window
    copy(net.inputs, inputs[place])
    copy(net.slope, slope[place])
    copy(net.credit, credit[place])
    return window, place


@loop
def bptt(net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, _: Any) -> None:
    """Run BPTT: go back through a window at its end, newest step first."""
    inputs, slope, credit = state
    arriving, signal, product = np.empty_like(credit[0]), np.empty_like(credit[0]), np.empty_like(credit[0])
    batch, n = arriving.shape
    for t in range(len(data.x)):
        forward(net, data, t)
        window, place = remember(net, state, t)
        if (clock + t + 1) % window == 0:
            copy(credit[place], arriving)
            for back in range(window):
                at, before = (place - back) % window, (place - back - 1) % window
                for b in range(batch):
                    for i in range(n):
                        signal[b, i] = arriving[b, i] * slope[at, b, i]
                if back + 1 < window:
                    np.dot(signal, net.weight[:n].T, product)
                    for b in range(batch):
                        for i in range(n):
                            arriving[b, i] = credit[before, b, i] + net.leak * arriving[b, i] + product[b, i]
                scale(signal, net.share)
                add_outer(inputs[at], signal, net.pending)
            for ring in state:
                ring[:] = 0
        finish_step(net, output, clock, t)


@loop
def future_bptt(net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, _: Any) -> None:
    """Run future-facing BPTT: add a step's credit to all of its window; take the oldest step's gradient."""
    inputs, slope, credit = state
    arriving, signal, product = np.empty_like(credit[0]), np.empty_like(credit[0]), np.empty_like(credit[0])
    batch, n = arriving.shape
    for t in range(len(data.x)):
        forward(net, data, t)
        window, place = remember(net, state, t)
        copy(credit[place], arriving)
        for back in range(window - 1):
            at, before = (place - back) % window, (place - back - 1) % window
            for b in range(batch):
                for i in range(n):
                    signal[b, i] = arriving[b, i] * slope[at, b, i]
            np.dot(signal, net.weight[:n].T, product)
            for b in range(batch):
                for i in range(n):
                    arriving[b, i] = net.leak * arriving[b, i] + product[b, i]
                    credit[before, b, i] += arriving[b, i]
        oldest = (place + 1) % window
        for b in range(batch):
            for i in range(n):
                signal[b, i] = net.share * credit[oldest, b, i] * slope[oldest, b, i]
        add_outer(inputs[oldest], signal, net.pending)
        finish_step(net, output, clock, t)


@loop
def uoro(net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, _: Any) -> None:
    """Run UORO: A ← ρ0 J A + ρ1 ν; B ← B/ρ0 + ν_i e_ij/ρ1; G = (c̄ · A) B."""
    A, B = state
    slope, inputs, gradient = net.slope, net.inputs, net.pending
    one, (batch, n) = net.weight.dtype.type(1), A.shape
    product, gain = np.empty_like(A), np.empty_like(A[0])
    for t in range(len(data.x)):
        forward(net, data, t)
        noise = data.noise[t]
        np.dot(A, net.weight[:n], product)
        for b in range(batch):
            for i in range(n):
                product[b, i] = net.leak * A[b, i] + slope[b, i] * product[b, i]
            rho0 = balance(norm(B[b]), norm(product[b : b + 1]), one)
            rho1 = rho1_of(noise[b : b + 1], slope[b : b + 1], inputs[b : b + 1])
            signal = net.share * net.weight.dtype.type(0)
            for i in range(n):
                A[b, i] = rho0 * product[b, i] + rho1 * noise[b, i]
                signal += net.share * net.credit[b, i] * A[b, i]
                gain[i] = noise[b, i] * slope[b, i] / rho1
            shrink = one / rho0
            for j in range(B.shape[1]):
                x = inputs[b, j]
                for i in range(n):
                    synapse = shrink * B[b, j, i] + x * gain[i]
                    B[b, j, i] = synapse
                    gradient[j, i] += signal * synapse
        finish_step(net, output, clock, t)


@loop
def kf_rtrl(net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, _: Any) -> None:
    """Run KF-RTRL: A_j ← ν0 ρ0 A_j + ν1 ρ1 r̂_j; B ← ν0 J B/ρ0 + ν1 diag(D)/ρ1; G = (c̄ B) A."""
    A, B = state
    slope, inputs = net.slope, net.inputs
    one, (batch, n) = net.weight.dtype.type(1), slope.shape
    transposed, product, signal = np.empty_like(B[0]), np.empty_like(B[0]), np.empty_like(slope)
    for t in range(len(data.x)):
        forward(net, data, t)
        for b in range(batch):
            nu0, nu1 = data.noise[t, b, 0], data.noise[t, b, 1]
            jacobian(net.weight, slope[b], net.leak, transposed)
            np.dot(B[b], transposed, product)
            rho0 = balance(norm(product), norm(A[b : b + 1]), one)
            rho1 = balance(norm(slope[b : b + 1]), norm(inputs[b : b + 1]), one)
            for j in range(A.shape[1]):
                A[b, j] = nu0 * rho0 * A[b, j] + nu1 * rho1 * inputs[b, j]
            for i in range(n):
                for k in range(n):
                    B[b, i, k] = nu0 / rho0 * product[i, k]
                B[b, i, i] += nu1 / rho1 * slope[b, i]
            np.dot(B[b], net.credit[b], signal[b])
        scale(signal, net.share)
        add_outer(A, signal, net.pending)
        finish_step(net, output, clock, t)


@loop
def r_kf(net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, _: Any) -> None:
    """Run R-KF: A_i ← ρ0 A_i + ρ1 ν_i; B ← J B/ρ0 + ν_k e_kj/ρ1; G = A (c̄ B)."""
    A, B = state
    slope, inputs = net.slope, net.inputs
    one, (batch, n) = net.weight.dtype.type(1), slope.shape
    transposed, product = np.empty_like(net.weight[:n]), np.empty_like(B[0])
    signal, scaled = np.empty_like(inputs), np.empty_like(A)
    for t in range(len(data.x)):
        forward(net, data, t)
        noise = data.noise[t]
        for b in range(batch):
            jacobian(net.weight, slope[b], net.leak, transposed)
            np.dot(B[b], transposed, product)
            rho0 = balance(norm(product), norm(A[b : b + 1]), one)
            rho1 = rho1_of(noise[b : b + 1], slope[b : b + 1], inputs[b : b + 1])
            gain = scaled[b]
            for i in range(n):
                A[b, i] = rho0 * A[b, i] + rho1 * noise[b, i]
                gain[i] = noise[b, i] * slope[b, i] / rho1
            shrink = one / rho0
            for j in range(B.shape[1]):
                x = inputs[b, j]
                for k in range(n):
                    B[b, j, k] = shrink * product[j, k] + x * gain[k]
            np.dot(B[b], net.credit[b], signal[b])
            for i in range(n):
                scaled[b, i] = net.share * A[b, i]
        add_outer(signal, scaled, net.pending)
        finish_step(net, output, clock, t)


@inlined
def guess(net: Network, label: Array, A_copy: Array, known: Array, guessed: Array) -> None:
    """Write r̃ = [r; y*; 1] and A⁻ r̃."""
    concatenate(known, net.rates, label)
    np.dot(known, A_copy, guessed)


@inlined
def learn_guess(
    net: Network, state: State, constants: Any, known: Array, target: Array, signal: Array, step: int
) -> None:
    """Move A towards its target, renew its copy every few steps, and write A r̃ to `signal`."""
    A, A_copy, before, credit_before = state[:4]
    rate, renewal = constants[0], constants[1]
    np.dot(before, A, signal)
    for b in range(signal.shape[0]):
        for i in range(signal.shape[1]):
            signal[b, i] = rate * net.share * (target[b, i] + credit_before[b, i] - signal[b, i])
    copy(net.credit, credit_before)
    add_outer(before, signal, A)
    np.dot(known, A, signal)
    copy(known, before)
    if (step + 1) % renewal == 0:
        copy(A, A_copy)


@inlined
def add_guessed(net: Network, delay: Delay, signal: Array, t: int) -> None:
    """Add G_ij = (A r̃)_i e_ij, or through a trace; `signal` is overwritten."""
    inputs, slope = net.inputs, net.slope
    if delay is None:
        for b in range(slope.shape[0]):
            for i in range(slope.shape[1]):
                signal[b, i] *= net.share * slope[b, i]
        add_outer(inputs, signal, net.pending)
    else:
        receive(delay, signal, net.share, t)
        for b in range(slope.shape[0]):
            for j in range(inputs.shape[1]):
                for i in range(slope.shape[1]):
                    delay.eligibility[j, i] = inputs[b, j] * slope[b, i]
            recall(delay, b, delay.eligibility, t)
            add_recalled(net, delay, b)


@loop
def dni(net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, constants: Any) -> None:
    """Run DNI: the target of A is c* = c̄_{t-1} + (A⁻ r̃_t) J_t."""
    known = np.empty_like(state[2])
    guessed, target, signal = np.empty_like(net.slope), np.empty_like(net.slope), np.empty_like(net.slope)
    batch, n = net.slope.shape
    for t in range(len(data.x)):
        forward(net, data, t)
        guess(net, data.label[t], state[1], known, guessed)
        for b in range(batch):
            for i in range(n):
                signal[b, i] = net.slope[b, i] * guessed[b, i]
        np.dot(signal, net.weight[:n].T, target)
        for b in range(batch):
            for i in range(n):
                target[b, i] += net.leak * guessed[b, i]
        learn_guess(net, state, constants, known, target, signal, clock + t)
        add_guessed(net, hidden, signal, t)
        finish_step(net, output, clock, t)


@loop
def dni_b(
    net: Network, hidden: Delay, output: Delay, data: Data, clock: int, state: State, constants: Any
) -> None:
    """Run DNI(b): 𝒥 learns first; the target of A is c* = c̄_{t-1} + tanh(A⁻ r̃_t) 𝒥."""
    known, J = np.empty_like(state[2]), state[4]
    guessed, target, signal = np.empty_like(net.slope), np.empty_like(net.slope), np.empty_like(net.slope)
    before, (batch, n) = np.empty_like(net.slope), net.slope.shape
    for t in range(len(data.x)):
        forward(net, data, t)
        guess(net, data.label[t], state[1], known, guessed)
        copy(net.inputs, before)  # its first n columns
        np.dot(before, J.T, signal)
        for b in range(batch):
            for i in range(n):
                signal[b, i] = constants[2] * net.share * (net.rates[b, i] - signal[b, i])
        add_outer(signal, before, J)
        tanh(guessed)
        np.dot(guessed, J, target)
        learn_guess(net, state, constants, known, target, signal, clock + t)
        add_guessed(net, hidden, signal, t)
        finish_step(net, output, clock, t)
