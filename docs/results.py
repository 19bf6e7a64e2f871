"""The studies of docs/results.md: their runs, the numbers behind the pictures, the pictures.

    python docs/results.py run STUDY        the study's runs in runs/STUDY; finished ones are kept, others go on
    python docs/results.py collect STUDY    run folders into docs/data/STUDY.csv and STUDY-summary.csv
    python docs/results.py draw STUDY       docs/figures/STUDY*.png from these files, and the table as Markdown

Studies: cartpole, retrograde, lunar-lander, space-invaders. A run is one `cet-rl train`; `run` prints each.
`collect` takes what has finished, and keeps what an earlier `collect` has found of runs that are not there.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np

from cet_rl.report.plots import ALIGNMENT, RETURN, Curve, alignment_figure, draw_curves, read_run
from cet_rl.runs.folder import MetricsTable

DOCS = Path(__file__).parent
SEEDS = (0, 1, 2)

NAMES = {
    "none": ("no delay", "0.6"),
    "perfect": ("perfect memory", "black"),
    "et": ("ET", "C1"),
    "cet2": ("CET 2", "C9"),
    "cet5": ("CET 5", "C0"),
    "cet10": ("CET 10", "C4"),
    "sharp10": ("SharpCET 10", "C2"),
    "legendre10": ("Legendre 10", "C3"),
}
"""Of the traces in legends and tables."""

OPTIONS = {
    "none": "",
    "perfect": "--trace perfect",
    "cet2": "--order 2",
    "cet5": "--order 5",
    "cet10": "--order 10",
    "sharp10": "--trace sharp --order 10",
    "legendre10": "--trace legendre --order 10",
}


@dataclass(frozen=True)
class Study:
    """Arms that are compared.

    Attributes:
        task: Gymnasium id.
        title: of the pictures.
        common: options of all runs.
        columns: what the table and the panels are split by, with the options each adds.
        arms: keys of NAMES, with their own options.
        overrides: options of single (arm, column) cells, after the others.
        top: of the return's axis.
    """

    task: str
    title: str
    common: str
    columns: dict[str, str]
    arms: dict[str, str]
    overrides: dict[tuple[str, str], str]
    top: float | None = None

    def cells(self) -> Iterable[tuple[str, str, str]]:
        """(arm, column, options); the undelayed arm has one column."""
        for arm, own in self.arms.items():
            for column, shared in self.columns.items():
                if arm == "none":
                    yield arm, "", f"{own} {self.common} {self.overrides.get((arm, ''), '')}"
                    break
                yield arm, column, f"{shared} {own} {self.common} {self.overrides.get((arm, column), '')}"


def some(*arms: str) -> dict[str, str]:
    return {arm: OPTIONS.get(arm, "") for arm in arms}


STUDIES = {
    "cartpole": Study(
        "CartPole-v1",
        "CartPole-v1, 1 M samples",
        "",
        {"2s": "--delay 2", "8s": "--delay 8", "32s": "--delay 32"},
        {**some(*NAMES), "et": "--trace et"},
        {("et", "2s"): "--decay 0.5", ("et", "8s"): "--decay 0.99", ("et", "32s"): "--decay 0.99"},
        515,
    ),
    "retrograde": Study(
        "CartPole-v1",
        "CartPole-v1, 120 s later in each layer, 1.5 M samples",
        "--lr 2.5e-4 --total-steps 1500000",
        {"120s": "--delay 120 --stacked --step-ms 300"},
        {"et": "--trace et --decay 0.9", **some("cet2", "cet5", "cet10")},
        {},
        515,
    ),
    "lunar-lander": Study(
        "LunarLander-v3",
        "LunarLander-v3, 1 M samples",
        "--total-steps 1000000",
        {"8s": "--delay 8"},
        some("none", "perfect", "cet2", "cet10", "legendre10"),
        {},
    ),
    "space-invaders": Study(
        "MinAtar/SpaceInvaders-v1",
        "MinAtar SpaceInvaders, one λ (0.8), dense critic, 2 M samples",
        "",
        {"2s": "--delay 2", "8s": "--delay 8"},
        some("none", "perfect", "cet10", "legendre10"),
        {("none", ""): "--lr 9e-4"},
    ),
}


def folder_of(study: str, arm: str, column: str, seed: int) -> Path:
    return Path("runs") / study / "-".join(filter(None, (arm, column, str(seed))))


def run(name: str) -> None:
    study = STUDIES[name]
    for seed in SEEDS:
        for arm, column, options in study.cells():
            folder = folder_of(name, arm, column, seed)
            words = [study.task, *options.split(), "--seed", str(seed), "--resume", "--run-dir", str(folder)]
            print("cet-rl train", *words, flush=True)
            subprocess.run([sys.executable, "-m", "cet_rl", "train", *words], check=True)


def collect(name: str) -> None:
    study, layers = STUDIES[name], range(3)
    points, summaries = read(name)
    for seed in SEEDS:
        for arm, column, _ in study.cells():
            folder = folder_of(name, arm, column, seed)
            if not (folder / "summary.json").is_file():
                continue
            summary = json.loads((folder / "summary.json").read_text())
            if summary["status"] != "finished":
                continue
            key = {"arm": arm, "delay": column, "seed": str(seed)}
            points = [row for row in points if not key.items() <= row.items()]
            summaries = [row for row in summaries if not key.items() <= row.items()]
            summaries.append({**key, **{metric: f"{value:.2f}" for metric, value in summary["metrics"].items()}})
            columns = read_run(folder).columns
            for row in np.flatnonzero(np.isfinite(columns[RETURN])):
                point = {**key, "samples": f"{columns[MetricsTable.STEP][row]:.0f}"}
                point["return"] = f"{columns[RETURN][row]:.2f}"
                for layer in layers:
                    value = columns.get(f"{ALIGNMENT}{layer}", np.full(row + 1, np.nan))[row]
                    point[f"alignment_{layer}"] = f"{value:.3f}" if np.isfinite(value) else ""
                points.append(point)
    write(name, points, summaries)


def files(name: str) -> tuple[Path, Path]:
    return DOCS / "data" / f"{name}.csv", DOCS / "data" / f"{name}-summary.csv"


def write(name: str, *tables: list[dict[str, str]]) -> None:
    for path, rows in zip(files(name), tables, strict=True):
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: (row["arm"], row["delay"], row["seed"])))


def read(name: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    tables = []
    for path in files(name):
        rows = []
        if path.is_file():
            with open(path, newline="") as stream:
                rows = list(csv.DictReader(stream))
        tables.append(rows)
    return tables[0], tables[1]


def curves_of(points: list[dict[str, str]], column: str) -> list[Curve]:
    """The curves of one column, the undelayed arm with each."""
    found = []
    for arm in NAMES:
        for seed in SEEDS:
            rows = [
                row
                for row in points
                if row["arm"] == arm and row["seed"] == str(seed) and row["delay"] in ("", column)
            ]
            if rows:
                names = {MetricsTable.STEP: "samples", RETURN: "return"}
                names |= {f"{ALIGNMENT}{layer}": f"alignment_{layer}" for layer in range(3)}
                values = {
                    ours: np.array([float(row[theirs] or "nan") for row in rows]) for ours, theirs in names.items()
                }
                logged = {key: value for key, value in values.items() if np.isfinite(value).any()}
                found.append(Curve(arm, seed, logged))
    return found


def draw(name: str) -> None:
    study = STUDIES[name]
    points, summaries = read(name)
    styles = {arm: {"label": label, "color": color} for arm, (label, color) in NAMES.items()}
    count = len(study.columns)
    figure, panels = plt.subplots(
        1, count, figsize=(max(6.5, 4.2 * count), 4), layout="constrained", sharey=True, squeeze=False
    )
    for axes, column in zip(panels[0], study.columns, strict=True):
        draw_curves(axes, curves_of(points, column), styles=styles)
        axes.set_title(f"credit {column.removesuffix('s')} s late" if count > 1 else study.title)
        if study.top:
            axes.set_ylim(0, study.top)
        axes.xaxis.set_major_locator(plt.MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
    for axes in panels[0][1:]:
        axes.set_ylabel("")
    panels[0][-1].legend(frameon=False, fontsize=8)
    if count > 1:
        figure.suptitle(study.title)
    save(figure, f"{name}.png")

    longest = max((row["delay"] for row in points), key=lambda delay: float(delay.removesuffix("s") or 0))
    delayed = [curve for curve in curves_of(points, longest) if curve.arm != "none"]
    save(alignment_figure(delayed, styles), f"{name}-alignment.png")
    if count > 1:
        save(heatmap(study, summaries), f"{name}-heatmap.png")
    print_table(study, summaries)


def cell(summaries: list[dict[str, str]], arm: str, column: str, metric: str) -> list[float]:
    wanted = "" if arm == "none" else column
    return [float(row[metric]) for row in summaries if (row["arm"], row["delay"]) == (arm, wanted)]


def heatmap(study: Study, summaries: list[dict[str, str]]) -> plt.Figure:
    found = [[cell(summaries, arm, delay, "train_return_mean") for delay in study.columns] for arm in study.arms]
    return draw_heatmap(
        np.array([[mean(values) if values else np.nan for values in row] for row in found]),
        [NAMES[arm][0] for arm in study.arms],
        [f"{delay.removesuffix('s')} s" for delay in study.columns],
        "training return at the end, mean of seeds",
    )


def draw_heatmap(
    values: np.ndarray, rows: list[str], columns: list[str], title: str, form: str = ".0f", least: float = 0.0
) -> plt.Figure:
    """Numbers in coloured cells; a dash where there is none."""
    figure, axes = plt.subplots(figsize=(1.6 + 1.2 * len(columns), 0.45 * len(rows) + 1.4), layout="constrained")
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=least)
    middle = least + 0.6 * (np.nanmax(values) - least)
    for (row, column), value in np.ndenumerate(values):
        shade = "black" if value > middle or np.isnan(value) else "white"
        shown = "–" if np.isnan(value) else format(value, form)
        axes.text(column, row, shown, ha="center", va="center", color=shade)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=9)
    figure.colorbar(image)
    return figure


def print_table(study: Study, summaries: list[dict[str, str]]) -> None:
    for metric, title in (("train_return_mean", "training return"), ("eval_return_mean", "evaluation")):
        print(f"\n| {title} | " + " | ".join(f"{delay.removesuffix('s')} s" for delay in study.columns) + " |")
        print("|---" * (len(study.columns) + 1) + "|")
        for arm in study.arms:
            found = [cell(summaries, arm, delay, metric) for delay in study.columns]
            shown = [f"{mean(f):.0f} ({min(f):.0f}–{max(f):.0f}; {len(f)})" if f else "–" for f in found]
            print(f"| {NAMES[arm][0]} | " + " | ".join(shown) + " |")


def save(figure: plt.Figure, name: str) -> None:
    path = DOCS / "figures" / name
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path.relative_to(DOCS.parent), file=sys.stderr)


if __name__ == "__main__":
    match sys.argv[1:]:
        case [("run" | "collect" | "draw") as command, study] if study in STUDIES:
            {"run": run, "collect": collect, "draw": draw}[command](study)
        case _:
            raise SystemExit(__doc__)
