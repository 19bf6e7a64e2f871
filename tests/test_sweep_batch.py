"""Sweeps whose jobs are trained together, as one batched model."""

import json
import os
import signal
import subprocess
import sys
from unittest.mock import patch

import pytest
import yaml
from conftest import assert_refused, here
from sweep_fakes import fake, rows_of, running, states_of, wait_for

from cet_rl.cli import main
from cet_rl.runs.folder import RunFolder
from cet_rl.runs.lock import EXIT_BUSY, Lock, lock_owners
from cet_rl.sweeps.build import build
from cet_rl.sweeps.file import read_sweep
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.worker import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_UNRECORDED,
    Launcher,
    batch_launcher,
    work,
    worker_command,
)

SMALL = {"task": "digits", "delay": 0.6, "total_steps": 40, "hidden": [8], "alignment": False}


def study(path, **settings):
    """Return the file of a sweep, and its folder."""
    path.mkdir(exist_ok=True)
    file = path / "study.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **settings}))
    return str(file), SweepFolder(path / "study")


def statuses(folder):
    return [row["status"] for row in rows_of(folder.results_file)]


def sweep(file, folder, *options):
    return main(["sweep", file, "--launcher", "batch", "--quiet", "--run-dir", str(folder.path), *options])


def test_jobs_end_where_they_would_have_ended_alone(tmp_path):
    file, folder = study(tmp_path, grid={"trace": ["cet", "perfect"], "lr": [1e-3, 3e-3]}, seeds=[3])
    assert (sweep(file, folder, "--known", str(tmp_path / "known.csv")), statuses(folder)) == (0, ["finished"] * 4)
    kept = {row["test_loss"] for row in rows_of(tmp_path / "known.csv")}
    assert kept == {row["test_loss"] for row in rows_of(folder.results_file)}
    for number, row in enumerate(rows_of(folder.results_file)):
        config = str(folder.run_path(row["job"]) / "config.yaml")
        assert main(["train", "--config", config, "--quiet", "--run-dir", str(tmp_path / str(number))]) == 0
        alone = json.loads((tmp_path / str(number) / "summary.json").read_text())["metrics"]
        assert float(row["test_loss"]) == pytest.approx(alone["test_loss"], rel=1e-4)
        assert float(row["test_accuracy"]) == pytest.approx(alone["test_accuracy"], abs=0.003)


def test_shapes_that_differ_are_trained_apart(tmp_path):
    file, folder = study(tmp_path, arms=[{"hidden": [4]}, {"hidden": [8]}, {"hidden": [8], "delay": 1.0}])
    assert len({*batch_launcher(build(read_sweep(file)).jobs).batches.values()}) == 2
    with patch("cet_rl.sweeps.worker.Worker") as started:
        started.return_value.poll.return_value = None
        many = Launcher(batches={name: name for name in "abcd"}, processes=2)
        assert [len(many.submit(folder, "abcd")) for _ in range(2)] == [2, 0]  # no more processes than processors
    assert (sweep(file, folder, "--workers", "2"), statuses(folder)) == (0, ["finished"] * 3)


def test_one_that_diverges_fails_alone_and_can_be_retried(tmp_path, capsys):
    file, folder = study(tmp_path, grid={"lr": [1e-3, 1e30, 2e-3]})
    assert sweep(file, folder) == 1
    assert "the loss is not finite" in capsys.readouterr().err
    assert statuses(folder) == ["finished", "failed", "finished"]
    summaries = [folder.run_path(row["job"]) / "summary.json" for row in rows_of(folder.results_file)]
    before = summaries[0].stat().st_mtime_ns
    assert (sweep(file, folder, "--retry"), summaries[0].stat().st_mtime_ns) == (1, before)
    for summary in summaries[::2]:  # as if both had been killed, and the disk had damaged one
        summary.unlink()
    for checkpoint in summaries[0].parent.glob("checkpoint/*.zip"):
        checkpoint.write_text("")
    assert (sweep(file, folder), statuses(folder)) == (1, ["failed", "failed", "finished"])
    assert "network.zip is damaged" in folder.failure_file(summaries[0].parent.name).read_text()


