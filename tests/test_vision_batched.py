"""Runs that learn together as one batch, against the same learners alone."""

import os
import signal
from dataclasses import fields, replace

import pytest
import torch
import yaml
from saved_files import files, parts, rows, summary

from cet_rl.cli import main
from cet_rl.runs.config import Mark, check_batch, marked
from cet_rl.runs.folder import RunFolder
from cet_rl.runs.log import RunLog
from cet_rl.vision.batched import BatchedLearner
from cet_rl.vision.config import VisionConfig
from cet_rl.vision.datasets import ImageData, ImageSet
from cet_rl.vision.learner import ImageLearner
from cet_rl.vision.training import resolve, train, train_batch

SHAPES = {
    "mlp": {"hidden": (16, 12)},
    "cnn": {"model": "cnn", "channels": (3, 4), "hidden": (12,), "batch_size": 32},
}
DIFFERENCES = [
    {"delay": 2.0, "order": 6},
    {"lr": 1e-2, "weight_decay": 0.1, "seed": 3},  # no delay at all
    {"delay": 0.6, "trace": "legendre", "order": 4, "lr": 5e-3, "stacked": True, "max_grad_norm": 0.2},
    {"delay": 1.0, "trace": "et", "decay": 0.7, "normalization": "peak", "seed": 1, "weight_decay": 0.0},
    {"delay": 1.2, "step_ms": 400.0, "order": 3, "discretization": "official", "warmup": 0.5, "lr": 2e-3},
]
SHAPED = pytest.mark.parametrize("shape", SHAPES)


def as_double(data):
    train, test = (ImageSet(part.images.double(), part.labels) for part in (data.train, data.test))
    return ImageData(data.name, train, test, data.classes)


def configs(shape, total=200):
    return [
        resolve(VisionConfig("digits", total_steps=total, device="cpu", **SHAPES[shape], **values))
        for values in DIFFERENCES
    ]


def learners(found, data):
    """In the precision of the data."""
    made = [ImageLearner(config, data) for config in found]
    for learner in made:
        learner.network.to(data.train.images.dtype)
    return made


def alone(found, data, updates):
    """Learners that took so many updates by themselves, and their losses, (updates, C)."""
    made = learners(found, data)
    losses = [torch.stack([learner.advance() for _ in range(updates)]) for learner in made]
    return made, torch.stack(losses, 1)


def advanced(batch, updates):
    """The losses of so many updates, (updates, C); the learners are those of afterwards."""
    losses = torch.stack([batch.advance() for _ in range(updates)])
    batch.write_back()
    return losses


def distance(first, second):
    """Largest difference of anything in the states of networks of two lists of learners."""
    states = [(a.network.state_dict(), b.network.state_dict()) for a, b in zip(first, second, strict=True)]
    assert all(a.keys() == b.keys() for a, b in states)
    return max((a[name].double() - b[name].double()).abs().max().item() for a, b in states for name in a)


@SHAPED
def test_every_run_learns_what_it_learns_alone(digits, shape):
    """In double precision the two ways differ in no more than rounding."""
    data, found = as_double(digits), configs(shape)
    solo, losses = alone(found, data, 200)
    batch = BatchedLearner(learners(found, data))
    together = advanced(batch, 200)
    assert together.shape == losses.shape == (200, 5)
    assert (together - losses).abs().max() < 1e-9
    assert {learner.step for learner in (*batch.learners, *solo, batch)} == {200}
    assert distance(batch.learners, solo) < 1e-9
    assert batch.test() == [pytest.approx(learner.test(), abs=1e-6) for learner in solo]
    assert len({loss for _, loss in batch.test()}) == 5


@SHAPED
def test_in_single_precision(digits, shape):
    """Also of one run by itself."""
    for found in (configs(shape, total=20), configs(shape, total=20)[:1]):
        solo, losses = alone(found, digits, 20)
        batch = BatchedLearner(learners(found, digits))
        assert (advanced(batch, 20) - losses).abs().max() < 1e-5
        # Where a gradient is close to nothing, AdamW turns its rounding into a share of the rate, here 1e-2.
        assert distance(batch.learners, solo) < 3e-5


def test_in_half_precision_they_learn(digits):
    batch = BatchedLearner(learners([replace(c, precision="bf16", lr=1e-2) for c in configs("mlp", 60)], digits))
    losses = torch.stack([batch.advance() for _ in range(60)])
    assert losses.dtype == torch.float32
    assert (losses[-5:].mean(0) < 0.9 * losses[:5].mean(0)).all()
    assert all(value.dtype == torch.float32 for value in batch.parameters.values())


