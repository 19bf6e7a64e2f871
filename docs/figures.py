"""Draws the figures of the documentation again from the numbers in docs/data.

    python docs/figures.py [NAME ...]     kernels, cascade, or a study such as cartpole; all of them without a name

The runs behind the numbers are made by the sweeps that the pages name, and `cet-rl report` draws any other runs.
"""

from __future__ import annotations

import csv
import runpy
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cet_rl import CET, ET, Legendre, Optimal, SharpCET
from cet_rl.recurrent.tasks import build_task
from cet_rl.report.drawing import draw_cells, drawing, format_steps, legend, render
from cet_rl.report.names import rule_name, trace_identity
from cet_rl.report.palette import FAINT, PAPER, SOFT, Identity, follow_the_page, looks
from cet_rl.report.plots import RETURN, Curve, Styles, draw_alignment_over, draw_curves
from cet_rl.report.reading import ALIGNMENT
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.task_kinds import build_config
from cet_rl.traces.registry import TraceConfig

DOCS = Path(__file__).parent
TRACES = {
    **{"none": TraceConfig("none"), "et": TraceConfig("et"), "perfect": TraceConfig("perfect")},
    **{f"cet{order}": TraceConfig("cet", order) for order in (2, 5, 6, 8, 10)},
    **{f"{kind}10": TraceConfig(kind, 10) for kind in ("sharp", "legendre", "optimal")},
}
TOLERANCES = {
    f"optimal10-tolerance{share}": TraceConfig("optimal", 10, options={"tolerance": share})
    for share in (0.05, 0.1, 0.2)
}
RULES = ("fixed-w", "rflo", "kernl", "dni", "dni-b", "uoro", "r-kf", "kf-rtrl", "bptt", "future-bptt", "rtrl")
IDENTITIES = {arm: trace_identity(trace) for arm, trace in (TRACES | TOLERANCES).items()}
STYLES = {arm: {"label": (TRACES | TOLERANCES)[arm].title, **look} for arm, look in looks(IDENTITIES).items()} | {
    rule: {"label": rule_name(rule), **look} for rule, look in looks({r: Identity(r) for r in RULES}).items()
}
STYLES |= {f"{rule}-{trace}": STYLES[trace] for rule in ("rflo", "dni", "fixed-w") for trace in TRACES}
STYLES |= {
    f"{arm}-unsplit": {**STYLES[arm], "label": f"{STYLES[arm]['label']}, not split", "linestyle": ":"}
    for arm in ("et", "cet10")
}
GAMES = {
    "cartpole": "CartPole-v1, 1 M samples",
    "cartpole-traces": "CartPole-v1, credit 128 s late, 0.5 M samples",
    "cartpole-full": "CartPole-v1, 5 M samples",
    "lunar-lander-full": "LunarLander-v3, 2 M samples",
    "lunar-lander-retrograde": "LunarLander-v3, 2 M samples, credit 120 s later in each layer",
    "split-cartpole": "CartPole-v1, observations split by sign and as they are, 1 M samples",
    "retrograde": "CartPole-v1, 1.5 M samples, credit 120 s later in each layer",
    "lunar-lander": "LunarLander-v3, 1 M samples",
    "space-invaders": "MinAtar SpaceInvaders, one λ (0.8), dense critic, 2 M samples",
    "space-invaders-full": "MinAtar SpaceInvaders, one λ (0.8), dense critic, 5 M samples",
}
IMAGES = {
    "mnist": "MNIST, MLP, 20,000 updates",
    "beyond-mnist": "MNIST, MLP, 20,000 updates",
    "mnist-retrograde": "MNIST, MLP, 120 s later in each layer, 20,000 updates",
    "cifar10": "CIFAR-10 (JPEG copy), CNN, 20,000 updates",
}
SEQUENCES = {
    "add": "Add, lags 3 and 5, learning rate 1e-3",
    "mimic": "Mimic, learning rate 1e-3",
    "late-add": "Add, lags 2 and 4, the error 20 steps late",
}


