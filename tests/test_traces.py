"""Traces against the paper's equations, evaluated another way."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.linalg import expm, solve_discrete_lyapunov

from cet_rl import CET, ET, LTPLTD, FiniteKernel, Legendre, Optimal, PerfectMemory, SharpCET, Trace, register_trace
from cet_rl.agents import CETActorCritic
from cet_rl.cli import main
from cet_rl.cli.traces import float32_error
from cet_rl.cli.train import parse_arguments
from cet_rl.rl.config import RLConfig
from cet_rl.traces.legendre import RIDGE, legendre_transition, sharpest_readout
from cet_rl.traces.registry import TRACES, TraceConfig, _options, find_trace, parse_trace_options
from cet_rl.traces.sharp import laguerre_share, laguerre_transition

GRID = [(order, delay) for order in range(2, 13) for delay in (1, 2, 3, 7, 10, 40, 160, 640, 1000)]
PEAKED = [CET, SharpCET, Legendre]


def eq8(order, delay):
    """The paper's cascade (Eq. 4) integrated exactly over a step (Eq. 8), in unit-gain form.

    One matrix exponential of the system with its held input appended gives both constants; the input drives the
    first stage, so K is the first column of (exp(AΔt) - I) A⁻¹, times the rate.
    """
    rate = (order - 1) / delay
    A = rate * (np.diag(np.ones(order - 1), -1) - np.eye(order))
    augmented = np.zeros((order + 1, order + 1))
    augmented[:order, :order] = A
    augmented[0, order] = rate
    step = expm(augmented)
    return step[:order, :order], step[:order, order]


@pytest.mark.parametrize(("order", "delay"), GRID)
def test_cascade_is_equation_8(order, delay):
    M, K = eq8(order, delay)
    trace = CET(order, delay)
    transition = trace.transition()
    assert abs(transition.M - M).max() <= 1e-12
    assert abs(transition.K - K).max() <= 1e-12

    kernel = trace.kernel(4 * delay + 20).numpy()
    state = K
    for lag in range(4 * delay + 20):
        assert abs(kernel[lag] - state[-1]) <= 1e-12
        state = M @ state


@pytest.mark.parametrize(("order", "delay"), GRID)
def test_cet_peaks_at_the_delay_and_has_unit_area(order, delay):
    area = CET(order, delay)
    kernel = area.kernel(area.support[1])
    assert (kernel.dtype, kernel.argmax()) == (torch.float64, delay)
    assert abs(kernel.sum() - 1) <= 1e-12
    peak = CET(order, delay, "peak").kernel(area.support[1])
    assert abs(peak.max() - 1) <= 1e-12
    torch.testing.assert_close(peak, kernel / kernel.max(), rtol=1e-12, atol=0)


def density_within(order, rate, lag):
    """Return the area of the gamma density of Eq. 5 from `lag` to `lag` + 1 steps."""
    density = lambda t: rate**order * t ** (order - 1) * math.exp(-rate * t) / math.factorial(order - 1)  # noqa: E731
    return quad(density, lag, lag + 1, epsabs=1e-14)[0]


def test_kernel_is_the_gamma_density_of_equation_5():
    kernel = CET(5, 40).kernel(400)
    assert kernel.shape == (400,)
    for lag in (0, 1, 39, 40, 41, 200, 399):
        assert abs(kernel[lag] - density_within(5, 4 / 40, lag)) <= 1e-12


@pytest.mark.parametrize("order", [2, 10, 12])
@pytest.mark.parametrize("kind", PEAKED)
@pytest.mark.parametrize("delay", [1, 800, 1000])
def test_nothing_overflows_in_float32(kind, order, delay):
    trace = kind(order, delay, "peak")
    transition = trace.transition()
    for constant in (transition.M, transition.K, transition.C, trace.kernel(3 * delay).numpy()):
        assert np.isfinite(constant.astype(np.float32)).all()
        assert abs(constant).max() < 1e7


@pytest.mark.parametrize(
    "trace",
    [
        *[CET(6, 30), CET(6, 30, "peak", "official-images"), CET(10, 640), CET(3, 5), Optimal(7, 30)],
        *[kind(7, delay) for kind in PEAKED for delay in (3, 50, 60)],
        *[LTPLTD(3), LTPLTD(40), LTPLTD(60), ET(0.9), ET(0.99), ET.from_delay(3), ET.from_delay(60)],
    ],
    ids=repr,
)
def test_states_kernel_support_and_normalisation_agree(trace):
    transition, (first, last) = trace.transition(), trace.support
    assert transition.M.shape == (trace.states, trace.states)
    np.testing.assert_allclose(transition.kernel(200), trace.kernel(200).numpy(), atol=1e-12)
    kernel = trace.kernel(4 * last).abs()
    assert kernel[:first].sum() + kernel[last:].sum() <= 3e-15 * kernel.sum()
    assert abs(replace(trace, normalization="area").kernel(last).abs().sum() - 1) <= 1e-12
    assert abs(replace(trace, normalization="peak").kernel(last).max() - 1) <= 1e-12


def test_classical_trace():
    assert ET.from_delay(40).decay == pytest.approx(math.exp(-1 / 40), rel=1e-15)
    np.testing.assert_allclose(ET(0.9, "peak").kernel(50).numpy(), 0.9 ** np.arange(50), rtol=1e-12)


def test_ltp_ltd_is_the_difference_of_two_exponentials():
    trace = LTPLTD(40, ratio=3.0)
    slow, fast = trace.rates
    assert fast / slow == pytest.approx(3.0)
    assert math.log(fast / slow) / (fast - slow) == pytest.approx(40)
    pieces = [
        quad(lambda t: math.exp(-slow * t) - math.exp(-fast * t), lag, lag + 1, epsabs=1e-14)[0]
        for lag in range(100)
    ]
    kernel = trace.kernel(100).numpy()
    np.testing.assert_allclose(kernel / kernel[0], np.array(pieces) / pieces[0], rtol=1e-10)
    assert kernel.argmax() in (39, 40)


def test_memories_without_states_are_their_numbers():
    assert PerfectMemory(3).kernel(6).tolist() == [0, 0, 0, 1, 0, 0]
    assert PerfectMemory(3).transition() is None
    assert (PerfectMemory(0, "peak").kernel(2).tolist(), PerfectMemory(7).support) == ([1, 0], (7, 8))
    trace = FiniteKernel([0, 1, -3, 0], delay_steps=2, normalization="area")
    assert (trace.kernel(5).tolist(), trace.support, trace.states) == ([0, 0.25, -0.75, 0, 0], (1, 3), 0)
    assert trace.sharpness == 0.9
    assert (trace.bound, FiniteKernel([1.0]).sharpness) == (None, None)


SHARPNESS = {  # order, delay: CET, SharpCET (without a ridge), Legendre, Optimal; to four digits
    (2, 50): (0.0108, 0.0152, 0.0169, 0.0202),
    (5, 40): (0.0279, 0.0434, 0.0602, 0.0850),
    (10, 10): (0.1644, 0.4629, 0.6647, 0.8212),
    (10, 50): (0.0337, 0.0668, 0.1040, 0.1575),
    (10, 400): (0.0042, 0.0084, 0.0130, 0.0198),
    (20, 50): (0.0490, 0.1331, 0.2235, 0.3463),
}


@pytest.mark.parametrize(("size", "shares"), SHARPNESS.items())
def test_sharpness_of_the_table(size, shares):
    for kind, share in zip((*PEAKED, Optimal), shares, strict=True):
        assert kind(*size).sharpness == pytest.approx(share, abs=6e-5)
    assert Optimal(*size).bound == pytest.approx(size[0] / (size[1] + 1))
    assert Optimal(20, 1000).sharpness == pytest.approx(0.01738, abs=5e-6)


@given(order=st.integers(1, 20), delay=st.integers(1, 1000))
def test_the_optimum_lies_between_the_bound_and_every_other_trace(order, delay):
    best = Optimal(order, delay)
    others = [ET(math.sqrt(delay / (delay + 1)))] if order == 1 else [kind(order, delay) for kind in PEAKED]
    others += [LTPLTD(delay)] * (order == 2)
    assert best.bound >= best.sharpness * (1 - 1e-12)
    for other in others:
        assert best.sharpness >= other.share(delay) - 1e-9, other


@pytest.mark.parametrize(("order", "delay"), [(1, 7), (4, 9), (5, 40), (10, 10), (10, 50), (20, 25), (13, 300)])
@pytest.mark.parametrize("tolerance", [0.0, 0.12])
def test_no_other_poles_are_sharper(order, delay, tolerance):
    """By projection on the responses of perturbed poles, orthonormalised numerically: ‖P b‖² for the target b."""
    trace = Optimal(order, delay, tolerance=tolerance)
    first, last = trace.delay_range
    target = np.zeros(60 * delay)
    target[first : last + 1] = 1 / (last - first + 1)

    def share(poles):
        responses = poles[:, None] ** np.arange(len(target))
        basis = np.linalg.qr(np.concatenate([responses.real, responses.imag[poles.imag != 0]]).T)[0]
        return float(((basis.T @ target) ** 2).sum())

    if trace.poles is None:
        assert trace.sharpness == 1 / (last - first + 1)
        return
    best, rng = share(trace.poles), np.random.default_rng(0)
    kernel = trace.kernel(len(target)).numpy()
    assert (target @ kernel) ** 2 / (kernel @ kernel) == pytest.approx(best, abs=1e-9)
    for size in np.repeat([1e-4, 1e-3, 1e-2], 15):
        change = rng.standard_normal((2, len(trace.poles))) * size
        moved = np.log(trace.poles) * (1 + change[0]) + 1j * change[1] * np.log(trace.poles).imag
        assert share(np.exp(moved)) <= best + 1e-9


@pytest.mark.parametrize("kind", [SharpCET, Legendre, Optimal])
@given(order=st.integers(2, 12), delay=st.integers(1, 200), seed=st.integers(0, 1000))
def test_no_other_readout_is_sharper(kind, order, delay, seed):
    """On (C·b)² / CᵀGC, against perturbations large and small; Legendre's objective has a ridge."""
    transition = kind(order, delay).transition()
    M, K, C = transition.M, transition.K, transition.C
    gramian = solve_discrete_lyapunov(M, np.outer(K, K))
    gramian += (kind is Legendre) * RIDGE * np.trace(gramian) / len(K) * np.eye(len(K))
    at_delay = np.linalg.matrix_power(M, delay) @ K

    def objective(readout):
        return (readout @ at_delay) ** 2 / (readout @ gramian @ readout)

    best, rng = objective(C), np.random.default_rng(seed)
    for size in np.repeat([1e-6, 1e-3, 1e-1, 1.0], 20):
        assert objective(C + size * np.linalg.norm(C) * rng.standard_normal(len(C))) <= best + 1e-9