@pytest.mark.parametrize("task", ["digits", pytest.param("CartPole-v1", marks=pytest.mark.slow)])
def test_folders_that_cannot_be_used_fail_alone(tmp_path, capsys, task):
    own = {"eval_episodes": 1, "total_steps": 600} if task == "CartPole-v1" else {}
    file, folder = study(tmp_path, task=task, seeds="0-4", **own)
    study_of = build(read_sweep(file))
    folder.open_for(study_of)
    paths = [folder.run_path(job.name) for job in study_of.jobs]
    paths[0].symlink_to(tmp_path / "gone" / "away")
    for path, job, name in zip(paths[1:3], study_of.jobs[1:3], ("lock", "checkpoint"), strict=True):
        path.mkdir()
        (path / name).touch()
        (path / "config.yaml").write_text(yaml.safe_dump(dict(job.values)))
    with RunFolder(paths[3]).locked():
        assert sweep(file, folder) == 1
    assert statuses(folder) == ["failed"] * 4 + ["finished"]
    said = capsys.readouterr().err.splitlines()
    words = ["OSError: cannot write to run folder", "/lock'", "/checkpoint'", "is being run by another process"]
    for path, line, word in zip(paths[:4], said, words, strict=True):
        assert all(part in line for part in (path.name, word)), line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "late-add"}, "for images and the agent cet, not for late-add: leave it out"),
        ({"task": "CartPole-v1", "agent": "sb3:a2c"}, "for the agent cet, not for sb3:a2c: leave it out"),
        ({**SMALL, "streaming": True}, "streaming, salience, jitter, soma="),
        ({**SMALL, "compile": True}, "cannot be batched with streaming"),
    ],
)
def test_jobs_that_cannot_be_batched_are_refused_before_any_work(tmp_path, settings, message):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert_refused(here("sweep", file, "--launcher", "batch", "--run-dir", tmp_path / "study"), message)
    assert not (tmp_path / "study").exists()


def test_a_job_that_another_process_runs_is_left_to_it_and_a_failure_is_noted_for_each(tmp_path, capsys):
    sweep, folder = fake(0, 1, 2), SweepFolder(tmp_path)
    folder.open_for(sweep)
    names = [job.name for job in sweep.jobs]

    def fail(folder, jobs):
        raise RuntimeError(f"{len(jobs)} jobs are too large")

    lock = Lock(folder.locks, names[0])
    assert lock.acquire()
    assert (work(folder, names[:1], fail), work(folder, names, fail)) == (EXIT_BUSY, EXIT_FAILED)
    lock.release()
    assert states_of(tmp_path, sweep) == ["waiting", "failed", "failed"]
    for name in names[1:]:
        assert folder.failure_file(name).read_text() == "RuntimeError: 2 jobs are too large\n"
    assert not any(folder.locks.glob("*.[0-9]*"))
    assert work(folder, names[1:], fail) == EXIT_FAILED  # they are not trained again
    for result, status in (("interrupted", EXIT_INTERRUPTED), ("finished", EXIT_FAILED)):  # without a summary
        assert work(folder, names, lambda folder, jobs, r=result: r, retry=True) == status
    assert folder.failure_file(names[0]).read_text() == "its summary cannot be written\n"
    folder.failures.rename(tmp_path / "earlier")
    folder.failures.touch()  # it cannot hold a file any more
    assert work(folder, names, fail) == EXIT_UNRECORDED  # or the sweep would run them again and again
    assert f"{names[2]} has failed: RuntimeError: 3 jobs are too large" in capsys.readouterr().err


