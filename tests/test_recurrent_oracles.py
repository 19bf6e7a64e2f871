"""Online learning rules and their network against autograd, finite differences and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recurrent_rules import assert_same, begin, courses, drive, forward, generator, make_course
from torch.nn import functional

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules.base import StepInputs
from cet_rl.recurrent.rules.built_in import BPTT, DNI, KFRTRL, RFLO, RKF, RTRL, UORO, DNIb, FutureBPTT, KeRNL

SMALL = [
    RNNCell(3, 2, 2),
    RNNCell(2, 1, 3, alpha=0.8, output="linear"),
    RNNCell(3, 1, 2, 0.3, "identity", "linear"),
]


def unroll(course, weights, detached=()):
    """Mean losses over sequences of each step, half the squared error where the output is linear.

    Args:
        course: whose first weight_out, data and start are used.
        weights: W of each step.
        detached: steps before which the rates are constants.
    """
    cell, rates, losses = course.cell, torch.tensor(course.start), []
    weight_out = torch.tensor(course.weight_out[0])
    for t, weight in enumerate(weights):
        rates = rates.detach() if t in detached else rates
        x, label = torch.tensor(course.x[t]), torch.tensor(course.label[t])
        v = torch.cat([rates, x, torch.ones(len(x), 1, dtype=x.dtype)], 1) @ weight.T
        rates = (1 - cell.alpha) * rates + cell.alpha * (torch.tanh(v) if cell.activation == "tanh" else v)
        z = torch.cat([rates, torch.ones(len(x), 1, dtype=x.dtype)], 1) @ weight_out.T
        if cell.output == "softmax":
            losses.append(functional.cross_entropy(z, label))
        else:
            losses.append(((z - label) ** 2).sum(1).mean() / 2)
    return torch.stack(losses)


def derivative(losses, weight):
    """∂Σ/∂W, zeros where there is none."""
    found = torch.autograd.grad(losses.sum(), weight, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(weight) if found is None else found


def leaf(array):
    return torch.tensor(array).requires_grad_()


def play(rule, course, state=None, noise=None):
    """Each step's gradient, then what is pending at the end; and the last state."""
    own, steps = begin(rule, course)
    state = own if state is None else state
    if noise is not None:
        steps = [step._replace(noise=row) for step, row in zip(steps, noise, strict=True)]
    gradients = []
    for now in steps:
        state, gradient = rule.step(state, now)
        gradients.append(gradient)
    return torch.stack([*gradients, rule.pending_gradient(state, steps[-1].weight)]), state


# --- the true gradient -----------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(course=courses(frozen=True))
def test_rtrl_is_the_gradient_of_each_loss(course):
    weight = leaf(course.weight[0])
    losses = unroll(course, [weight] * len(course.x))
    expected = [derivative(loss, weight) for loss in losses]
    assert_same(play(RTRL(course.cell), course)[0][:-1], torch.stack(expected))


@settings(max_examples=25)
@given(course=courses(frozen=True), longer=st.integers(0, 3))
def test_rtrl_and_both_forms_of_backpropagation_agree_over_a_sequence(course, longer):
    weight, window = leaf(course.weight[0]), len(course.x) + longer
    expected = derivative(unroll(course, [weight] * len(course.x)), weight)
    for rule in (RTRL(course.cell), BPTT(course.cell, window), FutureBPTT(course.cell, window)):
        assert_same(play(rule, course)[0].sum(0), expected, 1e-10, rule.name)


@pytest.mark.parametrize("cell", SMALL)
def test_rtrl_is_a_finite_difference(cell):
    course, step = make_course(cell, batch=2, steps=7, frozen=True), 1e-5
    found = play(RTRL(cell), course)[0].sum(0)
    weight = torch.tensor(course.weight[0])
    for i, j in np.ndindex(*weight.shape):
        sides = []
        for sign in (1, -1):
            moved = weight.clone()
            moved[i, j] += sign * step
            sides.append(unroll(course, [moved] * 7).sum())
        assert abs(found[i, j] - (sides[0] - sides[1]) / (2 * step)) < 1e-7


