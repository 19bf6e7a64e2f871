"""Sweeps and searches whose jobs are run by a trainer that learns nothing, in processes of their own."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from cet_rl.sweeps.folder import Job, Sweep, SweepFolder
from cet_rl.sweeps.known import fingerprint
from cet_rl.sweeps.worker import Launcher


def fake(*numbers, title="a study", **values):
    """Return a sweep of jobs that only the fake trainer can run."""
    jobs = []
    for seed in numbers:
        own = {"task": "fake", "total_steps": 100, "seed": seed, **values}
        jobs.append(Job(f"fake-arm-{seed}-{fingerprint(own)}", "arm", own))
    return Sweep(title, tuple(jobs), "made from nothing")


FAKE = '''
import errno, json, os, signal, sys, time
from pathlib import Path
import yaml
from cet_rl.sweeps.worker import run_worker

HOME = Path(__file__).parent

def train(folder, jobs):
    """Do as `plan` says for a seed, a folder or all; else log a loss that falls to (lr - 0.1)^2 + seed."""
    (job,) = jobs
    run, seed, total = folder.run_path(job.name), job.values["seed"], job.values["total_steps"]
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(dict(job.values)))
    with open(HOME / ".ran", "a") as stream:
        stream.write(f"{folder.path.name} {seed}\\n")
    plans = json.loads((HOME / ".plan").read_text())
    plan = next((plans[key] for key in (str(seed), folder.path.name, "all") if key in plans), 0.0)
    if plan == "fail":
        error = "ArithmeticError: the loss is too high"
        (run / "summary.json").write_text(json.dumps({"status": "failed", "error": error}))
        raise ArithmeticError("the loss is too high\\nor so it seems")
    if plan == "diverge":
        raise FloatingPointError("the loss is not finite at 10 steps")
    if plan == "full disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / "metrics.csv"))
    if plan == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if plan == "exit":
        print("something went wrong", file=sys.stderr)
        os._exit(7)
    if plan == "stop":
        return "interrupted"
    loss, pause = (job.values.get("lr", 0.1) - 0.1) ** 2 + seed, 1.5 if plan == "wait" else plan
    lines = ["time/total_timesteps,train/loss"]
    for step in range(total // 20, total + 1, total // 20):
        lines.append(f"{step},{loss + total - step}")
        (run / "metrics.csv").write_text("\\n".join(lines) + "\\n")
        time.sleep(pause)
    summary = {"status": "finished", "agent": "a", "steps": total, "steps_per_second": 5}
    metrics = {"test_loss": loss, "threads": int(os.environ["OMP_NUM_THREADS"])}
    (run / "summary.json").write_text(json.dumps({**summary, "metrics": metrics}))
    return "finished"

sys.exit(run_worker(sys.argv[1:], train))
'''

DRIVER = """
import sys
from sweep_fakes import SweepFolder, fake, launcher_of
from cet_rl.sweeps.scheduler import run_sweep
path, *seeds = sys.argv[1:]
sys.exit(run_sweep(fake(*map(int, seeds)), SweepFolder(path), launcher_of(path)))
"""


def launcher_of(path, workers=2, *options):
    """Return a launcher of workers that run the fake trainer, whose script and plan lie in a folder."""
    script = Path(path) / ".fake.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(FAKE)
    if not (script.parent / ".plan").exists():
        plan(path, {})
    return Launcher(
        workers, lambda folder, names: [sys.executable, str(script), str(folder.path), *names], options
    )


def plan(path, plans):
    """Say what happens to jobs, by their seed, the name of their sweep's folder, or "all"; a number is a pause."""
    Path(path).mkdir(exist_ok=True)
    (Path(path) / ".plan").write_text(json.dumps(plans))


def ran(path):
    """Count how often the jobs of each seed have been run."""
    return Counter(int(line.split()[1]) for line in (Path(path) / ".ran").read_text().splitlines())


def states_of(path, sweep):
    return [state.state for state in SweepFolder(path).states(sweep.jobs).values()]


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@contextmanager
def running(command, *, cwd=None, **options):
    """Run a command in a process group of its own, which is killed at the end."""
    process = subprocess.Popen(command, cwd=cwd, start_new_session=True, text=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def driver(path, *seeds):
    """Run a sweep of fake jobs in a process group of its own, with two workers."""
    command = [sys.executable, "-c", DRIVER, str(path), *map(str, seeds)]
    return running(command, cwd=Path(__file__).parent, stderr=subprocess.PIPE)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
