"""Online learning rules, step for step, against loops over sequences written from the table of rules."""

from __future__ import annotations

import sys
from copy import deepcopy
from importlib.metadata import EntryPoint
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cet_rl.recurrent import rules as registry
from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules import build_rule, find_rule, parse_options, register_rule
from cet_rl.recurrent.rules.base import Rule, StepInputs, balance
from cet_rl.recurrent.rules.built_in import KFRTRL, RKF, RTRL, UORO
from cet_rl.runs import plugins

NAMES = ["fixed-w", "bptt", "future-bptt", "rtrl", "uoro", "kf-rtrl", "r-kf", "kernl", "rflo", "dni", "dni-b"]
# Options under which a few steps show all that a rule does: windows end, copies are renewed, much is learned.
LIVELY = {
    "bptt": {"window": 3},
    "future-bptt": {"window": 3},
    "kernl": {"rate": 0.1, "sigma": 0.2},
    "dni": {"rate": 0.1, "renewal": 2},
    "dni-b": {"rate": 0.1, "jacobian_rate": 0.3, "renewal": 2},
}


class Course(NamedTuple):
    """What a network goes through: its weights and data at each step, as arrays."""

    cell: RNNCell
    weight: np.ndarray  # shape (T, n, m)
    weight_out: np.ndarray  # shape (T, n_out, n + 1)
    x: np.ndarray  # shape (T, B, n_in)
    label: np.ndarray  # shape (T, B, n_out)
    start: np.ndarray  # r_0, shape (B, n)


class Seen(NamedTuple):
    """One sequence at one step."""

    weight: np.ndarray
    inputs: np.ndarray
    rates: np.ndarray
    slope: np.ndarray
    error: np.ndarray
    credit: np.ndarray
    label: np.ndarray
    J: np.ndarray
    e: np.ndarray


def make_course(cell: RNNCell, batch: int = 2, steps: int = 6, seed: int = 0, frozen: bool = False) -> Course:
    """Random weights, other ones at each step unless frozen, and data; labels are distributions or numbers."""
    random, (n, m) = np.random.default_rng(seed), (cell.units, cell.columns)
    scales = np.concatenate([np.full(n, 0.9 / np.sqrt(n)), np.ones(cell.inputs), [0.5]])
    weight = random.normal(size=(1 if frozen else steps, n, m)) * scales
    weight_out = random.normal(size=(1 if frozen else steps, cell.outputs, n + 1))
    x, label = random.normal(size=(steps, batch, cell.inputs)), random.normal(size=(steps, batch, cell.outputs))
    if cell.output == "softmax":
        label = random.dirichlet(np.ones(cell.outputs), size=(steps, batch))
    weight, weight_out = (np.broadcast_to(w, (steps, *w.shape[1:])) for w in (weight, weight_out))
    return Course(cell, weight, weight_out, x, label, random.normal(size=(batch, n)))


@st.composite
def courses(draw, frozen=False):
    """Courses of networks of any size, α, activation and output."""
    sizes = [draw(st.integers(low, high)) for low, high in ((1, 4), (1, 3), (2, 3))]
    choices = [0.05, 0.5, 0.8, 1.0], ["tanh", "identity"], ["softmax", "linear"]
    cell = RNNCell(*sizes, *(draw(st.sampled_from(choice)) for choice in choices))
    counts = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    return make_course(cell, *counts, draw(st.integers(0, 999)), frozen)


