"""Add and Mimic: baselines, labels, statistics, and streams that can be cut and resumed anywhere."""

import io
import math
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.config import TASKS, RecurrentConfig, register_task, summaries
from cet_rl.recurrent.learner import build_online
from cet_rl.recurrent.tasks import MAX_LAG, Add, Mimic, SequenceTask, build_task, symbol_steps
from cet_rl.runs import archive

DOUBLE = torch.float64


def symbols_and_labels(task, seed, batch, symbols):
    """One step of each symbol: (T, B) bits and (T, B) labels."""
    x, y = task.stream(seed, batch, DOUBLE).take(symbols * symbol_steps(task.alpha))
    every = slice(None, None, symbol_steps(task.alpha))
    return x[every, :, 0], y[every, :, 0]


def same(first, second):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- baselines ---


def test_floors_of_add_are_those_of_the_paper():
    expected = {"no history": 0.6616, "t2 only": 0.6277, "t1 only": 0.5192, "both": 0.4545}
    assert Add((3, 5)).baselines == Add((2, 4)).baselines == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("lags", [(3, 5), (4, 2), (3, 3), (0, 2), (2, 0), (0, 0)])
def test_floors_of_add_are_what_the_optimal_predictor_scores(lags):
    early, late = lags
    x, y = symbols_and_labels(Add(lags, alpha=1), seed=1, batch=100, symbols=1000)
    x, y = x.numpy(), y[max(lags) :].numpy()

    def back(lag):
        return x[max(lags) - lag : len(x) - lag]

    known = {"no history": [], "t2 only": [late], "t1 only": [early], "both": [early, late]}
    for name, seen in known.items():
        code = sum((2**place * back(lag) for place, lag in enumerate([0, *seen])), np.zeros_like(y)).astype(int)
        prediction = np.zeros(8)
        for value in np.unique(code):
            prediction[value] = y[code == value].mean()
        guess = prediction[code]
        loss = -(y * np.log(guess, where=y > 0, out=np.zeros_like(y)))
        loss -= (1 - y) * np.log(1 - guess, where=y < 1, out=np.zeros_like(y))
        assert Add(lags).baselines[name] == pytest.approx(loss.mean(), abs=1.5e-3), name


@pytest.mark.parametrize(("alpha", "seed"), [(0.5, 0), (0.25, 7), (0.5, 1), (0.5, 2)])
def test_floor_of_mimic_is_what_the_mean_label_scores(alpha, seed):
    task = Mimic(seed, alpha)
    label = task.stream(99, 50, DOUBLE).take(1000)[1][100:].flatten(0, 1)
    loss = task.cell.loss(label.mean(0).expand_as(label), label).mean()
    assert task.baselines["mean label"] == pytest.approx(float(loss), rel=0.02)
    assert 0.02 < loss < 0.07  # as with the authors' code


# --- Add ---


