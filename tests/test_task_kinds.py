"""Kinds of tasks: which there are, what they share, and how one is told from another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass, fields

import pytest
import torch
import yaml
from saved_files import members

from cet_rl.cli import main
from cet_rl.cli.evaluate import EvalArguments
from cet_rl.cli.train import parse_arguments
from cet_rl.report import plots
from cet_rl.rl.config import RLConfig
from cet_rl.runs import archive
from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import check_values, parse_config, read_mapping
from cet_rl.runs.folder import RunFolder, default_path, read_run
from cet_rl.runs.task_kinds import (
    RECURRENT,
    RL,
    TASK_KINDS,
    VISION,
    check_spelling,
    named_tasks,
    task_kind_of,
)


@dataclass(frozen=True)
class OtherConfig(RunConfig):
    """A task kind with one field of its own."""

    task: str
    delay: float = 4.0
    batches: int = 7

    def __post_init__(self):
        self.check_counts("batches")
        super().__post_init__()

    @property
    def layers(self):
        return 2


def refusal(capsys, *arguments):
    """The line that a command is refused with."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_task_has_one_task_kind():
    assert [task_kind.name for task_kind in TASK_KINDS] == ["rl", "vision", "recurrent"]
    assert len(set(named_tasks())) == len(named_tasks())
    for task in ("digits", "mnist", "cifar10"):
        assert task_kind_of(task) is VISION
    for task in ("add", "late-add", "mimic"):
        assert task_kind_of(task) is RECURRENT
    for task in ("CartPole-v1", "MinAtar/Breakout-v1", "my_module:MyEnv-v0", "minst", None):
        assert task_kind_of(task) is RL


@pytest.mark.parametrize("task_kind", TASK_KINDS, ids=lambda task_kind: task_kind.name)
def test_configurations_of_every_task_kind_share_their_base(task_kind):
    kind = task_kind.config()
    assert issubclass(kind, RunConfig)
    assert {item.name for item in fields(RunConfig)} <= {item.name for item in fields(kind)}
    config = kind(next(iter(task_kind.tasks()), "CartPole-v1"), seed=3)
    assert kind(**check_values(yaml.safe_load(yaml.safe_dump(config.as_data())), "data", kind)) == config
    assert default_path(config).name == f"{config.task}-{config.label}-3"
    for option in task_kind.evaluation_options:
        assert option in {item.name for item in fields(EvalArguments)}


def test_the_command_line_waits_with_what_takes_seconds():
    code = (
        "import sys; from cet_rl.cli import train, evaluate; train.parse_arguments(['mnist']); "
        "train.parse_arguments(['CartPole-v1']); train.parse_arguments(['add', '--rule', 'uoro']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'stable_baselines3', 'datasets')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("task", "meant"),
    [
        ("minst", "mnist"),
        ("MNIST", "mnist"),
        ("digit", "digits"),
        ("cifar", "cifar10"),
        ("CIFAR-10", "cifar10"),
        ("mimik", "mimic"),
    ],
)
def test_a_misspelt_data_set_is_recognised(task, meant, capsys):
    wanted = f"cet-rl: error: unknown task '{task}'; did you mean {meant}?"
    assert refusal(capsys, "train", task, "--delay", "8") == wanted
    assert refusal(capsys, "train", task, "--batch-size", "8") == wanted


@pytest.mark.parametrize("task", ["mnist", "CartPole-v1", "Digits-v0", "digits:Digits-v1", "lab/mnist", "MyEnv"])
def test_what_may_be_a_gymnasium_id_is_let_pass(task):
    check_spelling(task)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mnist --lam 0.9", ["--lam does not apply to mnist", "reinforcement learning"]),
        ("mnist --no-anneal-lr", ["--anneal-lr does not apply to mnist"]),
        ("mnist --gamma=0.9", ["--gamma does not apply to mnist"]),
        ("CartPole-v1 --batch-size 8", ["--batch-size does not apply to CartPole-v1", "digits, mnist, cifar10"]),
        ("CartPole-v1 --batch_size 8", ["--batch-size does not apply to CartPole-v1"]),
        ("--batch-size 8 mnist", ["name the task first, as in cet-rl train CartPole-v1"]),
        ("--quiet", ["name the task first", "--config", "--run-dir"]),
        ("CartPole-v1 mnist", ["unexpected mnist", "cet-rl train TASK"]),
        ("mnist --batch-siz 8", ["unknown option '--batch-siz'; did you mean --batch-size?"]),
        ("CartPole-v1 --dealy 8", ["unknown option '--dealy'; did you mean --delay?"]),
        ("CartPole-v1 --no-aligment", ["did you mean --no-alignment?"]),
        ("CartPole-v1 --xyzzy 1", ["unknown option '--xyzzy'; see cet-rl train TASK --help"]),
        ("mnist --config cartpole-8s", ["cartpole-8s is for task CartPole-v1, not for mnist"]),
        ("--config cartpole-8s mnist", ["unexpected mnist", "cet-rl train TASK"]),
    ],
)
def test_options_of_another_task_kind_are_refused(line, words, capsys):
    said = refusal(capsys, "train", *line.split())
    for word in words:
        assert word in said