def alignment_figure(curves: Sequence[Curve], styles: Styles | None = None) -> Figure:
    """Draw the cosine of each layer's update with the true gradient, over training and return (Figs. 8, 10).

    ValueError if no run has logged any alignment.
    """
    names = {name for curve in curves for name in curve.columns if name.startswith(ALIGNMENT)}
    layers = sorted(name.removeprefix(ALIGNMENT) for name in names)
    if not layers:
        raise ValueError("none of these runs has logged alignment: it needs a delay, and --alignment")
    figure = Figure(figsize=(3.2 * len(layers), 5), layout="constrained")
    grid = figure.subplots(2, len(layers), squeeze=False, sharey=True)
    lines: dict[str, Line2D] = {}
    for (over_training, over_return), layer in zip(grid.T, layers, strict=True):
        lines |= draw_curves(over_training, curves, f"{ALIGNMENT}{layer}", styles)
        draw_alignment_over(over_return, curves, layer, styles=styles)
        over_training.set_title(f"layer {layer}" if layer.isdigit() else layer)
        over_return.set_xlabel("return")
        format_steps(over_training)
        for axes in (over_training, over_return):
            axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    for axes in grid[:, 0]:
        axes.set_ylabel("cosine with the true gradient")
    legend(figure, lines)
    return figure


def curves_of(name: str) -> dict[str, list[Curve]]:
    """Return a study's curves by delay; its file has columns for arm, delay, seed, steps, score and alignment."""
    runs: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in numbers(name):
        runs[row.pop("arm"), row.pop("delay"), row.pop("seed")].append(row)
    found: dict[str, list[Curve]] = defaultdict(list)
    for (arm, delay, seed), rows in sorted(runs.items(), key=lambda run: list(STYLES).index(run[0][0])):
        step, score, *cosines = rows[0]
        names = {step: MetricsTable.STEP, score: RETURN}
        names |= {cosine: f"{ALIGNMENT}{cosine.rpartition('_')[2]}" for cosine in cosines}
        columns = {ours: np.array([float(row[theirs] or "nan") for row in rows]) for theirs, ours in names.items()}
        logged = {column: values for column, values in columns.items() if np.isfinite(values).any()}
        found[delay].append(Curve(arm, int(seed), logged))
    return dict(sorted(found.items(), key=lambda item: float(item[0].removesuffix("s") or 0)))