@pytest.mark.parametrize("window", [1, 2, 3, 7, 8, 10])
@pytest.mark.parametrize("cell", SMALL)
def test_windowed_backpropagation_stops_at_its_borders(cell, window):
    """Each window's gradient comes with its last step, of a network whose state was cut off at its first."""
    course = make_course(cell, batch=3, steps=8, frozen=True)
    weight = leaf(course.weight[0])
    losses = unroll(course, [weight] * 8, detached=range(0, 8, window))
    expected = torch.zeros(9, *weight.shape, dtype=weight.dtype)
    for first in range(0, 8, window):
        arrives = first + window - 1 if first + window <= 8 else 8
        expected[arrives] = derivative(losses[first : first + window], weight)
    assert_same(play(BPTT(cell, window), course)[0], expected)


@pytest.mark.parametrize("window", [1, 2, 3, 8, 10])
@pytest.mark.parametrize("cell", SMALL)
def test_future_facing_backpropagation_hears_of_the_losses_that_follow(cell, window):
    """That of a step's use of the weights comes T - 1 steps later, and knows of T losses."""
    course = make_course(cell, batch=3, steps=8, frozen=True)
    weights = [leaf(course.weight[0]) for _ in range(8)]
    losses = unroll(course, weights)
    by_use = torch.stack([derivative(losses[t : t + window], weight) for t, weight in enumerate(weights)])
    found, waiting = play(FutureBPTT(cell, window), course)[0], min(window - 1, 8)
    assert not found[:waiting].any()
    assert_same(found[waiting:8], by_use[: 8 - waiting])
    assert_same(found[8], by_use[8 - waiting :].sum(0))


def test_a_window_may_end_at_any_clock():
    """Which steps end a window is up to the clock, and a window that has ended leaves nothing behind."""
    course = make_course(SMALL[0], batch=2, steps=5, frozen=True)
    rule = BPTT(SMALL[0], 3)
    state, steps = begin(rule, course)
    sizes = []
    for now in steps:
        state, gradient = rule.step(state, now._replace(clock=now.clock + 100))  # 102, 105 are multiples
        sizes.append(bool(gradient.any()))
    assert sizes == [False, True, False, False, True]
    assert not rule.pending_gradient(state, now.weight).any()


# --- random products -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [RNNCell(2, 1, 2), RNNCell(2, 2, 2, 0.8, "identity", "linear")])
@pytest.mark.parametrize("kind", [UORO, KFRTRL, RKF])
def test_the_mean_over_all_signs_is_the_true_gradient(kind, cell):
    """Two signs at each of four steps: 256 patterns, side by side as sequences. Step by step, not in sum alone."""
    course = make_course(cell, batch=1, steps=4, frozen=True)
    rule = kind(cell, start=0)
    patterns = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=8)), dtype=torch.float64)
    noise = patterns.view(256, 4, 2).transpose(0, 1)
    x, label = (np.repeat(array, 256, axis=1) for array in (course.x, course.label))
    many = course._replace(x=x, label=label, start=np.repeat(course.start, 256, axis=0))
    expected = play(RTRL(cell), course)[0]
    assert_same(play(rule, many, noise=noise)[0], expected)
    alone = play(rule, course, noise=noise[:, 37:38])[0]
    assert (alone - expected).abs().max() > 1e-2  # no pattern is true by itself


# --- traces at synapses ----------------------------------------------------------------------------------------


def without_recurrence(course):
    weight = np.array(course.weight)
    weight[..., : course.cell.units] = 0
    return course._replace(weight=weight)


@settings(max_examples=25)
@given(course=courses(frozen=True))
def test_rflo_is_exact_without_recurrence(course):
    course = without_recurrence(course)
    assert_same(play(RFLO(course.cell), course)[0], play(RTRL(course.cell), course)[0], 1e-12)