@given(early=st.integers(0, 7), late=st.integers(0, 7), hold=st.integers(1, 4), seed=st.integers(0, 2**64))
@settings(max_examples=25)
def test_labels_of_add_follow_from_the_symbols_that_came_before(early, late, hold, seed):
    x, y = Add((early, late), 1 / hold).stream(seed, 3, DOUBLE).take(60)
    checked = 0
    for t in range(60):
        for b in range(3):
            assert x[t, b].tolist() in ([0, 1], [1, 0])
            assert float(y[t, b].sum()) == 1
            # a symbol's steps start at multiples of the hold
            sources = [(t // hold - lag) * hold for lag in (early, late)]
            if min(sources) >= 0:
                first, second = (float(x[source, b, 0]) for source in sources)
                assert float(y[t, b, 0]) == 0.5 + 0.5 * first - 0.25 * second
                checked += 1
    assert checked == 3 * (60 - max(early, late) * hold)


def test_the_first_labels_depend_on_symbols_before_the_first():
    _, y = symbols_and_labels(Add((3, 5)), seed=2, batch=4000, symbols=3)
    for row in y:
        values, counts = row.unique(return_counts=True)
        assert values.tolist() == [0.25, 0.5, 0.75, 1]
        assert torch.all((counts - 1000).abs() < 4 * math.sqrt(750))


def test_symbols_of_add_do_not_depend_on_lags_hold_or_type():
    plain = symbols_and_labels(Add((0, 0), 1), 4, 2, 50)[0]
    for task in (Add((3, 5), 1), Add((MAX_LAG, 2), 1), Add((3, 5), 0.25)):
        assert torch.equal(symbols_and_labels(task, 4, 2, 50)[0], plain)
    exact = Add().stream(4, 2, DOUBLE).take(50)
    for dtype in (torch.bfloat16, torch.float32):
        rounded = Add().stream(4, 2, dtype).take(50)
        assert {each.dtype for each in rounded} == {dtype}
        assert same([each.double() for each in rounded], exact)


# --- both ---


@pytest.mark.parametrize(
    ("alpha", "steps"), [(1, 1), (0.5, 2), (0.25, 4), (0.1, 10), (1 / 3, 3), (0.333333, 3), (1 / 49, 49)]
)
def test_symbols_are_held(alpha, steps):
    assert symbol_steps(alpha) == steps
    for task in (Add((1, 2), alpha), Mimic(0, alpha, inputs=3)):
        x, y = task.stream(3, 16).take(10 * steps)
        for held in (x, y) if isinstance(task, Add) else (x,):
            blocks = held.unflatten(0, (10, steps))
            assert torch.equal(blocks, blocks[:, :1].expand_as(blocks))
            assert all(not torch.equal(*pair) for pair in pairwise(blocks[:, 0]))


def test_symbols_are_fair_and_independent():
    add = symbols_and_labels(Add(), 6, 24, 2000)[0]
    other = symbols_and_labels(Add(), 7, 24, 2000)[0]
    mimic = Mimic(0, inputs=24, alpha=1).stream(6, 2, DOUBLE).take(2000)[0].flatten(1)
    for bits in (add, torch.cat([add, other], dim=1), mimic):
        count = bits.numel()
        assert abs(float(bits.mean()) - 0.5) < 4 * 0.5 / math.sqrt(count)
        signs = 2 * bits - 1
        steps, width = signs.shape
        between = signs.T @ signs / math.sqrt(steps) - math.sqrt(steps) * torch.eye(width, dtype=DOUBLE)
        assert float(between.abs().max()) < 5  # standard normal, about a thousand of them
        assert float(between.square().sum()) / (width * (width - 1)) == pytest.approx(1, abs=0.2)
        for lag in (1, 2, 3, 7):
            assert abs(float((signs[lag:] * signs[:-lag]).mean())) < 4 / math.sqrt(count)


@pytest.mark.parametrize("task", [Add(), Mimic(1, inputs=3, units=4, outputs=5)])
def test_streams_of_other_seeds_differ_and_of_the_same_agree(task):
    first, again, other = (task.stream(seed, 2).take(100) for seed in (8, 8, 9))
    assert [each.shape for each in first] == [(100, 2, task.inputs), (100, 2, task.outputs)]
    assert {(each.dtype, each.device.type) for each in first} == {(torch.float32, "cpu")}
    assert same(first, again)
    assert not any(torch.equal(*pair) for pair in zip(first, other, strict=True))


TINY = (Add((1, 3), 1 / 3), Add((0, 0), 1), Mimic(3), Mimic(2, 0.25, inputs=3, units=5, outputs=2))


@given(
    task=st.sampled_from(TINY),
    batch=st.sampled_from([1, 2, 3, 9, 300]),
    pieces=st.lists(st.integers(1, 9), min_size=2, max_size=8),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
)
def test_a_stream_may_be_cut_anywhere(task, batch, pieces, dtype):
    whole = task.stream(10, batch, dtype).take(sum(pieces))
    stream = task.stream(10, batch, dtype)
    cut = zip(*(stream.take(piece) for piece in pieces), strict=True)
    assert same([torch.cat(each) for each in cut], whole)


@given(
    task=st.sampled_from(TINY), batch=st.sampled_from([1, 3]), before=st.integers(1, 20), after=st.integers(1, 20)
)
def test_a_stream_resumes_from_a_file_bit_for_bit(task, batch, before, after):
    stream, file = task.stream(11, batch), io.BytesIO()
    for tensor in stream.take(before):
        tensor.fill_(math.nan)  # what is taken may be written to
    state = stream.state_dict()
    archive.write(file, {"stream": state}, what="network")
    state["rates"].fill_(math.nan)  # it is a copy
    expected = stream.take(after)
    file.seek(0)
    resumed = task.stream(12, batch)  # the state brings its seed along
    resumed.take(3)
    resumed.load_state_dict(archive.read(file, what="network")["stream"])
    assert same(resumed.take(after), expected)
    assert resumed.state_dict()["seed"] == 11


# --- Mimic ---


@pytest.mark.parametrize("task", [Mimic(4), Mimic(5, 0.25, inputs=3, units=7, outputs=2), Mimic(6, 1)])
def test_labels_of_mimic_are_the_outputs_of_its_network(task):
    x, y = task.stream(13, 3, DOUBLE).take(200)
    weight, weight_out = task.weights
    assert task.cell == RNNCell(task.units, task.inputs, task.outputs, task.alpha, "tanh", "linear")
    rates = torch.zeros(3, task.units, dtype=DOUBLE)
    for now, label in zip(x, y, strict=True):
        rates = task.cell.advance(weight, rates, now).rates
        torch.testing.assert_close(task.cell.read(weight_out, rates), label, rtol=0, atol=1e-12)
    assert same(task.stream(13, 3).take(200), (x.float(), y.float()))


def test_the_network_of_mimic_is_fixed_and_not_that_of_a_learner_of_the_same_seed():
    weight, weight_out = Mimic(15).weights
    again = Mimic(15).weights
    assert torch.equal(weight, again[0])
    assert torch.equal(weight_out, again[1])
    assert not torch.allclose(weight, Mimic(16).weights[0], atol=0.1)
    recurrent = weight[:, :32]
    torch.testing.assert_close(recurrent @ recurrent.T, torch.eye(32, dtype=DOUBLE), rtol=0, atol=1e-12)
    learner = RNNCell(32, 32, 32).initial_weights(torch.Generator().manual_seed(15), DOUBLE)
    assert not torch.allclose(weight, learner[0], atol=0.1)


# --- errors ---


@pytest.mark.parametrize("make", [lambda alpha: Add(alpha=alpha), lambda alpha: Mimic(0, alpha)])
def test_an_alpha_that_cannot_be_is_refused_with_the_nearest(make):
    for alpha in (0.4, 0.7, 0.3, 0.15, 0.333):
        with pytest.raises(ValueError, match="1 over a whole number") as caught:
            make(alpha)
        below, above = (float(word) for word in str(caught.value).rsplit("nearest are ", 1)[1].split(" and "))
        assert below < alpha < above
        assert symbol_steps(below) == symbol_steps(above) + 1  # what is proposed is accepted
    for alpha in (0.0, -0.5, 1.5, 2, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\]"):
            make(alpha)


def test_lags_that_cannot_be_are_refused():
    for lags in ((-1, 3), (3,), (1, 2, 3), (1.0, 2), (True, 3), "35", None, 4, (None, 2)):
        with pytest.raises(ValueError, match="lags must be two whole numbers, 0 or more"):
            Add(lags)
    with pytest.raises(ValueError, match=f"at most {MAX_LAG}"):
        Add((3, MAX_LAG + 1))
    task = Add()
    object.__setattr__(task, "memory", MAX_LAG + 1)  # as a task of one's own may say
    with pytest.raises(ValueError, match="memory must be at most 1000 symbols, got 1001"):
        task.stream(0, 1)
    assert Add([3, 5]) == Add((3, 5)) == Add(np.array([3, 5]))
    assert len({Add([3, 5]), Add()}) == 1


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: Mimic(-1), "seed must be at least 0, got -1"),
        (lambda: Mimic(0, inputs=0), "inputs must be at least 1"),
        (lambda: Mimic(0, units=2.5), "units must be a whole number"),
        (lambda: Add().stream(-3, 1), "seed must be at least 0, got -3"),
        (lambda: Mimic(0).stream(0, 0), "batch must be at least 1, got 0"),
        (lambda: Add().stream(0, 1).take(0), "steps must be at least 1"),
        (lambda: Mimic(0).stream(0, 1).take(2.0), "steps must be a whole number"),
        (lambda: Add().stream(0, 1).take(True), "steps must be a whole number"),
    ],
)
def test_numbers_that_cannot_be_are_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    mimic = Mimic(0)
    state = mimic.stream(5, 2).state_dict()
    for bad, complaint in [
        ({**state, "seed": -1}, "seed must be"),
        ({**state, "steps": 0.5}, "steps must be"),
        (Add().stream(5, 2).state_dict(), r"rates of this stream must have the shape \(2, 32\)"),
        (mimic.stream(5, 3).state_dict(), r"rates of this stream must have the shape \(2, 32\)"),
    ]:
        stream, untouched = mimic.stream(6, 2), mimic.stream(6, 2)
        with pytest.raises(ValueError, match=complaint):
            stream.load_state_dict(bad)
        assert same(stream.take(4), untouched.take(4))


