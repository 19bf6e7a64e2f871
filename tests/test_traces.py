"""Traces against the paper's equations, evaluated another way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.linalg import expm, solve_discrete_lyapunov

from cet_rl import CET, ET, LTPLTD, Legendre, PerfectMemory, SharpCET, Trace, register_trace
from cet_rl.traces.registry import TRACES, TraceConfig, find_trace, parse_trace_options
from cet_rl.traces.sharp import RIDGE

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
    assert kernel.dtype == torch.float64
    assert kernel.argmax() == delay
    assert abs(kernel.sum() - 1) <= 1e-12
    peak = CET(order, delay, "peak").kernel(area.support[1])
    assert abs(peak.max() - 1) <= 1e-12
    torch.testing.assert_close(peak, kernel / kernel.max(), rtol=1e-12, atol=0)


def test_kernel_is_the_gamma_density_of_equation_5():
    order, delay = 5, 40
    rate = (order - 1) / delay
    density = lambda t: rate**order * t ** (order - 1) * math.exp(-rate * t) / math.factorial(order - 1)  # noqa: E731
    kernel = CET(order, delay).kernel(400)
    assert kernel.shape == (400,)
    for lag in (0, 1, 39, 40, 41, 200, 399):
        assert abs(kernel[lag] - quad(density, lag, lag + 1, epsabs=1e-14)[0]) <= 1e-12


@pytest.mark.parametrize("order", [2, 10, 12])
@pytest.mark.parametrize("kind", PEAKED)
@pytest.mark.parametrize("delay", [1, 800, 1000])
def test_nothing_overflows_in_float32(kind, order, delay):
    trace = kind(order, delay, "peak")
    transition = trace.transition()
    for constant in (transition.M, transition.K, transition.C, trace.kernel(3 * delay).numpy()):
        assert np.isfinite(constant.astype(np.float32)).all()
        assert abs(constant).max() < 1e7


@pytest.mark.parametrize("trace", [CET(6, 30), SharpCET(6, 30), Legendre(6, 30), ET(0.9), LTPLTD(30, 3.0)])
def test_states_and_kernel_agree(trace):
    transition = trace.transition()
    assert transition.M.shape == (trace.states, trace.states)
    np.testing.assert_allclose(transition.kernel(200), trace.kernel(200).numpy(), atol=1e-12)


@pytest.mark.parametrize("kind", [ET.from_delay, LTPLTD, *(lambda d, n, kind=k: kind(7, d, n) for k in PEAKED)])
@pytest.mark.parametrize("delay", [3, 60])
def test_normalisation(kind, delay):
    area = kind(delay, normalization="area") if kind in (ET.from_delay, LTPLTD) else kind(delay, "area")
    peak = kind(delay, normalization="peak") if kind in (ET.from_delay, LTPLTD) else kind(delay, "peak")
    length = area.support[1]
    assert abs(area.kernel(length).abs().sum() - 1) <= 1e-12
    assert abs(peak.kernel(length).max() - 1) <= 1e-12


def test_support_leaves_nothing_out():
    for trace in (CET(10, 640), CET(3, 5), SharpCET(10, 50), Legendre(10, 50), ET(0.99), LTPLTD(40)):
        first, last = trace.support
        kernel = trace.kernel(4 * last).abs()
        assert kernel[:first].sum() + kernel[last:].sum() <= 3e-15 * kernel.sum()
    assert PerfectMemory(7).support == (7, 8)


def test_classical_trace():
    assert ET.from_delay(40).decay == pytest.approx(math.exp(-1 / 40), rel=1e-15)
    kernel = ET(0.9, "peak").kernel(50).numpy()
    np.testing.assert_allclose(kernel, 0.9 ** np.arange(50), rtol=1e-12)


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


def test_perfect_memory_is_an_impulse():
    assert PerfectMemory(3).kernel(6).tolist() == [0, 0, 0, 1, 0, 0]
    assert PerfectMemory(3).transition() is None
    assert PerfectMemory(0, "peak").kernel(2).tolist() == [1, 0]


def share_at_delay(trace):
    kernel = trace.kernel(trace.support[1])
    return (kernel[trace.delay_steps] ** 2 / (kernel**2).sum()).item()


@pytest.mark.parametrize(
    ("kind", "delay", "share"),
    [
        (CET, 50, 0.033),
        (SharpCET, 50, 0.066),
        (Legendre, 50, 0.104),
        (CET, 10, 0.16),
        (SharpCET, 10, 0.35),
        (Legendre, 10, 0.66),
    ],
)
def test_sharpness_at_order_ten(kind, delay, share):
    """The share of kernel energy at the delay: how precisely ten states remember."""
    assert share_at_delay(kind(10, delay)) >= share


@pytest.mark.parametrize("kind", [SharpCET, Legendre])
@given(order=st.integers(2, 12), delay=st.integers(1, 200), seed=st.integers(0, 1000))
def test_no_other_readout_is_sharper(kind, order, delay, seed):
    """On the ridged objective (C·b)² / Cᵀ(G + ρI)C, against perturbations large and small."""
    transition = kind(order, delay).transition()
    M, K, C = transition.M, transition.K, transition.C
    gramian = solve_discrete_lyapunov(M, np.outer(K, K))
    gramian += RIDGE * np.trace(gramian) / order * np.eye(order)
    at_delay = np.linalg.matrix_power(M, delay) @ K

    def objective(readout):
        return (readout @ at_delay) ** 2 / (readout @ gramian @ readout)

    best = objective(C)
    rng = np.random.default_rng(seed)
    for size in (1e-6, 1e-3, 1e-1, 1.0):
        for _ in range(20):
            other = C + size * np.linalg.norm(C) * rng.standard_normal(order)
            assert objective(other) <= best * (1 + 1e-9)


@pytest.mark.parametrize("kind", [SharpCET, Legendre])
@pytest.mark.parametrize("delay", [5, 50, 200])
def test_no_other_speed_is_sharper(kind, delay):
    """A fine scan of the one remaining scalar finds nothing better than the search did."""
    from cet_rl.traces.cascade import cascade_transition
    from cet_rl.traces.legendre import legendre_transition
    from cet_rl.traces.sharp import sharpest_readout

    trace = kind(10, delay)
    dynamics, speed = (cascade_transition, trace.rate) if kind is SharpCET else (legendre_transition, trace.window)
    best = sharpest_readout(*dynamics(10, speed), delay)[1]
    for factor in np.geomspace(0.4, 2.5, 400):
        assert sharpest_readout(*dynamics(10, speed * factor), delay)[1] <= best * (1 + 1e-5)


@pytest.mark.parametrize(
    ("trace", "tolerance"),
    [
        (CET(10, 40, "peak"), 1e-5),
        (CET(10, 800, "peak"), 1e-4),
        (SharpCET(10, 10), 1e-2),
        (SharpCET(10, 50), 1e-2),
        (SharpCET(10, 640), 1e-2),
        (Legendre(10, 10), 1e-3),
        (Legendre(10, 50), 1e-5),
        (Legendre(10, 640), 1e-4),
    ],
    ids=repr,
)
def test_float32_stays_close_over_100_000_steps(trace, tolerance):
    """Largest error of the output, relative to its root mean square, driven by noise with a mean."""
    transition = trace.transition()
    steps = 100_000
    inputs = np.random.default_rng(0).standard_normal(steps) + 0.5
    exact, single = np.zeros(trace.states), np.zeros(trace.states, np.float32)
    M32, K32, C32 = (c.astype(np.float32) for c in (transition.M, transition.K, transition.C))
    errors, outputs = np.empty(steps), np.empty(steps)
    for t, h in enumerate(inputs):
        exact = transition.M @ exact + transition.K * h
        single = M32 @ single + K32 * np.float32(h)
        outputs[t] = transition.C @ exact
        errors[t] = abs(outputs[t] - C32 @ single)
    assert errors.max() <= tolerance * np.sqrt((outputs**2).mean())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CET(1, 10), "order of at least 2"),
        (lambda: CET(5, 0), "at least 1 whole step"),
        (lambda: CET(5, 1.5), "whole number"),
        (lambda: CET(5.5, 10), "whole number"),
        (lambda: CET(5, float("inf")), "whole number"),
        (lambda: CET(5, 10, "sum"), "'area' or 'peak'"),
        (lambda: SharpCET(1, 10), "SharpCET needs an order"),
        (lambda: Legendre(4, -1), "Legendre needs a delay"),
        (lambda: ET(1.0), "between 0 and 1"),
        (lambda: ET(0.0), "between 0 and 1"),
        (lambda: ET(float("nan")), "between 0 and 1"),
        (lambda: LTPLTD(10, 1.0), "above 1"),
        (lambda: PerfectMemory(-1), "at least 0 whole steps"),
        (lambda: CET(5, 10).kernel(0), "at least 1"),
    ],
)
def test_bad_traces_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_official_discretisation_drives_the_first_stage_only():
    """What avecplezir/CET does; for four stages at a rate of 1.8 a step its input vector is [.834, 0, 0, 0]."""
    trace = CET(4, 5, "area", "official")  # rate 3/5
    transition = trace.transition()
    np.testing.assert_allclose(transition.K, [1 - np.exp(-0.6), 0, 0, 0], rtol=1e-14)
    np.testing.assert_array_equal(transition.M, CET(4, 5).transition().M)
    assert CET(4, 5).transition().K[1] > 0.1
    entering = 1 - np.exp(-1.8)
    assert entering == pytest.approx(0.834, abs=1e-3)


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
    ("choose", "message"),
    [
        (lambda: CET(4, 5, "area", "approximate"), "discretization must be one of exact, official"),
        (lambda: TraceConfig("legendre", options={"discretization": "official"}), "only 'cet' takes one"),
        (
            lambda: TraceConfig("cet", 1, options={"discretization": "official"}),
            "only a cascade of order 2",
        ),
        (lambda: TraceConfig("cet", options={"decay": 0.5}), "order 5: only 'et' takes one"),
        (lambda: TraceConfig("et", options={"decay": 1.5}), "between 0 and 1"),
        (lambda: TraceConfig("ltp-ltd", options={"ratio": "big"}), "ratio .* must be a number, got 'big'"),
        (lambda: TraceConfig("ltp-ltd", options={"ratio": 0.5}), "above 1, got 0.5"),
        (lambda: TraceConfig("perfect", options={"taps": 3}), "taps 3 has no meaning for trace 'perfect'"),
        (lambda: TraceConfig("ltp-ltd", 3), "order 3 has no meaning"),
        (lambda: TraceConfig("cet", 2.5), "order must be a whole number"),
        (lambda: TraceConfig("cet", normalization="sum"), "'area' or 'peak'"),
        (lambda: TraceConfig("cat"), "unknown trace 'cat'"),
        (lambda: TraceConfig("math:Cat"), "math has nothing named 'Cat'"),
        (lambda: TraceConfig("math:pi"), "is no subclass of cet_rl.Trace"),
        (lambda: register_trace("cet", CET), "there is a trace 'cet' already"),
        (lambda: register_trace("a b", CET), "letters, digits"),
        (lambda: register_trace("abstract", Trace), "does not define"),
        (lambda: parse_trace_options(["ratio"]), "takes name=value"),
        (lambda: parse_trace_options(["ratio=2", "ratio=3"]), "ratio twice"),
    ],
)
def test_choices_that_cannot_be_are_refused(choose, message):
    with pytest.raises(ValueError, match=message):
        choose()


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


def test_a_kind_of_ones_own_with_an_option(monkeypatch):
    """Options go by keyword to where the class has them; its docstring is its summary."""
    monkeypatch.setattr("cet_rl.traces.registry.TRACES", dict(TRACES))

    @dataclass(frozen=True)
    class Box(PerfectMemory):
        """Average what happened around the delay. More text."""

        width: int = 1

    register_trace("box", Box)
    assert find_trace("box").summary == "Average what happened around the delay"
    assert TraceConfig("box", options={"width": 3}).build(9) == Box(9, "peak", 3)
    assert TraceConfig("box", options={"width": 3}).label == "box-width3"
