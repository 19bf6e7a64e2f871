"""Searches for hyper-parameters: what they refuse, compare, prune, keep when they are killed, and write."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from conftest import assert_holds, assert_refused, here
from sweep_fakes import launcher_of, plan, ran, rows_of, running, wait_for

from cet_rl.cli import main
from cet_rl.cli.train import parse_arguments
from cet_rl.runs.lock import Lock

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'cet-rl[tune]'")

from cet_rl.tuning.file import plain, read_search  # noqa: E402
from cet_rl.tuning.search import Search  # noqa: E402
from cet_rl.tuning.study import (  # noqa: E402
    POINTS,
    SearchFolder,
    best_trial,
    importances,
    open_study,
    require_optuna,
    trial_sampler,
)

SETTINGS = {"task": "add", "total_steps": 200, "units": 4, "executor": "step", "seeds": "0-1", "trials": 4}
SPACE = {"lr": {"low": 1e-3, "high": 1, "log": True}}


def file_of(path, **changes):
    file = Path(path) / "tune.yaml"
    kept = {key: value for key, value in {**SETTINGS, "space": SPACE, **changes}.items() if value is not None}
    file.write_text(yaml.safe_dump(kept))
    return str(file)


def search_of(path, *, trials=4, workers=2, **changes):
    """Return a search whose runs learn nothing."""
    file, folder = read_search(file_of(path, **changes)), SearchFolder(Path(path) / "search")
    launcher = launcher_of(folder.path, workers, "--wait")
    require_optuna()
    return Search(file, folder, open_study(file, folder), launcher, trials)


def states(search):
    return [trial.state.name for trial in search.study.get_trials()]


def loss_of(trial):
    """Return the loss that the fake trainer ends with, without its seed."""
    return (trial.params["lr"] - 0.1) ** 2


def test_a_search_scores_the_mean_over_seeds_writes_the_best_and_goes_on_to_more_trials(tmp_path, capfd):
    for trials in (2, 4):
        search = search_of(tmp_path, trials=trials, pruner="none", sampler="random")
        assert search.run() == 0
    assert_holds(capfd.readouterr().err, "2 trials so far; going on to 4; 2 at a time", "[4/4] test_loss")
    trials, folder = search.study.get_trials(), search.folder
    assert (ran(folder.path), len({trial.params["lr"] for trial in trials})) == ({0: 4, 1: 4}, 4)
    assert [trial.value for trial in trials] == pytest.approx([0.5 + loss_of(trial) for trial in trials])
    rows = rows_of(folder.table_file)
    assert [(row["state"], float(row["test_loss"]), float(row["lr"])) for row in rows] == [
        ("complete", trial.value, trial.params["lr"]) for trial in trials
    ]
    best = min(trials, key=lambda trial: trial.value)
    assert best_trial(search.study).number == best.number
    assert f"test_loss {best.value:.6g} over seeds 0, 1 (trial {best.number})" in folder.best_file.read_text()
    found = parse_arguments(["add", "--config", str(folder.best_file), "--seed", "7"]).config
    assert (found.lr, found.units, found.seed) == (best.params["lr"], 4, 7)


@pytest.mark.parametrize("sign", [1, -1], ids=["as the score", "the other way round"])
def test_runs_are_compared_by_their_mean_over_the_seeds_so_far(tmp_path, sign):
    search = search_of(tmp_path, trials=1)
    curve = dataclasses.replace(search.search.curve, higher_is_better=sign < 0)
    search.search = dataclasses.replace(search.search, curve=curve)
    search.run()
    (trial,) = search.study.get_trials()
    assert sorted(trial.intermediate_values) == list(range(1, 2 * POINTS + 1))
    for place, value in trial.intermediate_values.items():
        seed, point = divmod(place - 1, POINTS)
        remaining = 200 - 200 * (point + 1) / POINTS
        assert sign * value == pytest.approx(loss_of(trial) + remaining + (0.0 if seed == 0 else 0.5))


def test_a_trial_that_is_worse_than_most_is_stopped_and_its_run_kept(tmp_path):
    search = search_of(tmp_path, trials=6)
    for lr in (0.1, 0.11, 0.12, 0.13, 0.14, 1.0):
        search.study.enqueue_trial({"lr": lr})
    plan(search.folder.path, {"trial-0005": 0.3})
    assert (search.run(), states(search)) == (0, ["COMPLETE"] * 5 + ["PRUNED"])
    (run,) = [path for path in search.folder.trial_path(5).glob("add-*") if path.is_dir()]
    assert len((run / "metrics.csv").read_text().splitlines()) < 1 + 20
    assert not (run / "summary.json").exists()
    reasons = [row["reason"] for row in rows_of(search.folder.table_file)]
    assert reasons[:5] == [""] * 5
    assert reasons[5].startswith("at ")


def test_trials_that_diverge_are_pruned_those_that_crash_fail_and_a_full_disk_leaves_them_open(tmp_path, capfd):
    search = search_of(tmp_path, trials=1, workers=1)
    plan(search.folder.path, {"trial-0000": "diverge", "trial-0002": "crash"})
    assert search.run() == 1  # no trial has finished
    assert not search.folder.best_file.exists()
    search.trials = 3
    assert search.run() == 0
    plan(search.folder.path, {"trial-0003": "full disk", "trial-0004": 0.1})
    search = search_of(tmp_path, trials=5)
    with pytest.raises(OSError, match=r"trial 3 cannot go on: .*No space left on device.*takes it up again"):
        search.run()
    assert states(search) == ["PRUNED", "COMPLETE", "FAIL", "RUNNING", "RUNNING"]
    assert_holds(capfd.readouterr().err, "the loss is not finite", "was killed by SIGKILL")
    plan(search.folder.path, {})
    again = search_of(tmp_path, trials=5)
    assert (again.run(), states(again)) == (0, ["PRUNED", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"])


def test_parameters_drawn_again_are_not_run_again(tmp_path):
    search = search_of(tmp_path, trials=3, workers=1, space={"lr": {"choices": [0.1]}})
    assert (search.run(), states(search), ran(search.folder.path)) == (0, ["COMPLETE"] * 3, {0: 1, 1: 1})


DRIVER = "import sys; from test_tune import search_of; sys.exit(search_of(sys.argv[1], trials=2).run())"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_search_that_is_stopped_or_killed_loses_no_trial(tmp_path, capfd, number):
    search = search_of(tmp_path, trials=2)
    plan(search.folder.path, {"all": 1.0})
    with running([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=Path(__file__).parent) as process:
        wait_for(lambda: len(list(search.folder.path.glob("trial-*/*/metrics.csv"))) == 2)
        process.send_signal(number)
        assert process.wait(60) == (130 if number == signal.SIGINT else -number)
    before = [trial.params for trial in search.study.get_trials()]
    assert states(search) == ["RUNNING", "RUNNING"]
    plan(search.folder.path, {})
    again = search_of(tmp_path, trials=2)
    assert again.run() == 0
    assert "trial 0 goes on" in capfd.readouterr().err
    assert [trial.params for trial in again.study.get_trials()] == before
    assert (states(again), ran(again.folder.path)) == (["COMPLETE", "COMPLETE"], {0: 4, 1: 2})


def test_a_trial_that_another_search_runs_is_left_alone(tmp_path):
    search = search_of(tmp_path, trials=1)
    lock = search.folder.lock(search.study.ask().number)
    assert lock.acquire()
    assert search.run() == 1
    lock.release()
    assert states(search) == ["RUNNING"]
    assert not (search.folder.path / ".ran").exists()


def test_choices_come_back_as_they_are_in_the_file(tmp_path):
    space = {"lags": {"choices": [[3, 5], [2, 4]]}, "units": {"low": 4, "high": 8, "step": 2}}
    file, trial = read_search(file_of(tmp_path, units=None, space=space)), optuna.create_study().ask()
    found = {name: plain(trial._suggest(name, one)) for name, one in file.space.items()}
    assert found["lags"] in ([3, 5], [2, 4])
    assert found["units"] in (4, 6, 8)
    assert file.sweep(found).jobs[0].values["lags"] == found["lags"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "names no task"),
        ({"task": "ad"}, "did you mean add"),
        ({"space": None}, "space must name options"),
        ({"space": None, "grid": {}}, "tune.yaml is a sweep, as it has grid: run it with cet-rl sweep "),
        ({"grid": {"units": [4]}}, "unknown key 'grid'"),
        ({"sapce": 1}, "unknown key 'sapce'; did you mean space"),
        ({"seed": 1}, "use seeds"),
        ({"seeds": "x"}, "seeds must be a range"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"metric": "accuracy"}, "metric must be one of test_loss"),
        ({"pruner": "mean"}, "pruner must be one of median"),
        ({"lr": 0.1}, "lr is also set for all trials"),
        ({"space": {"total_steps": {"low": 1, "high": 2}}}, "total_steps cannot be searched"),
        ({"space": {"num_envs": {"low": 1, "high": 2}}}, "unknown option of add .num_envs."),
        ({"space": {"lr": 0.1}}, "must be {low"),
        ({"space": {"lr": {"low": 0.1}}}, "needs low and high"),
        ({"space": {"lr": {"low": 0.1, "high": 0.1}}}, "low must be less than high"),
        ({"space": {"lr": {"low": 0, "high": 0.1, "log": True}}}, "`low > 0` must hold"),
        ({"space": {"lr": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}}, "is not supported when `log`"),
        ({"space": {"lr": {"low": 0.1, "high": 1, "step": 2}}}, "step must be positive"),
        ({"space": {"lr": {"low": 0.1, "hihg": 1}}}, "unknown key 'hihg'"),
        ({"space": {"lr": {"low": "much", "high": 1}}}, "must be a number"),
        ({"space": {"rule": {"low": 0, "high": 1}}}, "rule is no number"),
        ({"space": {"rule": {"choices": []}}}, "choices must be a list"),
        ({"space": {"rule": {"choices": ["rflo", "rflo"]}}}, "given twice"),
        ({"space": {"activation": {"choices": ["tanh", "relu"]}}}, "activation must be one of"),
        ({"space": {"alpha": {"low": 0.5, "high": 2}}}, "alpha must lie in"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_starts(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_search(file_of(tmp_path, **changes))


def test_defaults_of_the_other_task_kinds(tmp_path):
    nothing = dict.fromkeys(("units", "executor", "total_steps"))
    images = read_search(file_of(tmp_path, task="digits", **nothing))
    assert (images.metric.key, images.curve.key) == ("validation_accuracy", "validation/accuracy")
    assert images.fixed["validation"] is True
    assert open_study(images, SearchFolder(tmp_path / "search")).direction.name == "MAXIMIZE"
    play = read_search(file_of(tmp_path, task="CartPole-v1", **nothing))
    assert (play.metric.key, play.curve.key) == ("train_return_mean", "rollout/ep_rew_mean")


@pytest.mark.parametrize(
    "url", ["nonsense-secret", "nodb://u:secret@h/n", "sqlite:////no/secret/x.db", "mysql+pymysql://u:secret@h/n"]
)
def test_a_storage_that_cannot_be_opened_is_refused_in_a_line(tmp_path, monkeypatch, elsewhere, url):
    monkeypatch.setitem(sys.modules, "pymysql", None)
    result = here("tune", file_of(tmp_path), "--storage", url)
    assert "secret" not in assert_refused(result, "the storage of the search's trials cannot be used: ")


def test_a_folder_is_for_one_search_and_one_storage(tmp_path, monkeypatch):
    search = search_of(tmp_path, trials=1, seeds=0)
    assert search.run() == 0
    file, folder = search.search, search.folder
    with pytest.raises(ValueError, match=r"other settings \(units 4 there, 8 here\)"):
        search_of(tmp_path, seeds=0, units=8)
    with pytest.raises(ValueError, match="was begun with another --storage"):
        open_study(file, folder, f"sqlite:///{tmp_path}/other.db")
    moved = SearchFolder(folder.path.rename(tmp_path / "moved"))
    assert len(open_study(file, moved).get_trials()) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty and no search folder"):
        open_study(file, SearchFolder(tmp_path / "other"))
    monkeypatch.setattr("cet_rl.tuning.study.TAKEOVER", 0.3)
    lock = Lock(moved.locks, "study")
    assert lock.acquire()
    with pytest.raises(OSError, match="another search has been creating the study"):
        open_study(file, moved)
    lock.release()


OPENER = """
import sys
from cet_rl.tuning.file import read_search
from cet_rl.tuning.study import SearchFolder, open_study, require_optuna
require_optuna()
search, folder = read_search(sys.argv[1]), SearchFolder(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
study = open_study(search, folder)
for _ in range(2):
    trial = study.ask()
    print(study.study_name, trial.number, trial._suggest("lr", search.space["lr"]), flush=True)
"""


def test_processes_that_begin_together_share_a_study_and_no_trial(tmp_path):
    command = [sys.executable, "-c", OPENER, file_of(tmp_path, sampler="random"), str(tmp_path / "search")]
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with running(command, **pipes) as one, running(command, **pipes) as two, running(command, **pipes) as three:
        processes = [one, two, three]
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        rows = [line.split() for process in processes for line in process.communicate(timeout=120)[0].splitlines()]
        assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({study for study, _, _ in rows}) == 1
    assert sorted(int(number) for _, number, _ in rows) == list(range(6))
    assert len({value for _, _, value in rows}) == 6


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_what_is_drawn_depends_on_the_trial_and_not_on_the_process(kind):
    def drawn(restarts):
        study = optuna.create_study(sampler=trial_sampler(kind))
        for number in range(16):
            trial = study.ask()
            x = trial.suggest_float("x", 0, 1)
            if number in restarts:
                study.sampler = trial_sampler(kind)
                trial = optuna.Trial(study, trial._trial_id)
            study.tell(trial, (x - 0.5) ** 2 + trial.suggest_float("y", 0, 1))
        return [trial.params for trial in study.get_trials()]

    whole = drawn(())
    assert (drawn((3, 12, 15)), len({value for params in whole for value in params.values()})) == (whole, 32)


def test_importances_tell_what_matters(tmp_path):
    study = optuna.create_study()
    for number in range(40):
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        study.tell(trial, (x - 0.5) ** 2 + 1e-6 * y * number)
    found = importances(study)
    assert sum(found.values()) == pytest.approx(1)
    assert found["x"] > 0.5
    assert importances(optuna.create_study()) == {}  # too few trials to tell


def test_a_search_looks_at_its_data_first_and_goes_on_after_an_interruption(tmp_path, elsewhere):
    mnist = {"task": "mnist", "data_dir": "absent", "units": None, "executor": None}
    assert_refused(here("tune", file_of(tmp_path, **mnist)), "the data folder", "absent does not exist")
    assert not Path("runs").exists()
    interrupted = patch.object(optuna.storages, "RDBStorage", side_effect=KeyboardInterrupt)
    with interrupted, pytest.raises(KeyboardInterrupt):
        search_of(tmp_path)
    assert states(search_of(tmp_path)) == []


def test_without_optuna_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert_refused(here("tune", file_of(tmp_path)), "pip install 'cet-rl[tune]'")


@pytest.mark.slow
def test_the_command_searches_with_real_runs(tmp_path, elsewhere, capfd):
    assert main(["tune", file_of(tmp_path, seeds=0), "--trials", "1", "--workers", "1"]) == 0
    printed = capfd.readouterr()
    assert "best: cet-rl train add --config runs/tune/best.yaml" in printed.out
    assert "[1/1]" in printed.err
    assert main(["train", "add", "--config", "runs/tune/best.yaml", "--run-dir", "again", "--quiet"]) == 0
    (row,) = csv.DictReader(Path("runs/tune/trials.csv").read_text().splitlines())
    assert json.loads(Path("again/summary.json").read_text())["metrics"] == {"test_loss": float(row["test_loss"])}
