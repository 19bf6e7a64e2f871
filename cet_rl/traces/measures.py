"""Measure traces: how sharp they are at a delay and beside it, how far they reach back, how exact float32 is."""

from __future__ import annotations

from typing import Any

import numpy as np

from cet_rl.traces.base import Trace

OFFSETS = (-20, -10, -5, 5, 10, 20)
"""Per cent that the true delay is off the one a trace is made for."""

_STEPS = 4000


def describe(trace: Trace, delay_steps: int) -> dict[str, Any]:
    """Return the measures of a trace that is made for a delay, by name.

    `share_+5` and its like are shares of energy at a delay that is as many per cent off, with a minus where the
    kernel is negative, so that credit has the wrong sign. `bound` and `float32_error` are None without states.
    """
    first, last = trace.support
    bound = min(1.0, trace.states / (delay_steps + 1)) if trace.states else None
    measures: dict[str, Any] = {"states": trace.states, "sharpness": trace.share(delay_steps), "bound": bound}
    for offset in OFFSETS:
        lag = round(delay_steps * (1 + offset / 100))
        sign = -1 if trace.unscaled_kernel(lag + 1)[lag] < 0 else 1
        measures[f"share_{offset:+d}"] = sign * trace.share(lag)
    return {**measures, "first_lag": first, "last_lag": last - 1, "float32_error": float32_error(trace)}


def float32_error(trace: Trace, steps: int = _STEPS, seed: int = 0) -> float | None:
    """Return the largest error of a float32 recursion driven by noise, relative to its output's root mean square.

    None for a trace without states.
    """
    transition = trace.transition()
    if transition is None:
        return None
    inputs = np.random.default_rng(seed).standard_normal(steps) + 0.5
    M, K, C = transition.M, transition.K, transition.C
    single = [part.astype(np.float32) for part in (M, K, C)]
    exact, rounded = np.zeros_like(K), np.zeros_like(single[1])
    outputs, errors = np.empty(steps), np.empty(steps)
    for t, h in enumerate(inputs):
        exact = M @ exact + K * h
        rounded = single[0] @ rounded + single[1] * np.float32(h)
        outputs[t] = C @ exact
        errors[t] = abs(outputs[t] - single[2] @ rounded)
    return float(errors.max() / np.sqrt((outputs**2).mean()))