@SHAPED
def test_learning_alone_and_together_in_turns(digits, shape):
    """Alone, together, alone: it makes no difference, also to the optimiser."""
    data, found = as_double(digits), configs(shape, 60)
    solo, _ = alone(found, data, 45)
    turns, _ = alone(found, data, 15)
    batch = BatchedLearner(turns)
    assert batch.step == 15
    batch.advance()
    assert all(learner.step == 15 for learner in turns)
    advanced(batch, 14)
    for learner in turns:
        assert learner.step == 30
        for _ in range(15):
            learner.advance()
    assert distance(turns, solo) < 1e-9


def test_a_learner_that_is_given_back_measures_as_before(digits):
    """Also the one that waits for nothing, which has no alignment to measure."""
    solo, _ = alone(configs("mlp", 60), digits, 2)
    batch = BatchedLearner(learners(configs("mlp", 60), digits))
    batch.advance()
    batch.write_back()
    for member, learner in zip(batch.learners, solo, strict=True):
        member.advance(measure=True)
        assert member.measurements().keys() == learner.measurements().keys()


@SHAPED
def test_testing_changes_nothing(digits, shape):
    batch = BatchedLearner(learners(configs(shape, 60), digits))
    advanced(batch, 10)
    before = {name: value.clone() for name, value in {**batch.parameters, **batch.buffers}.items()}
    found = batch.test()
    assert batch.test() == found
    for name, value in {**batch.parameters, **batch.buffers}.items():
        assert torch.equal(value, before[name])
    assert all(module.training for module in batch._base.modules())
    assert found == [pytest.approx(learner.test(), abs=1e-5) for learner in batch.learners]


def test_runs_at_different_steps_are_refused(digits):
    pair = learners(configs("mlp", 20)[:2], digits)
    pair[0].advance()
    with pytest.raises(ValueError, match="must all be at the same step"):
        BatchedLearner(pair)


@pytest.mark.parametrize(
    "values",
    [{"streaming": True}, {"salience": 0.5}, {"delay": 2.0, "soma": "trace"}, {"delay": 2.0, "jitter": 0.5}],
    ids=str,
)
def test_runs_with_a_past_of_their_own_are_refused(values):
    config = VisionConfig("digits", **values)
    with pytest.raises(ValueError, match=rf"run {config.label}: .*train it alone"):
        check_batch([config])


OTHERWISE = yaml.safe_load("""
{task: mnist, order: 7, trace: perfect, trace_options: [ratio=3], trace_delay: 1.0, delay: 0.6, stacked: true,
step_ms: 100.0, normalization: peak, discretization: official, decay: 0.5, error_at: activation, lr: 0.5,
total_steps: 9, seed: 9, device: cuda, threads: 2, alignment: false, model: cnn, hidden: [9], channels: [9],
batch_size: 64, streams: 2, weight_decay: 0.5, warmup: 0.5, max_grad_norm: 9.0, data_dir: elsewhere,
validation: true, precision: bf16, compile: true}
""")
MAY_DIFFER = marked(VisionConfig, Mark.BATCHABLE)
TOGETHER = {
    "trace": {"order": None},
    "trace_options": {"trace": "ltp-ltd", "order": None},
    "decay": {"trace": "et", "order": None},
    "model": {"hidden": (9,)},
    "channels": {"model": "cnn"},
}


def test_every_field_is_tested():
    names = {item.name for item in fields(VisionConfig)}
    assert set(OTHERWISE) == names - {"streaming", "executors", "salience", "soma", "jitter"}
    assert names > MAY_DIFFER


@pytest.mark.parametrize("name", OTHERWISE)
def test_in_which_fields_runs_may_differ(name):
    first = VisionConfig("digits", delay=2.0, order=6, hidden=(16,))
    other = replace(first, **TOGETHER.get(name, {}), **{name: OTHERWISE[name]})
    if name in MAY_DIFFER:
        check_batch([first, other])
        return
    with pytest.raises(
        ValueError, match=r"runs of one batch must not differ in|cannot be batched with"
    ) as refusal:
        check_batch([first, other])
    assert "\n" not in str(refusal.value)
    assert any(each in str(refusal.value) for each in (name, *TOGETHER.get(name, {})))


# Run folders.

