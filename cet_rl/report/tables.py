"""Tables of a report as CSV and LaTeX files: results by arm and delay, and comparisons of pairs of arms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple

from cet_rl.report.grouping import Arm, Comparison
from cet_rl.report.improvement import Improvement, improvements
from cet_rl.report.statistics import LEAST_SEEDS, LEVEL, Estimate, Measure
from cet_rl.report.text import in_seconds, span
from cet_rl.runs.files import csv_text

ESCAPES = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": "$<$", ">": "$>$"},
    **{"×": r"$\times$", "λ": r"$\lambda$", "–": "--", "…": r"\dots{}", "−": "$-$"},
    **{"[": "{[}", "]": "{]}"},  # at the start of a row they would hold an argument of the last row's end
}
"""LaTeX for characters that are special there, or that fonts may lack."""


def all_tables(comparison: Comparison) -> dict[str, str]:
    """Return the tables by the ends of their file names; none without a result, none of pairs with one arm."""
    if not any(comparison.estimate(arm, at.delay) for arm, at in comparison.all_runs):
        return {}
    found = {"results.csv": results_csv(comparison), "results.tex": results_tex(comparison)}
    pairs = improvements(comparison)
    return found | ({"improvement.csv": improvement_csv(pairs)} if pairs else {})


def results_csv(comparison: Comparison) -> str:
    """Return a CSV table with a row for each arm and delay: count, average, interval, range and other scores."""
    score, *others = comparison.presentation.scores
    heads = ["arm", "delay in s", "n", score.heading, "interval from", "interval to", "lowest", "highest"]
    rows = []
    for arm, at_delay in comparison.all_runs:
        found = comparison.estimate(arm, at_delay.delay)
        rest = [comparison.estimate(arm, at_delay.delay, measure) for measure in others]
        numbers = [None] * 5 if found is None else [found.centre, found.low, found.high, found.least, found.most]
        count = 0 if found is None else found.count
        options = comparison.differing[arm.label, at_delay.delay]
        centres = [each and each.centre for each in rest]
        rows.append([arm.label, at_delay.delay, count, *numbers, *centres, at_delay.speed, options])
    return _csv([*heads, *(measure.heading for measure in others), "steps/s", "options that differ"], rows)


def improvement_csv(found: Sequence[Improvement]) -> str:
    """Return a CSV table with P(X > Y) and its interval for each pair of arms."""
    return _csv(["arm X", "arm Y", "P(X > Y)", "interval from", "interval to", "delays"], map(astuple, found))


def results_tex(comparison: Comparison) -> str:
    r"""Return a LaTeX table, arms by delays, for \input; it needs the package booktabs.

    A cell is the average over seeds with its interval in small print. The best arm at each delay is bold, among
    those with a delay and without perfect memory.
    """
    shows, score = comparison.presentation, comparison.presentation.score
    delays = comparison.delays
    best = {delay: next(iter(comparison.ranked(delay)), None) for delay in delays}

    def cells(arm: Arm) -> Iterable[str]:
        for delay in delays:
            text = _cell(comparison.estimate(arm, 0.0 if arm in comparison.references else delay), score)
            yield rf"\textbf{{{text}}}" if best[delay] is arm else text

    counts = [each.count for arm, at in comparison.all_runs if (each := comparison.estimate(arm, at.delay))]
    interval = f", {LEVEL:.0%} bootstrap interval where n >= {LEAST_SEEDS}" if max(counts) >= LEAST_SEEDS else ""
    said = (
        f"{comparison.title}: {score.heading}, {shows.statistic_title} over seeds (n = {span(counts)}){interval}"
    )
    rows = [["", *(escape(in_seconds(delay)) for delay in delays)]]
    rows += [[escape(arm.label), *cells(arm)] for arm in (*comparison.references, *comparison.compared)]
    head, *body = [rf"{' & '.join(row)} \\" for row in rows]
    lines = [f"% {said}.", r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{l{'c' * len(delays)}}}", r"\toprule"]
    return "\n".join([*lines, head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def escape(text: str) -> str:
    """Return a text with LaTeX's special characters escaped."""
    return "".join(ESCAPES.get(character, character) for character in text)


def _cell(found: Estimate | None, score: Measure) -> str:
    if found is None:
        return "--"
    centre, low, high = map(score.show, (found.centre, found.low, found.high))
    interval = "" if found.low is None else rf" {{\scriptsize [{low}, {high}]}}"
    text = re.sub(r"e\+?(-?)0*(\d+)", r"$\\times 10^{\1\2}$", f"{centre}{interval}")
    return re.sub(r"(?<!{)-", "$-$", text)


def _csv(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = ([f"{cell:.10g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return csv_text(heads, (dict(zip(heads, row, strict=True)) for row in cells))
