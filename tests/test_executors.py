"""Every executor against the definition, in float64, over random shapes, delays, chunkings and episode ends."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from late_credit import CONVOLUTIONS, DENSE, dense_eligibility, joined, problems, random_signals
from torch.nn.functional import pad
from vision_loop import assert_same

from cet_rl import CET, ET, Legendre, Optimal, PerfectMemory, SharpCET
from cet_rl.credit import Convolution, Synapses
from cet_rl.credit.fused import _compiled

DENSE_LAYERS = problems(DENSE)
ALL_LAYERS = problems(DENSE | CONVOLUTIONS, 12, decays=(0.0, 0.5, 0.94))


@pytest.mark.parametrize("executor", ["auto", "chunk", "fused", "history", "factored"])
@given(problem=DENSE_LAYERS)
def test_executor_equals_the_definition(executor, problem):
    found, reference = problem.layer(executor), problem.layer("step")
    parts = problem.signals()
    assert_same([found(*part) for part in parts], [reference(*part) for part in parts])
    if problem.decay:  # without one, nothing of e is carried over
        assert_same(*[[dense_eligibility(layer)] for layer in (found, reference)])
    if found.states is not None and reference.states is not None:
        assert_same([found.states], [reference.states])


@pytest.mark.parametrize("executor", ["auto", "fused"])
@given(problem=DENSE_LAYERS)
def test_one_decay_per_weight_equals_the_definition(executor, problem):
    decay, parts = problem.decay_per_weight(), problem.signals()
    found, reference = (problem.layer(name, gamma_lam=decay) for name in (executor, "step"))
    assert_same([found(*part) for part in parts], [reference(*part) for part in parts])


@settings(max_examples=120)
@given(problem=ALL_LAYERS, executor=st.sampled_from(["step", "chunk", "history", "factored"]))
def test_chunk_boundaries_do_not_matter(problem, executor):
    """One long chunk gives the update of many short ones."""
    executor = "auto" if executor == "chunk" and isinstance(problem.geometry, Convolution) else executor
    parts = problem.signals()
    apart, together = problem.layer(executor), problem.layer(executor)
    assert_same([together(*joined(parts))], [sum(apart(*part) for part in parts)])
    if problem.decay:
        assert_same(*[[dense_eligibility(layer)] for layer in (together, apart)])


@given(problem=DENSE_LAYERS)
def test_the_definition_equals_its_formula(problem):
    parts, synapses = problem.signals(), problem.layer("step")

    def outer(post, pre):
        return torch.outer(post, pad(pre, (0, int(problem.geometry.bias)), value=1.0))

    assert_same([sum(synapses(*part) for part in parts)], [problem.updates_by_formula(parts, outer)])


@pytest.mark.parametrize("executor", ["auto", "step", "chunk", "fused", "history", "factored"])
@given(problem=DENSE_LAYERS)
def test_supervised_synapses_have_errors_that_count_as_they_are(executor, problem):
    modulated, supervised = problem.layer("step"), problem.layer(executor, supervised=True)
    for pre, derivative, error, td_error, _ in problem.signals():
        one = torch.ones_like(td_error)
        expected = modulated(pre, derivative, error, one, torch.zeros_like(one))
        before = deepcopy(supervised.state_dict())
        update, commit = supervised.stage(pre, derivative, error)
        pairs = zip(before.values(), supervised.state_dict().values(), strict=True)
        assert problem.decay or all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)
        commit()
        assert_same([problem.geometry.join(*update)], [expected])


@pytest.mark.parametrize(
    "trace",
    [CET(10, 800), SharpCET(10, 800), Legendre(10, 800), Optimal(10, 800), Optimal(10, 800, tolerance=0.1)],
    ids=repr,
)
def test_updates_in_float32_stay_close_over_100_000_steps(trace):
    """Largest error of the last updates, relative to their root mean square."""
    generator, last, steps = torch.Generator().manual_seed(0), [], 1000
    single, double = (
        Synapses(3, 2, trace, gamma_lam=0.9, rollout=steps, executor="chunk", dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    for part in range(100):
        signals = random_signals(generator, steps, 1, (3,), (2,), torch.float32)
        updates = single(*signals).double(), double(*(each.double() for each in signals))
        if part >= 80:
            last.append(torch.stack(updates))
    found, expected = torch.stack(last, dim=1)
    assert 1e-9 < (found - expected).abs().max() / expected.square().mean().sqrt() <= 1e-4


@pytest.mark.parametrize("executor", ["chunk", "history", "factored"])
@given(problem=DENSE_LAYERS)
def test_a_bias_apart_is_the_same(executor, problem):
    shape, together, apart = problem.geometry, problem.layer(executor), problem.layer(executor)
    for part in problem.signals():
        expected = together(*part)
        weight, bias = apart.advance(*part)
        assert weight.shape == (shape.n_out, shape.n_in)
        assert (bias is None) != shape.bias
        assert_same([shape.join(weight, bias)], [expected])


@settings(max_examples=120)
@given(problem=ALL_LAYERS, executor=st.sampled_from(["auto", "step", "history", "factored"]))
def test_what_counts_at_once_is_added_without_a_delay(problem, executor):
    plain, more = problem.layer("step"), problem.layer(executor)
    for part in problem.signals():
        now = torch.randn_like(part[1])
        assert_same([more(*part, now)], [plain(*part) + problem.geometry.outer_sum(now, part[0])])


@settings(max_examples=120)
@given(problem=ALL_LAYERS, executor=st.sampled_from(["auto", "factored"]))
def test_saved_state_continues_exactly(problem, executor):
    parts = problem.signals(repeats=2)
    whole, first, second = (problem.layer(executor) for _ in range(3))
    expected = [whole(*part) for part in parts]
    half = len(parts) // 2
    found = [first(*part) for part in parts[:half]]
    second.load_state_dict(first.state_dict())
    found += [second(*part) for part in parts[half:]]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@given(problem=DENSE_LAYERS)
def test_perfect_memory_is_the_undelayed_update_shifted(problem):
    """The update after D + T steps with perfect memory is the one after T steps without a delay."""
    D, parts = problem.delay_steps, problem.signals()
    undelayed = replace(problem, trace=None, delay_steps=0).layer()
    delayed = replace(problem, trace=PerfectMemory(D)).layer()
    expected = sum(undelayed(*part) for part in parts)
    found = sum(delayed(*part) for part in parts)
    if D:
        found = found + delayed(*(signal.new_zeros(D, *signal.shape[1:]) for signal in parts[0]))
    assert_same([found], [expected])
    if problem.decay:
        assert_same(*[[dense_eligibility(layer)] for layer in (delayed, undelayed)])


SIZES = {"n_in": 2, "n_out": 3}
MAPS = {"geometry": Convolution(2, 3, 3, (4, 5))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SIZES | {"delay_steps": -1}, "must be at least 0"),
        *[(SIZES | {"gamma_lam": value}, r"\[0, 1\)") for value in (1.0, float("nan"))],
        (SIZES | {"num_envs": 0}, "num_envs"),
        (SIZES | {"executor": "magic"}, "magic"),
        (SIZES | {"gamma_lam": torch.full((2, 3), 0.5)}, "shape"),
        (SIZES | {"gamma_lam": torch.full((3, 2), 0.5), "executor": "chunk"}, "closed form"),
        (MAPS | {"executor": "chunk"}, "a convolution has no states for 'chunk'"),
        (MAPS | {"executor": "fused"}, "a convolution has no states for 'fused'"),
        (MAPS | {"gamma_lam": torch.full((3, 18), 0.5)}, r"shape \(3, 2, 3, 3\)"),
        (MAPS | {"gamma_lam": torch.full((3, 2, 3, 3), 0.5), "executor": "history"}, "breaks the closed form"),
        (SIZES | {"gamma_lam": torch.full((3, 2), 0.5), "executor": "factored"}, "closed form of 'factored'"),
        (MAPS | {"n_in": 4}, "either n_in and n_out, or geometry"),
        (MAPS | {"dtype": torch.int64}, "dtype must be a type of real numbers, such as torch.float32"),
        ({}, "either n_in and n_out, or geometry"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Synapses(**options)


X, POST, SCALARS = (4, 1, 2), (4, 1, 3), [(4, 1), (4, 1)]
X_MAP, POST_MAP = (4, 1, 2, 4, 5), (4, 1, 3, 2, 3)


@pytest.mark.parametrize(
    ("options", "shapes", "message"),
    [
        (SIZES, [X, POST, (5, 1, 3), *SCALARS], "error has shape"),
        (SIZES, [(4, 1, 5), POST, POST, *SCALARS], r"expected pre of shape \(T, 1, 2\)"),
        (SIZES, [(0, *shape[1:]) for shape in (X, POST, POST, *SCALARS)], r"expected pre of shape \(T, 1, 2\)"),
        (SIZES, [X, POST, POST], "not supervised: they take a td_error"),
        (SIZES, [X, POST, POST, (4, 1)], "come together or not at all"),
        (SIZES | {"supervised": True}, [X, POST, POST, *SCALARS], "are supervised: they take no td_error"),
        (SIZES | {"dtype": torch.float64}, [X, POST, POST, *SCALARS], r"computes in torch\.float64"),
        (MAPS, [(4, 1, 2, 5, 4), POST_MAP, POST_MAP, *SCALARS], r"pre of shape \(T, 1, 2, 4, 5\) and error of"),
        (MAPS, [X_MAP, POST_MAP, (4, 1, 3, 6), *SCALARS], r"error of shape \(T, 1, 3, 2, 3\)"),
        (MAPS, [X_MAP, POST, POST_MAP, *SCALARS], r"error has shape \(4, 1, 3, 2, 3\), expected \(4, 1, 3\)"),
    ],
)
def test_mismatched_signals_are_named(options, shapes, message):
    with pytest.raises(ValueError, match=message):
        Synapses(**options)(*map(torch.ones, shapes))


@pytest.mark.parametrize("decay", [0.9, torch.full((3, 2), 0.5)])
def test_types_of_16_bits_go_without_the_compiled_loop(decay):
    signals = [torch.ones(shape, dtype=torch.bfloat16) for shape in (X, POST, POST, *SCALARS)]
    found = Synapses(**SIZES, trace=CET(5, 2), gamma_lam=decay, dtype=torch.bfloat16)(*signals).float()
    expected = Synapses(**SIZES, trace=CET(5, 2), gamma_lam=decay)(*(signal.float() for signal in signals))
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)


def test_the_delay_is_the_trace_s_unless_said_otherwise():
    assert Synapses(2, 3, CET(5, 40)).delay_steps == 40
    assert Synapses(2, 3, CET(5, 40), delay_steps=20).delay_steps == 20
    assert Synapses(2, 3, ET(0.9)).delay_steps == Synapses(2, 3).delay_steps == 0


def test_weights_of_sums_are_those_of_the_numbers_that_signals_hold_now():
    """They are kept from layer to layer, whose signals may lie in memory that is used again."""
    generator = torch.Generator().manual_seed(0)
    td_error, start = torch.zeros(9, 2, dtype=torch.float64), torch.zeros(9, 2, dtype=torch.float64)
    options = {"num_envs": 2, "dtype": torch.float64}
    layers, others = (
        [Synapses(3, 4, gamma_lam=decay, executor=executor, **options) for executor in ("step", "history")]
        for decay in (0.9, 0.5)
    )
    for _ in range(3):
        x, derivative, error, *later = random_signals(generator, 9, 2, (3,), (4,), torch.float64)
        for memory, new in zip((td_error, start), later, strict=True):
            memory.copy_(new)
        assert_same(*[[layer(x, derivative, error, td_error, start)] for layer in layers])
    assert_same(*[[layer(x, derivative, error, td_error, start)] for layer in others])


@pytest.mark.cuda
@pytest.mark.parametrize("executor", ["auto", "step", "chunk", "history", "factored"])
@settings(max_examples=120)
@given(problem=ALL_LAYERS)
def test_cuda_equals_cpu(executor, problem):
    executor = "auto" if executor == "chunk" and isinstance(problem.geometry, Convolution) else executor
    parts, reference, synapses = problem.signals(), problem.layer("step"), problem.layer(executor).cuda()
    found = [synapses(*(signal.cuda() for signal in part)).cpu() for part in parts]
    assert_same(found, [reference(*part) for part in parts])


@pytest.mark.parametrize("per_weight", [False, True])
@pytest.mark.parametrize(("n_in", "n_out"), [(5, 7), (70, 60)])
def test_fused_gives_the_numbers_of_the_definition_on_any_number_of_threads(n_in, n_out, per_weight):
    generator = torch.Generator().manual_seed(0)
    gamma_lam = torch.rand(n_out, n_in, generator=generator, dtype=torch.float64) if per_weight else 0.9
    signals, options = random_signals(generator, 11, 3, (n_in,), (n_out,)), {"num_envs": 3, "dtype": torch.float64}
    found = []
    for threads, executor in ((1, "step"), (1, "fused"), (2, "fused"), (3, "fused")):
        torch.set_num_threads(threads)
        _compiled.cache_clear()
        layer = Synapses(n_in, n_out, CET(4, 6), gamma_lam=gamma_lam, executor=executor, **options)
        found.append([*(layer(*signals) for _ in range(2)), layer.states, layer.eligibility])
    torch.set_num_threads(1)
    assert _compiled(layer.constants.coefficients[0], n_in == 5).stats.cache_hits  # its machine code is kept
    assert_same(found[1], found.pop(0))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