def game(name: str, title: str) -> None:
    curves = curves_of(name)
    undelayed, delays = curves.pop("", []), list(curves)
    figure, grid = panels(len(delays), max(6.5, 4.2 * len(delays)), 4)
    lines: dict[str, Line2D] = {}
    for axes, delay in zip(grid, delays, strict=True):
        lines |= draw_curves(axes, undelayed + curves[delay], styles=STYLES)
        late = f"credit {delay.removesuffix('s')} s late"
        axes.set_title(late if len(delays) > 1 else title if " late" in title else f"{title}, {late}")
        axes.xaxis.set_major_locator(plt.MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
        if title.startswith("CartPole"):
            axes.set_ylim(0, 515)
    for axes in grid[1:]:
        axes.set_ylabel("")
    figure.suptitle(title if len(delays) > 1 else None)
    legend(figure, lines, list(dict.fromkeys(look["label"] for look in STYLES.values())))
    save(figure, name)
    fullest = max(reversed(delays), key=lambda delay: len(curves[delay]))  # the longest of those with most runs
    save(alignment_figure(curves[fullest], STYLES), f"{name}-alignment")
    if len(delays) > 1:
        heatmap(name, "train_return_mean", "training return at the end, mean of seeds", 0.0)


def image(name: str, title: str) -> None:
    curves = curves_of(name)
    undelayed, delays = curves.pop("", []), list(curves)
    longest = curves[delays[-1]]
    figure, (axes,) = panels(1, 6.5, 4)
    lines = draw_curves(axes, undelayed + longest, styles=STYLES)
    best = max(curve.columns[RETURN].max() for curve in undelayed + longest)
    axes.set_ylim(max(0.0, best - (0.15 if best > 0.9 else 0.6)), min(1.0, best + 0.03))
    axes.set(xlabel="updates", ylabel="test accuracy")
    axes.set_title(f"{title}; credit {delays[-1].removesuffix('s')} s late", fontsize=10)
    legend(figure, lines)
    save(figure, name)
    layers = sorted(column for column in longest[0].columns if column.startswith(ALIGNMENT))
    figure, grid = panels(len(layers), 3 * len(layers), 3)
    lines = {}
    for axes, layer in zip(grid, layers, strict=True):
        for curve in longest:
            style = {**STYLES[curve.arm], "marker": STYLES[curve.arm]["marker"] or "x", "linestyle": ""}
            (lines[curve.arm],) = axes.plot(*curve.over(RETURN, layer), markersize=3, **style)
        axes.set_title(f"layer {layer.removeprefix(ALIGNMENT)}", fontsize=10)
        axes.set_xlabel("test accuracy")
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    grid[0].set_ylabel("cosine with the true gradient")
    legend(figure, {line.get_label(): line for line in lines.values()})
    save(figure, f"{name}-alignment")
    if len(delays) > 1:
        heatmap(name, "test_accuracy", f"{title}: test accuracy, %", None, 100, ".1f")


def sequence(name: str, title: str) -> None:
    (curves,) = curves_of(name).values()
    rules = ("rflo", "dni") if name == "late-add" else ("",)
    figure, grid = panels(2, 11, 4.2, sharey=len(rules) > 1)
    for axes, rule in zip(grid, rules, strict=False):
        lines = draw_curves(axes, [c for c in curves if c.arm.startswith(rule)], styles=STYLES, band="error")
        axes.set_ylabel("loss, mean of seeds ± standard error")
        axes.set_ylim((0.44, 0.74) if rule else None)
        axes.set_title(f"{title}; {STYLES[rule]['label']}" if rule else title, fontsize=10)
        for label, loss in build_task(name, build_config({"task": name})).baselines.items():
            axes.axhline(loss, color=SOFT, linewidth=0.8, linestyle=":")
            place: Any = {
                "xycoords": ("axes fraction", "data"),
                "ha": "right",
                "va": "bottom",
                "fontsize": 7,
                "clip_on": True,
            }
            axes.annotate(label, (1, loss), **place)
    if len(rules) == 1:
        draw_curves(grid[1], curves, f"{ALIGNMENT}alignment", STYLES, band="error")
        grid[1].axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        grid[1].set_ylabel("cosine of the recurrent gradient with the true one")
    for axes in grid:
        axes.set_xlabel("time steps")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g} k")
    legend(figure, lines)
    save(figure, name)


def kernels() -> None:
    delay, step = 40, 0.2
    figure, (left, right) = panels(2, 10, 3.4, sharey=False)
    lines: dict[str, Line2D] = {}

    def peaked(axes: plt.Axes, kernel: torch.Tensor, style: dict[str, Any]) -> Line2D:
        marked = {**style, "markevery": [int(kernel.argmax())], "markersize": 4}
        return axes.plot(np.arange(len(kernel)) * step, kernel, **marked)[0]

    paper = [(CET(order, delay, "peak"), f"cet{order}") for order in (2, 5, 10)]
    for trace, arm in [*paper, (ET.from_delay(delay, "peak"), "et")]:
        lines[arm] = peaked(left, trace.kernel(3 * delay), STYLES[arm])
    left.set(title="The paper's traces, peak-normalised", ylabel="weight in the trace")
    shares = []
    for trace, arm in (
        (CET(10, delay), "cet10"),
        (SharpCET(10, delay), "sharp10"),
        (Legendre(10, delay), "legendre10"),
        (Optimal(10, delay), "optimal10"),
    ):
        kernel = trace.kernel(trace.support[1])
        share = (kernel[delay] ** 2 / (kernel**2).sum()).item()
        shares.append(f"{STYLES[arm]['label']} {share:.1%}")
        lines[arm] = peaked(right, kernel[: 3 * delay], STYLES[arm])
    right.set_title(f"Ten states each, unit area; energy at the delay:\n{', '.join(shares)}", fontsize=8)
    for axes in (left, right):
        axes.axvline(delay * step, color=SOFT, linestyle="--", linewidth=1)
        axes.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        axes.set_xlabel("seconds before the credit arrives")
    legend(figure, {line.get_label(): line for line in lines.values()})
    save(figure, "kernels")