def drive(cell: RNNCell, weight: np.ndarray, rates: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """r̂_t, r_t and D_t of one sequence, unit by unit."""
    inputs = np.array([*rates, *x, 1.0])
    new, slope = np.zeros(cell.units), np.zeros(cell.units)
    for i in range(cell.units):
        v = sum(weight[i, j] * inputs[j] for j in range(cell.columns))
        active, steepness = (np.tanh(v), np.cosh(v) ** -2.0) if cell.activation == "tanh" else (v, 1.0)
        new[i], slope[i] = (1 - cell.alpha) * rates[i] + cell.alpha * active, cell.alpha * steepness
    return inputs, new, slope


def forward(course: Course) -> list[list[Seen]]:
    """What happens: of each step, of each sequence."""
    cell, n, rates, steps = course.cell, course.cell.units, list(course.start), []
    for weight, weight_out, xs, labels in zip(*course[1:5], strict=True):
        step = []
        for b, (x, label) in enumerate(zip(xs, labels, strict=True)):
            inputs, rates[b], slope = drive(cell, weight, rates[b], x)
            z = weight_out @ np.append(rates[b], 1.0)
            error = (np.exp(z) / np.exp(z).sum() if cell.output == "softmax" else z) - label
            credit = np.array([sum(weight_out[o, k] * error[o] for o in range(cell.outputs)) for k in range(n)])
            J = (1 - cell.alpha) * np.eye(n) + slope[:, None] * weight[:, :n]
            step.append(Seen(weight, inputs, rates[b], slope, error, credit, label, J, np.outer(slope, inputs)))
        steps.append(step)
    return steps


def moments(seen: list[list[Seen]], noise=None, dtype=torch.float64, clock: int = 0) -> list[StepInputs]:
    """What rules get to see of it."""
    found = []
    for t, step in enumerate(seen):
        columns = [torch.tensor(np.stack(column)).to(dtype) for column in zip(*step, strict=True)]
        weight, inputs, rates, slope, _, credit, label = columns[:7]
        own = None if noise is None else noise[t].to(dtype)
        found.append(StepInputs(weight[0], inputs, rates, slope, credit, label, own, clock + t))
    return found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_rule(name: str, cell: RNNCell) -> Rule:
    return build_rule(name, cell, LIVELY.get(name))


def begin(rule: Rule, course: Course, dtype=torch.float64, seed: int = 0) -> tuple[dict, list[StepInputs]]:
    """A rule's state before the first step, and the moments that come, with noise if it takes some."""
    weight, rates = (torch.tensor(array[...]).to(dtype) for array in (course.weight[0], course.start))
    source = generator(seed)
    state = rule.init_state(weight, rates, source)
    return state, moments(forward(course), rule.draw(len(rates), len(course.x), source), dtype)


def stack(trees: list) -> dict | StepInputs:
    """States or moments of several seeds as one, with an axis of seeds in front."""
    if isinstance(trees[0], dict):
        return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}
    return StepInputs(*(v[0] if not torch.is_tensor(v[0]) else torch.stack(v) for v in zip(*trees, strict=True)))


def assert_same(found: torch.Tensor, expected, tolerance: float = 1e-10, what: str = "") -> None:
    np.testing.assert_allclose(found.numpy(), np.asarray(expected), rtol=tolerance, atol=tolerance, err_msg=what)