@pytest.mark.parametrize("kind", [SharpCET, Legendre])
@pytest.mark.parametrize(("order", "delay"), [(10, 5), (10, 50), (10, 200), (14, 20), (18, 40)])
def test_no_other_speed_is_sharper(kind, order, delay):
    """A fine scan of the one remaining scalar finds nothing better than the search did."""
    trace = kind(order, delay)
    if kind is Legendre:
        share = lambda speed: sharpest_readout(*legendre_transition(order, speed), delay)[1]  # noqa: E731
        speed = trace.window
    elif order > delay:
        assert trace.sharpness == 1
        return
    else:
        share = lambda speed: laguerre_share(order, speed, delay)  # noqa: E731
        speed = trace.rate
    best = share(speed)
    for factor in np.geomspace(0.4, 2.5, 400):
        assert share(speed * factor) <= best * (1 + 1e-5)


@given(order=st.integers(1, 6), rate=st.floats(0.01, 2))
def test_all_pass_states_span_the_cascade_and_are_orthonormal(order, rate):
    M, K = laguerre_transition(order, rate)
    assert abs(solve_discrete_lyapunov(M, np.outer(K, K)) - np.eye(order)).max() <= 1e-9
    lags = np.arange(40)
    responses = np.stack([np.linalg.matrix_power(M, lag) @ K for lag in lags])
    for degree in range(order):
        wanted = np.exp(-rate * lags) * (lags / 40) ** degree
        found = responses @ np.linalg.lstsq(responses, wanted, rcond=None)[0]
        assert abs(found - wanted).max() <= 1e-8 * abs(wanted).max()


