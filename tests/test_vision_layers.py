"""Traced layers within one batch against a loop over images, and used as torch's own layers are."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad
from vision_loop import FUNCTIONS, Case, arrived, assert_same, cases, cosine, remember, use

from cet_rl import CET, ET, LTPLTD, FiniteKernel, Legendre, PerfectMemory, SharpCET
from cet_rl.vision import credit
from cet_rl.vision.layers import TracedConv2d, TracedLinear, measured, seen_at

DENSE = Case(n_in=3, n_out=4, trace=CET(3, 2), delay_steps=2)
CONVOLUTION = Case(n_in=2, n_out=3, kernel_size=3, padding=1, trace=CET(3, 2), delay_steps=2)
BOTH = pytest.mark.parametrize("case", [DENSE, CONVOLUTION], ids=["dense", "convolution"])


def batches(case, extra=1, seed=0):
    """A batch a little longer than the delay."""
    return case.batch(case.delay_steps + extra, seed)


def in_batch(case, x, grad, remembered=None):
    """Weight and bias gradients of the loop, when all is forgotten at the end of the batch."""
    return case.split(case.gradients(x, grad, len(x) // case.streams, remembered).sum(0))


@given(case=cases(), extra=st.integers(1, 7))
def test_gradients_are_those_of_the_loop_over_images(case, extra):
    x, error = batches(case, extra)
    parameters, down = use(case.layer(), x, error)
    assert_same(parameters, in_batch(case, x, error))
    assert_same([down], [case.backpropagate(x, error)[-1]])


@pytest.mark.parametrize(
    "trace", [CET(10, 8), SharpCET(10, 8), Legendre(10, 8), ET.from_delay(8), LTPLTD(8), PerfectMemory(8), None]
)
@BOTH
def test_high_orders_and_long_batches(trace, case):
    case = replace(case, trace=trace, delay_steps=8)
    x, error = case.batch(60)
    assert_same(use(case.layer(), x, error)[0], in_batch(case, x, error), 1e-10 * largest_readout(trace))


def largest_readout(trace):
    """How much a readout may magnify rounding errors of states that are of order one."""
    return 1.0 if trace is None or not trace.states else max(1.0, abs(trace.transition().C).max())


@given(case=cases(most_streams=1), columns=st.integers(1, 9))
def test_units_filtered_in_parts(case, columns):
    x, error = batches(case, 4)
    expected = use(case.layer(), x, error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(credit, "_COLUMNS", columns)
        found = use(case.layer(), x, error)
    assert_same(found[0], expected[0])


def recalled(case, x, error):
    """f' of each image as the trace recalls it when the error arrives, a loop over time."""
    steps, delay, trace = len(x) // case.streams, case.delay_steps, case.trace
    area = None if trace is None else replace(trace, normalization="area")
    derivative = case.derivative(x)
    remembered = torch.empty_like(derivative)
    for stream in range(case.streams):
        late = remember(area, range(steps), derivative[stream :: case.streams], steps + delay)
        remembered[stream :: case.streams] = torch.stack(late[delay:])
    return remembered


@given(case=cases(), extra=st.integers(1, 5))
def test_derivatives_remembered_through_the_trace(case, extra):
    """Without a trace, only the present is known."""
    x, error = batches(case, extra)
    remembered = recalled(case, x, error)
    parameters, down = use(case.layer(derivative_memory="trace"), x, error)
    late = case.trace is not None or case.delay_steps
    assert_same(parameters, in_batch(case, x, error, remembered if late else None))
    expected = replace(case, activation="identity").backpropagate(x, error * remembered)[-1]
    assert_same([down], [expected if late else case.backpropagate(x, error)[-1]])


@given(case=cases(), extra=st.integers(1, 5), matrix=st.booleans())
def test_alignment_is_the_cosine_with_what_is_due(case, extra, matrix):
    assume(case.trace is not None or case.delay_steps)
    x, error = batches(case, extra)
    steps = len(x) // case.streams
    layer = case.layer()
    if matrix:
        layer.use_matrix(len(x))
    with measured(layer):
        parameters, _ = use(layer, x, error)
    each = [case.images(x, error, stream) for stream in range(case.streams)]
    truth = sum(arrived(case, images, range(steps), 0, steps) for images in each).flatten()
    assert layer.alignment == pytest.approx(cosine(parameters[0].flatten(), truth), abs=1e-9, nan_ok=True)
    layer.alignment = 2.0
    use(layer, x, error)
    assert layer.alignment == 2.0  # measured only where asked for


@BOTH
def test_alignment_is_with_the_true_gradient_whatever_the_derivative_memory(case):
    case = replace(case, error_at="activation")
    x, error = batches(case, 6)
    layer = case.layer(derivative_memory="trace")
    with measured(layer):
        (weight, _), _ = use(layer, x, error)
    truth = arrived(case, case.images(x, error), range(len(x)), 0, len(x))
    assert layer.alignment == pytest.approx(cosine(weight, truth))


