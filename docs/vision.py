"""The studies of docs/vision.md: their runs, the numbers behind the pictures, the pictures.

    python docs/vision.py run STUDY [--data-dir DIR]    runs in runs/STUDY; finished ones are kept
    python docs/vision.py collect STUDY                 run folders into docs/data/STUDY*.csv
    python docs/vision.py draw STUDY                    docs/figures/STUDY*.png, and a table as Markdown

Studies: mnist, mnist-retrograde, cifar10. A run is one `cet-rl train`; `run` prints each.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np
from results import NAMES, draw_heatmap, read, save, write

from cet_rl.report.plots import ALIGNMENT, Curve, draw_curves, read_run
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.paper import paper_row

ACCURACY = "test/accuracy"
NAMES = {**NAMES, "none": ("backpropagation, no delay", "0.6"), "cet6": ("CET 6", "C0")}

TRACES = {
    "et": ("--trace et", 1),
    "cet2": ("--order 2", 2),
    "cet6": ("--order 6", 6),
    "cet10": ("--order 10", 10),
    "sharp10": ("--trace sharp --order 10", 10),
    "legendre10": ("--trace legendre --order 10", 10),
    "perfect": ("--trace perfect", 10),
}
"""Options of each arm, and the order whose row of the paper's tables it has its rates from."""


@dataclass(frozen=True)
class Study:
    """Arms that are compared.

    Attributes:
        task: data set.
        title: of the pictures.
        delays: in seconds.
        layers: with alignment.
        common: options of all runs.
        seeds: of single (arm, delay) cells; others have seed 0 only.
        undelayed: options of backpropagation without delay; None to leave it out.
        stacked: whether delays add up.
    """

    task: str
    title: str
    delays: tuple[float, ...]
    layers: tuple[int, ...]
    common: str
    seeds: dict[tuple[str, float], tuple[int, ...]]
    undelayed: str | None
    stacked: bool = False

    def cells(self) -> Iterable[tuple[str, str, int, list[str]]]:
        """(arm, column, seed, options)."""
        if self.undelayed is not None:
            yield "none", "", 0, shlex.split(f"{self.undelayed} {self.common} --seed 0")
        for delay in self.delays:
            for arm, (own, order) in TRACES.items():
                row, _ = paper_row(self.task, delay=delay, order=order, stacked=self.stacked)
                rates = f"--lr {row['lr']} --weight-decay {row['weight_decay']}"
                shared = f"--delay {delay:g} {'--stacked' * self.stacked} {own} {rates} {self.common}"
                for seed in self.seeds.get((arm, delay), (0,)):
                    yield arm, f"{delay:g}s", seed, shlex.split(f"{shared} --seed {seed}")


STUDIES = {
    "mnist": Study(
        "mnist",
        "MNIST, MLP, 20,000 updates",
        (0.2, 0.6, 1.0, 2.0, 4.0, 10.0),
        (0, 1, 2),
        "",
        {(arm, 10.0): (0, 1, 2) for arm in ("cet2", "cet10", "sharp10", "legendre10")},
        "--lr 1e-3 --weight-decay 1e-3",
    ),
    "mnist-retrograde": Study(
        "mnist",
        "MNIST, MLP, 120 s later in each layer, 20,000 updates",
        (120.0,),
        (0, 1),
        "--batch-size 1280 --salience 0.0125 --warmup 0.2",
        {},
        None,
        stacked=True,
    ),
    "cifar10": Study(
        "cifar10",
        "CIFAR-10 (JPEG copy), CNN, 20,000 updates",
        (4.0,),
        (0, 1, 2, 3, 4),
        "",
        {},
        "--lr 1e-3 --weight-decay 1e-1",
    ),
}


def folder_of(study: str, arm: str, column: str, seed: int) -> Path:
    return Path("runs") / study / "-".join(filter(None, (arm, column, str(seed))))


def run(name: str, *options: str) -> None:
    study = STUDIES[name]
    for arm, column, seed, words in study.cells():
        words = [study.task, *words, *options, "--resume", "--run-dir", str(folder_of(name, arm, column, seed))]
        print("cet-rl train", *words, flush=True)
        subprocess.run([sys.executable, "-m", "cet_rl", "train", *words], check=True)


def collect(name: str) -> None:
    study = STUDIES[name]
    points, summaries = read(name)
    for arm, column, seed, _ in study.cells():
        folder = folder_of(name, arm, column, seed)
        file = folder / "summary.json"
        summary = json.loads(file.read_text()) if file.is_file() else {}
        if summary.get("status") != "finished":
            continue
        key = {"arm": arm, "delay": column, "seed": str(seed)}
        points = [row for row in points if not key.items() <= row.items()]
        summaries = [row for row in summaries if not key.items() <= row.items()]
        summaries.append({**key, **{metric: f"{value:.4f}" for metric, value in summary["metrics"].items()}})
        columns = read_run(folder).columns
        for row in np.flatnonzero(np.isfinite(columns[ACCURACY])):
            point = {**key, "updates": f"{columns[MetricsTable.STEP][row]:.0f}"}
            point["accuracy"] = f"{columns[ACCURACY][row]:.4f}"
            for layer in study.layers:
                value = columns.get(f"{ALIGNMENT}{layer}", np.full(row + 1, np.nan))[row]
                point[f"alignment_{layer}"] = f"{value:.3f}" if np.isfinite(value) else ""
            points.append(point)
    write(name, points, summaries)


