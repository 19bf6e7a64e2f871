"""Every executor against the definition, in float64, over random shapes, delays, chunkings and episode ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cet_rl import CET, ET, LTPLTD, FiniteKernel, Legendre, Optimal, PerfectMemory, SharpCET, Trace
from cet_rl.credit import Synapses
from cet_rl.credit.geometry import Dense


@dataclass(frozen=True)
class Echo(Trace):
    """A trace of one's own: a decay, heard again some steps later."""

    delay_steps: int

    def transition(self):
        states = self.delay_steps + 2
        M = np.eye(states, k=-1)
        M[0, 0] = 0.7
        return M, np.eye(states)[0], np.eye(states)[0] - 2 * np.eye(states)[-1]


NORMALIZATIONS = st.sampled_from(["area", "peak"])
ORDERS = st.integers(2, 6)
DELAYS = st.integers(1, 12)
TRACES = st.one_of(
    st.none(),
    st.builds(CET, ORDERS, DELAYS, NORMALIZATIONS),
    st.builds(SharpCET, ORDERS, DELAYS, NORMALIZATIONS),
    st.builds(Legendre, ORDERS, DELAYS, NORMALIZATIONS),
    st.builds(ET, st.floats(0.05, 0.95), NORMALIZATIONS),
    st.builds(LTPLTD, DELAYS, st.floats(1.5, 4), NORMALIZATIONS),
    st.builds(PerfectMemory, st.integers(0, 12)),
    st.builds(Optimal, st.integers(1, 6), DELAYS, NORMALIZATIONS, st.sampled_from([0.0, 0.2])),
    st.builds(Echo, DELAYS),
    st.builds(FiniteKernel, st.lists(st.floats(0.1, 1) | st.floats(-1, -0.1), min_size=1, max_size=30)),
    st.builds(FiniteKernel, st.just([0.0] * 70 + [1.0, 0.5, 2.0])),
)


@st.composite
def problems(draw):
    """A layer and several chunks of signals for it."""
    return {
        "n_in": draw(st.integers(1, 4)),
        "n_out": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "num_envs": draw(st.integers(1, 3)),
        "trace": draw(TRACES),
        "delay_steps": draw(st.integers(0, 15)),
        "chunks": draw(st.lists(st.integers(1, 20), min_size=1, max_size=5)),
        "decay": draw(st.sampled_from([0.0, 0.5, 0.94])),
        "seed": draw(st.integers(0, 2**31)),
    }


def signals(problem, steps, generator):
    """Random activity with ReLU derivatives, episode starts, and steps that are no transition."""
    envs, n_in, n_out = problem["num_envs"], problem["n_in"], problem["n_out"]

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    valid = (torch.rand(steps, envs, generator=generator) > 0.1).double()
    derivative = (normal(steps, envs, n_out) > 0).double() * valid[..., None]
    error = normal(steps, envs, n_out) * valid[..., None]
    start = (torch.rand(steps, envs, generator=generator) < 0.15).double()
    return normal(steps, envs, n_in), derivative, error, normal(steps, envs) * valid, start


def shape(problem):
    return Dense(problem["n_in"], problem["n_out"], problem["bias"])


def layer(problem, executor, decay=None, supervised=False):
    return Synapses(
        geometry=shape(problem),
        trace=problem["trace"],
        supervised=supervised,
        delay_steps=problem["delay_steps"],
        gamma_lam=problem["decay"] if decay is None else decay,
        num_envs=problem["num_envs"],
        rollout=problem["chunks"][0],
        executor=executor,
        dtype=torch.float64,
    )


def updates(problem, executor, decay=None):
    generator = torch.Generator().manual_seed(problem["seed"])
    synapses = layer(problem, executor, decay)
    return [synapses(*signals(problem, steps, generator)) for steps in problem["chunks"]], synapses


def assert_same(found, expected):
    for chunk, (a, b) in enumerate(zip(found, expected, strict=True)):
        scale = max(1.0, b.abs().max().item())
        assert torch.isfinite(a).all()
        assert (a - b).abs().max().item() <= 1e-10 * scale, f"chunk {chunk}"


@pytest.mark.parametrize("executor", ["auto", "chunk", "fused", "history"])
@given(problem=problems())
def test_executor_equals_the_definition(executor, problem):
    expected, reference = updates(problem, "step")
    found, synapses = updates(problem, executor)
    assert_same(found, expected)
    if problem["decay"]:  # without one, nothing of e is carried over
        assert_same([synapses.eligibility], [reference.eligibility])
    if synapses.states is not None and reference.states is not None:
        assert_same([synapses.states], [reference.states])


