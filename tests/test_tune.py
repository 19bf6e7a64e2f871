"""Searches for hyper-parameters: what they refuse, compare, prune, keep when they are killed, and write."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from sweep_fakes import wait_for

from cet_rl.cli import main
from cet_rl.cli.train import parse_arguments
from cet_rl.sweeps.worker import Launcher

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: pip install 'cet-rl[tune]'")

from cet_rl.tuning.file import plain, read_search  # noqa: E402
from cet_rl.tuning.outcome import best_trial, importances, write_outcome  # noqa: E402
from cet_rl.tuning.search import Search  # noqa: E402
from cet_rl.tuning.study import POINTS, SearchFolder, open_study, require_optuna, trial_sampler  # noqa: E402

WORKER = '''
import json, os, signal, sys, time
from pathlib import Path
import yaml
from cet_rl.sweeps.worker import run_worker

def train(folder, jobs):
    """A loss that falls to (lr - 0.1)^2 + seed, as the file `plan` says how fast."""
    (job,) = jobs
    run, home, seed, lr = folder.run_path(job.name), folder.path.parent, job.values["seed"], job.values["lr"]
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(dict(job.values)))
    with open(home / ".ran", "a") as stream:
        stream.write(f"{folder.path.name} {seed}\\n")
    plan = json.loads((home / ".plan").read_text()) if (home / ".plan").exists() else {}
    if plan.get("all") == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if plan.get("all") == "full disk":
        raise OSError(28, os.strerror(28), str(run / "metrics.csv"))
    if lr > plan.get("diverge above", 10):
        raise FloatingPointError("the loss is not finite at 10 steps")
    loss, total = (lr - 0.1) ** 2 + seed, job.values["total_steps"]
    lines = ["time/total_timesteps,train/loss"]
    for step in range(total // 20, total + 1, total // 20):
        lines.append(f"{step},{loss + total - step}")
        (run / "metrics.csv").write_text("\\n".join(lines) + "\\n")
        time.sleep(plan.get("pause", {}).get(folder.path.name, 0.0))
    summary = {"status": "finished", "agent": "a", "steps": total, "metrics": {"test_loss": loss}}
    (run / "summary.json").write_text(json.dumps(summary))
    return "finished"

if __name__ == "__main__":
    sys.exit(run_worker(sys.argv[1:], train))
'''

SETTINGS = {
    "task": "add",
    "total_steps": 200,
    "units": 4,
    "executor": "step",
    "seeds": "0-1",
    "trials": 4,
    "space": {"lr": {"low": 1e-3, "high": 1, "log": True}},
}


def file_of(path, **changes):
    file = Path(path) / "tune.yaml"
    kept = {key: value for key, value in {**SETTINGS, **changes}.items() if value is not None}
    file.write_text(yaml.safe_dump(kept))
    return str(file)


def search_of(path, *, trials=4, workers=2, **changes):
    """A search whose runs learn nothing."""
    spec, folder = read_search(file_of(path, **changes)), SearchFolder(Path(path) / "search")
    script = Path(path) / "worker.py"
    script.write_text(WORKER)
    launcher = Launcher(
        workers, lambda runs, names: [sys.executable, str(script), str(runs.path), *names], options=["--wait"]
    )
    require_optuna()
    study = open_study(spec, folder)
    return Search(spec, folder, study, launcher, trials=trials)


def plan(search, **what):
    (search.folder.path / ".plan").write_text(json.dumps({key.replace("_", " "): v for key, v in what.items()}))


def ran(search):
    return (search.folder.path / ".ran").read_text().split("\n")[:-1]


def states(search):
    return [trial.state.name for trial in search.study.get_trials()]


def loss_of(lr):
    return (lr - 0.1) ** 2


def test_a_search_scores_the_mean_over_seeds_and_writes_the_best(tmp_path, capfd):
    search = search_of(tmp_path, pruner="none")
    assert search.run() == 0
    printed = capfd.readouterr().err
    assert "0 trials so far; going on to 4; 2 at a time" in printed
    assert "[4/4] test_loss" in printed
    trials = search.study.get_trials()
    assert [trial.value for trial in trials] == pytest.approx([0.5 + loss_of(t.params["lr"]) for t in trials])
    assert len(ran(search)) == 8
    rows = list(csv.DictReader(search.folder.table_file.open()))
    assert [row["state"] for row in rows] == ["complete"] * 4
    assert [float(row["test_loss"]) for row in rows] == [trial.value for trial in trials]
    best = best_trial(search.study)
    assert best.value == min(trial.value for trial in trials)
    assert (
        f"test_loss {best.value:.6g} over seeds 0, 1 (trial {best.number})" in search.folder.best_file.read_text()
    )
    found = parse_arguments(["add", "--config", str(search.folder.best_file), "--seed", "7"]).config
    assert (found.lr, found.units, found.seed) == (best.params["lr"], 4, 7)


def test_a_search_goes_on_to_more_trials_and_never_draws_the_same_again(tmp_path, capfd):
    search = search_of(tmp_path, trials=2, sampler="random")
    assert search.run() == 0
    assert search_of(tmp_path, trials=2, sampler="random").run() == 0  # nothing is left to do
    assert len(ran(search)) == 4
    again = search_of(tmp_path, trials=4, sampler="random")
    assert again.run() == 0
    assert len({trial.params["lr"] for trial in again.study.get_trials()}) == 4


def test_runs_are_compared_by_their_mean_over_the_seeds_so_far(tmp_path):
    search = search_of(tmp_path, trials=1)
    search.run()
    (trial,) = search.study.get_trials()
    loss = loss_of(trial.params["lr"])
    assert sorted(trial.intermediate_values) == list(range(1, 2 * POINTS + 1))
    for place, value in trial.intermediate_values.items():
        seed, point = divmod(place - 1, POINTS)
        remaining = 200 - 200 * (point + 1) / POINTS
        assert value == pytest.approx(loss + remaining + (0.0 if seed == 0 else 0.5))


def test_a_trial_that_is_worse_than_most_is_stopped_and_its_run_kept(tmp_path):
    search = search_of(tmp_path, trials=6)
    for lr in (0.1, 0.11, 0.12, 0.13, 0.14, 1.0):
        search.study.enqueue_trial({"lr": lr})
    plan(search, pause={"trial-0005": 0.3})
    assert search.run() == 0
    assert states(search) == ["COMPLETE"] * 5 + ["PRUNED"]
    (run,) = [path for path in search.folder.trial_path(5).glob("add-*") if path.is_dir()]
    assert len((run / "metrics.csv").read_text().splitlines()) < 1 + 20
    assert not (run / "summary.json").exists()
    reasons = [row["reason"] for row in csv.DictReader(search.folder.table_file.open())]
    assert reasons[:5] == [""] * 5
    assert reasons[5].startswith("at ")


def test_divergence_counts_as_pruned_and_a_crash_as_failed(tmp_path, capfd):
    search = search_of(tmp_path, trials=2, workers=1)
    search.study.enqueue_trial({"lr": 1.0})
    search.study.enqueue_trial({"lr": 0.2})
    plan(search, diverge_above=0.5)
    assert search.run() == 0
    assert states(search) == ["PRUNED", "COMPLETE"]
    assert "the loss is not finite" in capfd.readouterr().err
    search = search_of(tmp_path, trials=3)
    plan(search, all="crash")
    assert search.run() == 0
    assert states(search) == ["PRUNED", "COMPLETE", "FAIL"]
    assert "was killed by SIGKILL" in capfd.readouterr().err


def test_a_search_in_which_no_trial_finishes_says_so(tmp_path):
    search = search_of(tmp_path, trials=1)
    plan(search, all="crash")
    assert search.run() == 1
    assert not search.folder.best_file.exists()


def test_trials_that_found_the_disk_full_are_taken_up_again(tmp_path):
    search = search_of(tmp_path, trials=2, workers=1)
    plan(search, all="full disk")
    with pytest.raises(OSError, match=r"trial 0 cannot go on: .*No space left on device.*takes it up again"):
        search.run()
    assert states(search) == ["RUNNING"]
    plan(search)
    again = search_of(tmp_path, trials=2, workers=1)
    assert again.run() == 0
    assert states(again) == ["COMPLETE", "COMPLETE"]


def test_parameters_drawn_again_are_not_run_again(tmp_path):
    search = search_of(tmp_path, trials=3, workers=1, space={"lr": {"choices": [0.1]}})
    assert search.run() == 0
    assert states(search) == ["COMPLETE"] * 3
    assert len(ran(search)) == 2


def test_after_ctrl_c_the_same_trial_goes_on(tmp_path, capfd):
    search = search_of(tmp_path, trials=1)
    plan(search, pause={"trial-0000": 1.0})

    def interrupt():
        wait_for(lambda: list(search.folder.trial_path(0).glob("*/metrics.csv")))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert search.run() == 130
    thread.join()
    assert states(search) == ["RUNNING"]
    plan(search)
    again = search_of(tmp_path, trials=1)
    assert again.run() == 0
    assert "trial 0 goes on" in capfd.readouterr().err
    assert states(again) == ["COMPLETE"]
    assert ran(again) == ["trial-0000 0", "trial-0000 0", "trial-0000 1"]


DRIVER = """
import sys
from test_tune import search_of
sys.exit(search_of(sys.argv[1], trials=2).run())
"""


def test_a_search_that_was_killed_loses_no_trial(tmp_path):
    search = search_of(tmp_path, trials=2)
    plan(search, pause={"trial-0000": 1.0, "trial-0001": 1.0})
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=Path(__file__).parent)
    try:
        wait_for(lambda: len(list(search.folder.path.glob("trial-*/*/metrics.csv"))) == 2)
    finally:
        process.kill()
        process.wait()
    before = [trial.params for trial in search.study.get_trials()]
    assert states(search) == ["RUNNING", "RUNNING"]
    plan(search)
    again = search_of(tmp_path, trials=2)
    assert again.run() == 0
    assert [trial.params for trial in again.study.get_trials()] == before
    assert states(again) == ["COMPLETE", "COMPLETE"]


def test_a_trial_that_another_search_runs_is_left_alone(tmp_path):
    from cet_rl.runs.lock import Lock

    search = search_of(tmp_path, trials=1)
    search.study.ask()
    lock = Lock(search.folder.locks, "trial-0000")
    assert lock.acquire()
    try:
        assert search.run() == 1
    finally:
        lock.release()
    assert states(search) == ["RUNNING"]
    assert not (search.folder.path / ".ran").exists()


def test_choices_come_back_as_they_are_in_the_file(tmp_path):
    space = {"lags": {"choices": [[3, 5], [2, 4]]}, "units": {"low": 4, "high": 8, "step": 2}}
    spec = read_search(file_of(tmp_path, units=None, space=space))
    trial = optuna.create_study().ask()
    found = {name: plain(trial._suggest(name, one)) for name, one in spec.space.items()}
    assert found["lags"] in ([3, 5], [2, 4])
    assert found["units"] in (4, 6, 8)
    assert spec.sweep(found).jobs[0].values["lags"] == found["lags"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None}, "names no task"),
        ({"task": "ad"}, "did you mean add"),
        ({"space": None}, "space must name options"),
        (
            {"space": None, "grid": {"lr": [0.1]}},
            "tune.yaml is a sweep, as it has grid: run it with cet-rl sweep ",
        ),
        ({"space": None, "arms": [{"lr": 0.1}]}, "is a sweep, as it has arms"),
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
    space = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    nothing = dict.fromkeys(("units", "executor", "total_steps"))
    images = read_search(file_of(tmp_path, task="digits", space=space, **nothing))
    assert (images.metric.key, images.curve.key) == ("validation_accuracy", "validation/accuracy")
    assert images.fixed["validation"] is True
    play = read_search(file_of(tmp_path, task="CartPole-v1", space=space, **nothing))
    assert (play.metric.key, play.curve.key) == ("train_return_mean", "rollout/ep_rew_mean")


def test_a_folder_is_for_one_search(tmp_path):
    search_of(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(units 4 there, 8 here\)"):
        search_of(tmp_path, units=8)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty and no search folder"):
        open_study(read_search(file_of(tmp_path)), SearchFolder(tmp_path / "other"))


@pytest.mark.parametrize(
    "url",
    [
        "nonsense-secret",
        "nodatabase://user:secret@host/name",
        "sqlite:////no/secret/x.db",
        "mysql+pymysql://u:secret@h/n",
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused_in_a_line(tmp_path, monkeypatch, capsys, url):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pymysql", None)
    assert main(["tune", file_of(tmp_path), "--storage", url]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the storage of the search's trials cannot be used: " in line
    assert "secret" not in line


def test_a_search_goes_on_only_where_its_trials_are(tmp_path):
    search = search_of(tmp_path, trials=1)
    assert search.run() == 0
    file, folder = search.search, search.folder
    with pytest.raises(ValueError, match="was begun with another --storage"):
        open_study(file, folder, f"sqlite:///{tmp_path}/other.db")
    moved = SearchFolder(folder.path.rename(tmp_path / "moved"))
    assert len(open_study(file, moved).get_trials()) == 1


OPENER = """
import sys, time
from pathlib import Path
from cet_rl.tuning.file import read_search
from cet_rl.tuning.study import SearchFolder, open_study, require_optuna
import optuna.storages
require_optuna()
file, path, home = sys.argv[1:]
search, folder = read_search(file), SearchFolder(path)
print("ready", flush=True)
while not Path(home, "go").exists():
    time.sleep(0.001)
