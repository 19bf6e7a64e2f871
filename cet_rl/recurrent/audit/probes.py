"""Probe a learning rule in networks of several sizes: what it computes, remembers, and grows with.

Orders are written like n²m, n² + nm or Tn + Tm: n is the number of units, m = n + n_in + 1 that of columns of W, T
a stretch of time in steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise, product
from math import comb, prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cet_rl.recurrent.audit.observe import Meter, Observer
from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.online import Online, checked_step
from cet_rl.recurrent.rules import RuleEntry
from cet_rl.recurrent.rules.base import Rule, State, StepInputs

SMALL, LARGE = RNNCell(7, 3, 2), RNNCell(14, 6, 4)
"""Networks that operations are observed in; α = 0.5 as in the paper."""

WINDOWS = range(3, 7)  # lengths of time at which a rule's cost is looked at

SETTLING, WATCHED = 200, 60
"""Steps that a rule gets to come to rest with its network, and steps that it is watched for then."""


class Subject:
    """Hold a rule to experiment on; `counts` are whole numbers among its options that are varied.

    After `period` steps a rule that works every few steps has done all of its work.
    """

    def __init__(self, build: Callable[..., Rule], options: Mapping[str, float]) -> None:
        if not callable(build):
            raise ValueError(f"a rule is audited by its class, or by a function that makes it, got {build!r}")
        self._build, self._options = build, dict(options)
        self.counts: dict[str, int] = {}
        if isinstance(build, type):
            known = RuleEntry(build, "").options()
            self.counts = {name: WINDOWS[0] for name, kind in known.items() if kind is int and name not in options}
        self.period = prod(max(1, count) for count in self.counts.values())

    def build(self, cell: RNNCell = SMALL, counts: Mapping[str, int] | None = None) -> Rule:
        """Return the rule for a network, with `self.counts` or others; {} for the rule's own."""
        return self._build(cell, **{**self._options, **(self.counts if counts is None else counts)})

    def shapes(self, sizes: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the shapes of the tensors of its state, for n, n_in, n_out, batch and counts."""
        rule = self.build(RNNCell(sizes["n"], sizes["n_in"], sizes["n_out"]), {c: sizes[c] for c in self.counts})
        weight = torch.zeros(sizes["n"], sizes["n"] + sizes["n_in"] + 1, dtype=torch.float64)
        state = rule.init_state(weight, torch.zeros(sizes["batch"], sizes["n"], dtype=torch.float64))
        return {name: list(tensor.shape) for name, tensor in state.items()}


def play(
    cell: RNNCell, rule: Rule, steps: int, meter: Meter | None = None, *, warm: int = 0, at_rest: bool = False
) -> tuple[list[StepInputs], list[State]]:
    """Run a rule in a random network with fixed weights and normal inputs, in float64, always the same.

    `meter` counts the rule's operations, from step `warm` on. At rest, input and label are held, from where rates
    no longer change. Returns what happens at each step, and the rule's state before each and at the end.
    """
    online, generator = Online(cell, rule), torch.Generator().manual_seed(0)
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
    inputs, states = [], [rule.init_state(weight, rates, torch.Generator().manual_seed(1))]
    for step in range(steps):
        row = 0 if at_rest else step
        drawn = None if noise is None else noise[step].to(weight)
        now, _, _ = online.step_inputs((weight, weight_out), rates, x[row], label[row], drawn, step)
        rates = now.rates
        inputs.append(now)
        if isinstance(meter, Observer) and step >= warm:
            meter.begin(now, states[-1])
        with nullcontext() if meter is None or step < warm else meter:
            states.append(checked_step(rule, states[-1], now)[0])
    return inputs, states


def observe(subject: Subject) -> tuple[Observer, dict[str, float], frozenset[str], bool]:
    """Run a rule in a small network and a larger one, and look at what it computes and keeps in the larger one.

    Returns:
        What was computed, the number of each kind of operation in a step, the names of the state's tensors that
        hold activity of steps before the last one, and whether gradient comes after the last step.

    Raises:
        ValueError: if it keeps something outside its state, changes the one that it is given, or loops over units.
    """
    steps, small = subject.period * -(-8 // subject.period), Observer()
    play(SMALL, subject.build(SMALL), 2 * steps, small, warm=steps)
    observer, rule = Observer(), subject.build(LARGE)
    observer.smaller = small.products
    inputs, states = play(LARGE, rule, 2 * steps, observer, warm=steps)
    if len(small.products) != len(observer.products):
        raise ValueError(
            f"rule {rule.name} takes more operations in a larger network, which hides what they are: write loops "
            "over units as operations on tensors"
        )
    if not observer.seeded:
        _check_pure(rule, states[-2], inputs[-1])
    past = _find_past(inputs, states)
    operations = {kind: count / steps for kind, count in observer.counts.items() if count}
    operations |= {kind: 1 for kind, found in (("noise", observer.noisy), ("past activity", past)) if found}
    pending = any(rule.pending_gradient(state, inputs[-1].weight).any() for state in states[-2:])
    return observer, operations, past, pending


def _check_pure(rule: Rule, state: State, now: StepInputs) -> None:
    kept, given = ({name: tensor.clone() for name, tensor in state.items()} for _ in range(2))
    after, gradient = rule.step(given, now)
    if not gradient.isfinite().all():
        raise ValueError(f"rule {rule.name} gives a gradient that is not finite")
    if given.keys() != kept.keys() or any(not torch.equal(tensor, given[name]) for name, tensor in kept.items()):
        raise ValueError(f"rule {rule.name} changes the state that it is given: let step make new tensors")
    again, repeated = rule.step(kept, now)
    if not torch.equal(gradient, repeated) or any(not torch.equal(t, again[name]) for name, t in after.items()):
        raise ValueError(f"rule {rule.name} gives another result from the same state: keep its memory in there")


def _find_past(inputs: list[StepInputs], states: list[State]) -> frozenset[str]:
    """Return the tensors with numbers of steps before the last one as they were, or that shift along an axis."""
    seen = [torch.cat([t.flatten() for t in (now.inputs, now.rates, now.slope, now.credit)]) for now in inputs]
    found, units = set(), inputs[0].rates.shape[1]
    for step in range(len(inputs) // 2, len(inputs)):
        old = torch.cat(seen[:step])
        old = old[~torch.isin(old, seen[step]) & (old != 0)]
        for name, tensor in states[step + 1].items():
            if torch.isin(tensor, old).sum() >= units or _shifts(states[step].get(name), tensor):
                found.add(name)
    return frozenset(found)


def _shifts(before: Tensor | None, after: Tensor) -> bool:
    if before is None or before.shape != after.shape:
        return False
    for axis in (axis for axis, length in enumerate(after.shape) if length > 1):
        (low, high), (old_low, old_high) = (
            (tensor.narrow(axis, 0, tensor.shape[axis] - 1), tensor.narrow(axis, 1, tensor.shape[axis] - 1))
            for tensor in (after, before)
        )
        if not torch.equal(low, high) and (torch.equal(low, old_high) or torch.equal(high, old_low)):
            return True
    return False


def jumps(subject: Subject) -> dict[str, float]:
    """Return how far each tensor moves in a step at most, relative to its size, where the network is at rest.

    Input, label and rates are held; the rule's own noise and learning go on, with its own options.
    """
    cell, largest = RNNCell(16, 3, 2), dict[str, float]()
    _, states = play(cell, subject.build(cell, {}), SETTLING + WATCHED, at_rest=True)
    for before, state in pairwise(states[SETTLING:]):
        for name, tensor in state.items():
            scale = max(float(tensor.norm()), float(before[name].norm()))
            moved = float((tensor - before[name]).norm()) / scale if scale > 0 else 0.0
            largest[name] = max(largest.get(name, 0.0), moved)
    return largest


class Axis(NamedTuple):
    """Describe how the length of one axis of a tensor follows from n, n_in, n_out and a rule's whole numbers."""

    factors: dict[str, int]  # of these in its length
    constant: int  # what else there is
    linear: bool  # whether that is all

    def name(self, times: Collection[str]) -> str:
        """Return it as "n", "m", "n+n_out+1" or, for a constant, its length; "?" where it is not linear.

        `times` are those of the whole numbers that are a length of time: T.
        """
        if not self.linear:
            return "?"
        parts = {("T" if size in times else size): factor for size, factor in self.factors.items() if factor}
        constant = self.constant
        if constant and {"n", "n_in"} <= parts.keys():
            parts, constant = {"m": 1, **parts, "n": parts["n"] - 1, "n_in": parts["n_in"] - 1}, constant - 1
        words = [size if factor == 1 else f"{factor}{size}" for size, factor in parts.items() if factor]
        return "+".join(words + [str(constant)] * bool(constant or not words))


def find_axes(subject: Subject) -> dict[str, list[Axis]]:
    """Return the axes of all tensors of a rule's state, without that of sequences, from how their lengths vary."""
    base = {"n": 6, "n_in": 3, "n_out": 2, "batch": 1, **subject.counts}
    start, doubled = subject.shapes(base), subject.shapes({size: 2 * value for size, value in base.items()})
    longer = {size: subject.shapes({**base, size: base[size] + 1}) for size in base}
    found = {}
    for name, shape in start.items():
        axes = found[name] = list[Axis]()
        for axis, length in enumerate(shape):
            factors = {size: longer[size][name][axis] - length for size in base}
            constant = length - sum(factors[size] * base[size] for size in base)
            linear = doubled[name][axis] == 2 * length - constant
            if not linear or not factors.pop("batch") or any(factors.values()):
                axes.append(Axis(factors, constant, linear))
    return found


def memory_order(subject: Subject, name: str, times: Collection[str]) -> Order | None:
    """Return the order of the size of a tensor of the state; None if that is no polynomial.

    `times` are the rule's options that are lengths of time: they vary together, as T.
    """

    def elements(n: int, m: int, window: int) -> int:
        sizes = {"n": n, "n_in": m - n - 1, "n_out": 2, "batch": 1, **subject.counts}
        return prod(subject.shapes({**sizes, **dict.fromkeys(times, window)})[name])

    return leading_terms(elements, WINDOWS if times else WINDOWS[:1])


def time_order(subject: Subject, times: Collection[str]) -> Order | None:
    """Return how the multiplications of a step grow, on average over the rule's period; None as `memory_order`."""

    def multiplications(n: int, m: int, window: int) -> int:
        cell, counts, meter = RNNCell(n, m - n - 1, 2), {**subject.counts, **dict.fromkeys(times, window)}, Meter()
        play(cell, subject.build(cell, counts), prod(max(1, count) for count in counts.values()), meter)
        return meter.cost

    found = leading_terms(multiplications, WINDOWS if times else WINDOWS[:1])
    # That is the cost of a whole period, which is as long as the window.
    return found and Order.of(term._replace(window=max(0, term.window - len(times))) for term in found.terms)


# -------------------- orders

UNITS, COLUMNS = range(2, 8), range(9, 13)
"""The n and m at which `leading_terms` looks: enough for degree 5 in n and 3 in m."""

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


class Term(NamedTuple):
    """Hold one term, n^units m^columns T^window."""

    units: int = 0
    columns: int = 0
    window: int = 0

    @property
    def degree(self) -> int:
        """Return how it grows with the size of the network, n and m alike."""
        return self.units + self.columns

    def __str__(self) -> str:
        powers = (("T", self.window), ("n", self.units), ("m", self.columns))
        factors = [letter + (_SUPERSCRIPTS[power] if power > 1 else "") for letter, power in powers if power]
        return "".join(factors) or "1"


@dataclass(frozen=True)
class Order:
    """Hold the terms of a number that grow fastest."""

    terms: tuple[Term, ...]  # of one degree, without their coefficients; none for zero

    @classmethod
    def of(cls, terms: Iterable[Term]) -> Order:
        """Return what remains of a sum for large networks and long stretches of time."""
        all_of_them = set(terms)
        degree = max((term.degree for term in all_of_them), default=0)
        largest = {term for term in all_of_them if term.degree == degree}
        kept = (t for t in largest if not any(o[:2] == t[:2] and o.window > t.window for o in largest))
        return cls(tuple(sorted(kept, key=lambda term: (-term.units, term.columns))))

    @classmethod
    def parse(cls, text: str) -> Order:
        """Read what `str` writes: letters n, m and T with superscripts, joined by +; 0 and 1 for no growth."""
        words = [] if text.strip() == "0" else [word.strip() for word in text.split("+")]
        if not all(re.fullmatch(rf"1|([nmT][{_SUPERSCRIPTS}]*)+", word) for word in words):
            raise ValueError(f"an order is written like n²m, n² + nm or Tn + Tm, got {text!r}")
        terms = []
        for word in words:
            powers = dict.fromkeys("nmT", 0)
            for letter, power in re.findall(rf"([nmT])([{_SUPERSCRIPTS}]*)", word):
                powers[letter] += int("".join(str(_SUPERSCRIPTS.index(digit)) for digit in power) or "1")
            terms.append(Term(*powers.values()))
        return cls.of(terms)

    @property
    def degree(self) -> int:
        """Return the exponent of the network's size, n and m alike; 0 for zero."""
        return self.terms[0].degree if self.terms else 0

    @property
    def growth(self) -> tuple[int, int] | None:
        """Return the exponents of the network's size and of T; None for zero."""
        return (self.degree, max(term.window for term in self.terms)) if self.terms else None

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms)) or "0"