@pytest.mark.parametrize("executor", ["auto", "fused"])
@given(problem=problems())
def test_one_decay_per_weight_equals_the_definition(executor, problem):
    generator = torch.Generator().manual_seed(problem["seed"])
    decay = torch.rand(shape(problem).weight_shape, generator=generator, dtype=torch.float64)
    expected, _ = updates(problem, "step", decay)
    found, _ = updates(problem, executor, decay)
    assert_same(found, expected)


@given(problem=problems(), executor=st.sampled_from(["step", "chunk", "history"]))
def test_chunk_boundaries_do_not_matter(problem, executor):
    """One long chunk gives the update of many short ones."""
    generator = torch.Generator().manual_seed(problem["seed"])
    parts = [signals(problem, steps, generator) for steps in problem["chunks"]]
    apart, together = layer(problem, executor), layer(problem, executor)
    total = sum(apart(*part) for part in parts)
    assert_same([together(*(torch.cat(kind) for kind in zip(*parts, strict=True)))], [total])
    if problem["decay"]:
        assert_same([together.eligibility], [apart.eligibility])


def brute_force(problem, parts):
    """The definition once more, from its formulas and the kernel alone, without any state."""
    pre, derivative, error, td_error, start = (torch.cat(kind) for kind in zip(*parts, strict=True))
    if problem["bias"]:
        pre = torch.cat([pre, torch.ones_like(pre[..., :1])], 2)
    total, envs = td_error.shape
    D = problem["delay_steps"]
    trace = problem["trace"]
    kernel = torch.ones(1, dtype=torch.float64) if trace is None else trace.kernel(total)
    gradient = torch.zeros(problem["n_out"], pre.shape[2], dtype=torch.float64)
    for env in range(envs):
        e = torch.zeros_like(gradient)
        for t in range(D, total):
            c = sum(
                kernel[lag] * torch.outer(derivative[t - lag, env], pre[t - lag, env])
                for lag in range(min(t + 1, len(kernel)))
            )
            e = problem["decay"] * (1 - start[t - D, env]) * e + error[t - D, env][:, None] * c
            gradient += td_error[t - D, env] * e
    return gradient


@given(problem=problems())
def test_the_definition_equals_its_formula(problem):
    generator = torch.Generator().manual_seed(problem["seed"])
    parts = [signals(problem, steps, generator) for steps in problem["chunks"]]
    synapses = layer(problem, "step")
    assert_same([sum(synapses(*part) for part in parts)], [brute_force(problem, parts)])


@pytest.mark.parametrize("executor", ["auto", "step", "chunk", "fused", "history"])
@given(problem=problems())
def test_supervised_synapses_have_errors_that_count_as_they_are(executor, problem):
    generator = torch.Generator().manual_seed(problem["seed"])
    modulated, supervised = layer(problem, "step"), layer(problem, executor, supervised=True)
    for steps in problem["chunks"]:
        pre, derivative, error, td_error, _ = signals(problem, steps, generator)
        one = torch.ones_like(td_error)
        expected = modulated(pre, derivative, error, one, torch.zeros_like(one))
        assert_same([supervised(pre, derivative, error)], [expected])


@pytest.mark.parametrize("executor", ["chunk", "history"])
@given(problem=problems())
def test_a_bias_apart_is_the_same(executor, problem):
    generator = torch.Generator().manual_seed(problem["seed"])
    together, apart = layer(problem, executor), layer(problem, executor)
    for steps in problem["chunks"]:
        part = signals(problem, steps, generator)
        expected = together(*part)
        weight, bias = apart.advance(*part)
        assert weight.shape == (problem["n_out"], problem["n_in"])
        assert (bias is None) != problem["bias"]
        assert_same([shape(problem).join(weight, bias)], [expected])


@given(problem=problems())
def test_saved_state_continues_exactly(problem):
    generator = torch.Generator().manual_seed(problem["seed"])
    parts = [signals(problem, steps, generator) for steps in problem["chunks"] * 2]
    whole = layer(problem, "auto")
    expected = [whole(*part) for part in parts]
    first, second = layer(problem, "auto"), layer(problem, "auto")
    half = len(problem["chunks"])
    found = [first(*part) for part in parts[:half]]
    second.load_state_dict(first.state_dict())
    found += [second(*part) for part in parts[half:]]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@given(problem=problems())