def sharpness() -> None:
    """Draw the accuracy of every trace, order and delay over the share of the kernel's energy at the delay."""
    points: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    for row in numbers("traces-mnist"):
        kind = row["arm"].rstrip("0123456789")
        point = 100 * float(row["sharpness"]), 100 * float(row["test_accuracy"])
        points[row["updates"], kind, row["delay"]].append(point)
    budgets = sorted({budget for budget, *_ in points}, key=int)
    figure, grid = panels(len(budgets), 5.2 * len(budgets), 4, sharey=False)
    lines: dict[str, Line2D] = {}
    for axes, budget in zip(grid, budgets, strict=True):
        for (updates, kind, delay), found in points.items():
            if updates == budget:
                style = STYLES.get(f"{kind}10") or STYLES[kind]
                label = f"{style['label'].removesuffix(' 10')}, {delay.removesuffix('s')} s"
                style = {**style, "label": label, "linestyle": "", "marker": style["marker"] or "o"}
                fill = style["color"] if delay == "10s" else PAPER
                (lines[label],) = axes.plot(*zip(*found, strict=True), markerfacecolor=fill, **style)
        axes.set(
            xscale="log", xlabel="share of the kernel's energy at the delay, %", title=f"{int(budget):,} updates"
        )
        axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
        axes.minorticks_off()
    grid[0].set_ylabel("test accuracy, %")
    legend(figure, lines)
    save(figure, "traces-mnist")


def final_losses(name: str, baselines: Mapping[str, float]) -> None:
    """Draw the loss of each seed of each rule at the end of the runs of Fig. 1, and the mean of each rule."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in numbers(name):
        found[row["arm"]].append(float(row["test_loss"]))
    rules = sorted(found, key=lambda rule: float(np.mean(found[rule])), reverse=True)
    figure, (axes,) = panels(1, 6.5, 2.8)
    for place, rule in enumerate(rules):
        color = STYLES[rule]["color"]
        axes.plot(found[rule], [place] * len(found[rule]), "|", color=color, alpha=0.6, markersize=11)
        axes.plot(np.mean(found[rule]), place, STYLES[rule]["marker"] or "o", color=color, markersize=5)
    for label, loss in baselines.items():
        axes.axvline(loss, color=SOFT, linewidth=0.8, linestyle=":")
        axes.annotate(label, (loss, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=7)
    axes.set_yticks(range(len(rules)), [STYLES[rule]["label"] for rule in rules])
    axes.set(xlabel="test loss after a million steps", ylim=(len(rules) - 0.5, -0.5))
    save(figure, name)


def wrong_delay() -> None:
    """Draw accuracies over the error of the delay that traces are made for, and over the spread of true delays."""
    figure, grid = panels(2, 11, 4)
    arms = ("cet10", "legendre10", "optimal10", *TOLERANCES)
    lines: dict[str, Line2D] = {}
    for axes, (study, column) in zip(grid, (("wrong-delay", "trace_delay"), ("jitter", "jitter")), strict=True):
        found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in numbers(study):
            value = float(row[column].removesuffix("s"))
            percent = round(100 * (value / 8 - 1) if study == "wrong-delay" else 100 * value)
            found[row["arm"]][percent].append(100 * float(row["test_accuracy"]))
        for arm in arms:
            values = sorted(found[arm].items())
            mean = [np.mean(each) for _, each in values]
            error = [np.std(each, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else 0.0 for _, each in values]
            style = {**STYLES[arm], "markersize": 4, "capsize": 2}
            drawn = axes.errorbar([percent for percent, _ in values], mean, error, **style)
            lines[style["label"]] = drawn.lines[0]
    grid[0].set(xlabel="the trace is made for a delay longer by, %", ylabel="test accuracy, %", ylim=(80, 96))
    grid[1].set(xlabel="the delay of each image lies within ±, %")
    legend(figure, lines)
    save(figure, "wrong-delay")


def numbers(name: str) -> list[dict[str, str]]:
    """Return the rows of a study's file."""
    with open(DOCS / "data" / f"{name}.csv", newline="") as stream:
        return list(csv.DictReader(stream))


