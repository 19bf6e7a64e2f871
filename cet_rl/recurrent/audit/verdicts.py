"""The paper's criteria of biological plausibility, as questions to what has been observed of a rule.

Source: Marschall, Cho, Savin, "Evaluating biological plausibility of learning algorithms the lazy way" (2019),
criteria i to vi, and its argument against backpropagation through time. No rule is known by name here.

What is not judged: whether each signal is present at the synapse that uses it, whether synapses can be used
backwards (weight transport), and whether two phases of computation can share the same neurons. Of the locality
that criterion ii asks for, two violations are seen: more than two units sharing a number, and a number that all
entries of a matrix go into.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cet_rl.recurrent.audit.orders import Order

if TYPE_CHECKING:
    from cet_rl.recurrent.audit.audit import Audit

CRITERIA = {
    "i": "vectors are rates, voltages or other variables of a cell",
    "ii": "matrices are synapses: they change continuously, by a local rule",
    "iii": "what enters a matrix-vector product is a firing rate",
    "iv": "no matrix-matrix products",
    "v": "independent noise is allowed",
    "vi": "no perturbed copy of the network",
    "online": "no activity is kept of steps before the last",
}
"""Those of the paper by number, and the one that backpropagation through time fails."""

JUMP = 0.1
"""Share of its size that a matrix may move in a step while input, label and rates of the network rest.

What follows the network continuously comes to rest with it, but for slow learning: at most 0.006 for the rules
here that do. What is driven by random signs moves by 0.9 or more. The bound lies between, at α = 0.5.
"""

OPERATIONS = ("matrix-vector", "matrix-matrix", "Jacobian", "noise", "perturbed copy", "past activity")
"""Kinds of operation that a rule may need beyond elementwise ones, pre times post among them."""


class Verdict(NamedTuple):
    """Judge whether a rule meets a criterion.

    Attributes:
        criterion: a key of `CRITERIA`.
        passes: whether it does.
        reason: why, in a line.
    """

    criterion: str
    passes: bool
    reason: str


def judge(audit: Audit) -> tuple[Verdict, ...]:
    """Return every criterion's verdict, in the order of `CRITERIA`."""
    faults = {
        "i": [],
        "ii": _matrix_faults(audit),
        "iii": list(audit.chains),
        "iv": _product_faults(audit),
        "v": [],
        "vi": ["the network's forward pass runs again, from other rates"] * ("perturbed copy" in audit.operations),
        "online": _online_faults(audit),
    }
    fine = {
        "i": _count(audit, 1),
        "ii": f"{_count(audit, 2)}, nothing found against them" if audit.tensors else "no matrices",
        "iii": "no voltages enter products" if "matrix-vector" in audit.operations else "no such products",
        "iv": "no such products",
        "v": "uses noise" if "noise" in audit.operations else "uses none",
        "vi": "no such copy",
        "online": "only the current step and the last one",
    }
    return tuple(
        Verdict(name, not found, "; ".join(found) if found else fine[name]) for name, found in faults.items()
    )


def _count(audit: Audit, order: int) -> str:
    number = sum(tensor.order == order and not tensor.past for tensor in audit.tensors)
    singular, plural = ("vector", "vectors") if order == 1 else ("matrix", "matrices")
    return f"{number or 'no'} {singular if number == 1 else plural}"


def _matrix_faults(audit: Audit) -> list[str]:
    found = [f"{t.name} has order {t.order}, a synapse joins two units" for t in audit.tensors if t.order > 2]
    found += [
        f"{t.name} moves by {t.jump:.0%} of its size in a step while the network rests"
        for t in audit.tensors
        if t.order == 2 and not t.past and t.jump > JUMP
    ]
    if audit.totals:
        found.append(f"all entries of {' and of '.join(audit.totals)} go into one number")
    if "Jacobian" in audit.operations:
        found.append("synapses would have to follow the Jacobian diag(D) W_rec at once")
    return found


def _product_faults(audit: Audit) -> list[str]:
    if "matrix-matrix" in audit.operations:
        return [f"matrix-matrix products in a step: {audit.operations['matrix-matrix']:.2g}"]
    if audit.time is not None and (audit.time.growth or (0, 0))[0] > 2:
        return [f"{audit.time} multiplications a step, more than there are synapses"]
    return []


def _online_faults(audit: Audit) -> list[str]:
    kept = ", ".join(tensor.name for tensor in audit.tensors if tensor.past)
    pending = ", and gradient comes after the last step" if audit.owes else ""
    return [f"activity of earlier steps is kept in {kept}{pending}"] if kept else []


def compare(audit: Audit) -> tuple[str, ...]:
    """Return how a rule differs from its claims, a phrase each; orders count by their exponents of size and T.

    Raises:
        ValueError: for claims that cannot be read.
    """
    if audit.declared_cost is None:
        return ()
    unknown = sorted(set(audit.declared_cost.needs) - set(OPERATIONS))
    if unknown:
        raise ValueError(f"claims of {audit.name} need {', '.join(unknown)}; known are {', '.join(OPERATIONS)}")
    found = []
    for what, claimed, seen in (
        ("memory", audit.declared_cost.memory, audit.memory),
        ("time", audit.declared_cost.time, audit.time),
    ):
        if seen is None or Order.parse(claimed).growth != seen.growth:
            found.append(f"{what} is {seen or 'irregular'}, {claimed} is claimed")
    needs = set(audit.operations)
    found += [
        f"needs {name}, which is not claimed" for name in OPERATIONS if name in needs - audit.declared_cost.needs
    ]
    found += [
        f"claims to need {name}, but does not" for name in OPERATIONS if name in audit.declared_cost.needs - needs
    ]
    return tuple(found)
