"""Run a grid of configurations from Python, side by side, and turn it into one page.

    python examples/sweep_from_python.py --workers 2 --folder runs/my-study

It is what `cet-rl sweep` does from a file, for those who would rather write a loop: each run has a folder of its
own, finished runs are kept, interrupted ones resume, and a run that fails leaves the others alone. `RLConfig` and
`cet_rl.rl.train`, or `RecurrentConfig` and `cet_rl.recurrent.train`, take the place of `VisionConfig` and
`cet_rl.vision.train` for agents and recurrent networks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from statistics import mean

from cet_rl.report import write_report
from cet_rl.vision import VisionConfig, train

ARMS = {"ET": {"trace": "et"}, "CET 6": {"order": 6}, "Legendre 6": {"trace": "legendre", "order": 6}}


def run(config: VisionConfig, folder: Path) -> float:
    """Run one configuration, unless it has been, and return its test accuracy. Called in a process of its own."""
    train(config, folder, resume=True, quiet=True)
    return float(json.loads((folder / "summary.json").read_text())["metrics"]["test_accuracy"])


def main(arguments: list[str] | None = None) -> dict[tuple[str, float], float]:
    """Run the grid, print and return the mean accuracy of each arm at each delay, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delays", type=float, nargs="+", default=[2.0, 6.0], help="seconds")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each configuration")
    parser.add_argument("--updates", type=int, default=300, help="updates of each run")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, on a thread each")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/sweep-from-python"), help="where the runs are kept"
    )
    options = parser.parse_args(arguments)

    jobs = {}
    for (arm, settings), delay, seed in product(ARMS.items(), options.delays, range(options.seeds)):
        config = VisionConfig("digits", delay=delay, seed=seed, total_steps=options.updates, threads=1, **settings)
        jobs[arm, delay, seed] = config, options.folder / f"{arm.lower().replace(' ', '-')}-{delay:g}s-{seed}"

    accuracies: dict[tuple[str, float], list[float]] = {}
    context = multiprocessing.get_context("spawn")  # torch must not be forked
    with ProcessPoolExecutor(options.workers, context) as pool:
        running = {pool.submit(run, *job): key for key, job in jobs.items()}
        for done in as_completed(running):
            arm, delay, seed = running[done]
            try:
                accuracies.setdefault((arm, delay), []).append(done.result())
            except Exception as error:  # its summary says so, too; the others go on
                print(f"{arm}, {delay:g} s, seed {seed} failed: {error}")

    found = {(arm, delay): mean(accuracies[arm, delay]) for arm in ARMS for delay in options.delays}
    for (arm, delay), accuracy in found.items():
        print(f"{arm:10} {delay:4g} s late   {accuracy:.1%}")
    print(write_report([options.folder]).page)
    return found


if __name__ == "__main__":
    main()