def test_tolerance_trades_sharpness_for_forgiveness():
    exact, wide = Optimal(10, 50), Optimal(10, 50, tolerance=0.1)
    assert [round(wide.share(lag), 3) for lag in (45, 50, 55)] == [0.033, 0.133, 0.032]
    within = range(45, 56)
    assert np.mean([exact.share(lag) for lag in within]) == pytest.approx(0.080, abs=5e-4)
    assert np.mean([wide.share(lag) for lag in within]) == pytest.approx(0.086, abs=5e-4)
    assert (Optimal(10, 50, tolerance=0.2).kernel(200).argmax()) == 45
    for tolerance in (1e-9, 0.0199):  # fewer than one step
        assert torch.equal(Optimal(10, 50, tolerance=tolerance).kernel(300), exact.kernel(300))
    assert Optimal(10, 50, tolerance=0.02).delay_range == (49, 51)


def test_enough_states_are_a_shift_register():
    assert (Optimal(10, 9).kernel(20).tolist(), Optimal(20, 9).states) == ([0.0] * 9 + [1.0] + [0.0] * 10, 10)
    assert Optimal(12, 7, tolerance=0.4).kernel(12).tolist() == [0.0] * 5 + [0.2] * 5 + [0.0] * 2
    assert SharpCET(10, 5).kernel(7).tolist() == [0.0] * 5 + [1.0, 0.0]
    assert Optimal(1, 10).transition().M.item() == pytest.approx(math.sqrt(10 / 11))