INK, MEMORY, CREDIT = "#78828c", "#3d85c6", "#e07020"
"""Colours of the drawing at a synapse, which has no ground of its own: readable on white and on near-black."""


def cascade() -> None:
    """Draw a cascade at a synapse: its stages above, and below what each of them holds of one event over time."""
    order, delay, step = 5, 40, 0.2
    figure, (scheme, curves) = plt.subplots(
        2, 1, figsize=(8.4, 4.7), layout="constrained", height_ratios=(1, 1.25), facecolor="none"
    )
    scheme.set(xlim=(0, 10.6), ylim=(0, 3.0))
    scheme.axis("off")
    shades = plt.get_cmap("Blues")(np.linspace(0.45, 0.8, order))

    def text(x: float, y: float, words: str, color: str = INK, **style: Any) -> None:
        scheme.text(x, y, words, **{"ha": "center", "va": "center", "fontsize": 10, "color": color, **style})

    def arrow(start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
        scheme.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.4})

    text(0.75, 2.0, "$x$, $f'(z)$\nwhat the\nsynapse does", fontsize=9)
    arrow((1.35, 2.0), (2.0, 2.0))
    text(1.66, 2.22, "$h$", fontsize=11)
    for stage, shade in enumerate(shades):
        x = 2.35 + 1.05 * stage
        scheme.add_patch(plt.Circle((x, 2.0), 0.33, facecolor=shade, edgecolor=INK, linewidth=1))
        text(x, 2.0, f"$y^{stage + 1}$", "white")
        if stage < order - 1:
            arrow((x + 0.35, 2.0), (x + 0.72, 2.0))
            text(x + 0.52, 2.22, "$\\alpha$", fontsize=9)
    text(4.45, 1.32, "the cascade: each stage follows the one before it", MEMORY, fontsize=9)
    arrow((6.9, 2.0), (7.68, 2.0), MEMORY)
    text(7.3, 2.22, "$c$", MEMORY, fontsize=11)
    scheme.add_patch(plt.Circle((7.95, 2.0), 0.24, facecolor="none", edgecolor=INK, linewidth=1.2))
    text(7.95, 2.0, "×", fontsize=13)
    arrow((7.95, 0.95), (7.95, 1.72), CREDIT)
    text(7.95, 0.68, "credit $\\delta$, eight seconds late", CREDIT, fontsize=9)
    arrow((8.22, 2.0), (8.9, 2.0))
    text(9.65, 2.0, "change of\nthe weight", fontsize=9)

    transition, held = CET(order, delay).transition(), np.zeros((order, 3 * delay))
    state = transition.K
    for lag in range(held.shape[1]):
        held[:, lag], state = state, transition.M @ state
    seconds = np.arange(held.shape[1]) * step
    for stage, shade in enumerate(shades[:-1]):
        curves.plot(seconds, held[stage], color=shade, linewidth=1.2)
        top = int(held[stage].argmax())
        curves.annotate(
            f"$y^{stage + 1}$", (seconds[top] + 0.1, held[stage, top] + 0.0014), color=shade, fontsize=9
        )
    curves.text(0.95, 0.064, "$y^1$", color=shades[0], fontsize=9)
    curves.fill_between(seconds, held[-1], color=MEMORY, alpha=0.25, linewidth=0)
    curves.plot(seconds, held[-1], color=MEMORY, linewidth=2.2, label="$y^5$, which the synapse reads")
    et = np.exp(-np.arange(held.shape[1]) / delay) / delay
    curves.plot(seconds, et, color=INK, linestyle=(0, (4, 2)), linewidth=1.4, label="classical trace")
    curves.axvline(delay * step, color=CREDIT, linewidth=1.6)
    curves.text(delay * step + 0.2, 0.066, "the credit arrives", color=CREDIT, fontsize=9)
    curves.set(xlim=(0, 24), ylim=(0, 0.075), yticks=[], facecolor="none")
    curves.set_xlabel("seconds after the event", color=INK)
    curves.set_ylabel("memory of it", color=INK)
    curves.tick_params(colors=INK)
    curves.spines[["top", "right"]].set_visible(False)
    curves.spines[["left", "bottom"]].set_color(INK)
    curves.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center right")
    save(figure, "cascade")


