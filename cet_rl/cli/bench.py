"""`cet-rl bench`: time the executors of late credit, and compare with the constants of the cost model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cet_rl.cli import parse


@dataclass(frozen=True)
class BenchArguments:
    """Measure how long an update takes with each executor on this machine, on one thread; takes a minute.

    A cost model chooses the executor of each layer. Prints its constants as shipped and as fitted here, and the
    layers for which the choice would differ. Nothing is saved: every run uses the shipped constants.
    """

    repeats: int = 7
    """Repeats of each measurement; the least time counts."""


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    parsed = parse(BenchArguments, arguments, "cet-rl bench")
    if parsed.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {parsed.repeats}")

    from cet_rl.credit.calibration import SHAPES, TRACES, fit, measure
    from cet_rl.credit.costs import NANOSECONDS
    from cet_rl.runs.process import set_threads

    set_threads(1)
    found = [measure(shape, trace, repeats=parsed.repeats) for shape in SHAPES for trace in TRACES]
    here = fit(found)
    print("nanoseconds      shipped       here")
    for name, shipped in NANOSECONDS.items():
        print(f"{name:10} {shipped:13.4g} {here[name]:10.4g}")
    for name, constants in (("shipped", NANOSECONDS), ("here", here)):
        slowdowns = [each.slowdown(constants) for each in found]
        print(f"time of the choice / of the fastest, {name}: median {statistics.median(slowdowns):.2f}, ", end="")
        print(f"largest {max(slowdowns):.2f} ({len(found)} layers)")
    for each in found:
        if (fitted := each.choice(here)) != each.choice():
            shape = " × ".join(map(str, each.shape))
            times = (f"{form} {each.nanoseconds[form] / 1e3:.0f} µs" for form in (each.choice(), fitted))
            print(f"{shape}, {each.trace}: {', here '.join(times)}")
    return 0