def leading_terms(count: Callable[[int, int, int], int], windows: Sequence[int] = (0,)) -> Order | None:
    """Return the order of a number `count(n, m, T)`; None if it is no polynomial.

    `windows` are the T to look at, neighbours. Differences of a polynomial are exact, so that no exponent has to
    be read off a slope.
    """
    grid = np.array([[[count(n, m, window) for window in windows] for m in COLUMNS] for n in UNITS])
    exponents = list(product(range(len(UNITS)), range(len(COLUMNS))))
    differences = {(i, j): np.diff(np.diff(grid, i, 0), j, 1)[0, 0] for i, j in exponents}
    right, down = UNITS[-1] + 3, COLUMNS[-1] + 2  # beyond the grid, where a polynomial is known from it
    known = sum(
        comb(right - UNITS[0], i) * comb(down - COLUMNS[0], j) * found for (i, j), found in differences.items()
    )
    if (known != [count(right, down, window) for window in windows]).any():
        return None
    degree = max((i + j for (i, j), found in differences.items() if found.any()), default=0)
    terms = []
    for (i, j), found in differences.items():
        series = {power: np.diff(found, power)[0] for power in range(len(windows))}
        window = max((power for power, value in series.items() if value), default=0)
        if i + j == degree and series[window] > 0:
            terms.append(Term(i, j, window))
    return Order.of(terms)