def assert_same_values(found, expected) -> None:
    """Compare states, moments or pairs of them, bit for bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# --- the table -------------------------------------------------------------------------------------------------
# Of each rule: its step for states with the table's axes (k before i before j), numpy arrays. `each` maps what is
# of a sequence over sequences.


def each(function, *columns):
    return [np.stack(column) for column in zip(*map(function, *columns), strict=True)]


def norm(array):
    return np.sqrt((np.asarray(array) ** 2).sum())


def ratio(long, short):
    return np.sqrt(norm(long) / norm(short)) if norm(long) > 0 and norm(short) > 0 else 1.0


def rtrl(rule, state, seen, noise, clock):
    def one(M, s):
        new, G = np.zeros_like(M), np.zeros_like(s.e)
        for k, i, j in np.ndindex(M.shape):
            new[k, i, j] = sum(s.J[k, via] * M[via, i, j] for via in range(len(M))) + (k == i) * s.e[i, j]
            G[i, j] += s.credit[k] * new[k, i, j]
        return new, G

    M, G = each(one, state["M"], seen)
    return {"M": M}, G.mean(0)


def uoro(rule, state, seen, noise, clock):
    def one(A, B, s, nu):
        pushed, taken = s.J @ A, nu[:, None] * s.e
        p0, p1 = ratio(B, pushed), ratio(taken, np.ones(len(A)))
        A, B = p0 * pushed + p1 * nu, B / p0 + taken / p1
        return A, B, (s.credit @ A) * B

    A, B, G = each(one, state["A"], state["B"], seen, noise)
    return {"A": A, "B": B}, G.mean(0)


def kf_rtrl(rule, state, seen, noise, clock):
    def one(A, B, s, nu):
        pushed = s.J @ B
        p0, p1 = ratio(pushed, A), ratio(np.diag(s.slope), s.inputs)
        A, B = nu[0] * p0 * A + nu[1] * p1 * s.inputs, nu[0] * pushed / p0 + nu[1] * np.diag(s.slope) / p1
        return A, B, np.outer(s.credit @ B, A)

    A, B, G = each(one, state["A"], state["B"], seen, noise)
    return {"A": A, "B": B}, G.mean(0)


def r_kf(rule, state, seen, noise, clock):
    def one(A, B, s, nu):
        pushed, taken = s.J @ B, nu[:, None] * s.e
        p0, p1 = ratio(pushed, A), ratio(taken, np.ones(len(A)))
        A, B = p0 * A + p1 * nu, pushed / p0 + taken / p1
        return A, B, np.outer(A, s.credit @ B)

    A, B, G = each(one, state["A"], state["B"], seen, noise)
    return {"A": A, "B": B}, G.mean(0)


def kernl(rule, state, seen, noise, clock):
    """With ζ, Ω and Γ as they are, so that η is divided by σ²."""
    A, timescale, eta = state["A"], state["timescale"], rule.rate / rule.sigma**2
    kappa = np.array([max(0.0, 1 - value) for value in timescale])

    def one(B, perturbed, Omega, Gamma, s, drawn):
        zeta, n = rule.sigma * drawn, len(perturbed)
        perturbed = drive(rule.cell, s.weight, perturbed, s.inputs[n:-1])[1] + zeta
        Omega, Gamma = kappa * Omega + zeta, kappa * Gamma - Omega
        epsilon = A @ Omega - (perturbed - s.rates)
        by_timescale = np.array([sum(epsilon[k] * A[k, i] for k in range(n)) * Gamma[i] for i in range(n)])
        return kappa[:, None] * B + s.e, perturbed, Omega, Gamma, np.outer(epsilon, Omega), by_timescale

    parts = [state["B"], state["perturbed"], state["Omega"] * rule.sigma, state["Gamma"] * rule.sigma]
    B, perturbed, Omega, Gamma, by_A, by_timescale = each(one, *parts, seen, noise)
    A = A - eta * by_A.mean(0)
    timescale = np.maximum(0.0, timescale - eta * by_timescale.mean(0))
    after = {"A": A, "timescale": timescale, "B": B, "perturbed": perturbed}
    after |= {"Omega": Omega / rule.sigma, "Gamma": Gamma / rule.sigma}
    return after, np.mean([(s.credit @ A)[:, None] * b for s, b in zip(seen, B, strict=True)], axis=0)


def rflo(rule, state, seen, noise, clock):
    B = np.stack([(1 - rule.cell.alpha) * old + s.e for old, s in zip(state["B"], seen, strict=True)])
    return {"B": B}, np.mean([s.credit[:, None] * b for s, b in zip(seen, B, strict=True)], axis=0)


def dni(rule, state, seen, noise, clock):
    A, after = state["A"], {}

    def one(before, credit, s):
        known = np.array([*s.rates, *s.label, 1.0])
        guessed = state["A_copy"] @ known
        target = credit + (np.tanh(guessed) @ after["jacobian"] if rule.name == "dni-b" else guessed @ s.J)
        return known, np.outer(A @ before - target, before)

    if rule.name == "dni-b":
        old, n = state["jacobian"], len(A)
        missed = [np.outer(old @ s.inputs[:n] - s.rates, s.inputs[:n]) for s in seen]
        after["jacobian"] = old - rule.jacobian_rate * np.mean(missed, axis=0)
    known, slip = each(one, state["known"], state["credit"], seen)
    A = A - rule.rate * slip.mean(0)
    copy = A if (clock + 1) % rule.renewal == 0 else state["A_copy"]
    after |= {"A": A, "A_copy": copy, "known": known, "credit": np.stack([s.credit for s in seen])}
    return after, np.mean([(A @ k)[:, None] * s.e for k, s in zip(known, seen, strict=True)], axis=0)


TABLE = {
    "fixed-w": lambda rule, state, seen, noise, clock: ({}, np.zeros_like(seen[0].e)),
    "rtrl": rtrl,
    "uoro": uoro,
    "kf-rtrl": kf_rtrl,
    "r-kf": r_kf,
    "kernl": kernl,
    "rflo": rflo,
    "dni": dni,
    "dni-b": dni,
}
# The rules keep k in the last axis of these.
K_LAST = {("rtrl", "M"), ("kf-rtrl", "B"), ("r-kf", "B")}


def with_tables_axes(name: str, state: dict) -> dict:
    arrays = {key: tensor.numpy() for key, tensor in state.items()}
    return {key: np.moveaxis(a, -1, 1) if (name, key) in K_LAST else a for key, a in arrays.items()}


def assert_follows_the_table(name: str, rule: Rule, state: dict, course: Course, noise, clock: int) -> None:
    seen, expected = forward(course), with_tables_axes(name, state)
    for t, now in enumerate(moments(seen, noise, clock=clock)):
        state, gradient = rule.step(state, now)
        drawn = None if noise is None else noise[t].double().numpy()
        expected, wanted = TABLE[name](rule, expected, seen[t], drawn, clock + t)
        found = with_tables_axes(name, state)
        assert set(found) == set(expected)
        for key, array in found.items():
            np.testing.assert_allclose(array, expected[key], rtol=1e-9, atol=1e-10, err_msg=f"{key}, step {t}")
        np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-9, atol=1e-10, err_msg=f"gradient, step {t}")


@pytest.mark.parametrize("name", TABLE)
@settings(max_examples=25)
@given(course=courses(), seed=st.integers(0, 99), clock=st.integers(0, 3))
def test_each_step_follows_the_table(name, course, seed, clock):
    """Other weights at each step, several sequences; what is shared starts anywhere."""
    rule, source = make_rule(name, course.cell), generator(seed)
    state = rule.init_state(torch.tensor(course.weight[0]), torch.tensor(course.start), source)
    if "jacobian" in state:
        state["A_copy"] = state["A_copy"] + torch.randn(state["A"].shape, generator=source, dtype=torch.float64)
    if name == "kernl":  # time scales beyond one, whose κ is zero, too
        state["A"] = state["A"] + 0.3 * torch.randn(state["A"].shape, generator=source, dtype=torch.float64)
        state["timescale"] = 1.4 * torch.rand(course.cell.units, generator=source, dtype=torch.float64)
    assert_follows_the_table(name, rule, state, course, rule.draw(len(course.start), len(course.x), source), clock)


@pytest.mark.parametrize("kind", [UORO, KFRTRL, RKF])
@settings(max_examples=20)
@given(course=courses(), seed=st.integers(0, 99))
def test_random_products_follow_the_table_from_nothing(kind, course, seed):
    """Where A and B start at zero, 0/0 stands for one."""
    rule = kind(course.cell, start=0)
    state = rule.init_state(torch.tensor(course.weight[0]), torch.tensor(course.start))
    assert not any(tensor.any() for tensor in state.values())
    noise = rule.draw(len(course.start), len(course.x), generator(seed))
    assert_follows_the_table(kind.name, rule, state, course, noise, 0)


def test_balance_makes_two_lengths_equal():
    """And is one where a length is zero or beyond what its type can hold."""
    pairs = {
        ((3.0, 4.0), (0.0, 0.2)): 5.0,
        ((1.0, 0.0), (4.0, 0.0)): 0.5,
        ((0.0, 0.0), (1.0, 1.0)): 1.0,
        ((1.0, 1.0), (0.0, 0.0)): 1.0,
        ((0.0, 0.0), (0.0, 0.0)): 1.0,
        ((1e30, 1e30), (1.0, 1.0)): 1.0,
    }
    grown, shrunk = (torch.tensor(side) for side in zip(*pairs, strict=True))
    assert_same(balance(grown[:, None], shrunk), list(pairs.values()), 1e-6)


# --- pure functions --------------------------------------------------------------------------------------------

CELLS = [RNNCell(3, 2, 2), RNNCell(2, 1, 3, alpha=0.8, activation="identity", output="linear")]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_a_pure_function(name):
    """Neither a step nor `pending_gradient` writes to what it was given, and a step gives the same again."""
    course = make_course(CELLS[0])
    rule = make_rule(name, course.cell)
    state, steps = begin(rule, course)
    kept = []
    for now in steps:
        given, seen = deepcopy(state), deepcopy(now)
        state, gradient = rule.step(state, now)
        kept.append((given, seen, now, state, gradient, deepcopy(state)))
    assert torch.equal(rule.pending_gradient(state, now.weight), rule.pending_gradient(state, now.weight))
    for given, seen, now, after, gradient, copy in kept:
        assert_same_values(seen, now)
        assert_same_values(after, copy)
        assert_same_values(rule.step(given, now), (after, gradient))


@pytest.mark.parametrize("name", NAMES)
def test_types_axes_and_what_is_pending(name):
    """Types are those of W, though noise is float32, and single precision is double precision, rounded."""
    course, results = make_course(CELLS[1], batch=5, steps=7), {}
    rule = make_rule(name, course.cell)
    for dtype in (torch.float32, torch.float64):
        state, steps = begin(rule, course, dtype)
        gradients = []
        for now in steps:
            noise = None if now.noise is None else now.noise.float()
            state, gradient = rule.step(state, now._replace(noise=noise))
            assert all((len(tensor) == 5) == (key not in rule.shared) for key, tensor in state.items())
            gradients.append(gradient)
        gradients.append(rule.pending_gradient(state, now.weight))
        assert {tensor.dtype for tensor in (*state.values(), *gradients)} == {dtype}
        assert gradients[-1].any() == (name in ("bptt", "future-bptt"))
        results[dtype] = torch.stack(gradients).double()
    assert_same(results[torch.float32], results[torch.float64], 2e-4)
    assert results[torch.float64].any() == (name != "fixed-w")


@pytest.mark.parametrize("name", NAMES)
def test_seeds_side_by_side_are_seeds_one_by_one(name):
    seeds, cell = range(3), CELLS[0]
    rule = make_rule(name, cell)
    begun = [begin(rule, make_course(cell, seed=seed), seed=seed) for seed in seeds]
    states, together = [state for state, _ in begun], stack([state for state, _ in begun])
    in_dims = begun[0][1][0].in_dims
    assert (in_dims.noise, in_dims.clock) == (0 if name in NOISE else None, None)
    side_by_side = torch.func.vmap(rule.step, in_dims=(0, in_dims))
    for steps in zip(*(steps for _, steps in begun), strict=True):
        together, gradients = side_by_side(together, stack(list(steps)))
        alone = [rule.step(state, now) for state, now in zip(states, steps, strict=True)]
        states = [state for state, _ in alone]
        assert_same(gradients, torch.stack([gradient for _, gradient in alone]), 1e-12)
        for key, tensor in together.items():
            assert_same(tensor, torch.stack([state[key] for state in states]), 1e-12, key)
    pending = torch.func.vmap(rule.pending_gradient)(together, torch.stack([step.weight for step in steps]))
    alone = [rule.pending_gradient(state, step.weight) for state, step in zip(states, steps, strict=True)]
    assert_same(pending, torch.stack(alone), 1e-12)


@pytest.mark.cuda
@pytest.mark.parametrize("name", NAMES)
def test_cuda_equals_cpu(name):
    course, results = make_course(CELLS[0]), []
    rule = make_rule(name, course.cell)
    for device in ("cpu", "cuda"):
        _, steps = begin(rule, course)
        weight, rates = (torch.tensor(array[...]).to(device) for array in (course.weight[0], course.start))
        state, gradients = rule.init_state(weight, rates, generator()), []
        for now in steps:
            moved = StepInputs(*(value.to(device) if torch.is_tensor(value) else value for value in now))
            state, gradient = rule.step(state, moved)
            assert {tensor.device.type for tensor in (*state.values(), gradient)} == {device}
            gradients.append(gradient)
        gradients.append(rule.pending_gradient(state, moved.weight))
        results.append((torch.stack(gradients).cpu(), {key: tensor.cpu() for key, tensor in state.items()}))
    (expected, expected_state), (found, found_state) = results
    assert_same(found, expected)
    for key, tensor in found_state.items():
        assert_same(tensor, expected_state[key], 1e-10, key)


# --- random numbers --------------------------------------------------------------------------------------------

NOISE = {"uoro": 40, "kf-rtrl": 2, "r-kf": 40, "kernl": 40}  # numbers of a sequence and step, of 40 units


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_reproducible_and_of_the_documented_kind(name):
    rule = build_rule(name, RNNCell(40, 3, 20))
    noise = rule.draw(30, 20, generator())
    if name not in NOISE:
        assert noise is None
        return
    assert (noise.shape, noise.dtype, noise.device.type) == ((20, 30, NOISE[name]), torch.float32, "cpu")
    assert torch.equal(rule.draw(30, 20, generator()), noise)
    assert not torch.equal(rule.draw(30, 20, generator(1)), noise)
    torch.manual_seed(7)
    assert not torch.equal(rule.draw(30, 20), rule.draw(30, 20))
    spread = 5 / noise.numel() ** 0.5  # five standard errors of a mean of squares one
    assert abs(noise.mean()) < spread
    assert abs((noise[1:] * noise[:-1]).mean()) < 1.1 * spread
    assert abs((noise[..., 1:] * noise[..., :-1]).mean()) < 1.5 * spread
    if name == "kernl":
        assert abs(noise.square().mean() - 1) < 1.5 * spread  # of variance 2
        assert len(noise.unique()) > 0.9 * noise.numel()
    else:
        assert torch.equal(noise.abs(), torch.ones_like(noise))


DRAWN = {
    "uoro": {"A": (30, 40), "B": (30, 40, 44)},
    "kf-rtrl": {"A": (30, 44), "B": (30, 40, 40)},
    "r-kf": {"A": (30, 40), "B": (30, 44, 40)},
    "dni": {"A": (40, 61), "A_copy": (40, 61)},
    "dni-b": {"A": (40, 61), "A_copy": (40, 61)},
}


@pytest.mark.parametrize("name", DRAWN)
def test_random_starts_are_reproducible_and_of_the_documented_kind(name):
    cell = RNNCell(40, 3, 20)
    rule, weight, rates = build_rule(name, cell), torch.randn(40, 44), torch.randn(30, 40)
    state = rule.init_state(weight, rates, generator())
    again = rule.init_state(weight.double(), rates.double(), generator())
    other = rule.init_state(weight, rates, generator(1))
    scale = 61**0.5 if name.startswith("dni") else 1.0
    for key, shape in DRAWN[name].items():
        assert state[key].shape == shape
        assert torch.equal(state[key].double(), again[key]), "the type changes what is drawn"
        assert not torch.equal(state[key], other[key])
        # A variance is known to √(2/N), a mean to √(1/N): five times that.
        assert abs((scale * state[key]).square().mean() - 1) < 5 * (2 / state[key].numel()) ** 0.5
        assert abs((scale * state[key]).mean()) < 5 / state[key].numel() ** 0.5
        if not name.startswith("dni"):  # the start is a standard deviation
            assert_same(type(rule)(cell, 3.0).init_state(weight, rates, generator())[key], 3 * state[key], 1e-6)


def test_starts_that_are_not_random():
    cell, weight, rates = RNNCell(3, 2, 2), torch.randn(3, 6), torch.randn(4, 3)
    kernl, dni, rflo, rtrl, bptt = (
        build_rule(name, cell).init_state(weight, rates) for name in ("kernl", "dni-b", "rflo", "rtrl", "bptt")
    )
    assert torch.equal(kernl["A"], torch.eye(3))
    assert torch.equal(kernl["timescale"], torch.full((3,), 0.8))
    assert torch.equal(kernl["perturbed"], rates)
    assert torch.equal(dni["A"], dni["A_copy"])
    assert torch.equal(dni["jacobian"], weight[:, :3])
    assert torch.equal(dni["known"], torch.cat([rates, torch.zeros(4, 2), torch.ones(4, 1)], 1))
    zeros = [kernl["B"], kernl["Omega"], kernl["Gamma"], dni["credit"], rflo["B"], rtrl["M"], *bptt.values()]
    assert [len(zero) for zero in zeros] == [4] * 9
    assert not any(zero.any() for zero in zeros)


# --- by name ---------------------------------------------------------------------------------------------------


class Hebb(Rule):
    """A user's rule."""

    name = "hebb"

    def __init__(self, cell: RNNCell, gain: float = 1, steps: int | None = None) -> None:
        super().__init__(cell)
        self.gain, self.steps = gain, steps

    def init_state(self, weight, rates, generator=None):
        return {}

    def step(self, state, now):
        return state, -self.gain * now.rates.mT @ now.inputs / len(now.rates)


