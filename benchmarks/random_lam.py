"""One λ per weight on MinAtar SpaceInvaders: samples per second beside one λ for all, two torch threads.

    python benchmarks/random_lam.py [--rounds 5] [--samples 16384] [--threads 2] [--csv FILE]

The setting of the paper: 32 environments × 32 steps, CET of order 5, the actor on flattened maps. Every round runs
every arm once, so that a machine that slows down slows all of them; the table has medians over rounds, and the
median of the rounds' ratios to the arm with one λ and the same critic.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from typing import Any

import torch

from cet_rl.agents import CETActorCritic
from cet_rl.envs import make_vec_env
from cet_rl.runs.process import set_threads

TASK, NUM_ENVS, N_STEPS = "MinAtar/SpaceInvaders-v1", 32, 32
PAPER = (0.1, 0.99)


def agent(critic: str, random_lam: tuple[float, float] | None, **options: Any) -> CETActorCritic:
    return CETActorCritic(
        "MlpPolicy",
        make_vec_env(TASK, NUM_ENVS, 0),
        delay=2.0,
        order=5,
        n_steps=N_STEPS,
        random_lam=random_lam,
        policy_kwargs={"critic": critic},
        seed=0,
        device="cpu",
        **options,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=16 * NUM_ENVS * N_STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--csv", help="also write every round's samples per second here")
    arguments = parser.parse_args()
    set_threads(arguments.threads)

    models = {
        (critic, name): agent(critic, random_lam)
        for critic in ("conv", "mlp")
        for name, random_lam in (("one λ per weight", PAPER), ("one λ", None))
    }
    for model in models.values():
        model.learn(4 * NUM_ENVS * N_STEPS)  # past the delay, compiled and warm
    rounds = []
    for _ in range(arguments.rounds):
        row = {}
        for key, model in models.items():
            began = time.perf_counter()
            model.learn(arguments.samples, reset_num_timesteps=False, log_interval=10)
            row[key] = arguments.samples / (time.perf_counter() - began)
        rounds.append(row)
    if arguments.csv:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow([f"{name}, {critic} critic" for critic, name in models])
            writer.writerows([f"{row[key]:.1f}" for key in models] for row in rounds)

    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.rounds} rounds of", end=" ")
    print(f"{arguments.samples} samples, alignment logged every 10 updates\n")
    print("| critic | λ | samples/s | least–most | × one λ |\n|---|---|---|---|---|")
    for critic, name in models:
        speeds = [row[critic, name] for row in rounds]
        ratio = statistics.median(row[critic, name] / row[critic, "one λ"] for row in rounds)
        print(
            f"| {critic} | {name} | {statistics.median(speeds):,.0f} | {min(speeds):,.0f}–{max(speeds):,.0f} "
            f"| {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