@pytest.mark.slow
def test_seeds_of_an_agent_are_trained_together(tmp_path):
    options = "--delay 1 --total-steps 640 --hidden 4 --eval-episodes 2 --launcher batch --quiet"
    command = ["train", "CartPole-v1", *options.split()]
    assert_refused(here(*command), "--launcher batch goes with --seeds")
    folder = SweepFolder(tmp_path / "seeds")
    assert main([*command, "--seeds", "0-1", "--run-dir", str(folder.path)]) == 0
    assert statuses(folder) == ["finished"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "number", "seeds"),
    [
        ("sweep", signal.SIGTERM, 3),
        *[(one, signal.SIGKILL, n) for one, n in (("sweep", 3), ("worker", 3), ("worker", 1))],
    ],
)
def test_stopped_or_killed_and_typed_again_it_goes_on(tmp_path, killed, number, seeds):
    settings = {"seeds": list(range(seeds)), "total_steps": 1000}
    file, folder = study(tmp_path, **settings)
    command = [sys.executable, "-m", "cet_rl", "sweep", file, "--launcher", "batch", "--run-dir", str(folder.path)]
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE}
    with running(command, **options, preexec_fn=on_one_processor) as process:  # where all are one batch
        wait_for(lambda: len(list(folder.path.glob("*/checkpoint/network.zip"))) == seeds, 120)
        worker = next(iter(lock_owners(folder.locks).values())).pid
        os.kill(worker if killed == "worker" else process.pid, number)
        _, said = process.communicate(timeout=60)
        status = 1 if killed == "worker" else 130 if number == signal.SIGTERM else -signal.SIGKILL
        assert process.returncode == status
        jobs = f"{seeds} job{'s' * (seeds > 1)}"
        text = f"the process of {jobs} was killed by SIGKILL (out of memory?): the same command resumes"
        assert said.count(text) == (killed == "worker")
    wait_for(lambda: lock_owners(folder.locks) == {})
    assert not folder.failures.exists()
    assert sweep(file, folder) == 0
    other, whole = study(tmp_path / "whole", **settings)
    assert sweep(other, whole) == 0
    for row, expected in zip(rows_of(folder.results_file), rows_of(whole.results_file), strict=True):
        assert (row["job"], row["steps"]) == (expected["job"], "1000")
        assert float(row["test_loss"]) == pytest.approx(float(expected["test_loss"]), rel=1e-5)


def on_one_processor():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@pytest.mark.parametrize("launcher", ["local", "batch"])
def test_data_that_are_not_there_are_missed_before_anything_is_made(tmp_path, launcher):
    file, folder = study(tmp_path, task="mnist", total_steps=5, batch_size=8)
    missing = tmp_path / "missing"
    command = ["sweep", file, "--data-dir", missing, "--run-dir", folder.path, "--launcher", launcher]
    assert_refused(here(*command), f"data folder {missing} does not exist")
    assert not folder.path.exists()


@pytest.mark.parametrize("others", [[], [{"task": "CartPole-v1"}]], ids=["images", "and another task"])
def test_data_may_lie_elsewhere_on_every_machine(tmp_path, others):
    file, folder = study(tmp_path, arms=[{"task": "mnist", "total_steps": 5, "batch_size": 8}, *others])
    one, other = (build(read_sweep(file, data_dir=str(tmp_path / name))) for name in ("here", "there"))
    assert [job.name for job in one.jobs] == [job.name for job in other.jobs]
    second, used = SweepFolder(folder.path), []
    assert (folder.open_for(one), second.open_for(other)) == (1 + len(others), 0)

    def note(_, jobs):
        used.append(jobs[0].values["data_dir"])
        return "interrupted"

    for each in (folder, second):  # workers of both, though the folder keeps the second's
        (machine,) = [w.partition("=")[2] for w in worker_command(each, []) if w.startswith("--machine=")]
        work(SweepFolder(folder.path, machine=json.loads(machine)), [one.jobs[0].name], note)
    assert used == [str(tmp_path / "here"), str(tmp_path / "there")]
    file, _ = study(tmp_path, task="CartPole-v1")
    command = ("sweep", file, "--data-dir", "x", "--run-dir", tmp_path / "cart")
    assert_refused(here(*command), "data_dir does not apply to any task of")
    assert_refused(here(*command, "extra"), "unexpected extra: usage is cet-rl sweep [OPTIONS] FILE")
    assert_refused(here(*command, "--slurm"), "--slurm goes with --launcher slurm")
    file, _ = study(tmp_path, arms=[{"task": "mnist"}, {"task": "CartPole-v1"}])
    mixed = build(read_sweep(file, data_dir="/here")).jobs
    assert [job.values.get("data_dir", "none") for job in mixed] == ["/here", "none"]
