"""Sweeps whose jobs are run by a trainer that learns nothing, in processes of their own."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Job, Sweep, fingerprint
from cet_rl.sweeps.worker import Launcher


def fake(*numbers, title="a study", **values):
    """A sweep of jobs that only a fake trainer can run."""
    jobs = []
    for seed in numbers:
        own = {"task": "fake", "total_steps": 100, "seed": seed, **values}
        jobs.append(Job(f"fake-arm-{seed}-{fingerprint(own)}", "arm", own))
    return Sweep(title, tuple(jobs), "made from nothing")


FAKE = '''
import json, os, signal, sys, time
import yaml
from cet_rl.sweeps.worker import run_worker

def train(folder, jobs):
    """Does as the file `plan` says: fail, crash, refuse, wait, stop; otherwise finishes at once."""
    (job,) = jobs
    run, seed = folder.run_path(job.name), job.values["seed"]
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(dict(job.values)))
    with open(folder.path / ".ran", "a") as stream:
        stream.write(f"{job.readable}\\n")
    plan = json.loads((folder.path / ".plan").read_text()).get(str(seed), "finish")
    if plan == "fail":
        error = "ArithmeticError: the loss is too high"
        (run / "summary.json").write_text(json.dumps({"status": "failed", "error": error}))
        raise ArithmeticError("the loss is too high\\nor so it seems")
    if plan == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if plan == "exit":
        print("something went wrong", file=sys.stderr)
        os._exit(7)
    if plan == "wait":
        for _ in range(600):
            time.sleep(0.05)
    if plan == "stop":
        return "interrupted"
    if plan == "slow":
        time.sleep(0.3)
    summary = {"status": "finished", "agent": "a", "steps": 100, "steps_per_second": 5}
    metrics = {"test_loss": seed / 7, "threads": int(os.environ["OMP_NUM_THREADS"])}
    (run / "summary.json").write_text(json.dumps({**summary, "metrics": metrics}))
    return "finished"

sys.exit(run_worker(sys.argv[1:], train))
'''

DRIVER = """
import pickle, sys
from sweep_fakes import launcher_of
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.scheduler import run_sweep
sweep, path, workers = pickle.loads(bytes.fromhex(sys.argv[1]))
sys.exit(run_sweep(sweep, SweepFolder(path), launcher_of(path, workers), quiet="--loud" not in sys.argv))
"""


def launcher_of(path, workers=2):
    """Workers that run the fake trainer."""
    script = Path(path) / ".fake.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(FAKE)
    if not (script.parent / ".plan").exists():
        plan(path)
    return Launcher(workers, lambda folder, names: [sys.executable, str(script), str(folder.path), *names])


def plan(path, **seeds):
    (Path(path) / ".plan").write_text(json.dumps({seed.strip("s"): what for seed, what in seeds.items()}))


def ran(path):
    return Counter((Path(path) / ".ran").read_text().split())


def states_of(path, sweep):
    return [state.state for state in SweepFolder(path).states(sweep.jobs).values()]


@contextmanager
def driver(path, sweep, workers=2, *options):
    """A sweep in a process group of its own."""
    launcher_of(path, workers)  # writes what its workers run
    told = pickle.dumps((sweep, str(path), workers)).hex()
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, told, *options],
        cwd=Path(__file__).parent,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
