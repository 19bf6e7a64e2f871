"""Traces and errors that travel from batch to batch, against a loop that never forgets."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
import vision_loop
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from vision_loop import Case, arrived, assert_same, cases, cosine, use

from cet_rl import CET, Legendre, PerfectMemory, SharpCET
from cet_rl.traces.registry import TraceConfig
from cet_rl.vision import credit
from cet_rl.vision.conversion import convert, prepare
from cet_rl.vision.layers import jittered, measured, seen_at

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5)

# Few synapses keep states; many synapses, convolutions and delay lines keep the past of their factors.
STATES = Case(n_in=4, n_out=3, trace=CET(5, 6), delay_steps=6)
HISTORY = replace(STATES, n_in=60, n_out=50)
CONVOLUTION = replace(STATES, n_in=2, kernel_size=3, padding=1)
DELAY_LINE = replace(STATES, trace=PerfectMemory(6))
FORMS = pytest.mark.parametrize(
    "case", [STATES, HISTORY, CONVOLUTION, DELAY_LINE], ids=["states", "history", "convolution", "delay line"]
)


@pytest.fixture(autouse=True, scope="module")
def _states_in_small_layers():
    """Layers as small as these would else keep their past."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(credit, "_SMALL_PAST", 0)
        yield


def parts(signal, lengths, streams=1):
    return torch.split(signal, [length * streams for length in lengths])


def in_turn(layer, x, error, lengths):
    """The gradients of each batch, parameters and then x, in one list."""
    streams = layer.rule.streams
    batches = zip(parts(x, lengths, streams), parts(error, lengths, streams), strict=True)
    found = [use(layer, *batch) for batch in batches]
    return [gradient for parameters, down in found for gradient in (*parameters, down)]


def looped(case, x, error, lengths):
    """The same from the loop, for what is passed down from the plain layer."""
    learned = torch.split(case.gradients(x, error, sum(lengths)), lengths)
    passed = parts(case.backpropagate(x, error)[-1], lengths, case.streams)
    batches = zip(learned, passed, strict=True)
    return [gradient for steps, down in batches for gradient in (*case.split(steps.sum(0)), down)]


@given(case=cases(longest=10), lengths=LENGTHS, wide=st.booleans())
def test_batches_are_one_stretch_of_time(case, lengths, wide):
    if wide and case.kernel_size is None:
        case = replace(case, n_in=case.n_in + 30, n_out=case.n_out + 30)
    x, error = case.batch(sum(lengths))
    assert_same(in_turn(case.layer(streaming=True), x, error, lengths), looped(case, x, error, lengths))