def test_the_task_chooses_the_configuration(tmp_path):
    assert type(parse_arguments(["CartPole-v1"]).config) is RLConfig
    kind = VISION.config()
    (tmp_path / "mine.yaml").write_text("task: mnist\nbatch_size: 17\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("task: digits\n")
    for arguments, task in [
        (["mnist", "--seed", "1"], "mnist"),
        (["mnist", "--run-dir", "CartPole-v1"], "mnist"),
        (["--config", str(tmp_path / "mine.yaml")], "mnist"),
        (["--run-dir", str(run), "--resume"], "digits"),
    ]:
        learning = parse_arguments(arguments).config
        assert (type(learning), learning.task) == (kind, task)
    assert parse_arguments(["--config", str(tmp_path / "mine.yaml")]).config.batch_size == 17
    assert type(parse_arguments(["CartPole-v1", "--run-dir", "mnist"]).config) is RLConfig


def test_help_is_that_of_the_task(capsys):
    def shown(*arguments):
        with pytest.raises(SystemExit):
            main(["train", *arguments])
        return capsys.readouterr().out

    assert "--lam" in shown("--help")
    assert "cet-rl train digits --help" in shown("--help")
    assert "--help." not in shown("CartPole-v1", "--help")
    for arguments in (["mnist", "--help"], ["--help", "mnist"]):
        assert "--batch-size" in shown(*arguments)
        assert "--lam " not in shown(*arguments)


@pytest.mark.parametrize("option", [["--episodes", "5"], ["--agent", "cet"], ["--seed", "0"]])
def test_options_of_eval_that_mean_nothing_to_a_data_set_are_refused(option, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("task: mnist\n")
    assert f"{option[0]} does not apply to a run of mnist" in refusal(capsys, "eval", str(tmp_path), *option)
    assert "has no checkpoint yet" in refusal(capsys, "eval", str(tmp_path))


def test_run_folders_know_their_task_kind(tmp_path):
    file = tmp_path / "config.yaml"
    with pytest.raises(ValueError, match=r"is no run folder: it has no config\.yaml"):
        read_run(tmp_path)
    for text, message in [("delay: 8", "names no task"), ("task: [mnist]", "task must be text")]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path)
    for task, task_kind, name in [("CartPole-v1", RL, "agent.zip"), ("mnist", VISION, "network.zip")]:
        file.write_text(f"task: {task}\nseed: 3\n")
        found, folder, values = read_run(tmp_path)
        assert found is task_kind
        assert folder.checkpoint_file == RunFolder(tmp_path, name).checkpoint_file
        assert folder.checkpoint_file.name == name
        assert values == {"task": task, "seed": 3}


def test_curves_of_either_task_kind_are_read(tmp_path):
    (tmp_path / "metrics.csv").write_text("time/total_timesteps,test/accuracy\n1,0.1\n2,0.5\n")
    for task, arm in [("CartPole-v1", "cet5-2s"), ("mnist", VISION.config()("mnist", delay=2.0).label)]:
        (tmp_path / "config.yaml").write_text(f"task: {task}\ndelay: 2\nseed: 3\n")
        curve = plots.read_run(tmp_path)
        assert (curve.arm, curve.seed) == (arm, 3)
        assert curve.over("time/total_timesteps", "test/accuracy")[1].tolist() == [0.1, 0.5]


def test_a_configuration_of_another_kind():
    """What task kinds share, on one that is none: checks, label, timing, files."""
    config = OtherConfig("anything", order=3, stacked=True)
    assert config.label == "cet3-4s-stacked"
    assert config.timing.layer_delays == (20, 0)
    assert OtherConfig("anything").with_trace().trace == "cet"
    assert OtherConfig("anything").with_trace().order == 5
    assert parse_config("batches: 9\nlr: 1e-3", "mine", OtherConfig) == {"batches": 9, "lr": 1e-3}
    with pytest.raises(ValueError, match="mine: unknown key 'lam'"):
        parse_config("lam: 0.9", "mine", OtherConfig)
    for options, message in [
        ({"batches": 0}, "--batches must be at least 1"),
        ({"seed": -1}, "--seed must lie in"),
        ({"lr": 0.0}, "--lr must be positive"),
        ({"threads": 2000}, "--threads must be at most 1024"),
        ({"delay": 0.1}, "no whole number"),
        ({"trace": "none"}, "without delay"),
    ]:
        with pytest.raises(ValueError, match=message):
            OtherConfig("anything", **options)


def test_a_file_s_task_is_read_before_its_keys(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("task: mnist\nno_such_key: 1\n")
    assert read_mapping(str(file)) == {"task": "mnist", "no_such_key": 1}
    file.write_text("task: 3\n")
    with pytest.raises(ValueError, match="task must be text, got 3"):
        read_mapping(str(file))


def test_files_say_what_they_hold(tmp_path):
    file = tmp_path / "network.zip"
    archive.write(file, {"steps": 3, "a": {"b": torch.ones(2)}}, what="network")
    state = archive.read(file, what="network")
    assert state["steps"] == 3
    assert state["a"]["b"].tolist() == [1, 1]
    (data, tensors) = members(file)["network"]
    assert data["format"] == "cet-rl network"
    assert list(tensors) == ["a/b"]
    assert set(zipfile.ZipFile(file).namelist()) == {"network.json", "network.safetensors"}
    with pytest.raises(ValueError, match=r"network\.zip is damaged or no cet-rl agent file"):
        archive.read(file, what="agent")
    with pytest.raises(FileNotFoundError, match="there is no network file"):
        archive.read(tmp_path / "missing", what="network")


def test_a_data_set_of_a_third_party(monkeypatch, tmp_path, capfd, request):
    from cet_rl.vision import datasets
    from cet_rl.vision.data import load

    def halves(name, data_dir, validation):
        digits = load("digits", None, validation=validation)
        return datasets.ImageData(name, digits.train, digits.test, 10)

    datasets.register_dataset("mine", "my own digits", halves)
    request.addfinalizer(lambda: datasets.DATASETS.pop("mine"))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "mine", "--delay", "0.4", "--total-steps", "20", "--hidden", "16", "--quiet"]) == 0
    assert main(["list", "datasets"]) == 0
    assert "my own digits" in capfd.readouterr().out
    with pytest.raises(ValueError, match="already"):
        datasets.register_dataset("mnist", "another", halves)
    with pytest.raises(ValueError, match="no Gymnasium id"):
        datasets.register_dataset("Mine-v0", "an environment", halves)