@dataclass(frozen=True)
class Turning(Trace):
    """Turn a pair of states. The first one is read."""

    delay_steps: int
    order: int = 2
    normalization: str = "area"
    damping: float = 0.9
    readout: tuple[float, ...] = (-3.0, 0.0)

    def transition(self):
        angle = math.pi / self.delay_steps
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        return self.damping * np.array(turn), [1.0, 0.0], self.readout


def test_a_trace_of_ones_own_has_its_own_default_order_and_takes_lists():
    default = TraceConfig("test_traces:Turning")
    assert (default.order_or_default, default.label) == (2, "test_traces-Turning2")
    assert default.build(10) == Turning(10, 2, "peak")
    given = TraceConfig("test_traces:Turning", options={"readout": [1.0, -2.0]})
    assert given.build(10) == Turning(10, 2, "peak", readout=(1.0, -2.0))
    assert given.build(10).kernel(20).max() == pytest.approx(1)


def test_the_defaults_of_a_trace_of_ones_own_are_saved(monkeypatch, tmp_path):
    """Its author may change them: an agent and a run folder keep those that they were made with."""
    config = RLConfig("CartPole-v1", delay=2.0, trace="test_traces:Turning", trace_options=("damping=0.9",))
    saved = config.resolved()
    assert (saved.order, saved.trace_options) == (2, ("readout=[-3.0, 0.0]", "damping=0.9"))
    assert (saved.resolved(), saved.label) == (saved, config.label)
    assert RLConfig("CartPole-v1", delay=2.0, trace="ltp-ltd").resolved().trace_options == ()
    agent = CETActorCritic("MlpPolicy", "CartPole-v1", delay=2.0, trace=Turning(10), n_steps=4)
    agent.save(tmp_path / "agent")
    monkeypatch.setattr(Turning.__init__, "__defaults__", (3, "area", 0.5, (1.0, 1.0)))
    _options.cache_clear()
    again = replace(saved), replace(config, trace_options=(), order=None).resolved()
    made = [each.trace_config.build(10) for each in again]
    made += [CETActorCritic.load(tmp_path / "agent").learner_config.trace.build(10)]
    _options.cache_clear()
    peak, area = (Turning(10, 2, scale, 0.9, (-3.0, 0.0)) for scale in ("peak", "area"))
    assert made == [peak, Turning(10, 3, "peak", 0.5, (1.0, 1.0)), area]


