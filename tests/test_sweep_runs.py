"""The jobs of a sweep run once, however often they stop; the commands; what many jobs cost."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import assert_holds, assert_refused, here, run_python
from rich.console import Console
from sweep_fakes import driver, fake, launcher_of, plan, ran, rows_of, running, states_of, wait_for

from cet_rl.cli import main
from cet_rl.runs.lock import Lock, lock_owners
from cet_rl.sweeps.build import build, build_or_read, digest
from cet_rl.sweeps.file import read_sweep
from cet_rl.sweeps.folder import Job, JobState, SweepFolder
from cet_rl.sweeps.scheduler import jobs_table, run_sweep
from cet_rl.sweeps.worker import Launcher


def test_every_job_runs_once_on_one_thread(tmp_path, capfd):
    sweep, folder, launcher = fake(*range(5)), SweepFolder(tmp_path), launcher_of(tmp_path)
    assert run_sweep(sweep, folder, launcher) == 0
    assert_holds(capfd.readouterr().err, "5 jobs; 2 at a time", "[5/5]", "finished, loss 4.0000, 5 steps/s")
    assert ran(tmp_path) == dict.fromkeys(range(5), 1)
    rows = rows_of(folder.results_file)
    assert list(rows[0]) == ["job", "arm", "task", "agent", "seed", "status", "steps", "test_loss", "threads"]
    assert [row["job"] for row in rows] == [job.name for job in sweep.jobs]
    assert [(float(row["test_loss"]), row["threads"]) for row in rows] == [(seed, "1") for seed in range(5)]
    assert not list((tmp_path / "logs").iterdir())
    before = folder.results_file.read_bytes()
    assert run_sweep(sweep, folder, launcher, quiet=True) == 0  # nothing is left to do
    assert (ran(tmp_path).total(), folder.results_file.read_bytes(), capfd.readouterr().err) == (5, before, "")


def test_no_job_starts_on_a_full_disk(tmp_path, monkeypatch):
    sweep, folder, launcher = fake(0, 1), SweepFolder(tmp_path), launcher_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=9_000))
        with pytest.raises(OSError, match=f"the disk of {tmp_path} is full: make room, then the same command"):
            run_sweep(sweep, folder, launcher)
    assert (states_of(tmp_path, sweep), run_sweep(sweep, folder, launcher, quiet=True)) == (["waiting"] * 2, 0)


def test_failures_are_reported_and_retried_when_asked(tmp_path, capfd):
    sweep, folder, launcher = fake(0, 1, 2, 3), SweepFolder(tmp_path), launcher_of(tmp_path)
    plan(tmp_path, {0: "fail", 1: "crash", 2: "exit"})
    folder.open_for(sweep)
    folder.note_failure(sweep.jobs[3].name, "ValueError: there are no data in X")  # before it had a folder
    assert run_sweep(sweep, folder, launcher) == 1
    printed = capfd.readouterr().err
    assert_holds(printed, "ArithmeticError: the loss is too high", "killed by SIGKILL (out of memory?)")
    assert_holds(printed, "something went wrong", "there are no data in X", "--retry runs the 1 that failed again")
    assert states_of(tmp_path, sweep) == ["failed"] * 4
    assert "Traceback" in folder.log_file(sweep.jobs[0].name).read_text()
    assert [row["status"] for row in rows_of(folder.results_file)] == ["failed"] * 4
    assert (run_sweep(sweep, folder, launcher, quiet=True), ran(tmp_path)) == (1, {0: 1, 1: 1, 2: 1})
    plan(tmp_path, {1: "stop", 2: "fail"})
    assert run_sweep(sweep, folder, launcher, retry=True, quiet=True) == 1
    assert states_of(tmp_path, sweep) == ["finished", "partial", "failed", "finished"]
    assert ran(tmp_path) == {0: 2, 1: 2, 2: 2, 3: 1}
    plan(tmp_path, {})
    assert run_sweep(sweep, folder, launcher, quiet=True) == 1  # goes on with what was stopped
    assert states_of(tmp_path, sweep) == ["finished", "finished", "failed", "finished"]


def test_what_a_folder_says_of_a_run_under_way(tmp_path):
    sweep, folder = fake(0, 1, 2), SweepFolder(tmp_path)
    folder.open_for(sweep)
    for job in sweep.jobs[:2]:
        folder.run_path(job.name).mkdir()
        (folder.run_path(job.name) / "config.yaml").write_text(yaml.safe_dump(dict(job.values)))
        table = "time/total_timesteps,time/fps,train/loss\n20,1000.0,0.9\n40,2000.0,0.81234\n60,30"
        (folder.run_path(job.name) / "metrics.csv").write_text(table)
    lock = Lock(folder.locks, sweep.jobs[0].name)
    assert lock.acquire()
    running, partial, waiting = folder.states(sweep.jobs).values()
    lock.release()
    assert (running.state, running.step, running.score, running.speed) == ("running", 40, "loss 0.8123", 2000.0)
    assert f"process {os.getpid()}" in running.owner
    assert (partial.state, partial.step, partial.owner, waiting.state) == ("partial", 40, "", "waiting")
    folder.write_results(sweep.jobs, folder.states(sweep.jobs))
    assert folder.results_file.read_text().splitlines()[1] == f"{sweep.jobs[0].name},arm,fake,,0,partial,"


def test_two_sweeps_on_one_folder_share_the_work(tmp_path):
    plan(tmp_path, {"all": 0.02})
    with driver(tmp_path, *range(8)) as first, driver(tmp_path, *range(8)) as second:
        assert (first.wait(60), second.wait(60)) == (0, 0)
    assert (ran(tmp_path), states_of(tmp_path, fake(*range(8)))) == (dict.fromkeys(range(8), 1), ["finished"] * 8)


def test_a_job_whose_sweep_is_killed_is_taken_over_by_another_that_waits_for_it(tmp_path):
    plan(tmp_path, {0: "wait"})
    with driver(tmp_path, 0) as first:
        wait_for((tmp_path / ".ran").exists)
        with driver(tmp_path, 0) as second:
            time.sleep(1.5)
            assert second.poll() is None
            plan(tmp_path, {})
            first.kill()  # its worker stops by itself
            assert second.wait(60) == 0
    assert ran(tmp_path) == {0: 2}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_interrupted_stops_its_workers(tmp_path, number):
    plan(tmp_path, {0: "wait", 1: "wait"})
    with driver(tmp_path, 0, 1, 2) as process:
        wait_for(lambda: (tmp_path / ".ran").exists() and ran(tmp_path).total() == 2)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
    assert_holds(err, "stopping: waiting for 2 jobs", "2 partial, 1 waiting; the same command goes on")
    assert lock_owners(tmp_path / "locks") == {}
    assert states_of(tmp_path, fake(0, 1, 2)) == ["partial", "partial", "waiting"]


def test_a_thousand_finished_jobs_are_skipped_fast(tmp_path, capsys):
    folder, sweep = SweepFolder(tmp_path), fake(*range(1000))
    folder.open_for(sweep)
    summary = json.dumps({"status": "finished", "agent": "a", "steps": 100, "metrics": {"test_loss": 0.5}})
    for job in sweep.jobs:
        folder.run_path(job.name).mkdir()
        (folder.run_path(job.name) / "summary.json").write_text(summary)
    began = time.process_time()
    assert run_sweep(sweep, folder, Launcher(2, lambda folder, names: pytest.fail(names))) == 0
    assert time.process_time() - began < 5
    assert len(rows_of(folder.results_file)) == 1000
    assert "1000 finished" in capsys.readouterr().err


STUDY = "task: digits\ntotal_steps: 30\ndelay: 2\nhidden: [8]\ngrid: {order: [2, 3]}\nseeds: 0-1\n"


def test_jobs_are_read_back_if_they_would_come_out_the_same_in_any_process(monkeypatch, elsewhere):
    Path("study.yaml").write_text(STUDY)
    code = "from cet_rl.sweeps import build, file; print(build.digest(file.read_sweep('study.yaml')))"
    file, folder = read_sweep("study.yaml"), SweepFolder("study")
    assert run_python("-c", code).stdout == f"{digest(file)}\n"
    folder.open_for(build(file))
    Path("study.yaml").write_text(STUDY.replace("0-1", "0-2"))
    assert len(build_or_read(read_sweep("study.yaml"), folder).jobs) == 6
    monkeypatch.setattr("cet_rl.sweeps.build.build", pytest.fail)
    assert build_or_read(file, folder) == folder.read()


def test_the_command_from_file_to_results(elsewhere, capfd):
    text = f"{STUDY}quick: {{total_steps: 20, seeds: 0, lr: 1.0e+30, grid: {{order: [3]}}}}\n"
    Path("study.yaml").write_text(text)
    assert main(["sweep", "study.yaml", "--quick", "--status"]) == 0
    assert "1 waiting" in capfd.readouterr().out
    assert not Path("runs").exists()
    assert main(["sweep", "study.yaml", "--quick", "--quiet"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "failed: FloatingPointError: the loss is not finite" in line
    Path("study.yaml").write_text(text.replace("1.0e+30", "1.0e-3"))
    assert_refused(here("sweep", "study.yaml", "--quick"), "lr 1e+30 there, 0.001 here")
    assert main(["sweep", "study.yaml", "--quick", "--run-dir", "again"]) == 0
    (row,) = rows_of("again/results.csv")
    assert (row["seed"], row["status"], row["steps"]) == ("0", "finished", "20")
    assert 0 < float(row["test_accuracy"]) < 1
    before = Path("again/results.csv").read_bytes()
    Path("again/results.csv").unlink()
    assert main(["sweep", "study.yaml", "--quick", "--run-dir", "again", "--status"]) == 0
    assert "1 finished" in capfd.readouterr().out
    assert Path("again/results.csv").read_bytes() == before
    for name in ("summary.json", "config.yaml"):
        assert len(list(Path("again").rglob(name))) == 1


def test_seeds_of_one_run(elsewhere, capfd):
    command = ["train", "digits", "--delay", "2", "--order", "3", "--total-steps", "20", "--seeds", "0-1"]
    assert main([*command, "--quiet"]) == 0
    assert [row["seed"] for row in rows_of("runs/digits-cet3-2s-seeds/results.csv")] == ["0", "1"]
    assert main(command) == 0
    assert "2 finished" in capfd.readouterr().err
    assert_refused(here(*command, "--lr", "0.1"), "lr 0.001 there, 0.1 here")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sweep nothing.yaml", "unknown configuration file 'nothing.yaml'"),
        ("sweep study.yaml --workers 0", "--workers must be at least 1"),
        ("sweep study.yaml --quick", "no quick settings"),
        ("sweep study.yaml --statu", "--status"),
        *[(f"sweep study.yaml --known {name}", "--known") for name in ("known.txt", "missing/known.csv")],
        ("train digits --seeds 0-1 --seed 3", "--seed does not go with --seeds"),
        ("train digits --seeds 1-0", "--seeds: 1-0 ends before it begins"),
        ("train digits --seeds 0-1 --threads 2", "--threads does not go with --seeds"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(elsewhere, command, words):
    Path("study.yaml").write_text(STUDY)
    assert_refused(here(*command.split()), words)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_sweep_killed_twice_ends_with_the_same_table(tmp_path):
    """The whole process group, in the middle of its runs; all but the times comes out byte for byte the same."""
    arms = "{task: digits, total_steps: 2000, batch_size: 16}, {task: CartPole-v1, total_steps: 40_000}"
    (tmp_path / "study.yaml").write_text(f"delay: 1\nhidden: [8]\nseeds: 0-1\narms: [{arms}]\n")
    command = [sys.executable, "-m", "cet_rl", "sweep", "study.yaml", "--quiet", "--workers", "2", "--run-dir"]
    assert subprocess.run([*command, "whole"], cwd=tmp_path, timeout=300, check=False).returncode == 0
    killed = tmp_path / "killed"
    for _ in range(2):
        began = time.time()
        with running([*command, "killed"], cwd=tmp_path) as process:
            wait_for(lambda b=began: any(table.stat().st_mtime > b for table in killed.glob("*/metrics.csv")), 120)
            time.sleep(0.5)
            assert process.poll() is None
        wait_for(lambda: lock_owners(killed / "locks") == {})
        assert "partial" in states_of(killed, SweepFolder(killed).read())
    assert subprocess.run([*command, "killed"], cwd=tmp_path, timeout=300, check=False).returncode == 0
    for name in ("results.csv", "sweep.yaml"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_says_which_job_is_in_what_state(width):
    names = ["add-rflo-0-65fa8857", "add-rflo-1-717f4cc5", "add-rflo-with-a-long-label-2-aaaaaaaa"]
    jobs = [Job(name, "rflo", {"task": "add", "total_steps": 6000}) for name in names]
    states = {
        names[0]: JobState("finished", 6000, "loss 0.6329", 2572.0),
        names[1]: JobState("failed", error="FloatingPointError: [b]weight of rule rflo is not finite at step 3"),
        names[2]: JobState("running", 600, "loss 0.7", owner="vm, process 12"),
    }
    console = Console(width=width, file=io.StringIO())
    console.print(jobs_table(jobs, states, 3))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for line, name in zip(lines[1:4], names, strict=True):
        assert line.startswith(name[:5])
        assert states[name].state in line
    assert ("not finite at step 3" in lines[2]) == (width == 160)
    assert "6,000 of 6,000" in lines[1]


def shown_in_terminal(monkeypatch, capsys, *sweep):
    """Run a sweep whose stderr is a terminal, and return what that shows, without control sequences."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    run_sweep(*sweep)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)


def test_a_terminal_shows_progress_and_time_left_and_one_summary(tmp_path, monkeypatch, capsys):
    folder = SweepFolder(tmp_path)
    plan(tmp_path, {"all": 0.02})
    printed = shown_in_terminal(monkeypatch, capsys, fake(0, 1), folder, launcher_of(tmp_path, 1))
    assert "2 waiting; 0% done" in printed
    assert re.search(r"1 finished, 1 \w+; 50% done, about 0:00:\d\d left", printed)
    assert printed.rindex("done") < printed.index("2 finished\n") == printed.rindex("2 finished")
    assert printed.endswith(f"results: {folder.results_file}; figures: cet-rl report {folder.path}\n")


def test_a_job_is_not_shown_as_waiting_while_its_worker_starts(tmp_path, monkeypatch, capsys):
    command = [sys.executable, "-c", "import time; time.sleep(1.5)"]  # it never has the lock
    launcher = Launcher(1, lambda folder, names: command)
    assert "1 running; 0% done" in shown_in_terminal(monkeypatch, capsys, fake(0), SweepFolder(tmp_path), launcher)
