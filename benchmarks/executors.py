"""What each executor costs, by shape and trace, and how good the choice among them is.

    python benchmarks/executors.py [--repeats 7] [--gamma-lam 0.94]

One layer, random signals, one thread; the least processor time of the repeats, in microseconds a sample (T × E of
them). What the cost model (`cet_rl.credit.costs`) holds for more than eight times as slow as the best is left out.
Then one 256 × 256 layer, CET 10, 8 s, beside the time that 0.71 Mflop a sample take at the speed of products.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from cet_rl import CET
from cet_rl.credit.calibration import SHAPES, TRACES, measure
from cet_rl.credit.costs import FORMS
from cet_rl.credit.geometry import matmul
from cet_rl.runs.process import set_threads


def gigaflops(rows: int, inner: int, columns: int, repeats: int = 60) -> float:
    """Return the speed of a product of float32 matrices, by the least processor time."""
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    least = float("inf")
    for _ in range(repeats):
        began = time.thread_time()
        matmul(a, b)
        least = min(least, time.thread_time() - began)
    return 2 * rows * inner * columns / least / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--gamma-lam", type=float, default=0.94)
    arguments = parser.parse_args()
    set_threads(1)
    print("| n_in × n_out × E × T | trace | " + " | ".join(FORMS) + " | chosen / fastest |")
    print("|---|---|" + "---|" * (len(FORMS) + 1))
    slowdowns = []
    for shape in SHAPES:
        samples = shape[2] * shape[3]
        for trace in TRACES:
            found = measure(shape, trace, gamma_lam=arguments.gamma_lam, repeats=arguments.repeats)
            cells = []
            for form in FORMS:
                cell = f"{found.nanoseconds[form] / samples / 1e3:.1f}" if form in found.nanoseconds else "–"
                cells.append(f"**{cell}**" if form == found.choice() else cell)
            slowdowns.append(found.slowdown())
            label = f"{type(trace).__name__} {trace.states or ''}, D = {trace.delay_steps}".replace(" ,", ",")
            cells = [" × ".join(map(str, shape)), label, *cells, f"{slowdowns[-1]:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nchosen / fastest: median {statistics.median(slowdowns):.2f}, largest {max(slowdowns):.2f}")
    speed = gigaflops(256, 1700, 256)  # the layer's largest product
    layer = measure((256, 256, 4, 128), CET(10, 40), repeats=5 * arguments.repeats)
    each = layer.nanoseconds[layer.choice()] / 512
    print(f"CET 10 at 8 s: {each / 1e3:.2f} µs, {each * speed / 0.71e6:.2f} × 0.71 Mflop at {speed:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