def test_a_closed_form_may_be_silent_for_long():
    @dataclass(frozen=True)
    class Late(PerfectMemory):
        def unscaled_kernel(self, length):
            return (np.arange(length) // 2 == self.delay_steps // 2) * 1.0

    @dataclass(frozen=True)
    class Echo(Late):
        def unscaled_kernel(self, length):
            return super().unscaled_kernel(length) + (np.arange(length) == 0)

    assert (Late(300).support, Echo(300).support) == ((300, 302), (0, 302))
    assert Late(300).kernel(303)[299:].tolist() == [0, 0.5, 0.5, 0]


def test_a_trace_of_ones_own_is_scaled_and_measured():
    for normalization in ("area", "peak"):
        trace = Turning(8, normalization=normalization)
        kernel = trace.kernel(400)
        lags = np.arange(400)
        expected = -(0.9**lags) * np.cos(math.pi * lags / 8)
        expected /= abs(expected).sum() if normalization == "area" else expected.max()
        np.testing.assert_allclose(kernel.numpy(), expected, atol=1e-14)
        np.testing.assert_allclose(trace.transition().kernel(400), expected, atol=1e-14)
    assert (trace.states, trace.bound) == (2, 2 / 9)
    assert trace.sharpness == pytest.approx(expected[8] ** 2 / (expected**2).sum())
    assert (trace.share(-1), PerfectMemory(5).sharpness, PerfectMemory(5).bound) == (0, 1, None)
    assert (ET(0.9).sharpness, ET(0.9).bound, ET(0.9).share(0)) == (None, None, pytest.approx(0.19))
    with pytest.raises(ValueError, match=r"lag must be a whole number, got 2\.5"):
        trace.share(2.5)

    class Slower(Turning):
        def transition(self):
            M, K, C = super().transition()
            return (M / 0.9 * 0.99, K, C)

    assert Slower(8, normalization="peak").kernel(9)[8].item() == pytest.approx(1)

    class Silent(CET):
        """A cascade followed by a long register: what it knew of its kernel in closed form no longer holds."""

        def transition(self):
            return np.eye(301, k=-1), np.eye(301)[0], np.eye(301)[2] + np.eye(301)[300]

    assert (Silent(3, 5).support, Silent(3, 5).states) == ((2, 301), 301)


@pytest.mark.parametrize(
    ("trace", "tolerance"),
    [
        (CET(10, 40, "peak"), 1e-5),
        (CET(10, 800, "peak"), 1e-4),
        (SharpCET(10, 10), 1e-5),
        (SharpCET(10, 800), 1e-4),
        (Legendre(10, 10), 1e-3),
        (Legendre(10, 800), 1e-4),
        (Optimal(10, 10), 1e-5),
        (Optimal(10, 800), 1e-4),
        (Optimal(10, 800, tolerance=0.1), 1e-4),
    ],
    ids=repr,
)
def test_float32_stays_close_over_100_000_steps(trace, tolerance):
    """Largest error of the output, relative to its root mean square, driven by noise with a mean."""
    assert 1e-9 < float32_error(trace, 100_000) <= tolerance


def constant(M, K, C, scale="area"):
    """A trace with the given constants, right or wrong."""

    @dataclass(frozen=True)
    class Constant(Trace):
        normalization: str = scale

        def transition(self):
            return M, K, C

    return Constant()


GROWN = torch.ones(1, requires_grad=True)  # no array without saying so


@dataclass(frozen=True)
class Nothing(Trace):
    def transition(self):
        return None


@dataclass(frozen=True)
class Raising(Trace):
    def transition(self):
        return 1 / 0


def hidden():
    return type("Hidden", (Turning,), {"__qualname__": "hidden.<locals>.Hidden"})(10)


def raising(delay_steps):
    return "trace" + delay_steps


@dataclass(frozen=True)
class Torn(CET):
    def unscaled_kernel(self, length):
        return super().unscaled_kernel(length) * np.arange(length)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CET(1, 10), "order of at least 2"),
        (lambda: CET(5, 0), "delay_steps of CET must be at least 1"),
        *[(lambda wrong=wrong: CET(*wrong), "whole number") for wrong in ((5, 1.5), (5.5, 10), (5, np.inf))],
        (lambda: CET(5, 10).kernel(2.5), "length must be a whole number"),
        (lambda: CET(5, 10, "sum"), "one of area, peak, got 'sum'"),
        (lambda: SharpCET(1, 10), "SharpCET needs an order"),
        (lambda: Legendre(4, -1), "delay_steps of Legendre must be at least 1"),
        *[(lambda decay=decay: ET(decay), "between 0 and 1") for decay in (1.0, 0.0, float("nan"))],
        *[(lambda ratio=r: LTPLTD(10, ratio), f"above 1.000001, got {r}$") for r in (1, 1 + 1e-8)],
        (lambda: PerfectMemory(-1), "must be at least 0"),
        (lambda: CET(5, 10).kernel(0), "at least 1"),
        (lambda: Optimal(0, 10), "order of at least 1, got 0"),
        (lambda: Optimal(2.5, 10), "whole number"),
        (lambda: Optimal(3, 0), "must be at least 1"),
        (lambda: Optimal(3, 10, tolerance=1.0), r"tolerance of Optimal must lie in \[0, 1\), got 1"),
        (lambda: Optimal(3, 10, tolerance=-0.1), r"tolerance of Optimal must lie in \[0, 1\)"),
        (lambda: Optimal(3, 10, tolerance="a"), "tolerance of Optimal must be a number"),
        (lambda: FiniteKernel([]), "a row of numbers"),
        (lambda: FiniteKernel([0, 0]), "remembers nothing"),
        (lambda: FiniteKernel([1, float("nan")]), "finite numbers"),
        *[(lambda v=v: FiniteKernel(v), "needs numbers") for v in (["a"], 1j * np.ones(2), GROWN)],
        (lambda: FiniteKernel([1], delay_steps=-1), "must be at least 0"),
        (lambda: constant([[0.5]], [1], [1, 2]).transition(), r"M \(n, n\).*got M \(1, 1\), K \(1,\), C \(2,\)"),
        (lambda: constant([[0.5]], [np.inf], [1]).transition(), "not finite"),
        (lambda: constant([[1.5]], [1], [1]).transition(), "its memory grows"),
        (lambda: constant([[1.0]], [1], [1]).transition(), "forgets too slowly"),
        (lambda: constant([[0.5]], [1], [0]).transition(), "remembers nothing"),
        (lambda: constant([[0.5]], [1], [-1], "peak").transition(), "no positive lag"),
        (lambda: constant("M", 1, 2).transition(), "must return M, K and C"),
        (lambda: constant([[0.5 + 0.1j]], [1], [1]).transition(), "M, K and C of real numbers"),
        (lambda: constant([GROWN], [1], [1]).transition(), "M, K and C of real numbers"),
        (lambda: Torn(3, 10).kernel(4), "unscaled_kernel and transition of Torn define different kernels"),
        (lambda: Raising().transition(), r"Raising.transition\(\) fails: ZeroDiv.*test_traces.py, line"),
        (lambda: TraceConfig("test_traces:raising"), "raising cannot be built: TypeError: .*test_traces.py, line"),
        (lambda: TraceConfig.for_delay(2.0, hidden()).as_keywords(2.0), "could not be loaded by its name"),
        (lambda: Nothing().transition(), "without states, use a cet_rl.FiniteKernel"),
        (lambda: CET(4, 5, "area", "approximate"), "discretization must be one of exact, official"),
        (lambda: TraceConfig("legendre", options={"discretization": "official"}), "only 'cet' takes one"),
        (lambda: TraceConfig("cet", 1, options={"discretization": "official"}), "is for cascades of order 2"),
        (lambda: TraceConfig("cet", options={"decay": 0.5}), "order 5: only 'et' takes one"),
        (lambda: TraceConfig("et", options={"decay": 1.5}), "between 0 and 1"),
        (lambda: TraceConfig("ltp-ltd", options={"ratio": "big"}), "ratio .* must be a number, got 'big'"),
        (lambda: TraceConfig("ltp-ltd", options={"ratio": 0.5}), "above 1.000001, got 0.5"),
        (lambda: TraceConfig("perfect", options={"taps": 3}), "taps 3 has no meaning for trace 'perfect'"),
        (lambda: TraceConfig("ltp-ltd", 3), "order 3 has no meaning"),
        (lambda: TraceConfig("cet", 2.5), "order must be a whole number"),
        (lambda: TraceConfig("cet", normalization="sum"), "one of area, peak, got 'sum'"),
        (lambda: TraceConfig("cat"), "unknown trace 'cat'"),
        (lambda: TraceConfig("math:Cat"), "math has nothing named 'Cat'"),
        (lambda: TraceConfig("math:pi"), "is no subclass of cet_rl.Trace"),
        (lambda: register_trace("thawed", type("Thawed", (CET,), {"__hash__": None})), "must have a hash"),
        (lambda: TraceConfig("cet_rl:FiniteKernel"), "needs values: --trace-options values=VALUE"),
        (lambda: TraceConfig("cet_rl.traces.base:check_whole"), "must take delay_steps"),
        (lambda: register_trace("cet", CET), "there is a trace 'cet' already"),
        (lambda: register_trace("a b", CET), "letters, digits"),
        (lambda: register_trace("abstract", Trace), "does not define"),
        (lambda: parse_trace_options(["ratio"]), "takes name=value"),
        (lambda: parse_trace_options(["ratio=2", "ratio=3"]), "ratio twice"),
        (lambda: TraceConfig.for_delay(8.0, PerfectMemory(30)), "cannot be made for another delay"),
        (lambda: TraceConfig.for_delay(8.0, "perfect", trace_delay=7.0), "cannot be made for another delay"),
        (lambda: TraceConfig.for_delay(8.0, "et", decay=0.9, trace_delay=7.0), "cannot be made for another delay"),
        (lambda: TraceConfig.for_delay(8.0, CET(5, 40), stacked=True), "stacked delays differ by layer"),
        (lambda: TraceConfig.for_delay(0.0, CET(5, 40)), "there is none: give one"),
        (lambda: TraceConfig.for_delay(0.0, trace_delay=1.0), "there is none: give a delay"),
        (lambda: TraceConfig.for_delay(8.0, trace_delay=-1.0), "positive number of seconds, got -1"),
        (lambda: TraceConfig.for_delay(8.0, trace_delay=8.1).build(40), "would be 40.5 steps"),
        (lambda: TraceConfig.for_delay(8.0, constant([[0.5]], [1], [1])), "must take delay_steps"),
    ],
)
def test_traces_and_choices_that_cannot_be_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_official_discretisation_drives_the_first_stage_only():
    """As in avecplezir/CET."""
    trace = CET(4, 5, "area", "official")  # rate 3/5
    transition = trace.transition()
    np.testing.assert_allclose(transition.K, [1 - np.exp(-0.6), 0, 0, 0], rtol=1e-14)
    np.testing.assert_array_equal(transition.M, CET(4, 5).transition().M)
    assert CET(4, 5).transition().K[1] > 0.1


