"""The definition as one compiled loop on a CPU, which keeps the states of a row of synapses in cache.

The loop takes a row of synapses through all T steps, so that its states stay in cache for the whole chunk, and
within a step handles one synapse after the other, n states and all, in vector registers. For that the number of
states must be known when it is compiled, so its source is written per trace: the definition of
`cet_rl.credit.step`, spelled out for n states, zeros of M and C left out. It is the executor for rollouts of a
few steps and for one γλ per weight, which breaks the collapse of sums that the closed form rests on.

A row holds the synapses of a unit, or where those are too few to fill vector registers, the synapses of an input:
x and f' then change places, as what is stored is their product, and δ belongs to the synapses of a row.

Rows have nothing to do with each other, so torch's threads share them; the numbers are the same for any number of
threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cet_rl.credit.chunk import Pattern, StateConstants
from cet_rl.credit.compiling import compile_loop
from cet_rl.credit.costs import rows_are_inputs
from cet_rl.credit.signals import Decay, Signals, SynapseState

_SMALL = 1 << 12  # weights up to which a product with one costs less than compiling a second loop

_TEMPLATE = """
def {name}(
    coefficients, K, states, eligibility, pre, post, errors, scales, td_error, start, decay, gradient, bounds
):
    steps, envs, length = pre.shape
    last_errors, last_scale = len(errors) - 1, len(scales) - 1
    one = eligibility.dtype.type(1)  # a plain 1 would promote float32 to float64
    {coefficients}
    for env in range(envs):
        for r in range(bounds[0], bounds[1]):
            e, row, rates = eligibility[env, r], gradient[r], decay[r]
            {rows}
            for t in range(steps):
                x, active, keep, eta = pre[t, env], post[t, env, r], one - start[t, env], td_error[t, env]
                delta, scale = errors[min(t, last_errors), env], scales[min(t, last_scale), env, r]
                {gains}
                for j in range(length):
                    {before}
                    {after}
                    {store}
                    c = {output}
                    e_j = keep * rates[j] * e[j] + {error} * c
                    e[j] = e_j
                    row[j] += eta * e_j
"""


def _source(name: str, pattern: Pattern, error: str) -> str:
    order = len(pattern) - 1
    each = range(order)

    def weighted(row: tuple[int, ...], names: str) -> list[str]:
        return [f"m{index} * {names}{source}" for source, index in enumerate(row) if index >= 0]

    lines = {
        "coefficients": [f"m{i} = coefficients[{i}]" for i in range(max(map(max, pattern)) + 1)],
        "rows": [f"s{k} = states[env, r, {k}]" for k in each],
        "gains": [f"k{k} = K[{k}] * active" for k in each],
        "before": [f"old{k} = s{k}[j]" for k in each],
        "after": [f"new{k} = " + " + ".join([f"k{k} * x[j]", *weighted(pattern[k], "old")]) for k in each],
        "store": [f"s{k}[j] = new{k}" for k in each],
        "output": [" + ".join(weighted(pattern[order], "new"))],
    }
    return _TEMPLATE.format(name=name, error=error, **{key: "; ".join(each) for key, each in lines.items()})


@lru_cache(maxsize=64)
def _compiled(pattern: Pattern, small: bool) -> Callable[..., None]:
    # Loops of this file are told apart by name where machine code is kept.
    name = f"walk_{hashlib.sha256(repr((pattern, small)).encode()).hexdigest()[:16]}"
    source = _source(name, pattern, "scale * delta[j]" if small else "scale")
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(compile(source, __file__, "exec"), namespace)
    # Contraction to fused multiply-adds only: NaN must stay NaN and sums keep their order.
    walk: Callable[..., None] = compile_loop(namespace[name], nogil=True, fastmath={"contract"})
    return walk


def fused(constants: StateConstants, state: SynapseState, signals: Signals, decay: Decay) -> Tensor:
    """Run T steps on a CPU, with the arguments and result of `step`; one γλ, or one per weight."""
    assert state.states is not None
    gradient = torch.zeros_like(state.eligibility[0])
    rates = decay if isinstance(decay, Tensor) else torch.full_like(gradient, decay)
    by_weight = [state.states, state.eligibility, rates, gradient]
    pre, post, one = signals.pre, signals.derivative, signals.error.new_ones(1, *signals.pre.shape[1:])
    errors = [one, signals.error]  # per synapse of a row, read only by the loop for small layers, and per row
    by_input = rows_are_inputs(*reversed(gradient.shape))
    if by_input:
        by_weight = [x.transpose(-1, -3 if x.ndim == 4 else -2).contiguous() for x in by_weight]
        pre, post, errors = post, pre, errors[::-1]
    states, eligibility, rates, total = by_weight
    pattern, values = constants.coefficients
    walk = partial(
        _compiled(pattern, by_input or gradient.numel() < _SMALL),
        *(t.numpy() for t in (values, constants.K, states, eligibility)),
        *(t.contiguous().numpy() for t in (pre, post, *errors, *signals.modulation())),
        *(t.numpy() for t in (rates, total)),
    )
    rows = len(total)
    workers = min(torch.get_num_threads(), rows)
    bounds = [rows * worker // workers for worker in range(workers + 1)]
    if workers == 1:
        walk((0, rows))
    else:  # the loop holds no lock of Python's
        list(_pool(torch.get_num_threads()).map(walk, pairwise(bounds)))
    if by_input:
        state.states.copy_(states.transpose(1, 3))
        state.eligibility.copy_(eligibility.transpose(1, 2))
        return total.T.contiguous()
    return gradient


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="cet-rl")
