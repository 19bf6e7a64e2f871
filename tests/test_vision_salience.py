"""Images at times of their own in a long stretch, against a loop over all of its steps."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from vision_loop import Case, arrived, assert_same, cases, cosine, learn, remember, use

from cet_rl import CET, PerfectMemory
from cet_rl.vision.layers import measured, seen_at

DENSE = Case(n_in=3, n_out=4, trace=CET(3, 7), delay_steps=7)
CONVOLUTION = Case(n_in=2, n_out=3, kernel_size=3, padding=1, trace=CET(3, 7), delay_steps=7)
BOTH = pytest.mark.parametrize("case", [DENSE, CONVOLUTION], ids=["dense", "convolution"])
ALONE = cases(longest=20, most_streams=1)


@st.composite
def stretches(draw, most=1):
    """(times of the images shown, length) of each of up to `most` stretches of time."""
    found = []
    for _ in range(draw(st.integers(1, most))):
        steps = draw(st.integers(1, 15))
        found.append((sorted(draw(st.sets(st.integers(0, steps - 1), min_size=1, max_size=6))), steps))
    return found


def show(layer, x, error, times, steps):
    """The gradients of one stretch: of parameters, and of x."""
    with seen_at(layer, times, steps):
        return use(layer, x, error)


def salient_images(case, shown):
    """x and ∂L/∂y of all stretches, as lists, and times on one clock."""
    batches = [case.batch(len(times), number) for number, (times, _) in enumerate(shown)]
    ends = torch.tensor([steps for _, steps in shown]).cumsum(0).tolist()
    clock = [time + end - steps for (times, steps), end in zip(shown, ends, strict=True) for time in times]
    return batches, clock, ends


def all_arrived(case, x, error, times, remembered=None):
    """Weight and bias gradients of the loop, run on until the last error has arrived."""
    images, total = case.images(x, error, remembered=remembered), times[-1] + case.delay_steps + 1
    return case.split(learn(case, images, times, total).sum(0))


@given(case=ALONE, shown=stretches())
def test_every_error_of_a_stretch_arrives(case, shown):
    [(times, steps)] = shown
    layer = case.layer()
    for number in range(2):  # the second stretch knows nothing of the first
        x, error = case.batch(len(times), number)
        parameters, down = show(layer, x, error, times, steps)
        assert_same(parameters, all_arrived(case, x, error, times))
        assert_same([down], [case.backpropagate(x, error)[-1]])


@given(case=ALONE, shown=stretches())
def test_derivatives_remembered_through_the_trace(case, shown):
    [(times, steps)] = shown
    assume(case.trace is not None)
    x, error = case.batch(len(times))
    area, delay = replace(case.trace, normalization="area"), case.delay_steps
    late = remember(area, times, case.derivative(x), times[-1] + delay + 1)
    remembered = torch.stack([late[time + delay] for time in times])
    parameters, down = show(case.layer(derivative_memory="trace"), x, error, times, steps)
    assert_same(parameters, all_arrived(case, x, error, times, remembered))
    assert_same([down], [replace(case, activation="identity").backpropagate(x, error * remembered)[-1]])


@given(case=ALONE, shown=stretches(most=6))
def test_stretches_follow_each_other_while_streaming(case, shown):
    batches, clock, ends = salient_images(case, shown)
    x, error = (torch.cat(signals) for signals in zip(*batches, strict=True))
    expected = torch.tensor_split(learn(case, case.images(x, error), clock, ends[-1]), ends[:-1])
    layer = case.layer(streaming=True)
    for (x, error), (times, steps), due in zip(batches, shown, expected, strict=True):
        parameters, down = show(layer, x, error, times, steps)
        assert_same(parameters, case.split(due.sum(0)))
        assert_same([down], [case.backpropagate(x, error)[-1]])


@given(case=ALONE, shown=stretches(most=5))
def test_alignment_is_the_cosine_with_what_arrived(case, shown):
    assume(case.trace is not None or case.delay_steps)
    batches, clock, ends = salient_images(case, shown)
    images = case.images(*(torch.cat(signals) for signals in zip(*batches, strict=True)))
    layer, apart = case.layer(streaming=True), case.layer()
    first = 0
    for (x, error), (times, steps), last in zip(batches, shown, ends, strict=True):
        with measured(layer), measured(apart):
            (weight, *_), _ = show(layer, x, error, times, steps)
            (of_stretch, *_), _ = show(apart, x, error, times, steps)
        truth = arrived(case, images, clock, first, last)
        assert layer.alignment == pytest.approx(cosine(weight, truth), abs=1e-9, nan_ok=True)
        truth = arrived(case, case.images(x, error), times, 0, steps + case.delay_steps)
        assert apart.alignment == pytest.approx(cosine(of_stretch, truth), abs=1e-9, nan_ok=True)
        first = last


@pytest.mark.parametrize("recalled", [0, 3, 7, 8, 12])
@pytest.mark.parametrize("steps", [1, 3, 10])
@BOTH
def test_what_still_matters_is_kept(case, recalled, steps):
    """A delay line tells of the last step that it reaches back to, whether errors come sooner or later."""
    case = replace(case, trace=PerfectMemory(recalled))
    x, error = case.batch(30)
    each = torch.split(learn(case, case.images(x, error), range(30), 30), steps)
    layer = case.layer(streaming=True)
    for some, errors, due in zip(torch.split(x, steps), torch.split(error, steps), each, strict=True):
        assert_same(show(layer, some, errors, range(steps), steps)[0], case.split(due.sum(0)))


def test_what_no_longer_matters_is_forgotten():
    layer = replace(DENSE, trace=PerfectMemory(7)).layer(streaming=True)
    for number in range(5):
        show(layer, *DENSE.batch(2, number), [0, 9], 10)
        assert layer.salient.times.tolist() == [-1]
    show(layer, *DENSE.batch(2), [0, 1], 100)
    assert not len(layer.salient.times)


@BOTH
def test_a_stretch_without_a_salient_image(case):
    """Time passes, and earlier errors arrive."""
    x, error = case.batch(3)
    layer = case.layer(streaming=True)
    found = [show(layer, x, error, [0, 2, 4], 5)[0]]
    found += [show(layer, x[:0], error[:0], [], 4)[0] for _ in range(2)]
    expected = torch.split(learn(case, case.images(x, error), [0, 2, 4], 13), [5, 4, 4])
    for a, b in zip(found, expected, strict=True):
        assert_same(a, case.split(b.sum(0)))
    assert found[1][0].any()


def test_the_forward_pass_says_when():
    """The backward pass may come after the block."""
    x, error = DENSE.batch(3)
    expected = show(DENSE.layer(), x, error, [1, 5, 6], 9)[0]
    layer = DENSE.layer()
    with seen_at(layer, [1, 5, 6], 9):
        y = layer(x)
    assert layer.times is None
    y.backward(error)
    assert_same([layer.weight.grad, layer.bias.grad], expected)


@pytest.mark.parametrize("timed", [False, True])
def test_a_streaming_layer_does_not_change_how_images_have_their_times(timed):
    layer, (x, error) = DENSE.layer(streaming=True), DENSE.batch(3)
    for way in (not timed, timed, not timed):  # the first pass brings no errors, and so does not count
        with seen_at(layer, [1, 5, 6], 9) if way else nullcontext():
            y = layer(x)
        if way is timed:
            y.backward(error)
    with pytest.raises(ValueError, match="at times of their own"):
        y.backward(error)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        *[(times, "must be one increasing row") for times in ([0, 2, 2], [3, 2, 4], [[0, 1, 2]])],
        ([-1, 2, 4], r"must lie in \[0, 9\)"),
        ([0, 2, 9], r"must lie in \[0, 9\)"),
        ([0, 2], "3 images, but times for 2"),
        ([0, 2, 3, 4], "3 images, but times for 4"),
    ],
)
@BOTH
def test_bad_times_are_named(case, times, message):
    layer = case.layer()
    with pytest.raises(ValueError, match=message), seen_at(layer, times, 9):
        layer(case.batch(3)[0])
    assert layer.times is None
