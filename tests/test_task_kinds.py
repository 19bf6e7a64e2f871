"""Kinds of tasks: which there are, what they share, and how one is told from another."""

import json
import os
import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from conftest import assert_refused, here

from cet_rl.cli import main
from cet_rl.cli.evaluate import EvalArguments
from cet_rl.cli.train import parse_arguments
from cet_rl.recurrent.config import RecurrentConfig
from cet_rl.rl.config import RLConfig
from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import check_values, read_mapping
from cet_rl.runs.folder import RunFolder, default_path, read_run
from cet_rl.runs.process import Interruption
from cet_rl.runs.task_kinds import RECURRENT, RL, TASK_KINDS, VISION, check_spelling, named_tasks, task_kind_of
from cet_rl.vision.config import VisionConfig


def test_tuned_defaults_of_a_task_hold_whoever_asks():
    """In Python as on the command line; what is given stands, and so does what `replace` keeps."""
    config = RecurrentConfig("late-add")
    assert (config.delay, config.lags, config.lr) == (4.0, (2, 4), 0.01)
    assert config == parse_arguments(["late-add"]).config
    assert (RecurrentConfig("late-add", lags=(3, 5)).lags, RLConfig("MinAtar/Breakout-v1").lam) == ((3, 5), 0.8)
    assert replace(RLConfig("LunarLander-v3"), normalization="peak", seed=3).normalization == "peak"
    assert (VisionConfig("digits").total_steps, VisionConfig("digits", total_steps=7).total_steps) == (1000, 7)


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


@pytest.mark.parametrize("task", ["mnist", "CartPole-v1", "Digits-v0", "digits:Digits-v1", "lab/mnist", "MyEnv"])
def test_what_may_be_a_gymnasium_id_is_let_pass(task):
    check_spelling(task)


def test_the_task_chooses_the_configuration(tmp_path):
    assert type(parse_arguments(["CartPole-v1"]).config) is RLConfig
    kind = VISION.config()
    mine, run = tmp_path / "mine.yaml", tmp_path / "run"
    mine.write_text("task: mnist\nbatch_size: 17\n")
    run.mkdir()
    (run / "config.yaml").write_text("task: digits\n")
    for line, task in [
        ("mnist --run-dir CartPole-v1", "mnist"),
        (f"--config {mine}", "mnist"),
        *[(f"{option} --resume", "digits") for option in (f"--run-dir {run}", f"--run_dir={run}")],
    ]:
        learning = parse_arguments(line.split()).config
        assert (type(learning), learning.task) == (kind, task)
    assert parse_arguments(["--config", str(mine)]).config.batch_size == 17
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


TITLES = ("delay-and-trace", "learning", "network", "evaluation", "run")


@pytest.mark.parametrize("task", ["CartPole-v1", "mnist", "add"])
def test_help_has_groups_defaults_in_words_and_examples_at_the_end(task, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    with pytest.raises(SystemExit):
        main(["train", task, "--help"])
    text, _, examples = capsys.readouterr().out.partition("\nExamples:\n")
    assert max(map(len, text.splitlines())) <= 70
    groups = [text.index(f" {title} options ") for title in TITLES]
    assert groups == sorted(groups)
    for option, group in {"delay": 0, "lr": 1, "alignment": 3, "device": 4, "quiet": 4}.items():
        assert groups[group] < text.index(f"--{option}") < [*groups, len(text)][group + 1]
    assert "None" not in text
    assert "-s INT, --seed INT" in text
    assert "-q, --quiet" in text
    for line in examples.strip().splitlines():
        parse_arguments(shlex.split(line, comments=True)[2:])


@pytest.mark.parametrize("words", [["-s", "3", "-q"], ["--seed", "3", "--quiet"]])
def test_short_names_of_options(words):
    parsed = parse_arguments(["digits", *words])
    assert (parsed.config.seed, parsed.run.quiet) == (3, True)


@pytest.mark.parametrize("option", [["--episodes", "5"], ["--agent", "cet"], ["--seed", "0"]])
def test_options_of_eval_that_mean_nothing_to_a_data_set_are_refused(option, tmp_path):
    (tmp_path / "config.yaml").write_text("task: mnist\n")
    assert_refused(here("eval", str(tmp_path), *option), f"{option[0]} does not apply to mnist")
    assert_refused(here("eval", str(tmp_path)), "has no checkpoint yet")


def test_run_folders_know_their_task_kind(tmp_path):
    file = tmp_path / "config.yaml"
    with pytest.raises(ValueError, match=r"is no run folder: it has no config\.yaml"):
        read_run(tmp_path)
    for text, message in [("delay: 8", "names no task"), ("task: 3", "task must be text, got 3")]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path)
    file.write_text("task: mnist\nno_such_key: 1\n")
    assert read_mapping(str(file)) == {"task": "mnist", "no_such_key": 1}  # before its keys are checked
    for task, task_kind, name in [("CartPole-v1", RL, "agent.zip"), ("mnist", VISION, "network.zip")]:
        file.write_text(f"task: {task}\nseed: 3\n")
        found, folder, values = read_run(tmp_path)
        assert found is task_kind
        assert folder.checkpoint_file == RunFolder(tmp_path, name).checkpoint_file
        assert (folder.checkpoint_file.name, values) == (name, {"task": task, "seed": 3})


