"""Measure how a learning rule grows, by running it in networks of several sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from math import log2, prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cet_rl.recurrent.audit.meter import Meter
from cet_rl.recurrent.audit.orders import Order, Term, leading_terms
from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules import RuleEntry
from cet_rl.recurrent.rules.base import Rule, State, StepInputs

SMALL, LARGE = RNNCell(7, 3, 2), RNNCell(14, 6, 4)
"""Networks that operations are observed in; α = 0.5 as in the paper."""


class Subject:
    """Hold a rule to experiment on.

    Args:
        build: called with a cell and options; returns the rule.
        options: that stay as they are. Whole numbers among a class's other options are varied, so that what
            grows with them shows.

    Attributes:
        counts: the options that are varied, with a small value each.
        period: steps after which a rule that works every few steps has done all of its work.
    """

    def __init__(self, build: Callable[..., Rule], options: Mapping[str, float]) -> None:
        self._build, self._options = build, dict(options)
        self.counts: dict[str, int] = {}
        if isinstance(build, type):
            known = RuleEntry(build, "").options()
            for name in (name for name, kind in known.items() if kind is int and name not in options):
                default = int(inspect.signature(build).parameters[name].default)
                self.counts[name] = 3 if self._accepts(name, range(3, 8)) else default
        self.period = prod(max(1, count) for count in self.counts.values())

    def _accepts(self, name: str, values: range) -> bool:
        try:
            for value in values:
                self._build(SMALL, **{**self._options, name: value})
        except ValueError:
            return False
        return True

    def build(self, cell: RNNCell, counts: Mapping[str, int] | None = None) -> Rule:
        """Return the rule for a network, with `self.counts` or others; {} for the rule's own."""
        return self._build(cell, **{**self._options, **(self.counts if counts is None else counts)})


def drive(cell: RNNCell, rule: Rule, steps: int, *, at_rest: bool = False) -> tuple[Tensor, list[StepInputs]]:
    """Some steps of a random network with fixed weights and normal inputs, in float64, always the same.

    Args:
        cell: of the network.
        rule: whose noise the moments get.
        steps: of them.
        at_rest: hold input and label, and begin where rates no longer change.

    Returns:
        r before the first step, shape (1, n), and the moments, of one sequence.
    """
    generator = torch.Generator().manual_seed(0)
    weight, weight_out = cell.initial_weights(generator, torch.float64)
    rows = 1 if at_rest else steps
    x = torch.randn(rows, 1, cell.inputs, generator=generator, dtype=torch.float64)
    label = torch.softmax(torch.randn(rows, 1, cell.outputs, generator=generator, dtype=torch.float64), 2)
    noise = rule.draw(1, steps, generator)
    rates = 0.5 * torch.randn(1, cell.units, generator=generator, dtype=torch.float64).tanh()
    for _ in range(10_000 if at_rest else 0):
        before, rates = rates, cell.advance(weight, rates, x[0]).rates
        if torch.allclose(rates, before, rtol=0, atol=1e-13):
            break
    start, moments = rates, []
    for step in range(steps):
        row = 0 if at_rest else step
        inputs, rates, slope = cell.advance(weight, rates, x[row])
        credit = cell.credit(weight_out, cell.error(cell.read(weight_out, rates), label[row]))
        drawn = None if noise is None else noise[step].to(weight)
        moments.append(StepInputs(weight, inputs, rates, slope, credit, label[row], drawn, step))
    return start, moments


def begin(rule: Rule, now: StepInputs, rates: Tensor) -> State:
    """Return the rule's state before its first now, always the same."""
    return rule.init_state(now.weight, rates, torch.Generator().manual_seed(1))


class Axis(NamedTuple):
    """Describe one axis of a tensor.

    Attributes:
        name: such as "n", "m", "n+n_out+1", "T" or, for a constant, its length.
        growth: how its length grows.
    """

    name: str
    growth: Term