# --- catalogue ---

SETTINGS = SimpleNamespace(lags=[2, 4], alpha=0.25, seed=3)


def test_tasks_of_the_catalogue_are_built_from_a_configuration():
    assert set(TASKS) >= {"add", "late-add", "mimic"}
    assert set(summaries()) == set(TASKS)
    assert all(summaries().values())
    assert build_task("add", SETTINGS) == build_task("late-add", SETTINGS) == Add((2, 4), 0.25)
    assert build_task("mimic", SETTINGS) == Mimic(3, 0.25)
    assert (Add().inputs, Add().outputs, Add().output) == (2, 2, "softmax")
    assert (Mimic(0).inputs, Mimic(0).outputs, Mimic(0).output) == (32, 32, "linear")


@patch.dict(TASKS)
def test_a_task_of_a_third_party():
    register_task("slow_add-variant", "Add, far back", lambda own: Add((9, own.lags[1]), own.alpha))
    assert build_task("slow_add-variant", SETTINGS) == Add((9, 4), 0.25)
    assert summaries()["slow_add-variant"] == "Add, far back"
    with pytest.raises(ValueError, match=r"task add holds symbols for a network of alpha 0\.25: use --alpha 0.25"):
        build_online(RecurrentConfig("add", alpha=0.5), Add(alpha=0.25))
    with pytest.raises(ValueError, match="unknown task 'mimik'; did you mean mimic"):
        build_task("mimik", SETTINGS)
    register_task("unheld", "no alpha", lambda _: type("U", (SequenceTask,), {"baselines": 0, "respond": 0})())
    with pytest.raises(ValueError, match="task unheld must be a SequenceTask with inputs, outputs and alpha"):
        build_task("unheld", SETTINGS)
    right = Add.respond
    for wrong in (lambda *_: right(*_)[:2], lambda *_: [part / 0 for part in right(*_)]):
        stream = type("Wrong", (Add,), {"respond": wrong})().stream(0, 1)
        with pytest.raises(ValueError, match="respond of Wrong must return inputs, labels and rates, all finite"):
            stream.take(3)
    for name in ("add", "mnist"):
        with pytest.raises(ValueError, match=f"there is a task '{name}' already"):
            register_task(name, "another", Add)
    for name in ("Add-v0", "a/b", "", "two words"):
        with pytest.raises(ValueError, match="letters, digits, - and _, and no Gymnasium id"):
            register_task(name, "an environment", Add)
