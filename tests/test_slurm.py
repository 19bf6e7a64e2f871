"""Sweeps on SLURM: what is submitted, what a job does with signals, and a real cluster of one node."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from sweep_fakes import fake, launcher_of, plan, ran, rows_of, states_of, wait_for

from cet_rl.cli import main
from cet_rl.runs.lock import EXIT_BUSY, Lock
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.slurm import SlurmJob, check_slurm, minutes, parse_options, queued_jobs, submit_sweep

submitit = pytest.importorskip("submitit", reason="submitit is not installed: pip install 'cet-rl[slurm]'")

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
CLUSTER = Path(__file__).parent / "slurm" / "cluster.sh"


def fake_worker(folder, names):
    """The command line of a worker that learns nothing; `launcher_of` has written it."""
    return [sys.executable, str(folder.path / ".fake.py"), str(folder.path), *names]


def job_of(path, sweep, place=0, **options):
    launcher_of(path)
    SweepFolder(path).open_for(sweep)
    return SlurmJob(str(path), sweep.jobs[place].name, command=fake_worker, linger=0.0, **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("30", 30), ("30:01", 31), ("2:00:00", 120), ("1-0", 1440), ("1-2:30", 1590), ("0-0:1:30", 2)],
        *[(text, None) for text in ("", "1h", "0", "0:30", "1-", "1:2:3:4", True)],
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, expected):
    with nullcontext() if expected else pytest.raises(ValueError, match="time must be"):
        assert minutes(text) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *[(words, "KEY=VALUE") for words in ("=x", "partition=")],
        *[(words, "--workers") for words in ("array=0-3", "array_parallelism=3")],
        ("time=1h", "time must be"),
        ("signal-delay=soon", "whole number of seconds"),
        ("mem=1G mem=2G", "given twice"),
        ("output=x", "sweep's folder"),
    ],
)
def test_options_that_cannot_be_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_options(words.split())


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for SLURM's programs: sbatch keeps what it is given, squeue prints the file `queue`."""
    home = tmp_path / "programs"
    home.mkdir()
    scripts = {"sbatch": f'cp "$1" {home}/submitted; cat {home}/answer', "squeue": f"cat {home}/queue"}
    scripts |= dict.fromkeys(("srun", "scontrol"), "exit 1")
    for name, text in scripts.items():
        (home / name).write_text(f"#!/bin/sh\n{text}\n")
        (home / name).chmod(0o755)
    (home / "answer").write_text("Submitted batch job 7\n")
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    return home