@BOTH
@pytest.mark.parametrize("activation", list(FUNCTIONS))
def test_derivatives_are_exact(case, activation):
    """Numerically, without a delay, and with one of what is passed down."""
    now = replace(case, trace=None, delay_steps=0, activation=activation)
    x = now.batch(3)[0].requires_grad_()
    layer = now.layer()
    names, values = zip(*layer.named_parameters(), strict=True)
    assert torch.autograd.gradcheck(
        lambda x, *values: functional_call(layer, dict(zip(names, values, strict=True)), (x,)), (x, *values)
    )
    for trace in (None, PerfectMemory(0)):  # nothing but the present: still exact, but by our own code
        assert torch.autograd.gradcheck(replace(now, trace=trace, error_at="activation").layer(), (x,))
    late = replace(case, activation=activation, error_at="activation")
    assert torch.autograd.gradcheck(late.layer(), (late.batch(4)[0].requires_grad_(),))


@given(case=cases(), extra=st.integers(1, 5))
def test_the_matrix_can_be_given(case, extra):
    x, error = batches(case, extra)
    expected = use(case.layer(), x, error)
    layer = case.layer()
    layer.use_matrix(len(x))
    found = use(layer, x, error)
    assert_same([*found[0], found[1]], [*expected[0], expected[1]])


@given(case=cases(), extra=st.integers(1, 4))
def test_memory_formats_do_not_matter(case, extra):
    assume(case.kernel_size is not None)
    x, error = batches(case, extra)
    expected = use(case.layer(), x, error)
    last = torch.channels_last
    for layer in (case.layer(), case.layer().to(memory_format=last)):
        for a in (x, x.contiguous(memory_format=last)):
            for b in (error, error.contiguous(memory_format=last)):
                found = use(layer, a, b)
                assert_same([*found[0], found[1]], [*expected[0], expected[1]])


@BOTH
@pytest.mark.parametrize("activation", ["relu", "identity", "tanh"])
@pytest.mark.parametrize("columns", [1, credit._COLUMNS])
def test_the_errors_that_come_in_stay_as_they_are(case, activation, columns, monkeypatch):
    monkeypatch.setattr(credit, "_COLUMNS", columns)
    case = replace(case, activation=activation, error_at="activation")
    x, error = batches(case, 3)
    before, expected = error.clone(), use(case.layer(), x, error)[0]
    assert torch.equal(error, before)
    layer = case.layer()
    layer(x).backward(error[:1, :1].expand_as(error))  # one number in memory
    other = case.layer()
    other(x).backward(error[:1, :1].expand_as(error).contiguous())
    assert_same([layer.weight.grad], [other.weight.grad])
    assert not torch.equal(expected[0], layer.weight.grad)


@pytest.mark.parametrize("mode", ["batch", "streaming", "salience", "both", "memory"])
@pytest.mark.parametrize("seen_in", [torch.float32, torch.bfloat16])
@BOTH
def test_mixed_precision(case, mode, seen_in):
    """Computed in less, but the gradients are of the parameters' type, and close."""
    steps = 12
    options = {"streaming": mode in ("streaming", "both")}
    options |= {"derivative_memory": "trace" if mode == "memory" else "exact"}
    x, error = (signal.float() for signal in case.batch(steps))
    x = x.to(seen_in)
    results = []
    for mixed in (False, True):
        layer = case.layer(**options).float()
        if mode in ("salience", "both"):
            layer.times = seen_moments(layer, steps)
        leaf = (x if mixed else x.float()).clone().requires_grad_()
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                y = layer(leaf)
            assert y.dtype == (torch.bfloat16 if mixed else torch.float32)
            y.backward(error.to(y.dtype))
        assert ({p.grad.dtype for p in layer.parameters()}, leaf.grad.dtype) == ({torch.float32}, leaf.dtype)
        results.append([*(p.grad for p in layer.parameters()), leaf.grad.float()])
    for exact, rounded in zip(*results, strict=True):
        assert (exact - rounded).norm() <= 0.05 * exact.norm()


def seen_moments(layer, steps):
    """All of a stretch twice as long, every other step."""
    with seen_at(layer, range(0, 2 * steps, 2), 2 * steps):
        return layer.times


@BOTH
def test_float32_is_close_to_float64(case):
    x, error = case.batch(40)
    assert_same(use(case.layer().float(), x.float(), error.float())[0], use(case.layer(), x, error)[0], 1e-4)


@BOTH
def test_used_as_a_plain_layer(case):
    """Frozen, without a graph, or without a delay, it is the layer of torch, whatever the length of a batch."""
    plain = nn.Sequential(case.plain, nn.ReLU())
    x, error = case.batch(1)
    with torch.no_grad():
        assert torch.equal(case.layer()(x), plain(x))
    frozen = case.layer().requires_grad_(False)
    leaf = x.clone().requires_grad_()
    frozen(leaf).backward(error)
    assert torch.equal(leaf.grad, case.backpropagate(x, error)[-1])
    assert frozen.weight.grad is None
    now = replace(case, trace=None, delay_steps=0)
    assert not now.layer().traced
    for found, expected in zip(use(now.layer(), x, error)[0], case.backpropagate(x, error), strict=False):
        assert torch.equal(found, expected)