@given(
    case=cases(longest=8),
    lengths=LENGTHS,
    jitter=st.sampled_from([0.1, 0.5, 1.0]),
    streaming=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_errors_that_come_early_or_late(case, lengths, jitter, streaming, seed):
    """Each error meets the trace as it is when it arrives, in batches apart and while streaming."""
    if not streaming:
        lengths = [round(case.delay_steps * (1 + jitter)) + lengths[0]]
    steps = sum(lengths)
    draws = np.random.default_rng(seed).uniform(-1, 1, steps * case.streams)
    x, error = case.batch(steps)
    layer = case.layer(streaming=streaming, jitter=jitter)
    assume(layer.traced)
    expected = torch.zeros(())
    for stream in range(case.streams):
        delays = [round(case.delay_steps * (1 + jitter * u)) for u in draws[stream :: case.streams]]
        expected = expected + vision_loop.learn(case, case.images(x, error, stream), range(steps), steps, delays)
    found = []
    batches = zip(*(parts(s, lengths, case.streams) for s in (x, error, torch.from_numpy(draws))), strict=True)
    for images, errors, u in batches:
        with jittered(layer, u), measured(layer):
            found += use(layer, images, errors)[0]
    assert_same(found, [p for due in torch.split(expected, lengths) for p in case.split(due.sum(0))])


@given(case=cases(longest=6, most_streams=1), seed=st.integers(0, 1000))
def test_salient_images_whose_errors_come_early_or_late(case, seed):
    times = [[0, 2, 3, 9], [1, 4, 5]]
    u = [np.random.default_rng(seed).uniform(-1, 1, len(stretch)) for stretch in times]
    x, error = case.batch(7)
    layer = case.layer(streaming=True, jitter=0.6)
    assume(layer.traced)
    delays = [round(case.delay_steps * (1 + 0.6 * each)) for each in np.concatenate(u)]
    clock = [*times[0], *(10 + time for time in times[1])]
    expected = torch.split(vision_loop.learn(case, case.images(x, error), clock, 16, delays), [10, 6])
    batches = zip(torch.split(x, [4, 3]), torch.split(error, [4, 3]), times, u, [10, 6], expected, strict=True)
    for images, errors, shown, draws, steps, due in batches:
        with seen_at(layer, shown, steps), jittered(layer, draws):
            assert_same(use(layer, images, errors)[0], case.split(due.sum(0)))


def test_draws_that_do_not_fit():
    layer = replace(STATES, delay_steps=2).layer(jitter=0.5)
    x, error = STATES.batch(6)
    for draws, message in ((None, "each of 6 images needs a draw"), ([0.1] * 5, "each of 6 images")):
        with pytest.raises(ValueError, match=message), jittered(layer, draws) if draws else nullcontext():
            use(layer, x, error)
    with pytest.raises(ValueError, match=r"within \[-1, 1\]"), jittered(layer, [2.0]):
        pass
    for options, message in (
        ({"jitter": 1.1}, r"jitter must lie in \[0, 1\], as errors follow their cause, got 1.1"),
        ({"jitter": 0.1, "derivative_memory": "trace"}, "jitter does not go with"),
        ({"jitter": 0.1, "record_alignment": True, "streaming": True}, "jitter does not go with"),
    ):
        with pytest.raises(ValueError, match=message):
            STATES.layer(**options)


@FORMS
def test_the_form_that_is_chosen(case):
    layer = case.layer(streaming=True)
    use(layer, *case.batch(3))
    assert (layer.stream.synapses.states is not None) == (case is STATES)
    assert (layer.stream.synapses.past_pre is None) == (case is STATES)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("delay_steps", [0, 5, 40])
@FORMS
def test_how_time_is_cut_into_batches_does_not_matter(case, delay_steps, streams):
    case = replace(case, delay_steps=delay_steps, streams=streams)
    x, error = case.batch(128)
    whole = in_turn(case.layer(streaming=True), x, error, [128])[:2]
    apart = in_turn(case.layer(streaming=True), x, error, [16] * 8)
    assert_same([sum(apart[0::3]), sum(apart[1::3])], whole)
    assert_same(whole, looped(case, x, error, [128])[:2])


@pytest.mark.parametrize("trace", [SharpCET(8, 9), Legendre(8, 9), CET(8, 9, "peak")])
def test_high_orders(trace):
    for case in (STATES, CONVOLUTION):
        case = replace(case, trace=trace, delay_steps=9)
        x, error = case.batch(48)
        found = in_turn(case.layer(streaming=True), x, error, [6] * 8)
        assert_same(found, looped(case, x, error, [6] * 8), 1e-10 * max(1.0, abs(trace.transition().C).max()))


def network(streams=1, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    trace = TraceConfig(options.pop("kind", "cet"))
    return convert(model, trace, delay=1.0, streaming=True, streams=streams, **options)


def learn(model, numbers, streams=1, salient=False):
    """The gradients of batches with these numbers, if salient of 1 to 3 images at times of their own."""
    found = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        images = 1 + number % 3 if salient else 3 * streams
        x = torch.randn(images, 2, 4, 4, generator=generator)
        times = torch.randperm(6, generator=generator)[:images].sort().values
        model.zero_grad()
        with seen_at(model, times, 6) if salient else nullcontext():
            model(x).square().sum().backward()
        found += [parameter.grad for parameter in model.parameters()]
    return found


@pytest.mark.parametrize("kind", ["cet", "perfect"])
@pytest.mark.parametrize(("streams", "salient"), [(1, False), (2, False), (1, True)], ids=str)
@pytest.mark.parametrize("options", [{}, {"record_alignment": True}, {"stacked": True}])
@pytest.mark.parametrize("seen_before", [0, 5])
def test_saved_and_loaded(kind, streams, salient, options, seen_before):
    options = {"kind": kind, "streams": streams, **options}
    whole, first, second = network(**options), network(**options), network(**options)
    expected = learn(whole, range(9), streams, salient)
    found = learn(first, range(seen_before), streams, salient)
    for model in (first, second):
        prepare(model, (2, 4, 4), salient=salient)
    file = BytesIO()
    torch.save(first.state_dict(), file)
    learn(first, range(3), streams, salient)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for model in (deepcopy(second), second):  # a copy goes its own way
        rest = learn(model, range(seen_before, 9), streams, salient)
        assert all(torch.equal(a, b) for a, b in zip(found + rest, expected, strict=True))


def test_preparing_changes_nothing():
    """Neither what is learned, nor random numbers, nor the statistics of a normalisation."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 2))
    one, other = (convert(nn.Sequential(*layers), delay=1.0, streaming=True) for _ in range(2))
    one[3].eval()
    state = torch.get_rng_state()
    prepare(one, (2, 4, 4))
    assert [module.training for module in one] == [True, True, True, False, True, True]
    one[3].train()
    assert torch.equal(torch.get_rng_state(), state)
    prepare(one, (2, 4, 4))  # a second time: nothing more
    prepare(network().double(), (2, 4, 4))
    for _ in range(3):
        results = []
        for model in (one, other):
            torch.manual_seed(1)
            model.zero_grad()
            model(torch.randn(3, 2, 4, 4)).square().sum().backward()
            results.append([*(p.grad for p in model.parameters()), *model.state_dict().values()])
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("needs_down", [False, True])
@FORMS
def test_time_passes_for_a_frozen_layer(case, needs_down):
    x, error = case.batch(12)
    expected = in_turn(case.layer(streaming=True), x, error, [4, 4, 4])
    layer = case.layer(streaming=True)
    in_turn(layer, x[:4], error[:4], [4])
    layer.requires_grad_(False)
    layer(x[4:8].clone().requires_grad_(needs_down)).backward(error[4:8])
    layer.requires_grad_(True)
    assert_same(in_turn(layer, x[8:], error[8:], [4]), expected[6:])


@pytest.mark.parametrize("kind", ["cet", "perfect"])
@pytest.mark.parametrize("options", [{}, {"record_alignment": True}, {"salient": True}, {"jitter": 0.5}], ids=str)
def test_errors_that_are_not_finite_reach_the_gradients_but_no_trace(kind, options):
    """A batch of which one error is not finite counts as one without errors, but for what arrives in it."""
    options = dict(options)
    salient = options.pop("salient", False)

    def step(model, number, scale):
        model.zero_grad()
        with (
            seen_at(model, range(6), 6) if salient else nullcontext(),
            jittered(model, [0.3] * 6),
            measured(model),
        ):
            (
                model(torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(number))) * scale
            ).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    model, other = network(kind=kind, **options), network(kind=kind, **options)
    scale = torch.ones(6, 2)
    scale[3] = torch.nan
    for number, factor in enumerate([1.0, scale, 1.0, torch.inf, 1.0, 1.0]):
        broken = torch.is_tensor(factor) or factor == torch.inf
        found, expected = step(model, number, factor), step(other, number, 0.0 if broken else 1.0)
        if broken:
            assert not any(gradient.isfinite().any() for gradient in found)
        else:
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert_same([*model.state_dict().values()], [*other.state_dict().values()], 0)


def test_numbers_that_are_not_finite_are_named():
    """They would stay in the traces for ever; the derivative of tanh is not finite where its input is not."""
    tanh = replace(STATES, activation="tanh", error_at="activation", streams=2).layer(streaming=True)
    with pytest.raises(FloatingPointError, match=r"the input of layer 'TracedLinear' .* at step 2 of this batch"):
        tanh(torch.full((6, 4), torch.nan).double().where(torch.arange(6)[:, None] == 5, torch.zeros(1)))
    with torch.no_grad():
        tanh.weight[1] = torch.nan
    with pytest.raises(FloatingPointError, match=r"the derivative of layer 'TracedLinear' .* at step 0"):
        tanh(STATES.batch(6)[0])


@FORMS
def test_float32_is_close_to_float64(case):
    x, error = case.batch(40)
    expected = in_turn(case.layer(streaming=True), x, error, [8] * 5)
    assert_same(in_turn(case.layer(streaming=True).float(), x.float(), error.float(), [8] * 5), expected, 1e-4)


def test_huge_numbers_are_finite():
    STATES.layer(streaming=True).float()(torch.full((8, 4), 3e38)).backward(torch.zeros(8, 3))


@FORMS
def test_an_empty_batch_is_refused(case):
    layer, (x, _) = case.layer(streaming=True), case.batch(1)
    with pytest.raises(ValueError, match=f"layer '{type(layer).__name__}' is streaming, and got a batch without"):
        layer(x[:0])


def test_a_compiled_model_learns_the_same():
    """Compiled code calls the layers as they are."""
    expected = learn(network(), range(3))
    found = learn(torch.compile(network(), backend="eager"), range(3))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@FORMS
def test_time_does_not_run_backwards(case):
    x, error = case.batch(4)
    layer = case.layer(streaming=True)
    first, second = layer(x), layer(x)
    first.backward(error, retain_graph=True)
    second.backward(error)
    for late in (layer(x) + layer(x), first):
        with pytest.raises(RuntimeError, match="its time would run backwards"):
            late.backward(error)


@given(case=cases(longest=8), length=st.integers(1, 6), batches=st.integers(1, 4))
def test_alignment_is_the_cosine_with_what_arrived(case, length, batches):
    assume(case.trace is not None or case.delay_steps)
    total = length * batches
    x, error = case.batch(total)
    layer = case.layer(streaming=True, record_alignment=True)
    each = [case.images(x, error, stream) for stream in range(case.streams)]
    for batch in range(batches):
        first, last = batch * length, (batch + 1) * length
        rows = slice(first * case.streams, last * case.streams)
        with measured(layer):
            (weight, *_), _ = use(layer, x[rows], error[rows])
        truth = sum(arrived(case, images, range(total), first, last) for images in each)
        assert layer.alignment == pytest.approx(cosine(weight, truth), abs=1e-9, nan_ok=True)


@FORMS
def test_alignment_needs_a_record(case):
    layer = case.layer(streaming=True)
    for number in range(4):
        with measured(layer):
            use(layer, *case.batch(4, number))
    assert layer.alignment != layer.alignment


@pytest.mark.parametrize("images", [1, 5])
@FORMS
def test_batches_that_do_not_divide_into_streams_are_refused_before_any_work(case, images):
    layer = replace(case, streams=2).layer(streaming=True)
    with pytest.raises(ValueError, match=f"a batch of {images} images does not divide into 2 streams"):
        layer(case.batch(images)[0])
