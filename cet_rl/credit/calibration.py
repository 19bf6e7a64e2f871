"""Measure the time that executors take on this machine, and fit the constants of `cet_rl.credit.costs` to it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from cet_rl.credit.costs import FORMS, NANOSECONDS, Form, Plan, cheapest
from cet_rl.credit.synapses import Synapses
from cet_rl.traces.base import Trace
from cet_rl.traces.cascade import CET
from cet_rl.traces.finite import PerfectMemory
from cet_rl.traces.legendre import Legendre

Shape = tuple[int, int, int, int]  # inputs, units, environments and steps
CARTPOLE: list[Shape] = [(8, 256, 4, 128), (256, 256, 4, 128), (256, 2, 4, 128)]
SHAPES = [*CARTPOLE, (600, 256, 32, 32), (64, 64, 4, 128), (256, 256, 4, 16), (256, 256, 8, 5), (256, 256, 4, 1)]
TRACES = [PerfectMemory(40), *(CET(n, 40) for n in (2, 5, 10)), CET(10, 10), CET(10, 640), Legendre(10, 40)]
HOPELESS = 8.0  # an executor with so many times the modelled cost of the cheapest is not measured


@dataclass(frozen=True)
class Measurement:
    """Hold the measured times of a layer's updates by executor, in nanoseconds a chunk."""

    shape: Shape
    trace: Trace
    plans: dict[Form, Plan]
    nanoseconds: dict[Form, float]

    def choice(self, constants: Mapping[str, float] = NANOSECONDS) -> Form:
        """Return the executor that the model chooses."""
        return cheapest(self.plans.values(), self.shape[3], constants).form

    def slowdown(self, constants: Mapping[str, float] = NANOSECONDS) -> float:
        """Return how many times as long the executor chosen took as the fastest."""
        return self.nanoseconds[self.choice(constants)] / min(self.nanoseconds.values())


def random_signals(shape: Shape) -> list[Tensor]:
    """Return x, f', δ, η and s of one chunk."""
    n_in, n_out, envs, steps = shape
    derivative = (torch.randn(steps, envs, n_out) > 0).float()
    error, start = torch.randn(steps, envs, n_out) * derivative, (torch.rand(steps, envs) < 0.01).float()
    return [torch.relu(torch.randn(steps, envs, n_in)), derivative, error, torch.randn(steps, envs), start]


def measure(shape: Shape, trace: Trace, *, gamma_lam: float = 0.94, repeats: int = 7) -> Measurement:
    """Measure one layer: the least processor time of the repeats by each executor that is not hopeless."""
    n_in, n_out, envs, steps = shape
    options = {"gamma_lam": gamma_lam, "num_envs": envs, "rollout": steps}
    layers = {form: Synapses(n_in, n_out, trace, executor=form, **options) for form in FORMS}  # type: ignore[arg-type]
    costs = {form: layer.plan.nanoseconds(steps) for form, layer in layers.items()}
    layers = {form: layers[form] for form in FORMS if costs[form] < HOPELESS * min(costs.values())}
    signals, found = random_signals(shape), dict.fromkeys(layers, float("inf"))
    for repeat, (form, layer) in product(range(repeats + 2), layers.items()):
        signals[3].neg_()  # or `error_weights` would return those that it has cached for the layer before
        began = time.thread_time_ns()
        layer(*signals)
        if repeat > 1:  # compiled, and its tensors allocated
            found[form] = min(found[form], time.thread_time_ns() - began)
    return Measurement(shape, trace, {form: layer.plan for form, layer in layers.items()}, found)


def fit(measurements: Iterable[Measurement]) -> dict[str, float]:
    """Return the constants, none negative, that minimise Σ (w (modelled / measured time - 1))² over all plans.

    The weight w is one for plans that take up to twice as long as the layer's fastest, and less for slower ones.
    """
    rows, weights = [], []
    for each in measurements:
        fastest = min(each.nanoseconds.values())
        for form, nanoseconds in each.nanoseconds.items():
            weight = min(1.0, 2 * fastest / nanoseconds)
            counts = each.plans[form].count(each.shape[3])
            rows.append([counts.get(kind, 0.0) * weight / nanoseconds for kind in NANOSECONDS])
            weights.append(weight)
    matrix, target = np.array(rows), np.array(weights)
    largest = matrix.max(0)  # columns are scaled by it, as their numbers differ by orders of magnitude
    return dict(zip(NANOSECONDS, (nnls(matrix / largest, target)[0] / largest).tolist(), strict=True))
