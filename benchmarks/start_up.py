"""How long commands take that do not learn anything, from their start to their end.

    python benchmarks/start_up.py [--repeats 7] [--jobs 1000]

What answers at once, and `cet-rl sweep` and its `--status` on a sweep whose jobs are all finished: the check
that skips them. Targets: half a second for `cet-rl --help`, ten seconds for 1,000 finished jobs. The table has
medians of the repeats, in seconds, with all commands in turn; the processors' time of all processes, to which
other work on the machine matters less; and which of the packages that take long to load a command loads. The
jobs are made up, as in report.py.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from report import timed, write

from cet_rl.rl.config import RLConfig
from cet_rl.sweeps.build import build_or_read, configuration
from cet_rl.sweeps.file import read_sweep
from cet_rl.sweeps.folder import SweepFolder

COMMANDS = ("--help", "train CartPole-v1 --help", "train mnist --help", "train add --help", "list traces")
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "gymnasium", "stable_baselines3", "numba", "sklearn")

SPEC = """\
title: Finished jobs
task: CartPole-v1
grid:
  delay: [1, 2, 4, 6, 8, 12, 16, 24, 32, 64]
  order: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
seeds: 0-{last}
"""
ARMS = 100
"""Delays and orders of the sweep."""


def make(folder: Path, count: int) -> list[str]:
    """A sweep of so many jobs, all of them finished; the arguments that run it."""
    file = folder / "sweep.yaml"
    file.write_text(SPEC.format(last=count // ARMS - 1), encoding="utf-8")
    place = SweepFolder(folder / "runs")
    sweep = build_or_read(read_sweep(str(file)), place)
    place.open_for(sweep)
    generator = np.random.default_rng(0)
    for job in sweep.jobs:
        _, config = configuration(job)
        assert isinstance(config, RLConfig)
        write(place.run_path(job.name), config, generator)
    return ["sweep", str(file), "--run-dir", str(place.path)]


def loaded(arguments: Sequence[str]) -> list[str]:
    """Which of the heavy packages a command loads."""
    command = [sys.executable, "-X", "importtime", "-m", "cet_rl", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    names = {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
    }
    return [name for name in HEAVY if name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=1000, help=f"of the sweep, a multiple of {ARMS}")
    options = parser.parse_args()
    if options.jobs < ARMS or options.jobs % ARMS:
        parser.error(f"--jobs must be a multiple of {ARMS}")
    with tempfile.TemporaryDirectory() as temporary:
        sweep = make(Path(temporary), options.jobs)
        finished = f"sweep FILE, {options.jobs:,} finished jobs"
        commands = {line: shlex.split(line) for line in COMMANDS}
        commands |= {finished: [*sweep, "--quiet"], f"{finished}, --status": [*sweep, "--status"]}
        rounds = [{name: timed(each) for name, each in commands.items()} for _ in range(options.repeats)]
        print("| cet-rl | s | least–most | s of processors | loads |\n|---|---|---|---|---|")
        for name, arguments in commands.items():
            passed, processors = zip(*(each[name] for each in rounds), strict=True)
            row = [name, f"{statistics.median(passed):.2f}", f"{min(passed):.2f}–{max(passed):.2f}"]
            row += [f"{statistics.median(processors):.2f}", ", ".join(loaded(arguments)) or "–"]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
