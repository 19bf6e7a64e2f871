"""What an image classification run can be told: checks, names, the paper's rows and tuned defaults."""

import math

import pytest

from cet_rl.cli.train import parse_arguments
from cet_rl.runs.config_files import check_values, load_yaml, tuned_defaults
from cet_rl.runs.folder import default_path
from cet_rl.vision.config import VisionConfig
from cet_rl.vision.datasets import DATASETS
from cet_rl.vision.training import resolve

NAN, INF = float("nan"), float("inf")

REFUSALS = [
    ({"task": "letters"}, ["unknown data set 'letters'", "digits, mnist, cifar10, fashion_mnist, cifar100"]),
    ({"task": "Digits"}, ["unknown data set 'Digits'"]),
    # Salience.
    ({"jitter": 1.5, "delay": 1.0}, ["--jitter must lie in [0, 1], as errors follow their cause, got 1.5"]),
    ({"jitter": NAN, "delay": 1.0}, ["--jitter must lie in [0, 1]"]),
    ({"jitter": 0.5}, ["--jitter needs a delay"]),
    ({"jitter": 0.5, "delay": 20.0}, ["the longest delay is 150 steps, but a batch is only 128 long"]),
    ({"salience": 0.0}, ["--salience must lie in (0, 1], got 0"]),
    ({"salience": 1.01}, ["--salience must lie in (0, 1], got 1.01"]),
    ({"salience": NAN}, ["--salience must lie in (0, 1], got nan"]),
    ({"salience": 0.003}, ["--salience 0.003 leaves no image of a batch of 128"]),
    ({"salience": 0.1, "batch_size": 4}, ["--salience 0.1 leaves no image of a batch of 4"]),
    ({"salience": 0.1, "streams": 2}, ["--salience needs --streams 1"]),
    # Delays and batches.
    ({"delay": 25.6}, ["longest delay is 128 steps", "a batch is only 128 long", "--batch-size", "--streaming"]),
    ({"delay": 6.4, "streams": 4}, ["longest delay is 32 steps", "a batch is only 32 long"]),
    ({"delay": 12.8, "stacked": True}, ["longest delay is 128 steps"]),
    ({"delay": 2.0, "streaming": True, "total_steps": 1, "batch_size": 10}, ["10 steps", "only 10 long"]),
    ({"delay": 200.0, "streaming": True, "total_steps": 7}, ["1,000 steps", "only 896 long", "--total-steps"]),
    ({"delay": 200.0, "streaming": True, "streams": 4, "total_steps": 31}, ["only 992 long"]),
    ({"streams": 3}, ["a batch of 128 images does not divide into 3 streams"]),
    ({"streams": 256}, ["does not divide into 256 streams"]),
    # The soma.
    ({"soma": "trace", "delay": 2.0, "streaming": True}, ["--soma trace", "--streaming does not wait for"]),
    ({"soma": "trace"}, ["--soma trace belongs to a delay"]),
    ({"delay": 2.0, "soma": "cat"}, ["exact", "trace", "'cat'"]),
    # Widths.
    ({"hidden": (32, 0)}, ["--hidden must list widths from 1 to 100,000", "(32, 0)"]),
    ({"hidden": (100_001,)}, ["--hidden must list widths"]),
    ({"channels": (8, 0)}, ["--channels must list widths", "(8, 0)"]),
    ({"model": "cnn", "channels": ()}, ["--channels must list at least one width"]),
    ({"channels": (8, 16)}, ["an MLP has none: leave it out, or add --model cnn"]),
    # Numbers.
    ({"warmup": -0.1}, ["--warmup must lie in [0, 1), got -0.1"]),
    ({"warmup": 1.0}, ["--warmup must lie in [0, 1), got 1"]),
    ({"warmup": NAN}, ["--warmup must lie in [0, 1), got nan"]),
    ({"weight_decay": -1e-3}, ["--weight-decay must be zero or positive, got -0.001"]),
    ({"weight_decay": NAN}, ["--weight-decay must be zero or positive, got nan"]),
    ({"weight_decay": INF}, ["--weight-decay must be zero or positive, got inf"]),
    ({"max_grad_norm": 0.0}, ["--max-grad-norm must be positive, got 0"]),
    ({"max_grad_norm": NAN}, ["--max-grad-norm must be positive, got nan"]),
    ({"max_grad_norm": INF}, ["--max-grad-norm must be positive, got inf"]),
    *[({"lr": lr}, ["--lr must be positive and finite"]) for lr in (0.0, INF)],
    ({"batch_size": 0}, ["--batch-size must be at least 1, got 0"]),
    ({"streams": -1}, ["--streams must be at least 1, got -1"]),
    ({"total_steps": 0}, ["--total-steps must be at least 1, got 0"]),
    ({"total_steps": 10**13}, ["--total-steps is too large"]),
    ({"threads": 0}, ["--threads must be at least 1"]),
    ({"seed": -1}, ["--seed must lie in"]),
    # What all kinds of tasks share.
    ({"delay": "2"}, ["--delay must be a number, got '2'"]),
    ({"batch_size": "128"}, ["--batch-size must be a whole number, got '128'"]),
    ({"order": 2.5}, ["--order must be a whole number or none, got 2.5"]),
    ({"salience": True}, ["--salience must be a number or none, got True"]),
    ({"streaming": "yes"}, ["--streaming must be true or false, got 'yes'"]),
    ({"data_dir": 3}, ["--data-dir must be text or none, got 3"]),
    ({"hidden": 512}, ["--hidden must be a list of whole numbers or none, got 512"]),
    ({"hidden": (512.5,)}, ["--hidden must be a list of whole numbers or none"]),
    ({"delay": 0.3}, ["0.3 s is no whole number of 0.2 s steps", "0.2 s and 0.4 s"]),
    ({"delay": -1.0}, ["delay must be zero or a positive"]),
    ({"step_ms": 0.0}, ["step duration must be a positive"]),
    ({"order": 5}, ["order belongs to a delay"]),
    ({"stacked": True}, ["stacked belongs to a delay"]),
    ({"trace": "perfect"}, ["bridges a delay, and there is none"]),
    ({"delay": 2.0, "trace": "none"}, ["backpropagation without delay"]),
    ({"delay": 2.0, "trace": "cat"}, ["unknown trace 'cat'"]),
    ({"delay": 2.0, "normalization": "sum"}, ["area", "peak", "'sum'"]),
]


