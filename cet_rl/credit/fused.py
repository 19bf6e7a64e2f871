"""The definition as one compiled loop on a CPU: every synapse passes the chunk with its states at hand.

The loop takes a row of synapses through all T steps, so that its states stay in cache for the whole chunk, and
within a step handles one synapse after the other, n states and all, in vector registers. For that the number of
states must be known when it is compiled, so its source is written per trace: the definition of
`cet_rl.credit.step`, spelled out for n states, zeros of M and C left out. It is the executor for rollouts of a
few steps and for one γλ per weight, which breaks the collapse of sums that the closed form rests on.

Postsynaptic units have nothing to do with each other, so torch's threads share them; the numbers are the same for
any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numba
import torch
from torch import Tensor

from cet_rl.credit.chunk import Pattern, StateConstants
from cet_rl.credit.signals import Decay, Signals, SynapseState

_TEMPLATE = """
def walk(
    first, last, coefficients, K, states, eligibility, pre, derivative, error, td_error, start, decay, gradient
):
    steps, envs, n_in = pre.shape
    one = eligibility.dtype.type(1)  # a plain 1 would promote float32 to float64
    {coefficients}
    for env in range(envs):
        for unit in range(first, last):
            e, row, rates = eligibility[env, unit], gradient[unit], decay[unit]
            {rows}
            for t in range(steps):
                x, active = pre[t, env], derivative[t, env, unit]
                keep, delta, eta = one - start[t, env], error[t, env, unit], td_error[t, env]
                {gains}
                for j in range(n_in):
                    {before}
                    {after}
                    {store}
                    c = {output}
                    e_j = keep * rates[j] * e[j] + delta * c
                    e[j] = e_j
                    row[j] += eta * e_j
"""


def _source(pattern: Pattern) -> str:
    order = len(pattern) - 1
    each = range(order)

    def weighted(row: tuple[int, ...], names: str) -> list[str]:
        return [f"m{index} * {names}{source}" for source, index in enumerate(row) if index >= 0]

    lines = {
        "coefficients": [f"m{i} = coefficients[{i}]" for i in range(max(map(max, pattern)) + 1)],
        "rows": [f"s{k} = states[env, unit, {k}]" for k in each],
        "gains": [f"k{k} = K[{k}] * active" for k in each],
        "before": [f"old{k} = s{k}[j]" for k in each],
        "after": [f"new{k} = " + " + ".join([f"k{k} * x[j]", *weighted(pattern[k], "old")]) for k in each],
        "store": [f"s{k}[j] = new{k}" for k in each],
        "output": [" + ".join(weighted(pattern[order], "new"))],
    }
    return _TEMPLATE.format(**{name: "; ".join(statements) for name, statements in lines.items()})


@lru_cache(maxsize=64)
def _compiled(pattern: Pattern) -> Callable[..., None]:
    namespace: dict[str, Any] = {}
    exec(compile(_source(pattern), f"<fused loop for {len(pattern) - 1} states>", "exec"), namespace)
    # Contraction to fused multiply-adds only: NaN must stay NaN and sums keep their order.
    walk: Callable[..., None] = numba.njit(nogil=True, fastmath={"contract"})(namespace["walk"])
    return walk


def fused(constants: StateConstants, state: SynapseState, signals: Signals, decay: Decay) -> Tensor:
    """Run T steps on a CPU, with the arguments and result of `step`; one γλ, or one per weight."""
    assert state.states is not None
    gradient = torch.zeros_like(state.eligibility[0])
    rates = decay if isinstance(decay, Tensor) else torch.full_like(gradient, decay)
    inputs = (signals.pre, signals.derivative, signals.error, *signals.modulation())
    pattern, values = constants.coefficients
    walk = partial(
        _walk,
        _compiled(pattern),
        values.numpy(),
        *(t.numpy() for t in (constants.K, state.states, state.eligibility)),
        *(t.contiguous().numpy() for t in inputs),
        rates.numpy(),
        gradient.numpy(),
    )
    units = gradient.shape[0]
    workers = min(torch.get_num_threads(), units)
    bounds = [units * worker // workers for worker in range(workers + 1)]
    if workers == 1:
        walk((0, units))
    else:  # the loop holds no lock of Python's
        list(_pool(torch.get_num_threads()).map(walk, pairwise(bounds)))
    return gradient


def _walk(loop: Callable[..., None], *arrays: Any) -> None:
    *others, (first, last) = arrays
    loop(first, last, *others)


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="cet-rl")