def test_perfect_memory_is_the_undelayed_update_shifted(problem):
    """The update after D + T steps with perfect memory is the one after T steps without a delay."""
    D = problem["delay_steps"]
    generator = torch.Generator().manual_seed(problem["seed"])
    parts = [signals(problem, steps, generator) for steps in problem["chunks"]]
    undelayed = layer({**problem, "trace": None, "delay_steps": 0}, "auto")
    expected = sum(undelayed(*part) for part in parts)
    delayed = layer({**problem, "trace": PerfectMemory(D)}, "auto")
    found = sum(delayed(*part) for part in parts)
    if D:
        silent = [torch.zeros_like(signal) for signal in signals(problem, D, generator)]
        found = found + delayed(*silent)
    assert_same([found], [expected])
    if problem["decay"]:
        assert_same([delayed.eligibility], [undelayed.eligibility])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay_steps": -1}, "negative"),
        ({"gamma_lam": 1.0}, r"\[0, 1\)"),
        ({"gamma_lam": float("nan")}, r"\[0, 1\)"),
        ({"num_envs": 0}, "num_envs"),
        ({"executor": "magic"}, "magic"),
        ({"gamma_lam": torch.full((2, 3), 0.5)}, "shape"),
        ({"gamma_lam": torch.full((3, 2), 0.5), "executor": "chunk"}, "closed form"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Synapses(2, 3, **options)


def test_mismatched_signals_are_named():
    synapses = Synapses(2, 3)
    ones = torch.ones
    with pytest.raises(ValueError, match="error has shape"):
        synapses(ones(4, 1, 2), ones(4, 1, 3), ones(5, 1, 3), ones(4, 1), ones(4, 1))
    with pytest.raises(ValueError, match=r"expected pre of shape \(T, 1, 2\)"):
        synapses(ones(4, 1, 5), ones(4, 1, 3), ones(4, 1, 3), ones(4, 1), ones(4, 1))
    with pytest.raises(ValueError, match=r"computes in torch\.float32"):
        synapses(ones(4, 1, 2), ones(4, 1, 3), ones(4, 1, 3).double(), ones(4, 1), ones(4, 1))
    with pytest.raises(ValueError, match="not supervised: they take a td_error"):
        synapses(ones(4, 1, 2), ones(4, 1, 3), ones(4, 1, 3))
    with pytest.raises(ValueError, match="come together or not at all"):
        synapses(ones(4, 1, 2), ones(4, 1, 3), ones(4, 1, 3), ones(4, 1))
    with pytest.raises(ValueError, match="are supervised: they take no td_error"):
        Synapses(2, 3, supervised=True)(ones(4, 1, 2), ones(4, 1, 3), ones(4, 1, 3), ones(4, 1), ones(4, 1))


def test_the_delay_is_the_trace_s_unless_said_otherwise():
    assert Synapses(2, 3, CET(5, 40)).delay_steps == 40
    assert Synapses(2, 3, CET(5, 40), delay_steps=20).delay_steps == 20
    assert Synapses(2, 3, ET(0.9)).delay_steps == Synapses(2, 3).delay_steps == 0


@pytest.mark.cuda
@pytest.mark.parametrize("executor", ["auto", "step", "chunk", "history"])
@given(problem=problems())
def test_cuda_equals_cpu(executor, problem):
    expected, _ = updates(problem, "step")
    generator = torch.Generator().manual_seed(problem["seed"])
    synapses = layer(problem, executor).cuda()
    found = [
        synapses(*(signal.cuda() for signal in signals(problem, steps, generator))).cpu()
        for steps in problem["chunks"]
    ]
    assert_same(found, expected)


@pytest.mark.parametrize("per_weight", [False, True])
def test_fused_gives_the_same_numbers_on_any_number_of_threads(per_weight):
    generator = torch.Generator().manual_seed(0)
    gamma_lam = torch.rand(7, 5, generator=generator) if per_weight else 0.9
    signals = [
        torch.randn(11, 3, 5, generator=generator),
        torch.rand(11, 3, 7, generator=generator),
        torch.randn(11, 3, 7, generator=generator),
        torch.randn(11, 3, generator=generator),
        (torch.rand(11, 3, generator=generator) < 0.1).float(),
    ]
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        layer = Synapses(5, 7, CET(4, 6), gamma_lam=gamma_lam, num_envs=3, executor="fused")
        gradients = [layer(*signals) for _ in range(2)]
        found.append([*gradients, layer.states, layer.eligibility])
    torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