@settings(max_examples=25)
@given(course=courses())
def test_kernl_that_does_not_learn_is_rflo(course):
    kernl = KeRNL(course.cell, rate=0, timescale=course.cell.alpha)
    assert_same(play(kernl, course)[0], play(RFLO(course.cell), course)[0], 1e-12)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_kernl_is_exact_for_linear_units_that_drive_themselves(alpha):
    """J is diagonal and constant: α_i = α (1 - w_i) is its decay."""
    cell = RNNCell(4, 2, 3, alpha, "identity", "linear")
    course = make_course(cell, batch=2, steps=8, frozen=True)
    own = np.array([0.9, -0.2, 0.5, 0.0]) if alpha < 1 else np.array([0.9, 0.1, 0.5, 0.0])
    weight = np.array(course.weight)
    weight[..., :4] = np.diag(own)
    course, rule = course._replace(weight=weight), KeRNL(cell, rate=0)
    state, _ = begin(rule, course)
    state["timescale"] = torch.tensor(alpha * (1 - own))
    expected = play(RTRL(cell), course)[0]
    assert_same(play(rule, course, state)[0], expected, 1e-12)
    assert (play(RFLO(cell), course)[0] - expected).abs().max() > 1e-2


@pytest.mark.parametrize("sigma", [1e-5, 1e-3, 1.0])
def test_kernl_has_nothing_to_learn_without_recurrence(sigma):
    """Noise decays as the filter does, however large: ε = 0 and so A = I and α_i = α stay, at any rate."""
    course = without_recurrence(make_course(RNNCell(4, 2, 2), batch=3, steps=20))
    tolerance = 1e-10 * max(1.0, 1e-3 / sigma)  # r̃ - r is rounded at 1e-16, that is at 1e-16/σ in units of σ
    rule = KeRNL(course.cell, rate=0.1, sigma=sigma, timescale=0.5)
    state, steps = begin(rule, course)
    for now in steps:
        state, _ = rule.step(state, now)
        missed = state["Omega"] @ state["A"].T - (state["perturbed"] - now.rates) / sigma
        assert_same(missed, torch.zeros_like(missed), tolerance)
        assert_same(state["A"], np.eye(4), tolerance)
        assert_same(state["timescale"], np.full(4, 0.5), tolerance)
        assert state["Omega"].abs().max() > 0.1
    after = play(rule, make_course(RNNCell(4, 2, 2), batch=3, steps=20))[1]
    assert (after["A"] - torch.eye(4)).abs().max() > 1e-2
    assert (after["timescale"] - 0.5).abs().max() > 1e-2


def test_kernl_descends_the_error_of_its_filter():
    """Half ε² at the last step, as a function of A and of the α_i of all steps, differentiated by autograd."""
    cell, rate, sigma = RNNCell(3, 2, 2), 0.05, 0.1
    course, random = make_course(cell, batch=2, steps=6), np.random.default_rng(1)
    state, steps = begin(KeRNL(cell, rate=0, sigma=sigma), course)
    state["A"], state["timescale"] = torch.tensor(random.normal(size=(3, 3))), torch.tensor(random.uniform(size=3))
    sensitivity, timescale = state["A"].clone().requires_grad_(), state["timescale"].clone().requires_grad_()
    filtered = torch.zeros(2, 3, dtype=torch.float64)
    for now in steps[:-1]:
        state, _ = KeRNL(cell, rate=0, sigma=sigma).step(state, now)
        filtered = (1 - timescale) * filtered + now.noise
    after, _ = KeRNL(cell, rate=rate, sigma=sigma).step(state, steps[-1])
    filtered = (1 - timescale) * filtered + steps[-1].noise
    error = ((filtered @ sensitivity.T - (after["perturbed"] - steps[-1].rates) / sigma) ** 2).sum(1).mean() / 2
    by_A, by_timescale = torch.autograd.grad(error, [sensitivity, timescale])
    assert_same(after["A"], (sensitivity - rate * by_A).detach())
    assert_same(after["timescale"], (timescale - rate * by_timescale).detach())


# --- guessed credit --------------------------------------------------------------------------------------------


