"""Draws the figures of the documentation and the table of arms.

    python docs/figures.py kernels             docs/figures/kernels.png
    python docs/figures.py collect RUNS…       run folders into docs/data/cartpole-8s.csv and -summary.csv
    python docs/figures.py curves              docs/figures/cartpole-8s.png, and the table of arms

Curves and table come from the committed CSV files alone, those from the run folders of `docs/cartpole-8s.sh`.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml

from cet_rl import CET, ET, Legendre, PerfectMemory, SharpCET
from cet_rl.config import RLConfig

DOCS = Path(__file__).parent
CURVES, SUMMARIES = DOCS / "data" / "cartpole-8s.csv", DOCS / "data" / "cartpole-8s-summary.csv"
STEP = 0.2
ARMS = {
    "none": ("no delay", "0.6"),
    "perfect-8s": ("perfect memory", "black"),
    "et0.99-8s": ("ET, β = 0.99", "C1"),
    "cet2-8s": ("CET 2", "C9"),
    "cet5-8s": ("CET 5", "C0"),
    "cet10-8s": ("CET 10", "C4"),
    "sharp5-8s": ("SharpCET 5", "C2"),
    "legendre5-8s": ("Legendre 5", "C3"),
}


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
    save(figure, "kernels.png")


def curve(trace: CET | ET | SharpCET | Legendre | PerfectMemory, length: int) -> tuple[list[float], list[float]]:
    return [lag * STEP for lag in range(length)], trace.kernel(length).tolist()


def collect(folders: list[str]) -> None:
    points, summaries = [], []
    for folder in sorted(map(Path, folders)):
        config = RLConfig(**yaml.safe_load((folder / "config.yaml").read_text()))
        summary = json.loads((folder / "summary.json").read_text())
        if summary["status"] != "finished":
            raise SystemExit(f"{folder} is {summary['status']}")
        key = {"arm": config.label, "seed": config.seed}
        summaries.append({**key, **summary["metrics"]})
        with open(folder / "metrics.csv", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["rollout/ep_rew_mean"]:
                    points.append(
                        {
                            **key,
                            "samples": row["time/total_timesteps"],
                            "return": f"{float(row['rollout/ep_rew_mean']):.2f}",
                        }
                    )
    for path, rows in ((CURVES, points), (SUMMARIES, summaries)):
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def curves() -> None:
    returns: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with open(CURVES, newline="") as stream:
        for row in csv.DictReader(stream):
            returns[row["arm"]][int(float(row["samples"]))].append(float(row["return"]))
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for arm, (name, color) in ARMS.items():
        samples = sorted(returns[arm])
        values = [returns[arm][step] for step in samples]
        millions = np.array(samples) / 1e6
        axes.plot(millions, [statistics.mean(v) for v in values], color=color, label=name)
        axes.fill_between(
            millions, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.12, linewidth=0
        )
    axes.set_xlabel("million samples")
    axes.set_ylabel("return, last 100 training episodes")
    axes.set_title("CartPole-v1, credit 8 s late (40 steps): mean and range of three seeds")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_ylim(0, 515)
    save(figure, "cartpole-8s.png")

    with open(SUMMARIES, newline="") as stream:
        summaries = list(csv.DictReader(stream))
    print("| arm | training return at 0.3 M | at 1 M | evaluation |\n|---|---|---|---|")
    for arm, (name, _) in ARMS.items():
        rows = [row for row in summaries if row["arm"] == arm]
        early = returns[arm][min(returns[arm], key=lambda step: abs(step - 300_000))]
        cells = [
            spread(early),
            spread([float(row["train_return_mean"]) for row in rows]),
            spread([float(row["eval_return_mean"]) for row in rows]),
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def save(figure: plt.Figure, name: str) -> None:
    path = DOCS / "figures" / name
    figure.savefig(path, dpi=110)
    print(path.relative_to(DOCS.parent), file=sys.stderr)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["kernels"]:
            kernels()
        case ["collect", *folders] if folders:
            collect(folders)
        case ["curves"]:
            curves()
        case _:
            raise SystemExit(__doc__)
