"""Probe a learning rule: what it computes, what it remembers, and whether it rests with its network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cet_rl.recurrent.audit.meter import Contraction
from cet_rl.recurrent.audit.observe import Observer
from cet_rl.recurrent.audit.sizes import LARGE, SMALL, Subject, begin, drive
from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules.base import Rule, State, StepInputs

SETTLING, WATCHED = 200, 60
"""Steps that a rule gets to come to rest with its network, and steps that it is watched for then."""


@dataclass
class Trace:
    """Hold what an observed run has shown.

    Attributes:
        counts: of operations, by kind, in a step.
        chains: products whose results go into other ones as they are, as sentences would put them.
        past: names of the state's tensors that hold activity of steps before the last one.
        totals: names of matrices all entries of which went into one number, such as a norm.
        owes: whether gradient comes after the last step.
    """

    counts: dict[str, float] = field(default_factory=dict)
    chains: tuple[str, ...] = ()
    past: frozenset[str] = frozenset()
    totals: frozenset[str] = frozenset()
    owes: bool = False


def observe(subject: Subject) -> Trace:
    """Run a rule in a small network and a larger one, and look at what it computes and keeps in the larger one.

    Raises:
        ValueError: if it keeps something outside its state, or changes the state that it is given: neither could
            be seen here.
    """
    steps = subject.period * -(-8 // subject.period)
    small = _trace(subject, SMALL, steps, ())[0]
    large, states, moments, rule = _trace(subject, LARGE, steps, small.products)
    if len(small.products) != len(large.products):  # what it does depends on the size: compare nothing
        large, states, moments, rule = _trace(subject, LARGE, steps, ())
    last = len(moments) - 1
    if not large.seeded:
        _check_pure(rule, states[last], moments[last])
    counts = {kind: count / steps for kind, count in large.counts.items() if count}
    if large.noisy:
        counts["noise"] = 1
    past = _find_past(states, moments)
    if past:
        counts["past activity"] = 1
    return Trace(
        counts,
        tuple(
            f"what a product with {first} gives, a voltage, goes into one with {second}"
            for first, second in sorted(large.chains)
        ),
        past,
        frozenset(large.totals),
        bool(rule.flush(states[-2], moments[-1].weight).any() or rule.flush(states[-1], moments[-1].weight).any()),
    )


def _fields(now: StepInputs) -> dict[str, Tensor]:
    named = zip(StepInputs._fields, now, strict=True)
    return {name: value for name, value in named if isinstance(value, Tensor)}


def _trace(
    subject: Subject, cell: RNNCell, steps: int, smaller: Sequence[Contraction]
) -> tuple[Observer, list[State], list[StepInputs], Rule]:
    rule, warm = subject.build(cell), subject.period * -(-8 // subject.period)
    rates, moments = drive(cell, rule, warm + steps)
    states, observer = [begin(rule, moments[0], rates)], Observer(smaller)
    for step, now in enumerate(moments):
        if step < warm:
            states.append(rule.step(states[-1], now)[0])
            continue
        observer.begin(_fields(now), states[-1])
        with observer:
            states.append(rule.step(states[-1], now)[0])
    return observer, states, moments, rule


def _check_pure(rule: Rule, state: State, now: StepInputs) -> None:
    kept, given = ({name: tensor.clone() for name, tensor in state.items()} for _ in range(2))
    after, gradient = rule.step(given, now)
    if given.keys() != kept.keys() or any(not torch.equal(tensor, given[name]) for name, tensor in kept.items()):
        raise ValueError(f"rule {rule.name} changes the state that it is given: let step make new tensors")
    again, repeated = rule.step(kept, now)
    if not torch.equal(gradient, repeated) or any(not torch.equal(t, again[name]) for name, t in after.items()):
        raise ValueError(
            f"rule {rule.name} does not do the same again from the same state: what it remembers belongs in there"
        )


def _find_past(states: list[State], moments: list[StepInputs]) -> frozenset[str]:
    """Tensors with numbers of steps before the last one as they were, or that shift along an axis."""

    def seen(now: StepInputs) -> Tensor:
        return torch.cat([getattr(now, name).flatten() for name in ("inputs", "rates", "slope", "credit")])

    found = set()
    for step in range(len(moments) // 2, len(moments)):
        old = torch.cat([seen(now) for now in moments[:step]])
        old = old[~torch.isin(old, seen(moments[step])) & (old != 0)]
        for name, tensor in states[step + 1].items():
            units = moments[0].rates.shape[1]
            verbatim = int(torch.isin(tensor, old).sum()) >= units
            if verbatim or _shifts(states[step].get(name), tensor):
                found.add(name)
    return frozenset(found)


def _shifts(before: Tensor | None, after: Tensor) -> bool:
    if before is None or before.shape != after.shape:
        return False
    for axis in (axis for axis, length in enumerate(after.shape) if length > 1):
        count = after.shape[axis] - 1
        for here, there in ((0, 1), (1, 0)):
            moved = after.narrow(axis, here, count)
            if torch.equal(moved, before.narrow(axis, there, count)) and not torch.equal(
                moved, after.narrow(axis, there, count)
            ):
                return True
    return False


def jumps(subject: Subject) -> dict[str, float]:
    """Return how far each tensor moves in a step at most, relative to its size, where the network is at rest.

    Input, label and rates are held; the rule's own noise and learning go on, with its own options.
    """
    cell = RNNCell(16, 3, 2)
    rule = subject.build(cell, {})
    rates, moments = drive(cell, rule, SETTLING + WATCHED, at_rest=True)
    state, largest = begin(rule, moments[0], rates), dict[str, float]()
    for step, now in enumerate(moments):
        before, (state, _) = state, rule.step(state, now)
        if step < SETTLING:
            continue
        for name, tensor in state.items():
            scale = max(float(tensor.norm()), float(before[name].norm()))
            moved = float((tensor - before[name]).norm()) / scale if scale > 0 else 0.0
            largest[name] = max(largest.get(name, 0.0), moved)
    return largest
