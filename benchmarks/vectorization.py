"""What a step of CartPole costs, one environment after the other and all in one call (--vectorization).

    python benchmarks/vectorization.py [--steps 2000] [--rounds 5]

Environments as `make_vec_env` makes them, with episode statistics; processor time of the fastest of the rounds, in
which the two take turns.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np

from cet_rl.envs import make_vec_env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| environments | each, µs a sample | numpy |\n|---|---|---|")
    for number in (4, 8, 16, 32):
        actions = np.random.default_rng(0).integers(0, 2, (options.steps, number))
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.rounds):
            for way in ("each", "numpy"):
                env = make_vec_env("CartPole-v1", number, 0, vectorization=way)
                env.reset()
                began = time.process_time()
                for row in actions:
                    env.step(row)
                found[way].append((time.process_time() - began) / actions.size * 1e6)
        print(f"| {number} | {min(found['each']):.1f} | {min(found['numpy']):.1f} |", flush=True)


if __name__ == "__main__":
    main()