def heatmap(name: str, metric: str, title: str, least: float | None, factor: float = 1, form: str = ".0f") -> None:
    """Draw a study's final scores as numbers in coloured cells; the arm without delay counts at every delay."""
    tables = runpy.run_path(str(DOCS / "tables.py"))
    full = name in tables["FULL"]
    found = tables["known"](name, metric) if full else tables["scores"](f"{name}-summary", metric)
    arms = sorted(found, key=list(STYLES).index)
    delays = sorted({*chain(*found.values())} - {""}, key=lambda delay: float(delay.removesuffix("s")))
    cells = [[found[arm].get(delay) or found[arm].get("", [np.nan]) for delay in delays] for arm in arms]
    values = factor * np.array([[np.mean(cell) for cell in row] for row in cells])
    figure, (axes,) = panels(1, 2.2 + 1.0 * len(delays), 0.36 * len(arms) + 0.9)
    low = np.nanmin(values) if least is None else least
    texts = [[format(value, form) if np.isfinite(value) else "–" for value in row] for row in values]
    draw_cells(axes, values, texts, "viridis", (low, np.nanmax(values)))
    axes.set_xticks(range(len(delays)), [f"{delay.removesuffix('s')} s" for delay in delays])
    axes.set_yticks(range(len(arms)), [STYLES[arm]["label"] for arm in arms])
    axes.set_title(title, fontsize=9)
    save(figure, f"{name}-heatmap")


def panels(count: int, width: float, height: float, **options: Any) -> tuple[plt.Figure, list[plt.Axes]]:
    options = {"sharey": True, **options}
    figure, grid = plt.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False, **options)
    return figure, list(grid[0])


def save(figure: plt.Figure, name: str) -> None:
    svg = follow_the_page(render(figure, "svg").decode())
    (DOCS / "figures" / f"{name}.svg").write_text(svg)
    plt.close(figure)


def every() -> dict[str, Callable[[], None]]:
    """Return the functions that draw each study, by its name."""
    found: dict[str, Callable[[], None]] = {"kernels": kernels}
    found["cascade"] = plt.rc_context({"text.parse_math": True, "font.size": 10})(cascade)
    found |= {"traces-mnist": sharpness, "wrong-delay": wrong_delay}
    add = build_task("add", build_config({"task": "add"})).baselines
    found["rules-fig1-add"] = partial(final_losses, "rules-fig1-add", add)
    found["rules-fig1-mimic"] = partial(final_losses, "rules-fig1-mimic", {})  # its baseline depends on the seed
    for draw, studies in ((game, GAMES), (image, IMAGES), (sequence, SEQUENCES)):
        found |= {name: partial(draw, name, title) for name, title in studies.items()}
    return found


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(every())
    if unknown:
        raise SystemExit(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join(every())}")
    for name in sys.argv[1:] or every():
        draw = every()[name]
        with drawing():
            draw()
