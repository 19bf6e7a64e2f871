"""Our agent beside an undelayed actor-critic that XLA compiles whole, and each part beside its arithmetic alone.

    python -m venv peer && peer/bin/pip install jax==0.10.2 gymnax==1.0.1 optax==0.2.8 six
    taskset -c 0 python benchmarks/peers.py --peer peer/bin/python [--rounds 5] [--csv FILE]

The peer (`benchmarks/jax_a2c.py`) has our network sizes and no trace. All take turns on one core, each round once,
after a warm-up; numbers are samples per second of processor time, medians over rounds, and ratios the medians of
the rounds' ratios. In the second table a part's bound is the time that its matrix products take at the speed of a
product of 512 × 256 and 256 × 256 float32 numbers, measured in each round too.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from executors import gigaflops
from rl_speed import learn_together, microseconds, parts

from cet_rl.agents import CETActorCritic
from cet_rl.credit import Synapses
from cet_rl.credit.geometry import Dense
from cet_rl.envs import make_vec_env
from cet_rl.runs.process import set_threads

PART = ("environment", "acting", "networks", "credit", "optimiser", "rest")
PEERS = {  # arguments of the peer, and samples that it trains for in a turn
    "CartPole, 4 × 128": (("CartPole-v1", "--envs", "4", "--steps", "128", "--updates", "200"), 200 * 512),
    "CartPole, 4 × 128, eight runs": (
        ("CartPole-v1", "--envs", "4", "--steps", "128", "--updates", "25", "--runs", "8"),
        8 * 25 * 512,
    ),
    "SpaceInvaders, 32 × 32": (
        ("SpaceInvaders-MinAtar", "--envs", "32", "--steps", "32", "--updates", "30"),
        30 * 1024,
    ),
}
XLA = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def ours(task: str, num_envs: int, n_steps: int, seed: int = 0, **options: Any) -> CETActorCritic:
    env = make_vec_env(task, num_envs, seed)
    networks = {"critic": "mlp"}
    return CETActorCritic(
        "MlpPolicy", env, n_steps=n_steps, seed=seed, device="cpu", policy_kwargs=networks, **options
    )


def cartpole(**options: Any) -> CETActorCritic:
    return ours("CartPole-v1", 4, 128, **options)


def invaders(**options: Any) -> CETActorCritic:
    return ours("MinAtar/SpaceInvaders-v1", 32, 32, **options)


Agents = CETActorCritic | list[CETActorCritic]
"""One that learns alone, or several that learn as one batch."""

ARMS: dict[str, dict[str, Callable[[], Agents]]] = {
    "CartPole, 4 × 128": {
        "no trace": cartpole,
        "CET 5, 8 s": lambda: cartpole(delay=8.0, order=5),
        "CET 10, 8 s": lambda: cartpole(delay=8.0, order=10),
    },
    "CartPole, 4 × 128, eight runs": {
        "CET 5, 8 s": lambda: [cartpole(delay=8.0, order=5, seed=seed) for seed in range(8)],
    },
    "SpaceInvaders, 32 × 32": {
        "no trace": invaders,
        "CET 5, 2 s": lambda: invaders(delay=2.0, order=5),
        "CET 10, 2 s": lambda: invaders(delay=2.0, order=10),
    },
}


class Peer:
    """A process of the peer's, which trains once for each line that it reads."""

    def __init__(self, python: str, words: tuple[str, ...], samples: int) -> None:
        command = [python, str(Path(__file__).with_name("jax_a2c.py")), *words, "--turns"]
        environment = {**os.environ, "XLA_FLAGS": XLA}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process, self.samples = subprocess.Popen(command, env=environment, **pipes), samples
        self.versions = self.process.stdout.readline().strip()

    def microseconds(self) -> float:
        """Train once; processor time a sample."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline()) / self.samples * 1e6


def turn(agents: Agents, samples: int) -> float:
    """Train an agent, or a batch of them, for so many samples in all; return the processor time of one."""
    if not isinstance(agents, list):
        return microseconds(agents, samples)
    began = time.process_time()
    learn_together(agents, samples // len(agents))
    return (time.process_time() - began) / samples * 1e6


def megaflops(agent: CETActorCritic) -> dict[str, float]:
    """Return operations a sample of the matrix products that each part cannot do without, in millions."""
    actor = [layer.n_pre * layer.n_post for layer in agent.policy.actor.layers]
    critic = [layer.weight.numel() for layer in agent.policy.critic if isinstance(layer, torch.nn.Linear)]
    # Forward; errors of scores, of the entropy and of the critic; gradients of the critic.
    networks = sum(actor) + 2 * sum(actor[1:]) + 2 * sum(critic) + sum(critic[1:])
    credit = 0.0
    for each in agent.synapses:
        layer = {"geometry": Dense(each.geometry.n_pre, each.geometry.n_post), "trace": each.trace}
        layer |= {"gamma_lam": each.shared_decay, "num_envs": agent.n_envs, "rollout": agent.n_steps}
        credit += min(
            Synapses(executor=form, **layer).plan.count(agent.n_steps)["products"]  # type: ignore[arg-type]
            for form in ("chunk", "history", "factored")
        ) / (agent.n_envs * agent.n_steps)
    return {"acting": 2e-6 * sum(actor), "networks": 2e-6 * networks, "credit": 2e-6 * credit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="the Python of an environment with JAX")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20480)
    parser.add_argument("--csv", help="also write every round here: microseconds per sample, and GFLOP/s")
    options = parser.parse_args()
    set_threads(1)
    agents: dict[tuple[str, str], Agents] = {
        (task, arm): build() for task, arms in ARMS.items() for arm, build in arms.items()
    }
    peers = {task: Peer(options.peer, *each) for task, each in PEERS.items()}
    for agent in agents.values():
        turn(agent, 12 * 1024 * (len(agent) if isinstance(agent, list) else 1))
    rounds: list[dict[tuple[str, str], float]] = []
    for _ in range(options.rounds):
        row = {("products", "GFLOP/s"): gigaflops(512, 256, 256)}
        for task, peer in peers.items():
            row[task, "JAX"] = peer.microseconds()
            for arm in ARMS[task]:
                row[task, arm] = turn(agents[task, arm], options.samples)
        rounds.append(row)
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow([": ".join(key) for key in rounds[0]])
            table.writerows([f"{value:.2f}" for value in row.values()] for row in rounds)

    speed = statistics.median(row["products", "GFLOP/s"] for row in rounds)
    versions = {peer.versions for peer in peers.values()}
    print(f"{'; '.join(versions)}; torch {torch.__version__}; products at {speed:.0f} GFLOP/s")
    print(
        f"{options.rounds} rounds\n\n| | samples/s | µs a sample | least–most µs | ÷ JAX |\n|---|---|---|---|---|"
    )
    for task, arm in rounds[0]:
        if task != "products":
            found = [row[task, arm] for row in rounds]
            ratio = statistics.median(row[task, "JAX"] / row[task, arm] for row in rounds)
            each, ends = statistics.median(found), f"{min(found):.1f}–{max(found):.1f}"
            print(f"| {task}, {arm} | {1e6 / each:,.0f} | {each:.1f} | {ends} | {ratio:.2f} |")
    print("\n| µs (bound) | " + " | ".join(PART) + " |\n|---|" + "---|" * len(PART))
    for (task, arm), agent in agents.items():
        if isinstance(agent, list):
            continue
        # Taken apart three times, as single passes are noisy.
        passes = [parts(agent, options.samples) for _ in range(3)]
        bounds = {name: work / speed * 1e3 for name, work in megaflops(agent).items()}
        cells = []
        for name in PART:
            cell = f"{statistics.median(one[name] for one in passes):.1f}"
            cells.append(f"{cell} ({bounds[name]:.1f})" if name in bounds else cell)
        print(f"| {task}, {arm} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
