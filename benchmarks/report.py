"""How long `cet-rl report` takes over many finished runs, from its start to its end. Target: 1,000 in ten seconds.

    python benchmarks/report.py [--runs 1000] [--tasks 1] [--repeats 3] [--keep FOLDER]

The run folders are made up: configurations as `cet-rl train` writes them, curves of 100 points, three layers.
Ten arms and ten delays a task, and as many seeds as it takes. The processors' time of all processes is printed
as well: other work on the machine matters less to it.
"""

from __future__ import annotations

import argparse
import csv
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path

import numpy as np
import yaml

from cet_rl.report.plots import RETURN
from cet_rl.report.reading import ALIGNMENT
from cet_rl.rl.config import RLConfig
from cet_rl.runs.folder import MetricsTable, RunFolder

DELAYS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
ARMS = (
    *({"trace": "cet", "order": order} for order in (2, 3, 5, 8, 10)),
    *({"trace": "sharp", "order": order} for order in (5, 10)),
    {"trace": "legendre", "order": 10},
    {"trace": "et"},
    {"trace": "perfect"},
)
POINTS = 100
TARGET = 10.0


def make(folder: Path, count: int, tasks: int) -> None:
    """So many finished runs of so many tasks."""
    generator = np.random.default_rng(0)
    seeds = range(count)
    cells = product(seeds, range(tasks), DELAYS, ARMS)
    for number, (seed, task, delay, arm) in enumerate(islice(cells, count)):
        config = RLConfig(f"Made-up-v{task}", delay=delay, seed=seed, device="cpu", threads=1, **arm)
        write(folder / f"{config.task}-{config.label}-{number}", config, generator)


def write(path: Path, config: RLConfig, generator: np.random.Generator) -> None:
    """What a run of this configuration could have left behind."""
    path.mkdir(parents=True)
    run = RunFolder(path)
    run.config_file.write_text(yaml.safe_dump(config.as_data(), sort_keys=False), encoding="utf-8")
    steps = np.linspace(config.total_steps / POINTS, config.total_steps, POINTS).astype(int)
    curve = 500 / (1 + config.delay / 8) * (1 - np.exp(-steps / 2e5)) + generator.normal(0, 8, POINTS)
    layers = [f"{ALIGNMENT}{layer}" for layer in range(3)]
    noise = generator.uniform(-0.3, 1.0, (POINTS, 5))
    with open(run.metrics_file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([MetricsTable.STEP, *layers, RETURN, "time/fps", "train/value_loss"])
        for step, value, rest in zip(steps, curve, noise, strict=True):
            writer.writerow([step, *rest[:3], value, *rest[3:]])
    run.write_summary(
        task=config.task,
        agent=config.agent,
        seed=config.seed,
        status="finished",
        steps=config.total_steps,
        wall_seconds=60.0,
        steps_per_second=16_000.0,
        metrics={"eval_return_mean": curve[-1] + 10, "train_return_mean": curve[-1]},
    )


def timed(arguments: Sequence[str]) -> tuple[float, float]:
    """Run `cet-rl` with these arguments; the seconds that pass, and those of the processors."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "cet_rl", *arguments], check=True, stdout=subprocess.DEVNULL)
    passed, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="write the runs and the report here, and leave them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        make(folder, options.runs, options.tasks)
        times = [timed(["report", str(folder)]) for _ in range(options.repeats)]
        passed, processors = map(statistics.median, zip(*times, strict=True))
        print(
            f"{passed:.1f} s, {processors:.1f} s of processors, medians of {options.repeats} "
            f"(target for 1,000: {TARGET:g} s)"
        )


if __name__ == "__main__":
    main()