@BOTH
def test_only_what_is_wanted_gets_a_gradient(case):
    x, error = batches(case, 3)
    layer = case.layer()
    layer.bias.requires_grad_(False)
    layer(x).backward(error)
    assert layer.bias.grad is None
    assert_same([layer.weight.grad], in_batch(case, x, error)[:1])
    layer(x).backward(error)  # and gradients add up
    assert_same([layer.weight.grad], [2 * in_batch(case, x, error)[0]])


@pytest.mark.parametrize("matrix", [False, True])
@BOTH
def test_second_derivatives_are_refused(case, matrix):
    """They would mix late credit with the true gradient."""
    x, error = batches(case, 3)
    layer = case.layer()
    if matrix:
        layer.use_matrix(len(x))
    leaf = x.requires_grad_()
    with pytest.raises(RuntimeError, match=r"differentiated twice \(create_graph=True\)"):
        torch.autograd.grad((layer(leaf) * error).sum(), leaf, create_graph=True)
    parameters = dict(layer.named_parameters())
    credit.CreditRule.kernel.cache_clear()  # as where torch.func is the first to use such a layer
    first = grad(lambda values: (functional_call(layer, values, (x,)) * error).sum())(parameters)
    assert_same(list(first.values()), use(layer, x.detach(), error)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "activation must be one of relu, identity, tanh, sigmoid, got 'gelu'"),
        ({"error_at": "remembered"}, "error_at must be one of preactivation, activation, got 'remembered'"),
        ({"derivative_memory": "none"}, "derivative_memory must be one of exact, trace, got 'none'"),
        ({"activation": "tanh"}, "tanh needs error_at='activation'"),
        ({"activation": "sigmoid", "trace": None}, "sigmoid needs error_at='activation'"),
        ({"derivative_memory": "trace", "streaming": True}, "does not go with streaming"),
        ({"delay_steps": -1}, "delay_steps must be at least 0, got -1"),
        ({"streams": 0}, "streams must be at least 1, got 0"),
    ],
)
@BOTH
def test_bad_options_are_named(case, options, message):
    with pytest.raises(ValueError, match=message):
        case.layer(**options)


@BOTH
def test_bad_batches_are_named(case):
    layer = case.layer()
    with pytest.raises(ValueError, match="credit arrives 2 steps late, but a batch is only 2 steps long"):
        layer(case.batch(2)[0])
    two = replace(case, streams=2)
    with pytest.raises(ValueError, match="a batch of 5 images does not divide into 2 streams"):
        two.layer()(case.batch(5)[0])
    with pytest.raises(ValueError, match="a batch is only 2 steps long"):
        two.layer()(case.batch(4)[0])
    two.layer()(case.batch(6)[0])
    layer = two.layer()
    with seen_at(layer, [0, 2, 3], 9), pytest.raises(ValueError, match="of their own need streams=1"):
        layer(case.batch(3)[0])


@pytest.mark.parametrize("kind", [TracedLinear, TracedConv2d])
def test_the_delay_is_that_of_the_trace_unless_given(kind):
    size = () if kind is TracedLinear else (1,)
    assert kind(2, 3, *size, trace=CET(3, 4)).rule.delay_steps == 4
    assert kind(2, 3, *size, trace=CET(3, 4), delay_steps=1).rule.delay_steps == 1
    assert kind(2, 3, *size, trace=ET(0.5), delay_steps=2).rule.delay_steps == 2
    for trace in (ET(0.5), FiniteKernel([0.0, 1.0])):
        with pytest.raises(ValueError, match=r"has no delay of its own: give delay_steps"):
            kind(2, 3, *size, trace=trace)
    assert kind(2, 3, *size).rule.delay_steps == 0
    assert kind(2, 3, *size, trace=PerfectMemory(0)).traced


def test_one_matrix_is_for_batches_of_its_size_only():
    layer = TracedLinear(3, 4, trace=CET(3, 2))
    layer.use_matrix(8)
    for images, context in ((6, nullcontext()), (8, seen_at(layer, range(8), 8))):
        with context, pytest.raises(ValueError, match="batches must have 8 images"):
            layer(torch.randn(images, 3))
    with pytest.raises(ValueError, match="not for layers with streaming"):
        TracedLinear(3, 4, trace=CET(3, 2), streaming=True).use_matrix(8)


def test_kernels_that_are_not_square_are_named():
    with pytest.raises(ValueError, match="kernel_size must be a whole number"):
        TracedConv2d(3, 4, (3, 5))


def test_times_may_be_a_tensor():
    layer = TracedLinear(3, 4, trace=CET(3, 2))
    with seen_at(layer, torch.arange(5), 5):
        layer(torch.randn(5, 3)).sum().backward()
    for times, steps, words in (([0.5, 1.5], 5, "whole numbers"), ([0, 1], 2.5, "steps must be a whole number")):
        with pytest.raises(ValueError, match=words):
            seen_at(layer, times, steps)