def ideal_guess(weight_out):
    """[WᵀW, -Wᵀ, Wᵀb]: credit of squared error, as a function of r, y* and 1."""
    W, b = weight_out[:, :-1], weight_out[:, -1:]
    return torch.tensor(np.concatenate([W.T @ W, -W.T, W.T @ b], axis=1))


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_dni_has_nothing_to_learn_where_credit_is_immediate(activation):
    """J = 0: A* is what credit is, its error in time is zero, and its gradient the true one."""
    cell = RNNCell(3, 2, 2, 1.0, activation, "linear")
    course = without_recurrence(make_course(cell, batch=2, steps=12, frozen=True))
    ideal, rule = ideal_guess(course.weight_out[0]), DNI(cell, rate=0.1, renewal=2)
    expected = play(RTRL(cell), course)[0]
    for wrong in (False, True):
        state, steps = begin(rule, course)
        state, _ = rule.step(state, steps[0])  # there was no credit before the first step
        state["A"] = ideal + 0.1 * wrong
        state["A_copy"] = state["A"].clone()
        for t, now in enumerate(steps[1:], 1):
            state, gradient = rule.step(state, now)
            if wrong:
                assert (state["A"] - ideal - 0.1).abs().max() > 1e-4
                break
            assert_same(state["A"], ideal)
            assert_same(gradient, expected[t])


def test_dni_of_an_autonomous_linear_network_solves_its_equation():
    """With y* = 0 the future's credit is A r with A = WᵀW + Jᵀ A J."""
    cell = RNNCell(3, 2, 2, 0.5, "identity", "linear")
    course = make_course(cell, batch=4, steps=12, frozen=True)
    weight, weight_out = np.array(course.weight), np.array(course.weight_out)
    weight[..., 3:], weight_out[..., -1] = 0, 0
    weight[..., :3] *= 0.95 / np.abs(np.linalg.eigvals(weight[0, :, :3])).max()
    course = course._replace(weight=weight, weight_out=weight_out, label=np.zeros_like(course.label))
    J, W = 0.5 * np.eye(3) + 0.5 * weight[0, :, :3], weight_out[0, :, :3]
    solved = np.linalg.solve(np.eye(9) - np.kron(J.T, J.T), (W.T @ W).ravel()).reshape(3, 3)
    np.testing.assert_allclose(solved, W.T @ W + J.T @ solved @ J, rtol=0, atol=1e-12)
    ideal = torch.zeros(3, 6, dtype=torch.float64)
    ideal[:, :3] = torch.tensor(solved)
    rule = DNI(cell, rate=0.05, renewal=3)
    state, steps = begin(rule, course)
    state, _ = rule.step(state, steps[0])
    state["A"], state["A_copy"] = ideal, ideal.clone()
    for t, now in enumerate(steps[1:], 1):
        state, signal, _ = rule.factors(state, now)
        assert_same(state["A"], ideal, 1e-9)
        assert_same(signal, now.rates @ ideal[:, :3].T, 1e-9)
        assert now.rates.abs().max() > 1e-2, f"nothing is left to learn from at step {t}"
    state["A"] = ideal + 0.1
    assert (rule.step(state, now)[0]["A"] - state["A"]).abs().max() > 1e-4


class Orbit:
    """A network on a periodic orbit of five states, and the best linear prediction of one from the one before."""

    cell, period = RNNCell(2, 2, 2), 5

    def __init__(self):
        random, rates, orbit = np.random.default_rng(0), np.zeros(2), []
        weight, x = random.normal(size=(2, 5)), 2 * random.normal(size=(self.period, 2))
        for t in range(100 * self.period):
            orbit.append(drive(self.cell, weight, rates, x[t % self.period]))
            rates = orbit[-1][1]
        orbit = orbit[-self.period :]
        assert np.abs(orbit[0][0][:2] - rates).max() < 1e-14, "not yet periodic"
        inputs, after, slope = (np.stack(part) for part in zip(*orbit, strict=True))
        before = inputs[:, :2]
        second = before.T @ before / self.period
        self.best = (after.T @ before / self.period) @ np.linalg.inv(second)
        self.J = np.mean([0.5 * np.eye(2) + d[:, None] * weight[:, :2] for d in slope], axis=0)
        self.trace, self.smallest = np.trace(second), np.linalg.eigvalsh(second)[0]
        self.weight, self.inputs, self.after, self.slope = map(torch.tensor, (weight, inputs, after, slope))

    def settle(self, rate):
        """𝒥 after the distance from where it goes has shrunk by 1e12, from a sequence in each phase."""
        rule, start = DNIb(self.cell, rate=0.01, jacobian_rate=rate), self.after
        state, nothing = rule.init_state(self.weight, start, generator()), torch.zeros_like(start)
        assert_same(state["jacobian"], self.weight[:, :2], 0)
        # The slowest direction keeps 1 - η λ of its distance with each step.
        for t in range(math.ceil(math.log(1e-12) / math.log(1 - rate * self.smallest))):
            now = [(t + phase) % self.period for phase in range(self.period)]
            seen = self.inputs[now], self.after[now], self.slope[now]
            state, _ = rule.step(state, StepInputs(self.weight, *seen, nothing, nothing, None, t))
        return state["jacobian"]


