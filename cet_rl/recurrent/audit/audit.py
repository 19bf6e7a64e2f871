"""The audit of a learning rule: what it keeps and computes, as observed, and whether a brain might.

    found = audit_rule(RFLO)
    found.memory, found.time, found.operations      # nm, nm, {}
    found.plausible                                 # True

It works on any `Rule`, a user's own too, and knows no rule by name: shapes and orders come from networks of
several sizes, operations from what torch dispatches in a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cet_rl.recurrent.audit.orders import Order, Term
from cet_rl.recurrent.audit.probes import jumps, observe
from cet_rl.recurrent.audit.sizes import SMALL, Axis, Subject, find_axes, time_order
from cet_rl.recurrent.audit.verdicts import Verdict, compare, judge
from cet_rl.recurrent.rules.base import DeclaredCost, Rule


@dataclass(frozen=True)
class Kept:
    """Describe a tensor of a rule's state.

    Attributes:
        name: its key.
        axes: without that of sequences.
        past: whether it holds activity of steps before the last one.
        jump: how far it moves in a step at most, relative to its size, while the network rests.
    """

    name: str
    axes: tuple[Axis, ...]
    past: bool
    jump: float

    @property
    def size(self) -> Term:
        """Return how the number of its elements grows."""
        size = Term()
        for axis in self.axes:
            size = size.times(axis.growth)
        return size

    @property
    def order(self) -> int:
        """Axes of units: 0 for a number, 1 for a vector, 2 for a matrix, 3 for more than synapses can hold."""
        return self.size.degree

    def __str__(self) -> str:
        lengths = (f"({axis.name})" if "+" in axis.name else axis.name for axis in self.axes)
        return f"{self.name}: {' × '.join(lengths) or '1'}"


@dataclass(frozen=True)
class Audit:
    """Hold what a rule keeps and computes, as observed at batch 1.

    Attributes:
        name: of the rule.
        tensors: of its state.
        memory: order of the number of their elements.
        time: order of its multiplications in a step; None if they are no polynomial in the network's sizes.
        operations: of `verdicts.OPERATIONS` those that it needs, with their number in a step: a Jacobian is a
            product with diag(D) W_rec, a perturbed copy a pass through the network from rates that are not its
            own, past activity whatever is kept of steps before the last one.
        chains: sentences on products whose results go into another product as they are.
        totals: names of matrices all entries of which go into one number.
        owes: whether it has gradient left when its input ends.
        window: T with which operations were counted; None for a rule without.
        claims: what it says of itself.
        equations: its updates and gradient, as it writes them.
    """

    name: str
    tensors: tuple[Kept, ...]
    memory: Order
    time: Order | None
    operations: dict[str, float]
    chains: tuple[str, ...]
    totals: tuple[str, ...]
    owes: bool
    window: int | None
    declared_cost: DeclaredCost | None
    equations: str = ""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Return the verdicts by the paper's criteria."""
        return judge(self)

    @property
    def plausible(self) -> bool:
        """Tell whether it meets all of them."""
        return all(verdict.passes for verdict in self.verdicts)

    @property
    def differences(self) -> tuple[str, ...]:
        """Return how it differs from its claims: nothing, if it has none."""
        return compare(self)


def audit_rule(build: Callable[..., Rule], **options: float) -> Audit:
    """Audit a learning rule, in a few small networks on the CPU.

    Args:
        build: the class, or a function that makes a rule of a `RNNCell`.
        options: of the constructor. A class's other options that are whole numbers are varied, to see whether
            something grows with them.

    Raises:
        ValueError: if the rule cannot be built, keeps something outside its state, changes the state that it is
            given, or has claims that cannot be read.
    """
    subject = Subject(build, options)
    rule = subject.build(SMALL)
    trace = observe(subject)
    axes = find_axes(subject)
    # A length of time is what the tensors that hold the past grow with.
    of_the_past = {part for name in trace.past for axis in axes[name] for part in axis.name.split("+")}
    time_options = frozenset(of_the_past & set(subject.counts))
    axes, moved = find_axes(subject, time_options), jumps(subject)
    tensors = tuple(
        Kept(name, each, name in trace.past or any(axis.growth.window for axis in each), moved.get(name, 0.0))
        for name, each in axes.items()
    )
    found = Audit(
        getattr(rule, "name", type(rule).__name__),
        tensors,
        Order.of(tensor.size for tensor in tensors),
        time_order(subject, time_options),
        trace.counts,
        trace.chains,
        tuple(sorted(trace.totals)),
        trace.owes,
        max((subject.counts[option] for option in time_options), default=None),
        rule.declared_cost,
        rule.equations,
    )
    compare(found)  # claims that cannot be read are found here, not when they are printed
    return found