@pytest.mark.parametrize("order", [2, 3, 5, 10])
@pytest.mark.parametrize("delay_steps", [1, 7, 40, 800])
@pytest.mark.parametrize("normalization", ["area", "peak"])
def test_the_official_kernel_is_its_recursion_and_peaks_at_the_delay(order, delay_steps, normalization):
    trace = CET(order, delay_steps, normalization, "official")
    length = trace.support[1]
    kernel = trace.kernel(length).numpy()
    np.testing.assert_allclose(trace.transition().kernel(length), kernel, atol=1e-12 * kernel.max())
    assert kernel.argmax() == delay_steps
    assert kernel.max() == pytest.approx(1) if normalization == "peak" else kernel.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("choice", "trace", "label"),
    [
        (TraceConfig(), CET(5, 7, "peak"), "cet5"),
        (TraceConfig("cet", 1), ET.from_delay(7, "peak"), "et"),
        (
            TraceConfig("cet", 3, "area", {"discretization": "official"}),
            CET(3, 7, "area", "official"),
            "official-cet3",
        ),
        (TraceConfig("cet", 1, options={"decay": 0.9}), ET(0.9, "peak"), "et0.9"),
        (TraceConfig("et", 1, options={"decay": None}), ET.from_delay(7, "peak"), "et"),
        (TraceConfig("ltp-ltd", options=parse_trace_options(["ratio=3"])), LTPLTD(7, 3, "peak"), "ltp-ltd-ratio3"),
        (TraceConfig("et", options=parse_trace_options(["decay=.5"])), ET(0.5, "peak"), "et0.5"),
        (TraceConfig("ltp-ltd", options={"ratio": 2.0}), LTPLTD(7, 2, "peak"), "ltp-ltd"),
        (TraceConfig("cet_rl:Legendre", 4), Legendre(4, 7, "peak"), "legendre4"),
        (TraceConfig("perfect"), PerfectMemory(7, "peak"), "perfect"),
        (TraceConfig("none"), None, "none"),
    ],
)
def test_choices_build_traces_and_have_labels(choice, trace, label):
    assert choice.build(7) == trace
    assert choice.build(0) is None
    assert choice.label == label