@pytest.mark.parametrize(
    ("command", "default", "asked"),
    [
        ("CartPole-v1 --delay 1 --total-steps 640 --n-steps 8 --num-envs 4 --hidden 8 --eval-episodes 1", 10, 20),
        ("digits --delay 0.6 --total-steps 40 --hidden 8 --no-alignment", 10, 20),
        ("add --total-steps 400 --units 4 --executor step --no-alignment", 10, 20),
    ],
)
def test_a_run_takes_ten_checkpoints_or_as_many_as_are_asked_for(tmp_path, monkeypatch, command, default, asked):
    saves = []
    save = RunFolder.save_checkpoint
    monkeypatch.setattr(RunFolder, "save_checkpoint", lambda *given: (saves.append(1), save(*given))[1])
    words = ["train", *command.split(), "--quiet", "--run-dir"]
    total = int(words[words.index("--total-steps") + 1])
    assert main([*words, str(tmp_path / "one")]) == 0
    assert len(saves) == default
    saves.clear()
    assert main([*words, str(tmp_path / "two"), "--checkpoint-every", str(total // asked)]) == 0
    assert len(saves) == asked
    (one, two) = ((tmp_path / name / "summary.json").read_text() for name in ("one", "two"))
    assert json.loads(one)["metrics"] == json.loads(two)["metrics"]


@pytest.mark.parametrize("task", ["CartPole-v1", "digits", "add"])
def test_no_checkpoints_at_all_are_refused(tmp_path, capsys, task):
    command = ("train", task, "--checkpoint-every")
    said = refusal(capsys, *command, "0", "--run-dir", str(tmp_path / "run"))
    assert "--checkpoint-every must be at least 1, got 0" in said
    assert not (tmp_path / "run").exists()
    assert "does not go with --seeds" in refusal(
        capsys, "train", task, "--checkpoint-every", "5", "--seeds", "0-1"
    )


@pytest.mark.parametrize("task", ["CartPole-v1", "digits", "add"])
def test_a_folder_that_is_being_run_is_left_alone(tmp_path, capsys, task):
    run = tmp_path / "run"
    folder = RunFolder(run)
    command = ("train", task, "--delay", "1", "--total-steps", "200", "--run-dir", str(run))
    with folder.locked():
        said = refusal(capsys, *command)
        assert "is being run by another process" in said
        assert f"process {os.getpid()}" in said
        assert [entry.name for entry in run.iterdir()] == ["lock"]
        with pytest.raises(ValueError, match="choose another --run-dir"), folder.locked():
            pass
    assert not list(run.iterdir())


def test_a_dead_process_holds_no_folder(tmp_path):
    program = f"""
import os
from cet_rl.runs.folder import RunFolder
with RunFolder({str(tmp_path)!r}).locked():
    os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert list((tmp_path / "lock").iterdir())
    with RunFolder(tmp_path).locked():
        pass
    assert not list(tmp_path.iterdir())