@pytest.fixture(autouse=True)
def _clean():
    before = dict(registry.RULES)
    yield
    registry.RULES.clear()
    registry.RULES.update(before)
    plugins._loaded = True


def test_all_rules_are_there():
    assert set(NAMES) <= set(registry.rules())
    for name in NAMES:
        entry, rule = find_rule(name), build_rule(name, CELLS[0])
        assert (type(rule), rule.name, rule.cell) == (entry.kind, name, CELLS[0])
        assert entry.summary.isprintable()


def test_a_users_rule_is_registered():
    assert register_rule(Hebb, "what fires together") is Hebb
    assert find_rule("hebb").summary == "what fires together"
    assert find_rule("hebb").options() == {"gain": float, "steps": int}
    rule = build_rule("hebb", CELLS[0], parse_options("hebb", ["gain=2", "steps=4"]))
    assert (type(rule), rule.gain, rule.steps) == (Hebb, 2.0, 4)
    with pytest.raises(ValueError, match=r"unknown rule 'heb'; did you mean hebb\?"):
        find_rule("heb")
    with pytest.raises(ValueError, match=r"unknown rule 'zzz'; choose from fixed-w, .*rtrl, .*dni-b"):
        find_rule("zzz")


def test_a_plugin_brings_its_rule(monkeypatch):
    monkeypatch.setitem(sys.modules, "a_module", sys.modules[__name__])
    found = [EntryPoint("mine", "a_module:bring", plugins.GROUP)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)
    monkeypatch.setattr(plugins, "_loaded", False)
    assert type(build_rule("hebb", CELLS[0])) is Hebb


