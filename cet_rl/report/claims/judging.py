"""From runs to verdicts.

Only finished runs count. Runs are compared within one setting: a set of values for all options of the
configuration but those that the claim's sides name or leave free. So runs of different budgets, step durations or
networks never meet. A claim that can be decided in several settings is judged by the one with the largest budget.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from cet_rl.report.claims.catalogue import CLAIMS
from cet_rl.report.claims.checks import Check, Outcome
from cet_rl.report.claims.claim import Claim
from cet_rl.report.claims.sides import Side
from cet_rl.report.finding import find_runs
from cet_rl.report.reading import Run, RunReader
from cet_rl.report.statistics import LEAST
from cet_rl.report.text import counted, listed
from cet_rl.runs.config import Mark, RunConfig
from cet_rl.runs.paper import paper_row
from cet_rl.runs.task_kinds import options_marked

Verdict = Literal["holds", "does not hold", "not enough data"]

VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "not enough data")

NEVER_TELLS = (
    {"seed", "task", "delay", "trace", "order"} | options_marked(Mark.MACHINE) | options_marked(Mark.NEUTRAL)
)
"""Options that make no setting: seeds, what sides are told apart by, and what changes no score."""


@dataclass(frozen=True)
class Finding:
    """What runs say of a claim.

    Attributes:
        claim: that was judged.
        verdict: holds if every check has passed, does not hold if one has not; of neither, not enough data.
        outcomes: of the checks for which there were enough runs.
        lacking: what was missing for the others, each in words.
        seeds: the least and the largest number of seeds of a side that was evaluated; None if none was.
        steps: budget of the runs; None without any.
        elsewhere: budgets and verdicts of other settings that could be decided.
        failed: runs of the claim's sides that ended with an error, as those do that diverge; they are left out.
    """

    claim: Claim
    verdict: Verdict
    outcomes: tuple[Outcome, ...] = ()
    lacking: tuple[str, ...] = ()
    seeds: tuple[int, int] | None = None
    steps: int | None = None
    elsewhere: tuple[tuple[int, Verdict], ...] = ()
    failed: int = 0

    @property
    def numbers(self) -> str:
        """What the verdict rests on, and what is missing: "(needs …, found …: cet-rl sweep …)"."""
        means: dict[str, dict[str, str]] = defaultdict(dict)
        for outcome in self.outcomes:
            means[outcome.check.measure.title].update(outcome.means())
        parts = [
            f"{title}: {', '.join(f'{side} {mean}' for side, mean in of_sides.items())}"
            for title, of_sides in means.items()
        ]
        parts += [str(outcome) for outcome in self.outcomes]
        if self.outcomes:
            parts.append(f"{self.steps:,} steps")
        if self.lacking:
            parts.append(f"({'; '.join(self.lacking)}: cet-rl sweep {self.claim.config})")
        parts += [f"with {steps:,} steps: {verdict}" for steps, verdict in self.elsewhere]
        parts += [f"{counted(self.failed, 'run')} failed and left out"] * bool(self.failed)
        return "; ".join(parts)


def examine_folders(
    folders: Sequence[str | os.PathLike[str]], claims: Iterable[Claim] = CLAIMS
) -> tuple[Finding, ...]:
    """What the runs in some folders say of each claim, in the claims' order.

    Args:
        folders: run folders, or folders that hold run folders at any depth.
        claims: to judge.

    Raises:
        ValueError: if there is no run folder in one of the folders.
    """
    places, _ = find_runs(folders)
    reader = RunReader()
    return examine([reader.read(place) for place in places], claims)


def examine(runs: Iterable[Run], claims: Iterable[Claim] = CLAIMS) -> tuple[Finding, ...]:
    """The same of runs that have been read."""
    read = [run for run in runs if run.config is not None]
    return tuple(_examine(claim, read) for claim in claims)


def _examine(claim: Claim, runs: Sequence[Run]) -> Finding:
    sides = [side for check in claim.checks for side in check.sides]
    free = {*NEVER_TELLS, *claim.free, *(name for side in sides for name in side.where)}
    settings: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    failed = 0
    for run in runs:
        config = run.config
        assert config is not None
        if run.status in ("finished", "failed") and any(side.has(config) for side in sides):
            failed += run.status == "failed"
            if run.status == "finished":
                settings[_values(config, lambda name: name not in free)].append(run)
    found = [_judge(claim, of_setting) for of_setting in settings.values()] or [_judge(claim, [])]

    def rank(finding: Finding) -> tuple[bool, int, int]:
        seeds = sum(len(values) for outcome in finding.outcomes for values in outcome.samples)
        return finding.verdict != "not enough data", finding.steps or 0, seeds

    best = max(found, key=rank)
    others = [each for each in found if each is not best and each.verdict != "not enough data"]
    elsewhere = sorted((each.steps or 0, each.verdict) for each in others)
    return replace(best, elsewhere=tuple(elsewhere), failed=failed)


def _judge(claim: Claim, runs: Sequence[Run]) -> Finding:
    """A claim in one setting."""
    outcomes: list[Outcome] = []
    found: dict[str, int] = {}
    ambiguous: dict[str, None] = {}
    for check in claim.checks:
        samples: list[Mapping[int, Run]] = []
        for side in check.sides:
            chosen, tie = _chosen(side, claim, runs)
            if tie:
                ambiguous[side.name] = None
            elif len(chosen) < LEAST:
                found[side.name] = len(chosen)
            samples.append({} if tie else chosen)
        if not all(len(chosen) >= LEAST for chosen in samples):
            continue
        # Only now: a measure may take seconds.
        measured = [_measured(check, chosen) for chosen in samples]
        if claim.paired:
            common = set.intersection(*map(set, measured))
            measured = [{seed: values[seed] for seed in sorted(common)} for values in measured]
        if all(len(values) >= LEAST for values in measured):
            arrays = [np.array(list(values.values())) for values in measured]
            outcomes.append(check.evaluate(arrays, paired=claim.paired))
        for side, values in zip(check.sides, measured, strict=True):
            if len(values) < LEAST:
                found[f"{side.name} with {check.measure.title}{' and shared seeds' * claim.paired}"] = len(values)
    lacking = [f"needs one setting of {name}, found several with as many seeds" for name in ambiguous]
    if found:
        counts = "none" if not any(found.values()) else ", ".join(map(str, found.values()))
        lacking.append(f"needs {counted(LEAST, 'seed')} of {listed(list(found), 12)}, found {counts}")
    verdict: Verdict = "not enough data" if lacking else "holds"
    if not all(outcome.passed for outcome in outcomes):
        verdict = "does not hold"
    seeds = [len(values) for outcome in outcomes for values in outcome.samples]
    steps = runs[0].config.total_steps if runs and runs[0].config is not None else None
    span = (min(seeds), max(seeds)) if seeds else None
    return Finding(claim, verdict, tuple(outcomes), tuple(lacking), span, steps)


def _measured(check: Check, runs: Mapping[int, Run]) -> dict[int, float]:
    """The values of the runs that have one, by seed."""
    values = {seed: check.measure.function(run) for seed, run in runs.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _chosen(side: Side, claim: Claim, runs: Iterable[Run]) -> tuple[Mapping[int, Run], bool]:
    """A side's runs, one for each seed.

    Of several values of free options those of the paper's tables are taken, if they have seeds enough, or else
    those with the most seeds.

    Returns:
        The runs by seed, and whether several values have as many seeds, so that there is nothing to choose by.
    """
    variants: dict[tuple[Any, ...], dict[int, Run]] = defaultdict(dict)
    for run in runs:
        config = run.config
        assert config is not None
        if side.has(config):
            rates = _values(config, lambda name: name in claim.free and name not in side.where)
            variants[rates].setdefault(config.seed, run)

    def rank(variant: Mapping[int, Run]) -> tuple[bool, int]:
        config = next(iter(variant.values())).config
        assert config is not None
        return len(variant) >= LEAST and _is_of_the_paper(config, claim.free), len(variant)

    ranked = sorted(variants.values(), key=rank, reverse=True)
    tie = len(ranked) > 1 and rank(ranked[0]) == rank(ranked[1])
    return ranked[0] if ranked else {}, tie


def _is_of_the_paper(config: RunConfig, names: Iterable[str]) -> bool:
    """Whether some options are as in the row of the paper's tables for the task, delay and order."""
    trace = config.trace_config
    if trace.kind not in ("cet", "et", "none"):
        return False
    order = None if trace.kind == "none" else 1 if trace.kind == "et" else trace.states
    try:
        row, _ = paper_row(config.task, delay=config.delay, order=order, stacked=config.stacked)
    except ValueError:  # no such row
        return False
    return all(getattr(config, name) == row[name] for name in names if name in row)


def _values(config: RunConfig, wanted: Callable[[str], bool]) -> tuple[Any, ...]:
    """Names and values of some of a configuration's options."""
    return tuple((item.name, getattr(config, item.name)) for item in fields(config) if wanted(item.name))
