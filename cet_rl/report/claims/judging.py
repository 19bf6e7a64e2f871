"""Judges claims by runs, and writes the verdicts.

Only finished runs count. Runs are compared within one setting: the values of all options but those that the
claim's filters name or that the claim leaves free. So runs of different budgets, step durations or networks are
never mixed. A claim that can be decided in several settings is judged by the one with the largest budget.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from cet_rl.report.claims.model import CLAIMS, Check, CheckResult, PaperClaim, RunFilter
from cet_rl.report.reading import Run, read_runs
from cet_rl.report.statistics import LEAST_SEEDS, LEVEL
from cet_rl.report.text import counted, listed
from cet_rl.runs.config import Mark, RunConfig
from cet_rl.runs.files import write_text
from cet_rl.runs.paper import paper_row
from cet_rl.runs.task_kinds import options_marked

if TYPE_CHECKING:
    from rich.console import Console

ReadRun = tuple[RunConfig, Run]
"""A run, after its configuration."""

Verdict = Literal["holds", "does not hold", "not enough data"]

NO_SETTING = {"seed", "task", "delay", "trace", "order"}.union(
    *map(options_marked, (Mark.MACHINE, Mark.NEUTRAL, Mark.CHOSEN))
)
"""Options that make no setting: seeds, what arms differ in, and what changes no score."""

METHOD = (
    f"Only finished runs count. A check passes if the whole {LEVEL:.0%} bootstrap interval over seeds (in "
    f"brackets) lies where the claim says, with at least {LEAST_SEEDS} seeds an arm. A claim holds if all of its "
    "checks pass, and does not hold if one fails: its runs do not show what it says."
)


@dataclass(frozen=True)
class Finding:
    """Hold what runs say about a claim.

    It "holds" if every check has passed, "does not hold" if one has failed, else there is "not enough data".
    """

    claim: PaperClaim
    verdict: Verdict
    results: tuple[CheckResult, ...] = ()  # of the checks for which there were enough runs
    lacking: tuple[str, ...] = ()  # what was missing for the others, as text
    steps: int | None = None  # budget of the runs; None without any
    elsewhere: tuple[tuple[int, Verdict], ...] = ()  # budgets and verdicts of other settings that decide the claim
    failed: int = 0  # runs of the claim's arms that ended with an error, as diverging ones do; they are left out

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the number of seeds of each arm of each check that was evaluated."""
        return tuple(len(values) for result in self.results for values in result.samples)

    @property
    def numbers(self) -> str:
        """Return the numbers behind the verdict, and what is missing: "(needs …, found …: cet-rl sweep …)"."""
        means: dict[str, dict[str, str]] = defaultdict(dict)
        for result in self.results:
            means[result.check.measure.title].update(result.means())
        parts = [
            f"{title}: {', '.join(f'{arm} {mean}' for arm, mean in of_arms.items())}"
            for title, of_arms in means.items()
        ]
        parts += map(str, self.results)
        if self.results:
            parts.append(f"{self.steps:,} steps")
        if self.lacking:
            parts.append(f"({'; '.join(self.lacking)}: cet-rl sweep {self.claim.config})")
        parts += [f"with {steps:,} steps: {verdict}" for steps, verdict in self.elsewhere]
        parts += [f"{counted(self.failed, 'run')} failed and left out"] * bool(self.failed)
        return "; ".join(parts)

    @property
    def seeds_shown(self) -> str:
        """Seeds of the arms that were evaluated: "3", "3–5", "–" if none was."""
        return "–".join(str(count) for count in sorted({min(self.seeds), max(self.seeds)})) if self.seeds else "–"


# -------------------- from runs to verdicts


def examine_folders(
    folders: Sequence[str | os.PathLike[str]], claims: Iterable[PaperClaim] = CLAIMS
) -> tuple[Finding, ...]:
    """Judge each claim by the runs in some folders, at any depth, in the claims' order.

    ValueError if there is no run folder in one of them.
    """
    runs, _ = read_runs(folders)
    return examine(runs, claims)


def examine(runs: Iterable[Run], claims: Iterable[PaperClaim] = CLAIMS) -> tuple[Finding, ...]:
    """Judge each claim by runs that have been read, in the claims' order."""
    read = [(run.config, run) for run in runs if run.config is not None]
    return tuple(_examine(claim, read) for claim in claims)


def _examine(claim: PaperClaim, runs: Sequence[ReadRun]) -> Finding:
    filters = [each for check in claim.checks for each in check.filters]
    free = {*NO_SETTING, *claim.free, *(name for each in filters for name in each.where)}
    settings: dict[tuple[Any, ...], list[ReadRun]] = defaultdict(list)
    failed = 0
    for config, run in runs:
        if run.status in ("finished", "failed") and any(each.selects(config) for each in filters):
            failed += run.status == "failed"
            if run.status == "finished":
                settings[_values(config, lambda name: name not in free)].append((config, run))
    found = [_judge(claim, of_setting) for of_setting in settings.values()] or [_judge(claim, [])]

    def rank(finding: Finding) -> tuple[bool, int, int]:
        return finding.verdict != "not enough data", finding.steps or 0, sum(finding.seeds)

    best = max(found, key=rank)
    decided = [each for each in found if each is not best and each.verdict != "not enough data"]
    elsewhere = sorted((each.steps or 0, each.verdict) for each in decided)
    return replace(best, elsewhere=tuple(elsewhere), failed=failed)