def bring() -> None:
    register_rule(Hebb, "from a plugin")


def test_a_rule_may_be_named_by_its_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "a_module", sys.modules[__name__])
    assert find_rule("a_module:Hebb").summary == "A user's rule"
    assert build_rule("a_module:Hebb", CELLS[0], parse_options("a_module:Hebb", ["gain=2"])).gain == 2.0
    for missing, message in {
        "Hobb": "a_module has nothing named 'Hobb'",
        "RNNCell": "is no subclass of cet_rl.recurrent.Rule",
        "Rule": "does not define init_state, step",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_rule(f"a_module:{missing}")
    with pytest.raises(ValueError, match="has no option 'loss'; it has gain"):
        build_rule("a_module:Hebb", CELLS[0], {"loss": 2.0})


class Needy(Hebb):
    def __init__(self, cell, gain, *, steps, offset=0.0, **others):
        super().__init__(cell, gain, steps)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (type("Nameless", (Hebb,), {"name": None}), "Nameless needs a name of letters, digits, - and _, got None"),
        (type("Spaced", (Hebb,), {"name": "two words"}), "Spaced needs a name of letters, .*, got 'two words'"),
        (type("Copy", (RTRL,), {}), "there is a rule 'rtrl' already"),
        (Needy, "Needy takes gain, which is no number with a default"),
        *[(kind, r"is no subclass of cet_rl\.recurrent\.Rule") for kind in (3, RNNCell)],
    ],
)
def test_registrations_that_cannot_be(kind, message):
    before = dict(registry.RULES)
    with pytest.raises(ValueError, match=message):
        register_rule(kind, "")
    assert before == registry.RULES