def box(delay_steps, width=1):
    """Average what happened around the delay. More text."""
    return FiniteKernel([0] * (delay_steps - width) + [1] * (2 * width + 1), delay_steps)


def test_a_kind_of_ones_own_with_an_option(monkeypatch):
    """Options go by keyword to where the class or function has them; its docstring is its summary."""
    monkeypatch.setattr("cet_rl.traces.registry.TRACES", dict(TRACES))
    register_trace("box", box)
    register_trace("turning", Turning)
    assert find_trace("box").summary == "Average what happened around the delay"
    assert TraceConfig("box", options={"width": 3}).build(9) == box(9, 3)
    register_trace("early", lambda delay_steps, source="", gamma=1: CET(5, delay_steps + 3))  # other than cet5
    early = [TraceConfig("early", options=options).label for options in ({}, {"source": "a/b"})]
    assert [TraceConfig("box", options={"width": 3}).label, *early] == ["box-width3", "early5", "a-b-early5"]
    assert parse_arguments(["CartPole-v1", "--delay", "8", "--gamma", "0.5"]).config.gamma == 0.5
    assert TraceConfig("turning", 2, options={"damping": 0.8}).build(9) == Turning(9, 2, "peak", 0.8)
    assert TraceConfig(f"{__name__}:box").build(4) == box(4)