def _judge(claim: PaperClaim, runs: Sequence[ReadRun]) -> Finding:
    """Judge a claim in one setting."""
    chosen = {arm.name: _choose(arm, claim, runs) for check in claim.checks for arm in check.filters}
    too_few = {
        name: len(found) for name, found in chosen.items() if found is not None and len(found) < LEAST_SEEDS
    }
    results: list[CheckResult] = []
    for check in claim.checks:
        samples = [chosen[arm.name] or {} for arm in check.filters]
        if min(map(len, samples)) < LEAST_SEEDS:
            continue
        measured = [_measure(check, found) for found in samples]  # not before: a measure may take seconds
        if claim.paired:
            common = set.intersection(*map(set, measured))
            measured = [{seed: values[seed] for seed in sorted(common)} for values in measured]
        shared = " and shared seeds" * claim.paired
        lacking = {
            f"{arm.name} with {check.measure.title}{shared}": len(values)
            for arm, values in zip(check.filters, measured, strict=True)
            if len(values) < LEAST_SEEDS
        }
        too_few |= lacking
        if not lacking:
            arrays = [np.array(list(values.values())) for values in measured]
            results.append(check.evaluate(arrays, paired=claim.paired))
    needs = [
        f"needs one setting of {name}, found several with as many seeds"
        for name, found in chosen.items()
        if found is None
    ]
    if too_few:
        counts = "none" if not any(too_few.values()) else ", ".join(map(str, too_few.values()))
        needs.append(f"needs {counted(LEAST_SEEDS, 'seed')} of {listed(list(too_few), 12)}, found {counts}")
    verdict: Verdict = "not enough data" if needs else "holds"
    if not all(result.passed for result in results):
        verdict = "does not hold"
    return Finding(claim, verdict, tuple(results), tuple(needs), runs[0][0].total_steps if runs else None)


def _measure(check: Check, runs: Mapping[int, ReadRun]) -> dict[int, float]:
    """Return the measured values, by seed, of the runs that have one."""
    values = {seed: check.measure.value(run) for seed, (_, run) in runs.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _choose(arm: RunFilter, claim: PaperClaim, runs: Iterable[ReadRun]) -> Mapping[int, ReadRun] | None:
    """Choose an arm's runs, one for each seed, by seed.

    Of several values of free options those of the paper's tables are taken, if they have enough seeds, or else
    those with the most seeds; None if that leaves several.
    """
    variants: dict[tuple[Any, ...], dict[int, ReadRun]] = defaultdict(dict)
    for config, run in runs:
        if arm.selects(config):
            rates = _values(config, lambda name: name in claim.free and name not in arm.where)
            variants[rates].setdefault(config.seed, (config, run))

    def rank(variant: Mapping[int, ReadRun]) -> tuple[bool, int]:
        config, _ = next(iter(variant.values()))
        return len(variant) >= LEAST_SEEDS and _is_of_the_paper(config, claim.free), len(variant)

    ranked = sorted(variants.values(), key=rank, reverse=True)
    if len(ranked) > 1 and rank(ranked[0]) == rank(ranked[1]):
        return None
    return ranked[0] if ranked else {}


def _is_of_the_paper(config: RunConfig, names: Iterable[str]) -> bool:
    """Return whether some options are as in the paper's tables for the task, delay and order."""
    asked: dict[str, Any] = {name: getattr(config, name) for name in ("delay", "order", "stacked", "trace")}
    try:
        row, _ = paper_row(config.task, **asked)
    except ValueError:  # no such row
        return False
    return all(getattr(config, name) == row[name] for name in names if name in row)


def _values(config: RunConfig, wanted: Callable[[str], bool]) -> tuple[Any, ...]:
    """Return names and values of some of a configuration's options."""
    return tuple((item.name, getattr(config, item.name)) for item in fields(config) if wanted(item.name))


# -------------------- verdicts as text


def summary(findings: Sequence[Finding]) -> str:
    """Count the verdicts: "holds 3, does not hold 1, not enough data 29"."""
    counts = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{verdict} {counts[verdict]}" for verdict in get_args(Verdict))


def print_claims(findings: Sequence[Finding], console: Console) -> None:
    """Print a table of claims, verdicts, numbers and seeds an arm."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(show_lines=True)
    for head in ("claim", "verdict", "numbers"):
        grid.add_column(head, overflow="fold")
    grid.add_column("n", justify="right")
    for finding in findings:
        claim = finding.claim
        words = f"{claim.name} ({claim.place}): {claim.words}"
        # As plain text: rich would take the square brackets of intervals for markup.
        grid.add_row(*map(Text, (words, finding.verdict, finding.numbers, finding.seeds_shown)))
    console.print(grid)
    console.print(f"{summary(findings)}. {METHOD}", highlight=False)


def write_claims(
    findings: Sequence[Finding], folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> Path:
    """Write claims.md, a Markdown page that names the folders of the runs, to a folder, and return its path.

    The folder is made if need be; OSError if that cannot be written.
    """
    rows = [["claim", "place", "statement", "verdict", "numbers", "n"], ["---"] * 6]
    for finding in findings:
        verdict = f"**{finding.verdict}**" if finding.results else finding.verdict
        claim = finding.claim
        rows.append([f"`{claim.name}`", claim.place, claim.words, verdict, finding.numbers, finding.seeds_shown])
    lines = [
        "# Claims",
        "",
        f"Judged by the runs in {', '.join(f'`{folder}`' for folder in folders)}: {summary(findings)}.",
        METHOD,
        "n is the number of seeds an arm. `cet-rl sweep CONFIG` makes the runs that a claim needs.",
        "",
        *(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows),
    ]
    file = Path(out) / "claims.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "\n".join(lines) + "\n")
    return file
