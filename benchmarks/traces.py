"""How long the constants of a trace take, from its class to M, K and C.

    python benchmarks/traces.py [--repeats 3]

For each kind with a choice of states: milliseconds for orders and delays, best of the repeats, each in a fresh
cache. The search of `Optimal` should end within 0.3 s for up to twelve states and 1 s for twenty, with and without
tolerance.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from cet_rl import CET, Legendre, Optimal, SharpCET, Trace
from cet_rl.traces import base, legendre, optimal, sharp

SIZES = ((2, 50), (5, 40), (10, 10), (10, 50), (10, 800), (12, 12), (12, 1000), (20, 25), (20, 50), (20, 1000))

KINDS: dict[str, Callable[[int, int], Trace]] = {
    "CET": CET,
    "SharpCET": SharpCET,
    "Legendre": Legendre,
    "Optimal": Optimal,
    "tolerance 0.1": lambda order, delay: Optimal(order, delay, tolerance=0.1),
    "tolerance 0.4": lambda order, delay: Optimal(order, delay, tolerance=0.4),
}


def forget() -> None:
    """Clear what the traces' modules remember."""
    for function in (base._constants, base._scale, base._support, legendre._best_window, optimal._best_poles):
        function.cache_clear()
    sharp._sharpest_rate.cache_clear()


def milliseconds(kind: Callable[[int, int], Trace], order: int, delay: int) -> float:
    """Time the constants of one trace."""
    forget()
    start = time.process_time()
    kind(order, delay).transition()
    return 1000 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    Optimal(3, 7).transition()  # loads scipy
    print(f"{'order, delay':>14}" + "".join(f"{name:>15}" for name in KINDS))
    for order, delay in SIZES:
        times = [min(milliseconds(kind, order, delay) for _ in range(repeats)) for kind in KINDS.values()]
        print(f"{f'{order}, {delay}':>14}" + "".join(f"{value:15.1f}" for value in times))


if __name__ == "__main__":
    main()
