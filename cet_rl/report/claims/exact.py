"""Claims that need no runs: mathematics or a small network decides them each time they are reported.

Each function takes the options in claims.yaml, and returns whether the claim is true, and numbers as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise, product

import torch

from cet_rl.recurrent.audit import Audit, audit_rule
from cet_rl.recurrent.audit.probes import play
from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules import find_rule
from cet_rl.report.text import number
from cet_rl.traces import CET, ET, LTPLTD, Legendre, Optimal, SharpCET, Trace

Answer = tuple[bool, str]

TRACES: dict[str, Callable[[int, int], Trace]] = {
    **{"CET": CET, "SharpCET": SharpCET, "Legendre": Legendre, "optimal": Optimal}
}
"""Traces of n states for a delay of D steps, in the order of their share of energy at the delay."""

ROUNDING = 1e-9  # shares and gradients that differ by less count as equal


def _listed(values: Mapping[str, float], digits: int = 3) -> str:
    return ", ".join(f"{name} {number(value, digits)}" for name, value in values.items())


# -------------------- kernels


def narrowing(delay: int, orders: Sequence[int]) -> Answer:
    """Tell whether all cascades peak at the delay, and each is narrower than the one before of lower order."""
    kernels = {f"{order} states": CET(order, delay).kernel_array(10 * delay) for order in orders}
    widths = {name: float((kernel >= kernel.max() / 2).sum()) for name, kernel in kernels.items()}
    peaks = {int(kernel.argmax()) for kernel in kernels.values()}
    holds = peaks == {delay} and all(first > second for first, second in pairwise(widths.values()))
    return holds, f"peak at {', '.join(map(str, peaks))} steps; steps above half of it: {_listed(widths, 0)}"


def recent_weight(delay: int, order: int) -> Answer:
    """Tell whether at half the delay LTP - LTD's kernel is above half its peak, and that of a cascade below."""
    traces = {"ET": ET.from_delay(delay), "LTP - LTD": LTPLTD(delay), f"CET {order}": CET(order, delay)}
    kernels = {name: trace.kernel_array(10 * delay) for name, trace in traces.items()}
    recent = {name: float(kernel[delay // 2] / kernel.max()) for name, kernel in kernels.items()}
    peaks = {name: int(kernel.argmax()) for name, kernel in kernels.items()}
    _, both, cascade = recent.values()
    numbers = f"peak at {_listed(peaks, 0)} steps; share of it at {delay // 2}: {_listed(recent)}"
    return list(peaks.values()) == [0, delay, delay] and both > 0.5 > cascade, numbers


def bounded(states: Sequence[int], delays: Sequence[int]) -> Answer:
    """Tell whether no trace of n states has more than n / (D + 1) of its energy at the delay."""
    grid = list(product(states, delays))
    largest = {
        name: max((kind(*at).sharpness or 0) / (kind(*at).bound or 1) for at in grid)
        for name, kind in TRACES.items()
    }
    return max(largest.values()) <= 1 + ROUNDING, f"largest share of the bound: {_listed(largest)}"


def ranked(states: Sequence[int], delays: Sequence[int]) -> Answer:
    """Tell whether the share of energy at the delay never falls from trace to trace in `TRACES`."""
    holds, numbers = True, []
    for n, delay in product(states, delays):
        shares = {name: kind(n, delay).sharpness or 0.0 for name, kind in TRACES.items()}
        holds &= all(first <= second + ROUNDING for first, second in pairwise(shares.values()))
        numbers.append(f"{n} states, {delay} steps: {_listed(shares)}")
    return holds, "; ".join(numbers)


def forgiving(states: int, delay: int, tolerance: float) -> Answer:
    """Tell whether a tolerance raises the share at the ends of its range, and keeps it above Legendre's at D."""
    tolerant = Optimal(states, delay, tolerance=tolerance)
    traces = {"tolerant": tolerant, "optimal": Optimal(states, delay), "Legendre": Legendre(states, delay)}
    early, middle, late = (
        {name: trace.share(lag) for name, trace in traces.items()}
        for lag in (tolerant.delay_range[0], delay, tolerant.delay_range[1])
    )
    holds = all(shares["tolerant"] > shares["optimal"] for shares in (early, late))
    holds &= middle["Legendre"] < middle["tolerant"] < middle["optimal"]
    return holds, f"share {delay} steps back: {_listed(middle)}; at the ends: {_listed(early)}; {_listed(late)}"


# -------------------- learning rules of recurrent networks


@cache
def _audit(rule: str) -> Audit:
    return audit_rule(find_rule(rule).kind)  # takes seconds


def failing(**criteria: Sequence[str]) -> Answer:
    """Tell whether rules fail the given criteria of the audit; a rule without criteria must fail none."""
    failed = {rule: [each.criterion for each in _audit(rule).verdicts if not each.passes] for rule in criteria}
    holds = all(set(named) <= set(failed[rule]) if named else not failed[rule] for rule, named in criteria.items())
    return holds, "; ".join(f"{rule} fails {' and '.join(names) or 'none'}" for rule, names in failed.items())


def memory(**degrees: int) -> Answer:
    """Tell whether the memory of rules grows with the given powers of the number of units."""
    orders = {rule: _audit(rule).memory for rule in degrees}
    holds = all(order is not None and order.degree == degrees[rule] for rule, order in orders.items())
    return holds, ", ".join(f"{rule} {order}" for rule, order in orders.items())


def unbiased(rules: Sequence[str], steps: int = 4) -> Answer:
    """Tell whether the mean of a rule's gradients over all random signs equals RTRL's at each of a few steps."""
    cell = RNNCell(2, 1, 2)
    moments = play(cell, find_rule("rtrl").kind(cell), steps)[0]
    signs = torch.tensor([*product((-1.0, 1.0), repeat=2 * steps)], dtype=torch.float64).view(-1, steps, 2)

    def gradients(name: str, drawn: torch.Tensor | None, **options: int) -> torch.Tensor:
        rule, rows = find_rule(name).kind(cell, **options), 1 if drawn is None else len(drawn)
        state, found = rule.init_state(moments[0].weight, moments[0].rates.new_zeros(rows, cell.units)), []
        for step, now in enumerate(moments):
            wide = {n: getattr(now, n).repeat(rows, 1) for n in ("inputs", "rates", "slope", "credit", "label")}
            noise = None if drawn is None else drawn[:, step]
            state, gradient = rule.step(state, now._replace(noise=noise, **wide))
            found.append(gradient)
        return torch.stack(found)

    exact = gradients("rtrl", None)
    error = max(float((gradients(name, signs, start=0) - exact).abs().max()) for name in rules)
    shown = f"below {ROUNDING:g}" if error < ROUNDING else f"{error:.2g}"
    return error < ROUNDING, f"largest error of the mean over {len(signs)} patterns of signs: {shown}"


def learned_jacobian(units: int, steps: int) -> Answer:
    """Tell whether DNI(b)'s Jacobian predicts rates better than the leak, and its credit aligns with the true."""
    cell = RNNCell(units, 2, 2)
    moments, states = play(cell, find_rule("dni-b").kind(cell), steps)
    late = moments[-steps // 3 :]
    before = torch.cat([now.inputs[:, :units] for now in late])
    after = torch.cat([now.rates for now in late])
    leak = (1 - cell.alpha) * torch.eye(units, dtype=torch.float64)
    best = torch.linalg.lstsq(before, after).solution.mT
    maps = {"learned": states[-1]["jacobian"], "leak alone": leak, "best linear map": best}
    missed = {n: float((before @ m.mT - after).square().sum() / after.square().sum()) for n, m in maps.items()}
    credit = torch.randn(len(late), 1, units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    true = torch.stack([leak + now.slope.mT * cell.recurrent(now.weight) for now in late])
    aligned = {n: float(torch.cosine_similarity(credit @ m, credit @ true, dim=2).mean()) for n, m in maps.items()}
    numbers = f"share of rates not predicted: {_listed(missed)}; cosine of the credit carried: {_listed(aligned)}"
    return missed["learned"] < missed["leak alone"] and aligned["learned"] > 0, numbers


EXACT: dict[str, Callable[..., Answer]] = {
    function.__name__: function
    for function in (
        *(narrowing, recent_weight, bounded, ranked, forgiving),
        *(failing, memory, unbiased, learned_jacobian),
    )
}
"""The functions by their names in claims.yaml."""
