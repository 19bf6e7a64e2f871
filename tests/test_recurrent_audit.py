"""The audit against the paper's Table 1 and text, on rules that are not built in, and on rules that cheat."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch

from cet_rl import CET, PerfectMemory
from cet_rl.cli import rules as command
from cet_rl.recurrent.audit import CRITERIA, JUMP, as_csv, as_markdown, audit_rule
from cet_rl.recurrent.audit.observe import Contraction, Meter
from cet_rl.recurrent.audit.probes import Order, leading_terms
from cet_rl.recurrent.delayed import Delayed
from cet_rl.recurrent.rules import RULES
from cet_rl.recurrent.rules.base import DeclaredCost, Rule, SeparableRule, combine, immediate
from cet_rl.recurrent.rules.built_in import DNI, RFLO, UORO, KeRNL

# By rule: tensors of the paper's Table 1, orders of memory and time that follow from the equations, operations,
# and the criteria that it fails.
PAPER = {
    "fixed-w": ("", "0", "0", "", ""),
    "bptt": ("inputs: T × m, slope: T × n, credit: T × n", "Tn + Tm", "n² + nm", "MV J past", "ii iii online"),
    "future-bptt": (
        *("inputs: T × m, slope: T × n, credit: T × n", "Tn + Tm", "Tn² + nm", "MV J past", "ii iii online"),
    ),
    "rtrl": ("M: n × m × n", "n²m", "n³m", "MV MM J", "ii iv"),
    "uoro": ("A: n, B: n × m", "nm", "n² + nm", "MV J noise", "ii"),
    "kf-rtrl": ("A: m, B: n × n", "n²", "n³", "MV MM J noise", "ii iv"),
    "r-kf": ("A: n, B: m × n", "nm", "n²m", "MV MM J noise", "ii iv"),
    "kernl": (
        "A: n × n, timescale: n, B: n × m, perturbed: n, Omega: n, Gamma: n",
        *("n² + nm", "n² + nm", "MV noise copy", "iii vi"),
    ),
    "rflo": ("B: n × m", "nm", "nm", "", ""),
    "dni": (
        "A: n × (n+n_out+1), A_copy: n × (n+n_out+1), known: (n+n_out+1), credit: n",
        *("n²", "n² + nm", "MV J", "ii iii"),
    ),
    "dni-b": (
        "A: n × (n+n_out+1), A_copy: n × (n+n_out+1), known: (n+n_out+1), credit: n, jacobian: n × n",
        *("n²", "n² + nm", "MV", ""),
    ),
}
SHORT = {
    **{"MV": "matrix-vector", "MM": "matrix-matrix", "J": "Jacobian", "copy": "perturbed copy"},
    **{"past": "past activity", "noise": "noise"},
}


@pytest.fixture(scope="module")
def audits():
    return {name: audit_rule(RULES[name].kind) for name in PAPER}


def tensors(found):
    return ", ".join(map(str, found.tensors))


def failed(found):
    return {verdict.criterion for verdict in found.verdicts if not verdict.passes}


def reason(found, criterion):
    return {verdict.criterion: verdict.reason for verdict in found.verdicts}[criterion]


# What the paper says


@pytest.mark.parametrize("name", PAPER)
def test_a_built_in_rule_is_what_the_paper_says_and_what_it_declares(audits, name):
    found, (kept, memory, time, operations, criteria) = audits[name], PAPER[name]
    assert (tensors(found), str(found.memory), str(found.time)) == (kept, memory, time)
    assert set(found.operations) == {SHORT[word] for word in operations.split()}
    assert failed(found) == set(criteria.split())
    assert found.plausible == (name in ("fixed-w", "rflo", "dni-b"))
    assert found.declared_cost is not None
    assert found.differences == ()


def test_the_bound_on_jumps_separates_what_rests_from_what_does_not(audits):
    jumps = [t.jump for found in audits.values() for t in found.tensors if t.degree == 2 and not t.past]
    assert max(jump for jump in jumps if jump < JUMP) < JUMP / 10
    assert min(jump for jump in jumps if jump > JUMP) > 5 * JUMP
    # "DNI avoids matrix-matrix products and is naturally time-continuous"
    assert all(tensor.jump < JUMP for tensor in audits["dni"].tensors if tensor.degree == 2)


def test_reasons_name_what_is_at_fault(audits):
    assert "M has order 3" in reason(audits["rtrl"], "ii")
    assert "B moves by" in reason(audits["uoro"], "ii")
    assert "with A_copy gives, a voltage, goes into one with J" in reason(audits["dni"], "iii")
    assert "inputs, slope, credit" in reason(audits["bptt"], "online")


def test_options_that_are_given_are_kept():
    assert tensors(audit_rule(RULES["bptt"].kind, window=4)) == "inputs: 4 × m, slope: 4 × n, credit: 4 × n"
    assert audit_rule(KeRNL, rate=0.3).tensors[0].jump > 10 * audit_rule(KeRNL, rate=1e-3).tensors[0].jump
    with pytest.raises(ValueError, match="rate of dni"):
        audit_rule(DNI, rate=-1.0)


# Rules that are not built in


class SnAp1(SeparableRule):
    name = "snap-1"
    declared_cost = DeclaredCost("nm", "nm")

    def init_state(self, weight, rates, generator=None):
        return {"B": weight.new_zeros(len(rates), *weight.shape)}

    def factors(self, state, now):
        own = 1 - self.cell.alpha + now.slope * self.cell.recurrent(now.weight).diagonal()
        trace = own[:, :, None] * state["B"] + immediate(now)
        return {"B": trace}, now.credit, trace


def test_a_rule_of_ones_own_is_judged_by_the_same_criteria():
    found = audit_rule(SnAp1)
    assert (str(found.memory), str(found.time), found.operations) == ("nm", "nm", {})
    assert found.plausible
    assert found.differences == ()


def test_a_rule_that_keeps_more_than_it_claims_is_found_out():
    class Cheat(RFLO):
        def init_state(self, weight, rates, generator=None):
            return {"B": weight.new_zeros(len(rates), *weight.shape, self.cell.units)}

        def factors(self, state, now):
            trace = 0.5 * state["B"] + immediate(now)[..., None]
            return {"B": trace}, now.credit, trace.mean(-1)

    found = audit_rule(Cheat)
    assert found.differences == ("memory is n²m, nm is claimed", "time is n²m, nm is claimed")
    assert "B has order 3" in reason(found, "ii")
    assert "iv" in failed(found)  # elementwise, but more of it than there are synapses


def test_needs_are_compared_in_both_directions_and_must_be_known():
    def differences(kind, *declared):
        cost = DeclaredCost(*declared[:2], frozenset(declared[2:]))
        return audit_rule(type("Declaring", (kind,), {"declared_cost": cost})).differences

    assert differences(UORO, "nm", "n² + nm", "matrix-vector", "noise", "perturbed copy") == (
        "needs Jacobian, which is not claimed",
        "claims to need perturbed copy, but does not",
    )
    with pytest.raises(ValueError, match="an order is written like n²m"):
        differences(RFLO, "n^2", "nm")
    with pytest.raises(ValueError, match="unknown magic; known: matrix-vector"):
        differences(RFLO, "nm", "nm", "magic")


def driven_rates(push):
    """A rule with a vector A, updated by `push`."""

    class Pushed(Rule):
        name = "pushed"

        def init_state(self, weight, rates, generator=None):
            return {"A": torch.randn(rates.shape, generator=generator, dtype=torch.float64)}

        def step(self, state, now):
            after = 0.5 * state["A"] + push(now, self.cell.recurrent(now.weight), state["A"])
            return {"A": after}, combine(after, immediate(now))

    return Pushed


def by_autograd(now, recurrent, vector):
    rates = now.inputs[:, : len(recurrent)].clone().requires_grad_()
    with torch.enable_grad():
        active = torch.tanh(torch.cat([rates, now.inputs[:, len(recurrent) :]], 1) @ now.weight.mT)
        return 0.5 * torch.autograd.grad(active, rates, vector)[0]


@pytest.mark.parametrize(
    "push",
    [
        lambda now, recurrent, a: now.slope * (a @ recurrent.mT),
        lambda now, recurrent, a: (now.slope * a) @ recurrent,
        lambda now, recurrent, a: now.slope * (recurrent * a).sum(-1),
        lambda now, recurrent, a: now.slope * (recurrent * a.expand_as(recurrent)).sum(-1),
        lambda now, recurrent, a: a @ (now.slope[0][:, None] * recurrent).mT,
        lambda now, recurrent, a: torch.einsum("bi,ij,bj->bi", now.slope, recurrent, a),
        lambda now, recurrent, a: (torch.diag(now.slope[0]) @ (recurrent @ a[0]))[None],
        by_autograd,
    ],
)
def test_the_jacobian_is_seen_however_it_is_written(push):
    found = audit_rule(driven_rates(push))
    assert found.operations["Jacobian"] == 1
    assert "ii" in failed(found)


def test_a_jacobian_that_is_stored_from_step_to_step_is_seen():
    class Stored(Rule):
        name = "stored"

        def init_state(self, weight, rates, generator=None):
            return {"J": self.cell.recurrent(weight).clone(), "A": torch.ones_like(rates)}

        def step(self, state, now):
            after = state["A"] @ state["J"].mT
            jacobian = now.slope[0][:, None] * self.cell.recurrent(now.weight)
            return {"J": jacobian, "A": after}, combine(after, immediate(now))

    assert "Jacobian" in audit_rule(Stored).operations


def test_recurrent_weights_without_the_slope_are_no_jacobian():
    assert audit_rule(driven_rates(lambda now, recurrent, a: a @ recurrent)).operations == {"matrix-vector": 1}


def test_a_voltage_becomes_a_rate_by_a_nonlinearity():
    def twice(squash):
        return audit_rule(driven_rates(lambda now, recurrent, a: squash(a @ recurrent) @ recurrent))

    assert "iii" in failed(twice(lambda voltage: 2 * voltage))
    assert "iii" not in failed(twice(torch.sigmoid))


def test_a_forward_pass_from_other_rates_is_a_copy_and_one_from_the_networks_own_is_not():
    def copy(now, recurrent, a):
        entering = now.inputs[:, len(recurrent) :] @ now.weight[:, len(recurrent) :].mT
        return torch.sigmoid(a @ recurrent.mT + entering)

    assert audit_rule(driven_rates(copy)).operations["perturbed copy"] == 1
    own = audit_rule(driven_rates(lambda now, recurrent, a: torch.tanh(now.inputs @ now.weight.mT)))
    assert "perturbed copy" not in own.operations


class Remembering(Rule):
    """Keeps something of the last steps, in slots that are overwritten in turn."""

    name = "remembering"

    def __init__(self, cell, window: int = 20):
        super().__init__(cell)
        self.window = window

    def init_state(self, weight, rates, generator=None):
        return {"ring": rates.new_zeros(len(rates), self.window, self.cell.units)}

    def step(self, state, now):
        ring = state["ring"].clone()
        ring[:, now.clock % self.window] = now.rates
        return {"ring": ring}, combine(ring.mean(1), immediate(now))


def test_past_activity_is_found_in_a_ring_too():
    found = audit_rule(Remembering)
    assert (tensors(found), str(found.memory), failed(found)) == ("ring: T × n", "Tn", {"online"})


def test_products_of_past_activity_are_found_where_they_shift():
    class Shifting(Remembering):
        def init_state(self, weight, rates, generator=None):
            return {"line": weight.new_zeros(len(rates), self.window, *weight.shape)}

        def step(self, state, now):
            line = torch.cat([immediate(now)[:, None], state["line"][:, :-1]], dim=1)
            return {"line": line}, combine(now.credit, line[:, -1])

    assert tensors(audit_rule(Shifting)) == "line: T × n × m"


def test_states_of_a_cascade_are_no_past_and_their_number_is_no_order():
    class Cascade(Remembering):
        def __init__(self, cell, states: int = 5):
            super().__init__(cell, states)

        def step(self, state, now):
            mixing = 0.2 * torch.ones(self.window, self.window, dtype=torch.float64).tril()
            after = torch.einsum("kl,bln->bkn", mixing, state["ring"]) + now.rates[:, None]
            return {"ring": after}, combine(after[:, -1], immediate(now))

    found = audit_rule(Cascade)
    assert (tensors(found), str(found.memory), found.operations) == ("ring: states × n", "n", {})


@pytest.mark.parametrize(("trace", "past"), [(CET(4, 6), {"signals"}), (PerfectMemory(6), {"signals", "trace"})])
def test_a_trace_behind_rflo_adds_no_order_and_its_signals_are_past(trace, past):
    found = audit_rule(lambda cell: Delayed(RFLO(cell), trace, 6))
    assert (str(found.memory), str(found.time)) == ("nm", "nm")
    assert {tensor.name for tensor in found.tensors if tensor.past} == past


def traced(change, **names):
    """RFLO with a change to its step: of its trace, or of all that it gives."""

    def factors(self, state, now):
        return change({"B": 0.5 * state["B"] + immediate(now)}, now)

    return type("Traced", (RFLO,), {"factors": factors, **names})


def test_noise_that_a_rule_draws_itself_is_noise():
    def noisy(state, now):
        trace = state["B"] + 0.01 * torch.randn_like(state["B"])
        return {"B": trace}, now.credit, trace

    assert "needs noise, which is not claimed" in audit_rule(traced(noisy)).differences


def test_a_norm_of_all_synapses_is_not_local():
    def normalised(state, now):
        trace = state["B"] / state["B"].norm()
        return {"B": trace}, now.credit, trace

    assert reason(audit_rule(traced(normalised)), "ii") == "all entries of B go into one number"


def test_a_factorisation_is_a_matrix_product():
    def solving(state, now):
        n = now.rates.shape[1]
        square = torch.eye(n, dtype=now.rates.dtype) + state["B"][0, :, :n]
        return state, torch.linalg.solve(square, now.credit[0])[None], state["B"]

    found = audit_rule(traced(solving))
    assert (str(found.time), "iv" in failed(found)) == ("n³", True)


def test_a_flattened_axis_counts_by_its_growth():
    class Flat(Rule):
        name = "flat"

        def init_state(self, weight, rates, generator=None):
            return {"B": weight.new_zeros(len(rates), weight.numel())}

        def step(self, state, now):
            trace = 0.5 * state["B"] + immediate(now).flatten(1)
            return {"B": trace}, combine(now.credit, trace.view(-1, *now.weight.shape))

    found = audit_rule(Flat)
    assert (tensors(found), found.tensors[0].degree, str(found.memory)) == ("B: nm", 2, "nm")


def test_work_that_depends_on_what_happens_has_no_order():
    def erratic(state, now):
        for _ in range(1 + int(now.rates.sum() > 0)):
            state = {"B": 0.5 * state["B"]}
        return state, now.credit, state["B"]

    found = audit_rule(traced(erratic))
    assert found.time is None
    assert "time is irregular, nm is claimed" in found.differences


def test_a_rule_whose_memory_cannot_be_seen_is_refused():
    steps = []

    def hiding(state, now):
        steps.append(now)
        return state, len(steps) * now.credit, state["B"]

    with pytest.raises(ValueError, match="gives another result from the same state"):
        audit_rule(traced(hiding))

    class Overwriting(RFLO):
        def factors(self, state, now):
            state["B"].mul_(0.5).add_(immediate(now))
            return state, now.credit, state["B"]

    with pytest.raises(ValueError, match="changes the state that it is given"):
        audit_rule(Overwriting)
    for factors, message in (
        (lambda state, now: (state, now.credit / 0 * 0, state["B"]), "is not finite"),
        (lambda state, now: None, "cannot be audited: TypeError"),
    ):
        with pytest.raises(ValueError, match=message):
            audit_rule(traced(factors))


# Orders and counts


class LoopedDNI(DNI):
    """DNI with its product with the Jacobian unit by unit: the same numbers by operations that look harmless."""

    name = "looped-dni"

    def _backwards(self, state, now, guessed):
        alpha, through = self.cell.alpha, guessed * now.slope
        columns = [
            (1 - alpha) * guessed[:, unit] + (through * now.weight[:, unit]).sum(1)
            for unit in range(self.cell.units)
        ]
        return torch.stack(columns, 1)


def test_a_loop_over_units_does_not_hide_a_product():
    with pytest.raises(ValueError, match=r"looped-dni takes more operations in a larger network.*write loops"):
        audit_rule(LoopedDNI)


def test_orders_are_read_as_they_are_written():
    for text in ("0", "1", "n", "n²m", "n² + nm", "Tn + Tm", "Tn² + nm"):
        assert str(Order.parse(text)) == text
    assert (Order.parse("n²m + nm"), Order.parse("Tn² + nm").growth) == (Order.parse("n²m"), (2, 1))
    assert Order.parse("0").growth is None
    for text in ("n^2", "", "nk", "n +", "²n"):
        with pytest.raises(ValueError, match="an order is written like"):
            Order.parse(text)


@pytest.mark.parametrize(
    ("count", "order"),
    [
        (lambda n, m, T: 3 * n**3 * m + 2 * n**2 * m**2 * T + 7 * n**3 * T**2 + 100 * m, "n³m + Tn²m²"),
        (lambda n, m, T: m * m - n * m, "m²"),  # that is m (n_in + 1)
        (lambda n, m, T: 0, "0"),
        (lambda n, m, T: n * n * (n % 2), "None"),
    ],
)
def test_leading_terms_of_a_polynomial_are_exact(count, order):
    assert str(leading_terms(count, range(3, 7))) == order


@pytest.mark.parametrize(
    ("operation", "cost"),
    [
        (lambda a: a @ a.mT, 36),
        (lambda a: torch.cat([a.clone(), torch.zeros_like(a)]).mT, 0),
        (lambda a: 2 * torch.cat([a, a]), 24),
    ],
)
def test_multiplications_are_counted_and_copies_are_not(operation, cost):
    with Meter() as meter:
        operation(torch.ones(3, 4))
    assert meter.cost == cost


@pytest.mark.parametrize(
    ("large", "small", "kind"),
    [
        ((1, 8, 8, 8), (1, 4, 4, 4), "matrix-matrix"),
        ((1, 1, 8, 8), (1, 1, 4, 4), "matrix-vector"),
        ((1, 8, 1, 8), (1, 4, 1, 4), "elementwise"),
        ((1, 8, 5, 8), (1, 4, 5, 4), "elementwise"),
        ((8, 1, 8, 8), (4, 1, 4, 4), "matrix-matrix"),
        ((8, 1, 8, 1), (4, 1, 4, 1), "sum"),
        ((1, 1, 8, 1), (1, 1, 4, 1), "sum"),
    ],
)
def test_products_are_told_apart_by_the_axes_that_grow(large, small, kind):
    assert Contraction(*large).kind(Contraction(*small)) == kind


# Tables


def test_the_documented_tables_are_those_that_are_found(audits):
    documented = (Path(__file__).parents[1] / "docs" / "rules.md").read_text(encoding="utf-8").splitlines()
    found = as_markdown(list(audits.values())).splitlines()
    tables = [line for line in found if line.startswith("|") and "---" not in line][len(audits) + 1 :]
    assert "| rflo | B: n × m | nm | nm | – | agree |" in tables
    assert [line for line in tables if line not in documented] == []
    assert any(line.startswith("- dni, iii: ") for line in found)


def test_csv_has_a_row_for_each_rule(audits):
    rows = {row["rule"]: row for row in csv.DictReader(io.StringIO(as_csv(list(audits.values()))))}
    assert list(rows) == list(PAPER)
    assert (rows["kf-rtrl"]["matrix-matrix"], rows["rflo"]["plausible"]) == ("1", "yes")
    assert [rows["kernl"][criterion] for criterion in CRITERIA] == ["yes", "yes", "no", "yes", "yes", "no", "yes"]


def test_the_command_prints_and_writes(tmp_path, capsys, monkeypatch):
    assert command.run(["uoro", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("rule,equations,tensors,memory,time,matrix-vector,")
    file = tmp_path / "table.md"
    assert command.run(["uoro", "--out", str(file)]) == 0
    assert file.read_text(encoding="utf-8").startswith("| rule | updates and gradient of W |")
    assert capsys.readouterr().out == ""
    own = "from cet_rl.recurrent.rules.built_in import UORO\n\n\nclass Own(UORO):\n    name = 'own'\n"
    (tmp_path / "own_rules.py").write_text(own, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert command.run(["own_rules:Own"]) == 0
    said = capsys.readouterr().out
    assert "B: n × m" in said
    assert "own, ii: B moves by" in said
