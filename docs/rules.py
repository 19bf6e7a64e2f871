"""The studies of docs/rules.md: their runs, the numbers behind the pictures, the pictures.

    python docs/rules.py run STUDY [SEEDS]   runs in runs/STUDY, seeds 0 to SEEDS - 1 (5); finished ones stay
    python docs/rules.py collect STUDY       run folders into docs/data/STUDY.csv and STUDY-summary.csv
    python docs/rules.py draw STUDY          docs/figures/STUDY.png, and the table as Markdown

Studies: add, mimic, add-paper, mimic-paper (every rule), late-add (rules and traces). A run is one `cet-rl train`;
`run` prints each.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import numpy as np
from results import read, save, write

from cet_rl.cli.train import parse_arguments
from cet_rl.recurrent.tasks import build_task
from cet_rl.recurrent.training import train
from cet_rl.report.plots import ALIGNMENT, Curve, draw_curves, read_run
from cet_rl.runs.folder import MetricsTable

LOSS = "train/loss"

RULES = {
    "fixed-w": ("fixed-W", "0.6"),
    "rflo": ("RFLO", "C1"),
    "kernl": ("KeRNL", "C5"),
    "dni": ("DNI", "C3"),
    "dni-b": ("DNI(b)", "C6"),
    "uoro": ("UORO", "C9"),
    "r-kf": ("R-KF", "C8"),
    "kf-rtrl": ("KF-RTRL", "C2"),
    "bptt": ("BPTT", "C0"),
    "future-bptt": ("BPTT, future-facing", "C4"),
    "rtrl": ("RTRL", "black"),
}

TRACES = {
    "et": ("ET", "--trace et", "C1"),
    "cet2": ("CET 2", "--order 2", "C9"),
    "cet10": ("CET 10", "--order 10", "C4"),
    "sharp10": ("SharpCET 10", "--trace sharp --order 10", "C2"),
    "legendre10": ("Legendre 10", "--trace legendre --order 10", "C3"),
    "perfect": ("perfect memory", "--trace perfect", "black"),
}


@dataclass(frozen=True)
class Study:
    """Arms that are compared.

    Attributes:
        task: as `cet-rl train` knows it.
        title: of the picture.
        arms: name in the files, with the name in legends, options and colour.
        panels: rules whose losses get a panel each; empty for losses of all beside their alignment.
        shown: of the loss's axis.
    """

    task: str
    title: str
    arms: dict[str, tuple[str, str, str]]
    panels: tuple[str, ...] = ()
    shown: tuple[float, float] | None = None


def every_rule(options: str = "") -> dict[str, tuple[str, str, str]]:
    return {name: (label, f"--rule {name} {options}", color) for name, (label, color) in RULES.items()}


def every_trace() -> dict[str, tuple[str, str, str]]:
    arms = {}
    for rule, rate in {"rflo": "", "dni": "--lr 1e-3"}.items():  # DNI does not stand the task's larger rate
        arms[f"{rule}-none"] = (f"{RULES[rule][0]}, no delay", f"--rule {rule} --delay 0 {rate}", "0.6")
        for trace, (label, options, color) in TRACES.items():
            arms[f"{rule}-{trace}"] = (f"{RULES[rule][0]}, {label}", f"--rule {rule} {options} {rate}", color)
    arms["fixed-w-cet10"] = ("fixed-W, CET 10", "--rule fixed-w --order 10", "C7")
    return arms


PAPER = "--lr 1e-4 --total-steps 1000000"
"""The setting of Fig. 1, for the rest of which there are the defaults."""

STUDIES = {
    "add": Study("add", "Add, lags 3 and 5, learning rate 1e-3", every_rule()),
    "mimic": Study("mimic", "Mimic, learning rate 1e-3", every_rule()),
    "add-paper": Study("add", "Add, lags 3 and 5, learning rate 1e-4 (Fig. 1)", every_rule(PAPER)),
    "mimic-paper": Study("mimic", "Mimic, learning rate 1e-4 (Fig. 1)", every_rule(PAPER)),
    "late-add": Study(
        "late-add", "Add, lags 2 and 4, the error 20 steps late", every_trace(), ("rflo", "dni"), (0.44, 0.74)
    ),
}


def folder_of(study: str, arm: str, seed: int) -> Path:
    return Path("runs") / study / f"{arm}-{seed}"


def run(name: str, seeds: str = "5") -> None:
    study = STUDIES[name]
    for seed in range(int(seeds)):
        for arm, (_, options, _) in study.arms.items():
            folder = folder_of(name, arm, seed)
            words = [study.task, *shlex.split(options), "--seed", str(seed)]
            print("cet-rl train", *words, "--resume --run-dir", folder, flush=True)
            train(parse_arguments(words).config, folder, resume=True, quiet=True)  # here: starting takes longer


def collect(name: str) -> None:
    points, summaries = read(name)
    for arm in STUDIES[name].arms:
        for file in sorted(Path("runs", name).glob(f"{arm}-[0-9]*/summary.json")):
            summary = json.loads(file.read_text())
            seed = str(summary["seed"])
            if summary["status"] != "finished" or file.parent != folder_of(name, arm, int(seed)):
                continue
            key = {"arm": arm, "delay": "", "seed": seed}
            points = [row for row in points if not key.items() <= row.items()]
            summaries = [row for row in summaries if not key.items() <= row.items()]
            summaries.append({**key, "test_loss": f"{summary['metrics']['test_loss']:.5f}"})
            columns = read_run(file.parent).columns
            for row in np.flatnonzero(np.isfinite(columns[LOSS])):
                cosine = columns.get(f"{ALIGNMENT}0", np.full(row + 1, np.nan))[row]
                points.append(
                    {
                        **key,
                        "steps": f"{columns[MetricsTable.STEP][row]:.0f}",
                        "loss": f"{columns[LOSS][row]:.4g}",
                        "alignment": f"{cosine:.3f}" if np.isfinite(cosine) else "",
                    }
                )
    write(name, points, summaries)


def curves_of(study: Study, points: list[dict[str, str]]) -> list[Curve]:
    found = []
    for arm in study.arms:
        for seed in sorted({row["seed"] for row in points if row["arm"] == arm}, key=int):
            rows = [row for row in points if (row["arm"], row["seed"]) == (arm, seed)]
            names = {MetricsTable.STEP: "steps", LOSS: "loss", f"{ALIGNMENT}0": "alignment"}
            columns = {ours: np.array([float(row[name] or "nan") for row in rows]) for ours, name in names.items()}
            found.append(Curve(arm, int(seed), columns))
    return found


def draw(name: str) -> None:
    study = STUDIES[name]
    points, summaries = read(name)
    styles = {arm: {"label": label, "color": color} for arm, (label, _, color) in study.arms.items()}
    curves = curves_of(study, points)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=bool(study.panels))
    for axes, rule in zip(panels, study.panels or ("",), strict=False):
        draw_curves(axes, [c for c in curves if c.arm.startswith(rule)], LOSS, styles, band="error")
        axes.set_ylabel("loss, mean of seeds ± standard error")
        axes.set_ylim(study.shown)
        axes.set_title(f"{study.title}; {RULES[rule][0]}" if rule else study.title, fontsize=10)
        for label, floor in build_task(study.task, parse_arguments([study.task]).config).baselines.items():
            axes.axhline(floor, color="0.4", linewidth=0.8, linestyle=":")
            place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom", "fontsize": 7}
            axes.annotate(label, (1, floor), **place)
    if not study.panels:
        draw_curves(panels[1], curves, f"{ALIGNMENT}0", styles, band="error")
        panels[1].axhline(0, color="0.85", linewidth=0.8, zorder=0)
        panels[1].set_ylabel("cosine of the recurrent gradient with the true one")
    for axes in panels:
        axes.set_xlabel("time steps")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g} k")
    handles, labels = panels[0].get_legend_handles_labels()
    if study.panels:
        labels = [label.split(", ", 1)[1] for label in labels]
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    save(figure, f"{name}.png")
    print("| | test loss, mean ± standard error | seeds |\n|---|---|---|")
    for arm, (label, _, _) in study.arms.items():
        losses = [float(row["test_loss"]) for row in summaries if row["arm"] == arm]
        if losses:
            spread = stdev(losses) / sqrt(len(losses)) if len(losses) > 1 else float("nan")
            print(f"| {label} | {mean(losses):.4f} ± {spread:.4f} | {len(losses)} |")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", study, *seeds] if study in STUDIES and len(seeds) < 2:
            run(study, *seeds)
        case [("collect" | "draw") as command, study] if study in STUDIES:
            {"collect": collect, "draw": draw}[command](study)
        case _:
            raise SystemExit(__doc__)