def curves_of(study: Study, points: list[dict[str, str]], column: str) -> list[Curve]:
    found = []
    for arm in ("none", *TRACES):
        for seed in sorted({row["seed"] for row in points}):
            wanted = (arm, seed, "" if arm == "none" else column)
            rows = [row for row in points if (row["arm"], row["seed"], row["delay"]) == wanted]
            if rows:
                names = {MetricsTable.STEP: "updates", ACCURACY: "accuracy"}
                names |= {f"{ALIGNMENT}{layer}": f"alignment_{layer}" for layer in study.layers}
                values = {
                    ours: np.array([float(row[theirs] or "nan") for row in rows]) for ours, theirs in names.items()
                }
                found.append(Curve(arm, int(seed), values))
    return found


def draw(name: str) -> None:
    study = STUDIES[name]
    points, summaries = read(name)
    styles = {arm: {"label": label, "color": color} for arm, (label, color) in NAMES.items()}
    longest = f"{study.delays[-1]:g}s"
    curves = curves_of(study, points, longest)
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    draw_curves(axes, curves, ACCURACY, styles)
    best = max(float(row["test_accuracy"]) for row in summaries)
    axes.set_ylim(max(0.0, best - (0.15 if best > 0.9 else 0.6)), min(1.0, best + 0.03))
    axes.set_xlabel("updates")
    axes.set_ylabel("test accuracy")
    axes.set_title(f"{study.title}; credit {study.delays[-1]:g} s late", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    save(figure, f"{name}.png")
    save(alignment(study, [curve for curve in curves if curve.arm != "none"], styles), f"{name}-alignment.png")
    arms, delays = there(study, summaries)
    if len(delays) > 1:
        found = [[accuracies(summaries, arm, f"{delay:g}s") for delay in delays] for arm in arms]
        values = np.array([[100 * mean(each) if each else np.nan for each in row] for row in found])
        rows = [NAMES[arm][0] for arm in arms]
        columns = [f"{delay:g} s" for delay in delays]
        title = f"{study.title}: test accuracy, %"
        save(draw_heatmap(values, rows, columns, title, ".1f", float(np.nanmin(values))), f"{name}-heatmap.png")
    print_table(study, summaries)


def there(study: Study, summaries: list[dict[str, str]]) -> tuple[list[str], list[float]]:
    """Arms and delays of which there is a run at all; others are left out, single cells shown as missing."""
    arms = [arm for arm in TRACES if any(row["arm"] == arm for row in summaries)]
    delays = [delay for delay in study.delays if any(row["delay"] == f"{delay:g}s" for row in summaries)]
    return arms, delays


def alignment(study: Study, curves: list[Curve], styles: dict[str, dict[str, str]]) -> plt.Figure:
    """Of each layer over the test accuracy that went with it (paper, Fig. 7C-D)."""
    count = len(study.layers)
    figure, panels = plt.subplots(
        1, count, figsize=(3 * count, 3), layout="constrained", sharey=True, squeeze=False
    )
    for axes, layer in zip(panels[0], study.layers, strict=True):
        for curve in curves:
            accuracy, cosine = curve.over(ACCURACY, f"{ALIGNMENT}{layer}")
            if len(accuracy):
                style = styles[curve.arm]
                label = style["label"] if curve.seed == 0 else None
                axes.plot(accuracy, cosine, ".", markersize=4, color=style["color"], label=label)
        axes.set_title(f"layer {layer}", fontsize=10)
        axes.set_xlabel("test accuracy")
        axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    panels[0][0].set_ylabel("cosine with the true gradient")
    panels[0][-1].legend(frameon=False, fontsize=7)
    return figure


def accuracies(summaries: list[dict[str, str]], arm: str, column: str) -> list[float]:
    wanted = (arm, "" if arm == "none" else column)
    return [float(row["test_accuracy"]) for row in summaries if (row["arm"], row["delay"]) == wanted]


def print_table(study: Study, summaries: list[dict[str, str]]) -> None:
    arms, delays = there(study, summaries)
    print("\n| test accuracy, % | " + " | ".join(f"{delay:g} s" for delay in delays) + " |")
    print("|---" * (len(delays) + 1) + "|")
    for arm in ("none", *arms):
        found = [[100 * value for value in accuracies(summaries, arm, f"{delay:g}s")] for delay in delays]
        shown = [
            "–" if not f else f"{f[0]:.1f}" if len(f) == 1 else f"{mean(f):.1f} ({min(f):.1f}–{max(f):.1f})"
            for f in found
        ]
        if any(found):
            print(f"| {NAMES[arm][0]} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", study, *options] if study in STUDIES:
            run(study, *options)
        case [("collect" | "draw") as command, study] if study in STUDIES:
            {"collect": collect, "draw": draw}[command](study)
        case _:
            raise SystemExit(__doc__)