def test_dni_b_learns_the_best_linear_prediction_of_rates():
    """With a sequence in each phase of an orbit, every step's mean over sequences is the orbit's.

    𝒥 then descends a fixed quadratic form to its minimum, to rounding. What it stands in for, J, is elsewhere.
    """
    orbit = Orbit()
    found = orbit.settle(1 / orbit.trace)
    assert_same(found, orbit.best, 1e-9)
    assert (found - torch.tensor(orbit.J)).abs().max() > 0.1


# --- the network -----------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(course=courses())
def test_the_network_is_its_equations(course):
    cell, rates = course.cell, torch.tensor(course.start)
    for t, step in enumerate(forward(course)):
        weight, weight_out, x, label = (torch.tensor(array[t]) for array in course[1:5])
        _, inputs, new, slope, error, credit, *_ = (np.stack(column) for column in zip(*step, strict=True))
        advance = cell.advance(weight, rates, x)
        assert_same(advance.inputs, inputs, 1e-12)
        assert_same(advance.rates, new, 1e-12)
        assert_same(advance.slope, slope, 1e-12)
        z = cell.read(weight_out, advance.rates)
        assert_same(z, new @ weight_out[:, :-1].numpy().T + weight_out[:, -1].numpy(), 1e-12)
        assert_same(cell.error(z, label), error, 1e-12)
        assert_same(cell.credit(weight_out, cell.error(z, label)), credit, 1e-12)
        rates = advance.rates


@settings(max_examples=20)
@given(course=courses())
def test_the_network_s_derivatives_are_autograd_s(course):
    cell, n = course.cell, course.cell.units
    weight, weight_out, x, label, start = (torch.tensor(a) for a in (*(a[0] for a in course[1:5]), course.start))
    advance = cell.advance(weight, start, x)

    def alone(rates, one):
        return cell.advance(weight, rates[None], one[None]).rates[0]

    J = torch.stack([torch.func.jacrev(alone)(rates, one) for rates, one in zip(start, x, strict=True)])
    basis = torch.eye(n, dtype=weight.dtype)
    for k in range(n):
        one = basis[k].expand(len(x), n)
        assert_same(cell.jacobian_vector(weight, advance.slope, one), J[:, :, k], 1e-12)
        assert_same(cell.backproject(weight, advance.slope, one), J[:, k], 1e-12)
    many = torch.randn(len(x), 2, 3, n, generator=generator(), dtype=weight.dtype)
    assert_same(cell.jacobian_vector(weight, advance.slope, many), torch.einsum("bkl,bpql->bpqk", J, many), 1e-12)
    assert_same(cell.recurrent(weight), weight[:, :n], 0)

    # Squared error's own is that of the sum over outputs, which is n_out times the loss.
    factor = cell.outputs if cell.output == "linear" else 1
    z, rates = cell.read(weight_out, advance.rates).requires_grad_(), advance.rates.requires_grad_()
    losses = cell.loss(z, label)
    assert losses.shape == (len(x),)
    assert_same(cell.error(z, label).detach(), factor * torch.autograd.grad(losses.sum(), z)[0], 1e-12)
    total = factor * cell.loss(cell.read(weight_out, rates), label).sum()
    credit = cell.credit(weight_out, cell.error(z, label)).detach()
    assert_same(credit, torch.autograd.grad(total, rates)[0], 1e-12)


