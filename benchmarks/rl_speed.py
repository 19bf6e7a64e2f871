"""Samples per second on CartPole, our arms and Stable-Baselines3's A2C in turn, one torch thread.

    python benchmarks/rl_speed.py [--rounds 7] [--samples 20480] [--threads 1] [--csv FILE]
    python benchmarks/rl_speed.py --together 8      # agents (CET 5, 8 s) one by one, and as one batch, in turn

Every round runs every arm once for the same number of samples, so that a machine that slows down slows all of
them; times are the processor's own. The table gives medians over rounds and, for ratios, the median of the rounds'
ratios. All arms step the same environments (4 of `make_vec_env`) for 128 steps an update with two hidden layers of
256. A second pass over our arms splits a sample's time into its parts.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from cet_rl.agents import CETActorCritic
from cet_rl.agents.learner import ActorCriticLearner
from cet_rl.agents.networks import Actor
from cet_rl.agents.rollouts import collect
from cet_rl.credit import Synapses
from cet_rl.envs import make_vec_env
from cet_rl.envs.vector import DummyVecEnv
from cet_rl.runs.optimizers import Adam
from cet_rl.runs.process import set_threads

NUM_ENVS, N_STEPS = 4, 128
BASELINE = "SB3 A2C"
UNDELAYED = "no trace, no delay"


def ours(seed: int = 0, **options: Any) -> Callable[[], CETActorCritic]:
    return lambda: CETActorCritic(
        *("MlpPolicy", make_vec_env("CartPole-v1", NUM_ENVS, seed)),
        **{"n_steps": N_STEPS, "seed": seed, "device": "cpu", **options},
    )


def a2c() -> BaseAlgorithm:
    return A2C(
        "MlpPolicy",
        make_vec_env("CartPole-v1", NUM_ENVS, 0),
        n_steps=N_STEPS,
        use_rms_prop=False,
        policy_kwargs={"net_arch": [256, 256], "activation_fn": torch.nn.ReLU},
        seed=0,
        device="cpu",
    )


ARMS: dict[str, Callable[[], BaseAlgorithm]] = {
    BASELINE: a2c,
    UNDELAYED: ours(),
    "perfect memory, 8 s": ours(delay=8.0, trace="perfect"),
    "ET, 8 s": ours(delay=8.0, trace="et"),
    "CET 5, 8 s": ours(delay=8.0, order=5),
    "CET 10, 2 s": ours(delay=2.0, order=10),
    "CET 10, 8 s": ours(delay=8.0, order=10),
    "CET 10, 128 s": ours(delay=128.0, order=10),
    "Legendre 10, 128 s": ours(delay=128.0, order=10, trace="legendre"),
}


def microseconds(model: BaseAlgorithm, samples: int) -> float:
    began = time.process_time()
    model.learn(samples, reset_num_timesteps=False)
    return (time.process_time() - began) / samples * 1e6


def parts(model: BaseAlgorithm, samples: int) -> dict[str, float]:
    """Microseconds a sample in each part; they add up to the whole."""
    spent: Counter[str] = Counter()
    places = {
        "environment": (DummyVecEnv, "step_wait"),
        "credit": (Synapses, "__call__"),
        "learning": (ActorCriticLearner, "accumulate"),
        "optimiser": (Adam, "step"),
    }
    originals = {name: getattr(*place) for name, place in places.items()}

    forward = Actor.numpy_forward

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.process_time() - began

        return call

    for name, (owner, method) in places.items():
        setattr(owner, method, timed(name, originals[name]))
    Actor.numpy_forward = lambda actor: timed("acting", forward(actor))  # type: ignore[method-assign]
    try:
        total = microseconds(model, samples)
    finally:
        Actor.numpy_forward = forward  # type: ignore[method-assign]
        for name, (owner, method) in places.items():
            setattr(owner, method, originals[name])
    found = {name: seconds / samples * 1e6 for name, seconds in spent.items()}
    found["networks"] = found.pop("learning") - found["credit"]
    found["rest"] = total - sum(found.values())
    return found


class Always(BaseCallback):
    """Goes on."""

    def _on_step(self) -> bool:
        return True


def learn_together(models: list[CETActorCritic], samples: int) -> None:
    callbacks = [model.start_learning(samples, Always(), reset_num_timesteps=False) for model in models]
    for _ in range(samples // (NUM_ENVS * N_STEPS)):
        collect(models, [model.env for model in models], callbacks, N_STEPS)
        for model in models:
            model.learn_from_rollout()


def compare_together(count: int, rounds: int, samples: int) -> None:
    """Print the time of so many agents as one batch, and of as many one by one, in turn."""
    alone, joint = ([ours(seed, delay=8.0, order=5)() for seed in range(count)] for _ in range(2))
    found = []
    for number in range(rounds + 1):  # the first, in which all compile and start up, is left out
        began = time.process_time()
        for model in alone:
            model.learn(samples, Always(), reset_num_timesteps=False)
        between = time.process_time()
        learn_together(joint, samples)
        if number:
            share = 1e6 / (count * samples)
            found.append(((between - began) * share, (time.process_time() - between) * share))
    one, batch = (statistics.median(times) for times in zip(*found, strict=True))
    ratios = sorted(single / together for single, together in found)
    lengths = [episode["l"] for model in joint for episode in model.ep_info_buffer or ()]
    print(
        f"{count} agents, {rounds} rounds of {samples} samples; episodes of {statistics.mean(lengths):.0f} steps"
    )
    print(f"one by one {one:.1f} µs a sample, together {batch:.1f}: ", end="")
    print(f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=20 * NUM_ENVS * N_STEPS * 2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", help="also write every round's microseconds per sample here")
    parser.add_argument("--together", type=int, help="as many agents one by one, and as one batch")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.together:
        compare_together(arguments.together, arguments.rounds, arguments.samples)
        return

    models = {name: build() for name, build in ARMS.items()}
    for model in models.values():
        model.learn(NUM_ENVS * N_STEPS * 12)  # past the longest delay, and warm
    rounds = [
        {name: microseconds(model, arguments.samples) for name, model in models.items()}
        for _ in range(arguments.rounds)
    ]
    if arguments.csv:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(models))
            writer.writeheader()
            writer.writerows(rounds)

    def median(value: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(value(row) for row in rounds)

    sizes = {name: sum(p.numel() for p in model.policy.parameters()) for name, model in models.items()}
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.rounds} rounds", end=" ")
    print(f"of {arguments.samples} samples")
    print("\n| arm | parameters | samples/s | µs a sample | least–most µs | × A2C | credit, µs a sample |")
    print("|---|---|---|---|---|---|---|")
    for name in models:
        each = median(lambda row, name=name: row[name])
        low, high = min(row[name] for row in rounds), max(row[name] for row in rounds)
        speedup = median(lambda row, name=name: row[BASELINE] / row[name])
        credit = median(lambda row, name=name: row[name] - row[UNDELAYED])
        shown = "–" if name in (BASELINE, UNDELAYED) else f"{credit:.1f}"
        cells = (
            f"{sizes[name]:,}",
            f"{1e6 / each:,.0f}",
            f"{each:.1f}",
            f"{low:.0f}–{high:.0f}",
            f"{speedup:.2f}",
        )
        print(f"| {name} | " + " | ".join(cells) + f" | {shown} |")
    ratio = median(lambda row: row["CET 10, 2 s"] / row["CET 10, 128 s"])
    print(f"\nspeed of CET 10 at 128 s over CET 10 at 2 s: {ratio:.2f}")

    print("\n| arm | environment | acting | networks | credit | optimiser | rest |\n|---|---|---|---|---|---|---|")
    for name, model in models.items():
        if name != BASELINE:
            found = parts(model, arguments.samples)
            order = ("environment", "acting", "networks", "credit", "optimiser", "rest")
            print(f"| {name} | " + " | ".join(f"{found[part]:.1f}" for part in order) + " |")


if __name__ == "__main__":
    main()