@pytest.mark.parametrize(("values", "words"), REFUSALS, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused_in_one_clear_line(values, words):
    with pytest.raises(ValueError, match=r".") as refusal:
        VisionConfig(**{"task": "digits", **values})
    assert "\n" not in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    "values",
    [
        {"salience": 1.0},
        {"salience": 0.004},  # one image of 128
        {"salience": 0.1, "delay": 2.0, "soma": "trace"},
        {"salience": 0.1, "delay": 40.0},  # longer than the batch: errors of salient images all arrive
        {"salience": 0.1, "delay": 40.0, "streaming": True},
        {"delay": 25.4},  # one error of a batch arrives
        {"delay": 25.6, "streaming": True},
        {"delay": 6.2, "streams": 4},
        {"delay": 12.6, "stacked": True},
        {"delay": 200.0, "streaming": True, "total_steps": 8},
        {"streaming": True, "total_steps": 1},
        {"hidden": ()},
        {"channels": ()},  # an MLP has none
        {"model": "cnn", "hidden": (7,), "channels": (3,)},
        {"warmup": 0.999, "weight_decay": 10.0, "max_grad_norm": 1e9},
        {"batch_size": 1},
    ],
    ids=str,
)
def test_what_lies_just_within_is_not(values):
    VisionConfig("digits", **values)


LABELS = [
    ("digits", {}, "none"),
    ("digits", {"delay": 2.0}, "cet5-2s"),
    ("digits", {"delay": 2.0, "order": 1}, "et-2s"),
    ("digits", {"delay": 0.6, "order": 6, "streaming": True}, "cet6-streaming-0.6s"),
    ("digits", {"delay": 4.0, "trace": "legendre", "order": 10, "model": "cnn"}, "legendre10-cnn-4s"),
    ("digits", {"delay": 2.0, "trace": "perfect", "soma": "trace"}, "perfect-soma-2s"),
    ("cifar10", {}, "none"),
    ("cifar10", {"model": "cnn", "delay": 2.0}, "cet5-2s"),
    ("cifar10", {"model": "mlp", "delay": 2.0}, "cet5-mlp-2s"),
    ("mnist", {"delay": 120.0, "stacked": True, "salience": 0.1}, "cet5-salient-120s-stacked"),
    (
        "cifar10",
        {"model": "mlp", "delay": 2.0, "salience": 0.1, "streaming": True, "trace": "et", "decay": 0.9},
        "et0.9-mlp-streaming-salient-2s",
    ),
]


@pytest.mark.parametrize(("task", "values", "label"), LABELS, ids=[label for *_, label in LABELS])
def test_labels(task, values, label):
    config = VisionConfig(task, seed=3, **values)
    assert (config.label, str(default_path(config))) == (label, f"runs/{task}-{label}-3")
    assert resolve(config).label == label