def find_axes(subject: Subject, time_options: frozenset[str] = frozenset()) -> dict[str, tuple[Axis, ...]]:
    """Return the axes of all tensors of a rule's state, without that of sequences, from how their lengths vary.

    Args:
        subject: the rule.
        time_options: those that are a length of time in steps.
    """
    base = {"n": 6, "n_in": 3, "n_out": 2, "batch": 1, **subject.counts}

    def lengths(sizes: Mapping[str, int]) -> dict[str, np.ndarray[Any, Any]]:
        cell = RNNCell(sizes["n"], sizes["n_in"], sizes["n_out"])
        weight = torch.zeros(cell.units, cell.columns, dtype=torch.float64)
        rule = subject.build(cell, {name: sizes[name] for name in subject.counts})
        state = rule.init_state(weight, torch.zeros(sizes["batch"], cell.units, dtype=torch.float64))
        return {name: np.array(tensor.shape, dtype=int) for name, tensor in state.items()}

    start = lengths(base)
    slopes = {size: lengths({**base, size: base[size] + 1}) for size in base}
    distant = lengths({size: 2 * value for size, value in base.items()})
    network = ("n", "n_in", "n_out")
    far = [lengths({**base, **{size: scale * base[size] for size in network}}) for scale in (8, 16)]
    found = {}
    for name, shape in start.items():
        axes = []
        for axis, length in enumerate(shape.tolist()):
            slope = {size: int(slopes[size][name][axis]) - length for size in base}
            constant = length - sum(slope[size] * base[size] for size in base)
            linear = constant + sum(2 * slope[size] * base[size] for size in base)
            if linear != distant[name][axis]:
                power = round(log2(far[1][name][axis] / far[0][name][axis]))
                axes.append(Axis(str(Term(power)), Term(power)))
            elif {size for size in base if slope[size]} != {"batch"}:
                axes.append(_name_axis(slope, constant, time_options))
        found[name] = tuple(axes)
    return found


def _name_axis(slope: dict[str, int], constant: int, time_options: frozenset[str]) -> Axis:
    units, columns = slope["n"] > 0, slope["n"] > 0 and slope["n_in"] > 0
    growth = Term(int(units and not columns), int(columns), int(any(slope[each] for each in time_options)))
    if not units and (slope["n_in"] or slope["n_out"]):
        growth = growth._replace(columns=1)
    parts = {("T" if size in time_options else size): factor for size, factor in slope.items()}
    if columns and constant:
        parts["n"], parts["n_in"], constant = parts["n"] - 1, parts["n_in"] - 1, constant - 1
        parts = {"m": 1, **parts}
    words = [size if factor == 1 else f"{factor}{size}" for size, factor in parts.items() if factor]
    return Axis("+".join(words + [str(constant)] * bool(constant or not words)), growth)


def time_order(subject: Subject, time_options: frozenset[str]) -> Order | None:
    """Return how the multiplications of a step grow, on average over the period of the rule.

    Args:
        subject: the rule.
        time_options: those that are a length of time in steps.

    Returns:
        None if they are no polynomial in the sizes of the network.
    """

    def total(counts: Mapping[str, int], units: int, inputs: int) -> int:
        cell = RNNCell(units, inputs, 2)
        rule = subject.build(cell, counts)
        rates, moments = drive(cell, rule, prod(max(1, count) for count in counts.values()))
        state, meter = begin(rule, moments[0], rates), Meter()
        for now in moments:
            with meter:
                state, _ = rule.step(state, now)
        return meter.cost

    windows = range(3, 7) if len(time_options) == 1 else range(1)
    found = []
    for window in windows:
        counts = {**subject.counts, **dict.fromkeys(time_options, window)} if time_options else subject.counts
        terms = leading_terms(partial(total, counts))
        if terms is None:
            return None
        found.append(terms)
    order = []
    for term in set().union(*found):
        series = np.array([terms.get(term, 0) for terms in found])
        degree = max(i for i in range(len(series)) if i == 0 or np.diff(series, i)[0])
        # Those were of a whole period, which is as long as the window.
        order.append(term._replace(window=max(0, degree - 1)))
    return Order.of(order)
