"""The loop over steps that all rules share; what differs, learning W and learning W_out, are its two kernels."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from cet_rl.recurrent.compiled.jit import Array, Arrays, array_types, build, layer_type, rule_type, types
from cet_rl.recurrent.compiled.network import (
    advance,
    cross_entropy,
    descend,
    gather,
    read,
    send_back,
    squared_error,
)

SETTINGS, OPTIONS = ("alpha", "lr"), ("is_tanh", "is_softmax", "update_every")
"""What the loop's two arrays of constants hold."""


def loop(
    rule: Any,
    layer: Any,
    sequences: tuple[Array, Array, Array],
    losses: Array,
    network: tuple[Array, ...],
    rule_arrays: Arrays,
    layer_arrays: Arrays,
    settings: Array,
    options: Array,
    clock: int,
) -> None:
    """Take T steps; all arrays but the sequences and constants change in place.

    Args:
        rule: kernel that adds to the gradient of W.
        layer: kernel that adds to that of W_out; its frame has [r; 1] for r̂ and the error for the credit.
        sequences: x, labels and noise, (T, B, …).
        losses: mean over sequences of each step, (T,).
        network: W, W_out, what carries the error back in the first n of its columns, the two gradients that are
            pending, r̂, [r; 1], r, D, z, error, credit.
        rule_arrays: of the rule.
        layer_arrays: of the output layer's learning.
        settings: see `SETTINGS`.
        options: see `OPTIONS`.
        clock: steps before these.
    """
    xs, labels, noises = sequences
    weight, weight_out, back, pending, pending_out, inputs, extended, rates, slope, z, error, credit = network
    alpha, lr = settings[0], settings[1]
    is_tanh, is_softmax, update_every = options[0] != 0, options[1] != 0, options[2]
    for t in range(xs.shape[0]):
        label, noise = labels[t], noises[t]
        gather(inputs, rates, xs[t])
        advance(weight, inputs, rates, slope, alpha, is_tanh)
        read(weight_out, rates, extended, z)
        loss = cross_entropy(z, label, error) if is_softmax else squared_error(z, label, error)
        losses[t] = loss / losses.dtype.type(rates.shape[0])
        send_back(back, error, credit)
        rule((weight, inputs, rates, slope, credit, pending, label, noise), rule_arrays, clock + t, t)
        layer((weight_out, extended, rates, slope, error, pending_out, label, noise), layer_arrays, clock + t, t)
        if (clock + t + 1) % update_every == 0:
            descend(weight, pending, lr)
            descend(weight_out, pending_out, lr)


@cache
def compiled_loop(dtype: np.dtype[Any]) -> Any:
    """The loop for float32 or float64: compiled once, whatever the kernels."""
    vector, matrix, block, whole = array_types(dtype)
    rule, layer = rule_type(dtype), layer_type(dtype)
    functions, arrays = (types.FunctionType(rule), types.FunctionType(layer)), (rule.args[1], layer.args[1])
    sequences, network = types.UniTuple(block, 3), types.UniTuple(matrix, 12)
    signature = types.void(*functions, sequences, vector, network, *arrays, vector, whole, types.int64)
    return build(loop, signature, "no_cfunc_wrapper")
