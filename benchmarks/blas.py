"""Speed of float32 matrix products by library, one thread: the measurement behind `cet_rl.credit.geometry.matmul`.

python benchmarks/blas.py       # by processor time: other work on the machine matters less to it
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from cet_rl.credit.geometry import matmul
from cet_rl.runs.process import set_threads

SHAPES = [(2560, 128, 256), (256, 512, 256), (512, 256, 256), (2048, 128, 128)]


def gigaflops(product: Callable[[], object], work: int) -> float:
    product()
    least = float("inf")
    for _ in range(7):
        began = time.process_time()
        for _ in range(20):
            product()
        least = min(least, (time.process_time() - began) / 20)
    return 2 * work / least / 1e9


def main() -> None:
    set_threads(1)
    print("| product | torch.mm | numpy.matmul | cet_rl.credit.geometry.matmul |\n|---|---|---|---|")
    for m, k, n in SHAPES:
        a, b = torch.randn(m, k), torch.randn(k, n)
        columns = (
            lambda a=a, b=b: torch.mm(a, b),
            lambda a=a, b=b: np.matmul(a.numpy(), b.numpy()),
            lambda a=a, b=b: matmul(a, b),
        )
        row = [f"{gigaflops(column, m * k * n):.0f}" for column in columns]
        print(f"| {m} × {k} × {n} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
