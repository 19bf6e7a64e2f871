"""What each executor costs, by shape: the measurements behind `cet_rl.credit.synapses`.

    python benchmarks/executors.py [--repeats 9]

One layer, random signals, one thread; the least time of the repeats, in microseconds a sample (T × E of them).
"""

from __future__ import annotations

import argparse
import time

import torch

from cet_rl import CET, Legendre, PerfectMemory
from cet_rl.credit import Synapses
from cet_rl.runs.process import set_threads

SHAPES = [
    # n_in, n_out, environments, steps
    (256, 256, 4, 128),
    (8, 256, 4, 128),
    (600, 256, 32, 32),
    (256, 256, 4, 16),
    (256, 256, 4, 8),
    (256, 256, 4, 1),
]
TRACES = [PerfectMemory(40), CET(5, 40), CET(10, 10), CET(10, 640), Legendre(10, 40)]


def signals(n_in: int, n_out: int, envs: int, steps: int) -> list[torch.Tensor]:
    derivative = (torch.randn(steps, envs, n_out) > 0).float()
    return [
        torch.relu(torch.randn(steps, envs, n_in)),
        derivative,
        torch.randn(steps, envs, n_out) * derivative,
        torch.randn(steps, envs),
        (torch.rand(steps, envs) < 0.01).float(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    set_threads(1)
    names = ("chunk", "fused", "history", "auto")
    print("| n_in × n_out × E × T | trace | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names))
    for shape in SHAPES:
        n_in, n_out, envs, steps = shape
        given = signals(*shape)
        for trace in TRACES:
            row = []
            for name in names:
                first, last = trace.support
                if name == "history" and last - first > 1000:
                    row.append("–")
                    continue
                layer = Synapses(
                    n_in,
                    n_out,
                    trace,
                    delay_steps=trace.delay_steps,
                    gamma_lam=0.94,
                    num_envs=envs,
                    rollout=steps,
                    executor=name,
                )
                layer(*given)
                times = []
                for _ in range(arguments.repeats):
                    began = time.perf_counter()
                    layer(*given)
                    times.append(time.perf_counter() - began)
                row.append(f"{min(times) / steps / envs * 1e6:.1f}")
            label = f"{type(trace).__name__} {trace.states or ''}, D = {trace.delay_steps}".replace(" ,", ",")
            print(f"| {' × '.join(map(str, shape))} | {label} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