def test_losses_have_their_units():
    """Cross-entropy in nats, half the mean squared error; and a confident readout does not overflow."""
    softmax, linear = RNNCell(1, 1, 3), RNNCell(1, 1, 3, output="linear")
    z, label = torch.tensor([[2.0, 0.0, -1.0]]).double(), torch.tensor([[0.5, 0.25, 0.25]]).double()
    p = np.exp([2.0, 0.0, -1.0]) / np.exp([2.0, 0.0, -1.0]).sum()
    assert_same(softmax.loss(z, label), [-(0.5 * np.log(p[0]) + 0.25 * np.log(p[1]) + 0.25 * np.log(p[2]))], 1e-12)
    assert_same(linear.loss(z, label), [(1.5**2 + 0.25**2 + 1.25**2) / 6], 1e-12)
    assert_same(linear.error(z, label), [[1.5, -0.25, -1.25]], 1e-12)
    sure = torch.tensor([[1000.0, 0.0, 0.0]]).double()
    assert_same(softmax.loss(sure, label), [500.0], 1e-12)
    assert_same(softmax.error(sure, label), [[0.5, -0.25, -0.25]], 1e-12)


def test_initial_weights_are_those_of_the_paper():
    weight, weight_out = RNNCell(60, 40, 30).initial_weights(generator(), torch.float64)
    assert (weight.shape, weight_out.shape) == ((60, 101), (30, 61))
    assert_same(weight[:, :60] @ weight[:, :60].T, np.eye(60), 1e-12)
    assert not weight[:, -1].any()
    assert not weight_out[:, -1].any()
    for part, variance in ((weight[:, 60:-1], 1 / 40), (weight_out[:, :-1], 1 / 60)):
        squares = part.square() / variance  # whose mean has a standard error of √(2/N)
        assert abs(squares.mean() - 1) < 5 * (2 / part.numel()) ** 0.5
        assert abs(part.mean()) < 5 * (variance / part.numel()) ** 0.5


def test_initial_recurrent_weights_favour_no_rotation():
    """Of the uniform distribution over orthogonal matrices every entry has mean 0, and the trace variance 1."""
    drawn = generator()
    found = torch.stack([RNNCell(3, 1, 1).initial_weights(drawn, torch.float64)[0][:, :3] for _ in range(600)])
    assert found.mean(0).abs().max() < 5 * (1 / 3 / 600) ** 0.5
    assert abs(found.diagonal(dim1=1, dim2=2).sum(1).square().mean() - 1) < 5 * (2 / 600) ** 0.5
    assert 200 < (torch.linalg.det(found) > 0).sum() < 400


def test_initial_weights_are_seeded_and_do_not_depend_on_their_type():
    cell = RNNCell(5, 2, 3)
    double, single = (cell.initial_weights(generator(3), dtype) for dtype in (torch.float64, torch.float32))
    other = cell.initial_weights(generator(4))
    for i in range(2):
        assert (double[i].dtype, single[i].dtype) == (torch.float64, torch.float32)
        assert torch.equal(double[i].float(), single[i])
        assert not torch.equal(other[i], single[i])
    torch.manual_seed(3)
    assert torch.equal(cell.initial_weights()[0], single[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0}, "units must be at least 1, got 0"),
        ({"inputs": 0}, "inputs must be at least 1, got 0"),
        ({"outputs": -1}, "outputs must be at least 1, got -1"),
        ({"alpha": 0.0}, r"alpha must lie in \(0, 1\], got 0"),
        ({"alpha": 1.5}, r"alpha must lie in \(0, 1\], got 1.5"),
        ({"alpha": float("nan")}, r"alpha must lie in \(0, 1\], got nan"),
        ({"activation": "relu"}, "activation must be one of tanh, identity, got 'relu'"),
        ({"output": "tanh"}, "output must be one of softmax, linear, got 'tanh'"),
    ],
)
def test_networks_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        RNNCell(**{"units": 2, "inputs": 1, "outputs": 2, **arguments})