def test_a_data_set_of_a_third_party(monkeypatch, tmp_path, elsewhere, capfd, request):
    from cet_rl.vision import datasets
    from cet_rl.vision.data import load

    def halves(name, data_dir, validation):
        if not Path(data_dir).is_dir():
            raise OSError(f"there is no folder {data_dir}")
        digits = load("digits", None, validation=validation)
        return datasets.ImageData(name, digits.train, digits.test, 10)

    datasets.register_dataset("mine", "my own digits [n = 10]", halves)
    request.addfinalizer(lambda: datasets.DATASETS.pop("mine"))
    before, after = tmp_path / "here", tmp_path / "there"
    before.mkdir()
    command = ["train", "mine", "--delay", "0.4", "--total-steps", "20", "--hidden", "16", "--run-dir", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(Interruption, "wanted", True)
        assert main([*command, "--quiet", "--data-dir", "here"]) == 130
    before.rename(after)  # the data have moved
    for moved in (["eval", "run"], ["train", "--run-dir", "run", "--resume"]):
        assert_refused(here(*moved), f"there is no folder {before}")
        assert main([*moved, "--data-dir", "there"]) == 0
    assert main(["eval", "run"]) == 0  # the resumed run knows where they are now
    assert main(["list", "datasets"]) == 0
    assert "my own digits [n = 10]" in capfd.readouterr().out
    with pytest.raises(ValueError, match="network must be one of mlp, cnn"):
        datasets.register_dataset("other", "digits", halves, network="resnet")
    with pytest.raises(ValueError, match="already"):
        datasets.register_dataset("mnist", "another", halves)
    with pytest.raises(ValueError, match="no Gymnasium id"):
        datasets.register_dataset("Mine-v0", "an environment", halves)


@pytest.mark.parametrize(
    "command",
    [
        "CartPole-v1 --delay 1 --total-steps 640 --n-steps 8 --num-envs 4 --hidden 8 --eval-episodes 1",
        "digits --delay 0.6 --total-steps 40 --hidden 8 --no-alignment",
        "add --total-steps 400 --units 4 --executor step --no-alignment",
    ],
)
def test_a_run_takes_ten_checkpoints_or_as_many_as_are_asked_for(tmp_path, monkeypatch, command):
    saves, found = [], []
    save = RunFolder.save_checkpoint
    monkeypatch.setattr(RunFolder, "save_checkpoint", lambda *given: (saves.append(1), save(*given))[1])
    words = ["train", *command.split(), "--quiet", "--run-dir", str(tmp_path / "run")]
    total = int(words[words.index("--total-steps") + 1])
    for more, count in (([], 10), (["--checkpoint-every", str(total // 20)], 20)):
        assert (main([*words[:-1], str(tmp_path / str(count)), *more]), len(saves)) == (0, count)
        saves.clear()
        found.append(json.loads((tmp_path / str(count) / "summary.json").read_text())["metrics"])
    assert found[0] == found[1]


@pytest.mark.parametrize("task", ["CartPole-v1", "digits", "add"])
def test_a_folder_that_is_being_run_is_left_alone(tmp_path, task):
    run = tmp_path / "run"
    folder = RunFolder(run)
    command = ("train", task, "--delay", "1", "--total-steps", "200", "--run-dir", str(run))
    with folder.locked():
        assert_refused(here(*command), "is being run by another process", f"process {os.getpid()}")
        assert [entry.name for entry in run.iterdir()] == ["lock"]
    assert not list(run.iterdir())