def test_options_are_those_of_the_constructor_and_arrive_there():
    expected = {
        **{name: {} for name in ("fixed-w", "rtrl", "rflo")},
        **{name: {"window": int} for name in ("bptt", "future-bptt")},
        **{name: {"start": float} for name in ("uoro", "kf-rtrl", "r-kf")},
        "kernl": {"rate": float, "sigma": float, "timescale": float},
        "dni": {"rate": float, "renewal": int},
        "dni-b": {"rate": float, "renewal": int, "jacobian_rate": float},
    }
    assert {name: find_rule(name).options() for name in NAMES} == expected
    found = parse_options("dni-b", ["rate=1e-3", "renewal=7", "jacobian_rate=.5"])
    assert [type(value) for value in found.values()] == [float, int, float]
    rule = build_rule("dni-b", CELLS[0], found)
    assert (rule.rate, rule.renewal, rule.jacobian_rate) == (1e-3, 7, 0.5)
    assert build_rule("dni-b", CELLS[0], {"rate": 0.2}).jacobian_rate == 0.2


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("bptt", ["windows=3"], "rule bptt has no option 'windows'; it has window"),
        ("rtrl", ["window=3"], "rule rtrl has no option 'window'; it has none"),
        ("dni", ["rate=1", "rate=2"], "--rule-options gives rate twice"),
        ("bptt", ["window"], "--rule-options takes name=value, got 'window'"),
        ("bptt", ["window=2.5"], "option window of rule bptt must be a whole number, got '2.5'"),
        ("dni", ["rate=fast"], "option rate of rule dni must be a number, got 'fast'"),
        ("dnii", ["rate=1"], "unknown rule 'dnii'; did you mean dni"),
        ("bptt", {"window": 0}, "window of bptt must be at least 1, got 0"),
        ("future-bptt", {"window": 2.5}, r"window of future-bptt must be a whole number, got 2\.5"),
        ("uoro", {"start": -1.0}, "start of uoro must be zero or positive, got -1"),
        ("kf-rtrl", {"start": float("nan")}, "start of kf-rtrl must be zero or positive, got nan"),
        ("kernl", {"rate": -0.1}, "rate of kernl must be zero or positive, got -0.1"),
        ("kernl", {"sigma": 0.0}, "sigma of kernl must be positive, got 0"),
        ("kernl", {"timescale": float("inf")}, "timescale of kernl must be zero or positive, got inf"),
        ("dni", {"rate": -1.0}, "rate of dni must be zero or positive, got -1"),
        ("dni", {"renewal": 0}, "renewal of dni must be at least 1, got 0"),
        ("dni-b", {"jacobian_rate": -1.0}, "jacobian_rate of dni-b must be zero or positive, got -1"),
    ],
)
def test_options_that_cannot_be(name, words, message):
    """Options as words of the command line, or as numbers."""
    with pytest.raises(ValueError, match=message):
        build_rule(name, CELLS[0], words if isinstance(words, dict) else parse_options(name, words))
