"""Draws docs/figures/kernels.png: what synapses recall with each trace.

python docs/figures.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from cet_rl import CET, ET, Legendre, SharpCET
from cet_rl.traces.base import Trace

STEP = 0.2


def kernels() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    D = 40
    for order, color in ((2, "C9"), (5, "C0"), (10, "C4")):
        left.plot(*curve(CET(order, D, "peak"), 3 * D), color=color, label=f"CET {order}")
    left.plot(*curve(ET.from_delay(D, "peak"), 3 * D), color="C1", label="ET")
    left.set_title("The paper's traces, peak-normalised")
    for trace, color in ((CET(10, D), "C4"), (SharpCET(10, D), "C2"), (Legendre(10, D), "C3")):
        kernel = trace.kernel(trace.support[1])
        share = (kernel[D] ** 2 / (kernel**2).sum()).item()
        name = f"{type(trace).__name__} 10: {share:.1%} of the energy at the delay"
        right.plot(*curve(trace, 3 * D), color=color, label=name)
    right.set_title("Ten states each, unit area")
    right.set_ylim(top=0.115)  # room for the legend
    for axes in (left, right):
        axes.axvline(D * STEP, color="0.5", linestyle="--", linewidth=1)
        axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.set_xlabel("seconds before the credit arrives")
        axes.legend(frameon=False, fontsize=8)
    left.set_ylabel("weight in the trace")
    figure.savefig(Path(__file__).parent / "figures" / "kernels.png", dpi=110)


def curve(trace: Trace, length: int) -> tuple[list[float], list[float]]:
    return [lag * STEP for lag in range(length)], trace.kernel(length).tolist()


if __name__ == "__main__":
    kernels()