study = open_study(search, folder)
for _ in range(2):
    trial = study.ask()
    print(study.study_name, trial.number, trial._suggest("lr", search.space["lr"]), flush=True)
"""


def test_processes_that_begin_together_share_a_study_and_no_trial(tmp_path):
    file = file_of(tmp_path, sampler="random")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, file, str(tmp_path / "search"), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        (tmp_path / "go").touch()
        answers = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    rows = [line.split() for out, _ in answers for line in out.splitlines()]
    assert len({study for study, _, _ in rows}) == 1
    assert sorted(int(number) for _, number, _ in rows) == list(range(6))
    assert len({value for _, _, value in rows}) == 6


def test_who_creates_the_study_is_waited_for_and_not_for_ever(tmp_path, monkeypatch):
    from cet_rl.runs.lock import Lock

    spec, folder = read_search(file_of(tmp_path)), SearchFolder(tmp_path / "search")
    lock = Lock(folder.locks, "study")
    assert lock.acquire()
    timer = threading.Timer(0.5, lock.release)
    timer.start()
    open_study(spec, folder)
    timer.join()
    monkeypatch.setattr("cet_rl.tuning.study.PATIENCE", 0.3)
    other = Lock(folder.locks, "study")
    assert other.acquire()
    with pytest.raises(OSError, match="another search has been creating the study"):
        open_study(spec, folder)
    other.release()


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
            y = trial.suggest_float("y", 0, 1)
            study.tell(trial, (x - 0.5) ** 2 + y)
        return [trial.params for trial in study.get_trials()]

    whole = drawn(())
    assert drawn((3, 12, 15)) == whole
    assert len({value for params in whole for value in params.values()}) == 32


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


def test_the_table_and_the_best_of_nothing(tmp_path):
    search = search_of(tmp_path)
    write_outcome(search.folder, search.search, search.study)
    assert search.folder.table_file.read_text() == "trial,state,test_loss,lr,reason\n"
    assert not search.folder.best_file.exists()


def test_without_optuna_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["tune", file_of(tmp_path)]) == 2
    assert "pip install 'cet-rl[tune]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_searches_with_real_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", file_of(tmp_path, seeds=0), "--trials", "1", "--workers", "1"]) == 0
    printed = capfd.readouterr()
    assert "best: cet-rl train add --config runs/tune/best.yaml" in printed.out
    assert "[1/1]" in printed.err
    assert main(["train", "add", "--config", "runs/tune/best.yaml", "--run-dir", "again", "--quiet"]) == 0
    (row,) = csv.DictReader(Path("runs/tune/trials.csv").read_text().splitlines())
    assert json.loads(Path("again/summary.json").read_text())["metrics"] == {"test_loss": float(row["test_loss"])}