@pytest.mark.parametrize(
    ("task", "values", "network", "widths", "layers"),
    [
        *[(task, {}, "mlp", (512, 512), 3) for task in ("digits", "mnist")],
        ("cifar10", {}, "cnn", (512,), 5),
        ("digits", {"hidden": ()}, "mlp", (), 1),
        ("digits", {"hidden": (4, 3, 2)}, "mlp", (4, 3, 2), 4),
        ("mnist", {"model": "cnn", "channels": (8, 4)}, "cnn", (512,), 4),
        ("cifar10", {"model": "mlp", "hidden": (9,)}, "mlp", (9,), 2),
    ],
)
def test_networks_and_their_layers(task, values, network, widths, layers):
    config = VisionConfig(task, **values)
    assert (config.network, config.widths, config.layers) == (network, widths, layers)
    resolved = resolve(config)
    assert (resolved.model, resolved.hidden, resolve(resolved)) == (network, widths, resolved)


def test_a_resolved_configuration_leaves_nothing_to_choose():
    config = resolve(VisionConfig("digits", delay=2.0))
    assert (config.trace, config.order, config.model, config.hidden) == ("cet", 5, "mlp", (512, 512))
    assert config.device in ("cpu", "cuda")
    assert config.threads >= 1
    assert (resolve(VisionConfig("digits")).trace, resolve(VisionConfig("digits")).order) == ("none", None)
    with pytest.raises(ValueError, match="--device must be one of auto, cpu, cuda, got 'tpu'"):
        resolve(VisionConfig("digits", device="tpu"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("salence: 0.1", r"mine\.yaml: unknown key 'salence'; did you mean salience\?"),
        ("hidden: 64", r"mine\.yaml: hidden must be a list"),
        ("salience: much", r"mine\.yaml: salience must be a number"),
        ("model: rnn", r"mine\.yaml: model must be one of auto, mlp, cnn"),
    ],
)
def test_files_with_something_else_in_them(text, words):
    with pytest.raises(ValueError, match=words):
        check_values(load_yaml(text), "mine.yaml", VisionConfig)


def test_a_file_s_values(tmp_path, elsewhere):
    (tmp_path / "mine.yaml").write_text(
        "task: digits\ndelay: 2\norder: 6\nhidden: [32]\nchannels: []\nsalience: 0.5\nlr: 1e-2\n"
    )
    config = parse_arguments(["--config", "mine.yaml", "--order", "4"]).config
    assert config == VisionConfig(
        "digits", delay=2.0, order=4, hidden=(32,), channels=(), salience=0.5, lr=1e-2, total_steps=1000
    )
    with pytest.raises(ValueError, match=r"mine\.yaml is for task digits, not for mnist"):
        parse_arguments(["mnist", "--config", "mine.yaml"])


def test_tuned_defaults():
    assert tuned_defaults("digits", VisionConfig) == {"total_steps": 1000}
    assert parse_arguments(["digits"]).config == VisionConfig("digits", total_steps=1000)
    assert parse_arguments(["digits", "--total-steps", "9"]).config.total_steps == 9
    for task in set(DATASETS) - {"digits"}:
        assert (tuned_defaults(task, VisionConfig), parse_arguments([task]).config) == ({}, VisionConfig(task))


@pytest.mark.parametrize(("total", "warmup"), [(1000, 0.1), (50, 0.2), (7, 0.5), (20_000, 0.1), (1000, 0.999)])
def test_the_learning_rate_rises_and_falls(total, warmup):
    config = VisionConfig("digits", total_steps=total, warmup=warmup, lr=1.0)
    rates = list(map(config.learning_rate, range(total + 1)))
    rise = int(total * warmup)
    assert rates[:rise] == [pytest.approx((step + 1) / rise, rel=1e-15) for step in range(rise)]
    assert (rates[rise - 1], rates[rise]) == (1.0, 1.0)
    for step in range(rise, total + 1):
        angle = math.pi * (step - rise) / (total - rise)
        assert rates[step] == pytest.approx(0.55 + 0.45 * math.cos(angle), rel=1e-14)
    assert (rates[total], rates[:rise]) == (pytest.approx(0.1, rel=1e-14), sorted(rates[:rise]))
    assert rates[rise:] == sorted(rates[rise:], reverse=True)
    assert all(0 < rate <= 1 for rate in rates)
    quarter = 0.6 * math.pi**2 / (total - rise) ** 2  # how far the last update is from the cosine's end
    assert rates[total - 1] - 0.1 <= quarter


@pytest.mark.parametrize("warmup", [0.0, 1e-9])
def test_no_warm_up(warmup):
    rates = list(map(VisionConfig("digits", total_steps=100, warmup=warmup, lr=0.5).learning_rate, range(100)))
    assert rates[0] == VisionConfig("digits", warmup=0.9, total_steps=1, lr=0.5).learning_rate(0) == 0.5
    assert rates == sorted(rates, reverse=True)
    assert rates[50] == pytest.approx(0.275, rel=1e-14)