@pytest.mark.parametrize(
    "trace",
    [
        *[CET(4, 40), CET(4, 36, "peak", "official"), ET(0.9), LTPLTD(44, 3.0), Optimal(6, 40, tolerance=0.1)],
        *[PerfectMemory(40), FiniteKernel([0.0, 1.0], 40), FiniteKernel([0.0, 1.0]), Turning(50, damping=0.8)],
    ],
    ids=repr,
)
def test_traces_are_choices_too(trace):
    choice = TraceConfig.for_delay(8.0, trace)
    built = choice.build(40)
    assert built == trace or (isinstance(trace, FiniteKernel) and built.values == trace.values)
    made_for = trace.made_for
    assert choice.delay_ratio == (1 if made_for is None else made_for / 40)
    assert choice.build(0) is None


def test_a_trace_for_another_delay():
    choice = TraceConfig.for_delay(8.0, "optimal", 4, trace_delay=9.0)
    assert (choice.build(40), choice.build(80)) == (Optimal(4, 45, "peak"), Optimal(4, 90, "peak"))
    assert choice.label == "optimal4-for1.125"


@pytest.mark.parametrize("delay", [1, 3, 10, 40])
@pytest.mark.parametrize("order", [2, 10])
def test_the_authors_kernel_for_images_is_the_density_over_the_step_before(order, delay):
    kernel = CET(order, delay, "area", "official-images").kernel(3 * delay + 3)
    assert kernel[0] == 0
    for lag in range(1, 3 * delay + 3):
        assert abs(kernel[lag] - density_within(order, (order - 1) / (delay - 0.5), lag - 1)) <= 1e-12
    shares = {1: 1.00, 3: 0.64, 10: 0.177}
    if order == 10 and delay in shares:
        assert CET(10, delay, "area", "official-images").sharpness == pytest.approx(shares[delay], abs=5e-3)


def test_the_command_compares_traces(capsys, tmp_path):
    picture = tmp_path / "kernels.svg"
    line = f"traces --delay 8 --order 10 --trace-options tolerance=0.1 --plot {picture} --format"
    assert main([*line.split(), "json"]) == 0
    rows = {row.pop("trace"): row for row in json.loads(capsys.readouterr().out)}
    assert list(rows)[2:6] == ["legendre10", "optimal10", "optimal10-tolerance0.1", "et"]
    wide, row = Optimal(10, 40, tolerance=0.1), rows["optimal10-tolerance0.1"]
    assert (row["sharpness"], row["share_-10"]) == (wide.sharpness, wide.share(36))
    assert rows["optimal10"]["share_+20"] == -Optimal(10, 40).share(48)
    assert (row["bound"], row["last_lag"], rows["perfect"]["bound"]) == (10 / 41, wide.support[1] - 1, None)
    assert 0 < row["float32_error"] < 1e-4
    assert picture.read_text().startswith("<?xml")
    assert main([*line.split(), "csv"]) == 0
    table = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert float(table[3]["sharpness"]) == rows["optimal10"]["sharpness"]
    assert main([*line.split(), "table"]) == 0
    assert "optimal10-tolerance0.1      10   16.4   24.4" in capsys.readouterr().out
    assert main(["traces", "--delay", "2", "--order", "1", "--format", "csv"]) == 0
    labels = [row["trace"] for row in csv.DictReader(capsys.readouterr().out.splitlines())]
    assert labels == ["et", "optimal1", "ltp-ltd", "perfect"]  # one state of cet is et, once
    assert main(["traces", "--delay", "2", "--trace", "test_traces:Turning", "--format", "csv"]) == 0
    assert "test_traces-Turning2,2," in capsys.readouterr().out  # its own default