RUNS = [replace(config, device="auto", threads=None) for config in configs("mlp", 20)[:3]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of three runs that were trained together."""
    root = tmp_path_factory.mktemp("runs")
    return train_batch(RUNS, [root / str(number) for number in range(3)], quiet=True)


def test_batched_runs_leave_run_folders(folders, tmp_path, capsys):
    for number, (config, folder) in enumerate(zip(RUNS, folders, strict=True)):
        solo = tmp_path / str(number)
        assert train(config, solo, quiet=True) == "finished"
        assert (folder / "config.yaml").read_text() == (solo / "config.yaml").read_text()
        found, expected = summary(folder), summary(solo)
        assert list(found) == list(expected)
        for key in ("task", "agent", "seed", "status", "steps", "versions"):
            assert found[key] == expected[key]
        assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)
        pairs = list(zip(rows(folder), rows(solo), strict=True))
        assert len(pairs) == 20
        for here, there in pairs:
            for name, value in here.items():
                assert bool(value) == bool(there[name])
                assert float(value or 0) == pytest.approx(float(there[name] or 0), abs=1e-4)
        capsys.readouterr()
        assert main(["eval", str(folder)]) == 0
        assert f"{found['metrics']['test_accuracy']:.2%} of 359 test images right" in capsys.readouterr().out


def test_finished_runs_are_left_alone(folders, tmp_path, capsys):
    before = [files(folder) for folder in folders]
    capsys.readouterr()
    assert train_batch(RUNS, folders) == list(folders)
    assert capsys.readouterr().err.count(" is finished; its results are in ") == 3
    assert train_batch([*RUNS, replace(RUNS[0], seed=9)], [*folders, tmp_path / "new"], quiet=True)
    assert (before, summary(tmp_path / "new")["status"]) == ([files(folder) for folder in folders], "finished")


def test_default_folders_and_what_is_said(elsewhere, capsys):
    runs = [replace(config, total_steps=2, validation=True) for config in RUNS]
    paths = train_batch(runs)
    assert [str(path) for path in paths] == [
        "runs/digits-cet6-2s-0",
        "runs/digits-none-3",
        "runs/digits-legendre4-0.6s-stacked-0",
    ]
    assert all(summary(path)["steps"] == 2 for path in paths)
    assert {"validation_accuracy", "validation_loss"} == set(summary(paths[0])["metrics"])
    assert "validation/accuracy" in rows(paths[0])[0]
    said = capsys.readouterr()
    assert "2 of 2 updates" in said.out + said.err
    assert said.err.count("validation accuracy ") == 3
    assert (train_batch(runs, quiet=True), capsys.readouterr()) == (paths, ("", ""))


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="there are no runs to train"):
        train_batch([])
    same_by_default = [RUNS[0], replace(RUNS[0], lr=0.5)]
    for runs, folders in [
        (RUNS[:2], [tmp_path / "a", f"{tmp_path}/./a"]),
        (same_by_default, None),
        (RUNS, [tmp_path / "a", tmp_path / "b"]),
    ]:
        with pytest.raises(ValueError, match="every run of a batch needs a folder of its own"):
            train_batch(runs, folders, quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_size": 5000}, "from 1 to 1,438"),
        ({"model": "cnn", "hidden": (8,), "channels": (4, 4, 4, 4)}, "too small for 4 stages"),
        ({"data_dir": "nowhere"}, "digits comes with scikit-learn"),
    ],
    ids=["batch", "network", "data"],
)
def test_what_cannot_be_is_refused_before_any_folder_is_made(tmp_path, values, words):
    with pytest.raises(ValueError, match=words):
        train_batch([replace(config, **values) for config in RUNS[:2]], [tmp_path / "a", tmp_path / "b"])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_run_is_refused_before_any_other_is_made(tmp_path):
    train(replace(RUNS[0], total_steps=2), tmp_path / "other", quiet=True)
    with pytest.raises(ValueError, match=r"another configuration \(.*total_steps 2 there, 20 here"):
        train_batch(RUNS[:2], [tmp_path / "a", tmp_path / "other"], quiet=True)
    assert not (tmp_path / "a").exists()


def interrupted_at(monkeypatch, step, *, error=None):
    """Press Ctrl-C after this update, or raise an error before it."""
    advance = BatchedLearner.advance

    def patched(self, *given, **named):
        if self.step == step - 1:
            if error is not None:
                raise error
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self, *given, **named)

    monkeypatch.setattr(BatchedLearner, "advance", patched)


def test_an_interrupted_batch_is_resumed(folders, tmp_path, monkeypatch):
    paths = [tmp_path / str(number) for number in range(3)]
    with monkeypatch.context() as patch:
        interrupted_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            train_batch(RUNS, paths, quiet=True)
    for path in paths:
        assert (summary(path)["status"], summary(path)["steps"]) == ("interrupted", 7)
        assert not (path / "lock").exists()
    train(RUNS[0], paths[0], resume=True, quiet=True)  # one of them alone
    assert train_batch(RUNS, paths, quiet=True) == paths
    for path, whole in zip(paths, folders, strict=True):
        assert summary(path)["metrics"] == pytest.approx(summary(whole)["metrics"], abs=1e-4)
        here, there = rows(path), rows(whole)
        assert [row["time/total_timesteps"] for row in here] == [row["time/total_timesteps"] for row in there]
        if path != paths[0]:
            assert [row["train/loss"] for row in here] == [row["train/loss"] for row in there]


def test_runs_at_different_steps_are_resumed_in_groups(folders, tmp_path, monkeypatch):
    paths = [tmp_path / str(number) for number in range(3)]
    for runs, step in (([0, 1], 5), ([2], 9)):
        with monkeypatch.context() as patch:
            interrupted_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                train_batch([RUNS[n] for n in runs], [paths[n] for n in runs], quiet=True)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 7)  # of the first group: the second one ends as well
        with pytest.raises(KeyboardInterrupt):
            train_batch(RUNS, paths, quiet=True)
    found = [summary(path) for path in paths]
    assert [(each["status"], each["steps"]) for each in found] == [("interrupted", step) for step in (7, 7, 9)]
    assert train_batch(RUNS, paths, quiet=True) == paths
    for path, whole in zip(paths, folders, strict=True):
        assert summary(path)["status"] == "finished"
        assert summary(path)["metrics"] == pytest.approx(summary(whole)["metrics"], abs=1e-4)


def test_an_error_of_the_whole_batch_is_in_every_summary(tmp_path, monkeypatch):
    paths = [tmp_path / str(number) for number in range(3)]
    interrupted_at(monkeypatch, 7, error=RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        train_batch(RUNS, paths, quiet=True)
    for path in paths:
        assert (summary(path)["status"], summary(path)["error"]) == ("failed", "RuntimeError: out of memory")
        assert not (path / "lock").exists()


def test_a_run_that_cannot_be_written_fails_alone(folders, tmp_path, monkeypatch):
    """Its own error is in its summary, and the others end as they would have."""
    paths = [tmp_path / str(number) for number in range(3)]
    add = RunLog.add

    def full(self, values, step, *writer):
        if step == 9 and self.table.path.parent == paths[1]:
            raise OSError(28, "No space left on device", str(self.table.path))
        add(self, values, step, *writer)

    monkeypatch.setattr(RunLog, "add", full)
    assert train_batch(RUNS, paths, quiet=True) == paths
    assert [summary(path)["status"] for path in paths] == ["finished", "failed", "finished"]
    assert "No space left on device" in summary(paths[1])["error"]
    assert summary(paths[1])["steps"] == 9
    for number in (0, 2):
        assert summary(paths[number])["metrics"] == summary(folders[number])["metrics"]


def test_a_folder_that_another_process_runs_in_is_refused(tmp_path):
    with RunFolder(tmp_path / "taken").locked(), pytest.raises(ValueError, match="being run by another process"):
        train_batch(RUNS[:2], [tmp_path / "free", tmp_path / "taken"], quiet=True)
    assert not (tmp_path / "free" / "config.yaml").exists()


@pytest.mark.parametrize("total", [20, 60])
def test_runs_that_diverge_fail_alone(tmp_path, total):
    """They keep their last good checkpoint, or have none; if none is left the batch ends."""
    good = VisionConfig("digits", hidden=(16,), total_steps=total)
    bad = [replace(good, lr=1e30, weight_decay=0.0, seed=seed, total_steps=total) for seed in (1, 2)]
    for number, (runs, statuses) in enumerate(
        [([good, *bad], ["finished", "failed", "failed"]), (bad, ["failed"] * 2)]
    ):
        folders = [tmp_path / f"{number}-{run}" for run in range(len(runs))]
        assert train_batch(runs, folders, quiet=True) == folders
        assert [summary(folder)["status"] for folder in folders] == statuses
        assert summary(folders[-1])["error"].startswith("FloatingPointError: the loss is not finite at")
        assert summary(folders[-1])["steps"] < total or total == 20
        assert (folders[0] / "checkpoint" / "network.zip").is_file() == (number == 0)
        for file in [each for folder in folders for each in (folder / "checkpoint").iterdir()]:
            tensors = parts(file)[1].values()
            assert all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())