def test_jobs_are_submitted_once_as_one_array(tmp_path, programs, capsys, monkeypatch):
    sweep, folder = fake(0, 1, 2), SweepFolder(tmp_path / "sweep")
    options = parse_options(["partition=long", "time=1:30:00", "--mem=2G", "signal_delay=60", "exclusive"])
    submit_sweep(sweep, folder, options, 2)
    assert "submitted 3 jobs as SLURM job 7" in capsys.readouterr().err
    asked = set(re.findall(r"#SBATCH (.*)", (programs / "submitted").read_text()))
    assert {"--array=0-2%2", "--partition=long", "--time=90", "--mem=2G", "--signal=USR2@60"} <= asked
    assert {"--exclusive", "--requeue", "--job-name=sweep", "--nodes=1", "--open-mode=append"} <= asked
    assert f"--output={folder.path}/slurm/%A_%a_0_log.out" in asked
    (programs / "queue").write_text("7_0\n7_2\n6_1\n")
    assert queued_jobs(folder) == {sweep.jobs[0].name: "7_0", sweep.jobs[2].name: "7_2"}
    (programs / "answer").write_text("Submitted batch job 8\n")
    submit_sweep(sweep, folder, options, 2)
    assert "submitted 1 jobs as SLURM job 8" in capsys.readouterr().err
    (programs / "queue").write_text("7_0\n7_2\n8\n")
    (programs / "submitted").unlink()
    submit_sweep(sweep, folder, options, 2)
    assert "nothing to submit" in capsys.readouterr().err
    assert not (programs / "submitted").exists()
    (programs / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr("cet_rl.sweeps.slurm.ANSWER", 0.1)
    with pytest.raises(ValueError, match="squeue does not answer: nothing came back"):
        queued_jobs(folder)


def test_jobs_that_run_have_failed_or_are_finished_are_not_submitted(tmp_path, programs, capsys):
    sweep, folder = fake(0, 1, 2, 3), SweepFolder(tmp_path / "sweep")
    names = [job.name for job in sweep.jobs]
    plan(folder.path, {1: "fail"})
    job_of(folder.path, sweep, 0)()
    with pytest.raises(RuntimeError, match="too high"):
        job_of(folder.path, sweep, 1)()
    lock, numbers = Lock(folder.locks, names[2]), folder.path / "slurm" / "jobs.json"
    assert lock.acquire()
    submit_sweep(sweep, folder, {}, quiet=True)
    assert [*json.loads(numbers.read_text())] == names[3:]
    (programs / "queue").write_text("7\n")
    submit_sweep(sweep, folder, {}, retry=True, quiet=True)
    lock.release()
    assert ({*json.loads(numbers.read_text())}, capsys.readouterr().err) == ({names[1], names[3]}, "")


def test_what_slurm_refuses_is_said_in_one_line(tmp_path, programs, monkeypatch):
    (programs / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: x' >&2\nexit 1\n")
    with pytest.raises(ValueError, match=r"SLURM refuses the jobs: .*invalid partition: x"):
        submit_sweep(fake(0, 1), SweepFolder(tmp_path / "sweep"), {}, quiet=True)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ValueError, match="sbatch is not on the PATH"):
        check_slurm()


def test_a_slurm_job_runs_its_job_and_fails_with_it(tmp_path):
    sweep, known = fake(0, 1, 2), tmp_path.parent / f"{tmp_path.name}.csv"
    SweepFolder(tmp_path, known).open_for(sweep)
    assert job_of(tmp_path, sweep)() == "finished"
    assert [row["seed"] for row in rows_of(known)] == ["0"]  # the worker adds it: the command has returned
    plan(tmp_path, {1: "fail", 2: "crash"})
    with pytest.raises(RuntimeError, match="the loss is too high"):
        job_of(tmp_path, sweep, 1)()
    with pytest.raises(RuntimeError, match=r"killed by SIGKILL \(out of memory\?\)"):
        job_of(tmp_path, sweep, 2)()
    assert states_of(tmp_path, sweep) == ["finished", "failed", "failed"]
    plan(tmp_path, {})
    assert job_of(tmp_path, sweep, 2, retry=True)() == "finished"


def test_a_job_goes_on_after_a_signal_that_was_not_its_end(tmp_path):
    job = job_of(tmp_path, fake(0))
    plan(tmp_path, {0: "wait"})

    def terminate():
        wait_for(lambda: (tmp_path / ".ran").exists())
        plan(tmp_path, {})
        os.kill(job._worker.pid, signal.SIGTERM)

    threading.Thread(target=terminate).start()
    assert (job(), ran(tmp_path).total()) == ("finished", 2)


def test_a_job_that_another_process_runs_is_waited_for_and_then_left_to_it(tmp_path):
    job = job_of(tmp_path, fake(0))
    lock = Lock(tmp_path / "locks", job.name)
    assert lock.acquire()
    threading.Timer(1.0, lock.release).start()
    assert job() == "finished"
    job.command = lambda folder, names: [sys.executable, "-c", f"raise SystemExit({EXIT_BUSY})"]
    assert (job(), ran(tmp_path).total()) == ("busy", 1)


def test_a_job_saves_and_is_queued_again_when_its_time_is_up(tmp_path, monkeypatch):
    # Submitit's process unpickles `fake_worker`.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    sweep = fake(0)
    job = job_of(tmp_path, sweep)
    plan(tmp_path, {0: "wait"})
    executor = submitit.LocalExecutor(tmp_path / "slurm")
    executor.update_parameters(timeout_min=10)
    submitted = executor.submit(job)
    try:
        wait_for(lambda: (tmp_path / ".ran").exists())
        plan(tmp_path, {})
        processes = subprocess.check_output(["pgrep", "-f", f"_submit {tmp_path}"], text=True)
        os.kill(int(processes.split()[0]), signal.SIGUSR2)
        assert submitted.result() == "finished"
    finally:
        submitted.cancel()
    assert (ran(tmp_path).total(), states_of(tmp_path, sweep)) == (2, ["finished"])


@pytest.fixture(scope="module")
def cluster():
    """A real cluster of one node; SLURM_CONF leads to it."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        pytest.skip(f"no SLURM here ({', '.join(missing)}): apt-get install slurm-wlm munge")
    home = tempfile.mkdtemp(prefix="slurm-")
    started = subprocess.run([CLUSTER, "start", home], capture_output=True, text=True, timeout=120)
    if started.returncode:
        pytest.skip(f"SLURM does not start here: {started.stderr.strip()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", f"{home}/slurm.conf")
        yield
        subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], timeout=60)
        subprocess.run([CLUSTER, "stop", home], timeout=60)
    shutil.rmtree(home, ignore_errors=True)


def squeue(*options):
    return subprocess.check_output(["squeue", "--noheader", "--array", *options], text=True).split()


@pytest.mark.slow
def test_a_real_cluster_runs_requeues_and_resumes_to_the_same_numbers(cluster, elsewhere, capfd):
    settings = {"task": "add", "total_steps": 6000, "units": 4, "executor": "step", "seeds": "0-1"}
    Path("study.yaml").write_text(yaml.safe_dump(settings))
    began = time.monotonic()
    command = ["sweep", "study.yaml", "--launcher", "slurm", "--slurm", "time=10"]
    assert main(command) == 0
    assert time.monotonic() - began < 60
    assert "submitted 2 jobs as SLURM job" in capfd.readouterr().err
    folder = SweepFolder("runs/study")
    sweep = folder.read()
    (first, number), _ = sorted(json.loads((folder.path / "slurm" / "jobs.json").read_text()).items())
    wait_for(lambda: (folder.states(sweep.jobs)[first].step or 0) > 200, 120)
    subprocess.run(["scancel", "--signal=USR2", number], check=True)
    wait_for(lambda: folder.summary(first).get("status") == "interrupted")
    assert 0 < folder.summary(first)["steps"] < 6000
    assert main(command) == 0  # it is in the queue, and not submitted again
    assert "nothing to submit" in capfd.readouterr().err
    wait_for(lambda: squeue(f"--jobs={number}", "--states=PENDING", "--format=%i") == [number])

    # SLURM holds back a job that has been requeued for two minutes. Less will do, but not none: a node does not
    # take a job that begins in the second in which it was ended, and the controller believes that it does.
    time.sleep(5)
    start = ["scontrol", "update", f"JobId={number}", "StartTime=now"]
    wait_for(lambda: subprocess.run(start, stderr=subprocess.DEVNULL).returncode == 0)
    wait_for(lambda: states_of(folder.path, sweep) == ["finished"] * 2, 300)
    assert main(["sweep", "study.yaml", "--status"]) == 0
    assert "2 finished" in capfd.readouterr().out
    config = str(folder.run_path(first) / "config.yaml")
    assert main(["train", "add", "--config", config, "--run-dir", "alone"]) == 0
    alone, ours = Path("alone"), folder.run_path(first)
    assert json.loads((alone / "summary.json").read_text())["metrics"] == folder.summary(first)["metrics"]
    losses = [[row["train/loss"] for row in rows_of(run / "metrics.csv")] for run in (alone, ours)]
    assert losses[0] == losses[1]
