"""Judge claims by runs, and write the verdicts.

Only finished runs count. Runs of a task are compared only if they have the same setting: the values of all options
but those that the claim's filters name or that the claim leaves free. So runs of different budgets, step
durations or networks are never mixed. Of several settings the one in which most arms have enough seeds counts, and
of several such settings the one with the largest budget.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from cet_rl.report.claims.exact import EXACT
from cet_rl.report.claims.model import ALPHA, CLAIMS, Check, CheckResult, PaperClaim, RunFilter
from cet_rl.report.reading import Run, read_runs
from cet_rl.report.statistics import LEAST_SEEDS, LEVEL, holm
from cet_rl.report.text import counted, listed, span
from cet_rl.runs.config import Mark, RunConfig
from cet_rl.runs.files import write_text
from cet_rl.runs.paper import paper_row
from cet_rl.runs.task_kinds import options_marked

if TYPE_CHECKING:
    from rich.console import Console

ReadRun = tuple[RunConfig, Run]
"""A run's configuration, and the run."""

Chosen = Mapping[str, Mapping[int, ReadRun]]
"""The runs that count, by the arm's name and the seed."""

Verdict = Literal["supported", "contradicted", "undecided", "not run"]

NO_SETTING = {"seed", "delay", "trace", "order"}.union(
    *map(options_marked, (Mark.MACHINE, Mark.NEUTRAL, Mark.CHOSEN))
)
"""Options that are no part of a setting: seed, what arms differ in, and what changes no score."""

MOST_CHECKS = 3  # checks of a claim whose numbers are shown: those with the largest p-values

METHOD = (
    f"Supported: were it not so, runs would speak for it this clearly in less than {ALPHA:.1%} of cases; "
    "contradicted: the same of its opposite; undecided: neither, though the numbers may lean one way; not run: no "
    f"check has {LEAST_SEEDS} seeds of its arms. Differences of means are tested by Student's t with variances "
    "that may differ (Welch, Satterthwaite's degrees of freedom), paired by seed where the seed draws the task; "
    "order on the whole by the permutation test of Jonckheere and Terpstra, in every step by the differences of "
    "neighbours. A claim of several checks is supported if all of them are, so its largest p-value counts, and "
    "contradicted if one is, so the smallest of the opposites counts, times their number. Both are corrected for "
    f"the number of claims tested (Holm). Brackets hold {LEVEL:.0%} intervals, not corrected. Exact: computed "
    "from the code, without runs."
)


@dataclass(frozen=True)
class Finding:
    """Hold the verdict on a claim, and the numbers behind it."""

    claim: PaperClaim
    verdict: Verdict = "not run"
    results: tuple[CheckResult, ...] = ()  # of the checks with enough runs
    lacking: tuple[str, ...] = ()  # what the other checks need, as text
    steps: tuple[int, ...] = ()  # budgets of the runs
    folders: tuple[str, ...] = ()  # names of the folders that hold the runs
    seeds: tuple[int, ...] = ()  # seeds of the compared runs
    elsewhere: tuple[int, ...] = ()  # budgets of other settings with runs of the claim
    failed: int = 0  # number of runs of the claim's arms that failed, as by divergence; they are left out
    computed: str = ""  # the numbers of a claim that needs no runs
    p_value: float | None = None  # corrected, for the opposite if contradicted, else for the claim; None: untested

    @property
    def p_for(self) -> float:
        """Return the p-value for the claim, not corrected: that of its weakest check."""
        return max((result.p_for for result in self.results), default=1.0)

    @property
    def p_against(self) -> float:
        """Return the p-value for the opposite, not corrected: the smallest of all checks, times their number."""
        return min((len(self.results) * result.p_against for result in self.results), default=1.0)

    @property
    def numbers(self) -> str:
        """Return the numbers behind the verdict, and what is missing: "(needs …, found …: cet-rl sweep …)"."""
        shown = sorted(self.results, key=lambda result: result.p_for, reverse=True)[:MOST_CHECKS]
        means: dict[str, dict[str, str]] = defaultdict(dict)
        for result in shown:
            means[result.check.measure.title].update(result.means())
        parts = [self.computed] * bool(self.computed)
        parts += [f"{title}: {', '.join(f'{a} {m}' for a, m in arms.items())}" for title, arms in means.items()]
        parts += map(str, shown)
        if len(shown) < len(self.results):
            parts.append(f"{len(self.results) - len(shown)} more checks with smaller p")
        if self.results:
            steps = " or ".join(f"{steps:,}" for steps in self.steps)
            parts.append(f"{steps} steps, runs in {' and '.join(self.folders)}")
        if self.p_value is not None:
            parts.append(f"corrected p = {self.p_value:.2g}")
        if self.lacking:
            parts.append(f"({'; '.join(self.lacking)}: cet-rl sweep {' or '.join(self.claim.sweeps)})")
        others = ", ".join(f"{steps:,}" for steps in self.elsewhere)
        parts += [f"other settings with runs: {others} steps"] * bool(others)
        parts += [f"{counted(self.failed, 'run')} failed and left out"] * bool(self.failed)
        return "; ".join(parts)

    @property
    def seeds_shown(self) -> str:
        """Return how many seeds each arm has, and which: "3 (0–2)", "3 to 5 (0, 2, 7)"; "–" without a check."""
        counts = [len(values) for result in self.results for values in result.samples]
        if not counts:
            return "–"
        first, last = self.seeds[0], self.seeds[-1]
        in_a_row = last - first == len(self.seeds) - 1
        return f"{span(counts)} ({f'{first}–{last}' if in_a_row else listed([str(seed) for seed in self.seeds])})"

    @property
    def statistic(self) -> str:
        """Return the tests of the checks: "Welch's t", "paired t", "Jonckheere-Terpstra", "exact"."""
        if self.claim.exact:
            return "exact"
        student = "paired t" if self.claim.paired else "Welch's t"
        tests = [student if check.uses_means else "Jonckheere-Terpstra" for check in self.claim.checks]
        return ", ".join(dict.fromkeys(tests)) or "–"


# -------------------- from runs to verdicts


def examine_folders(
    folders: Sequence[str | os.PathLike[str]], claims: Iterable[PaperClaim] = CLAIMS
) -> tuple[Finding, ...]:
    """Judge each claim, in the given order, by the runs in some folders at any depth.

    Raises ValueError if there is no run folder in one of them.
    """
    runs, _ = read_runs(folders)
    return examine(runs, claims)


def examine(runs: Iterable[Run], claims: Iterable[PaperClaim] = CLAIMS) -> tuple[Finding, ...]:
    """Judge each claim by runs, in the given order; p-values are corrected for the number of claims tested."""
    read = [(run.config, run) for run in runs if run.config is not None]
    found = [_examine(claim, read) for claim in claims]
    tested = [place for place, each in enumerate(found) if each.results]
    complete = [place for place in tested if len(found[place].results) == len(found[place].claim.checks)]
    against = dict(zip(tested, holm([found[place].p_against for place in tested]), strict=True))
    in_favour = dict(zip(complete, holm([found[place].p_for for place in complete]), strict=True))
    for place in tested:
        verdict: Verdict = "supported" if in_favour.get(place, 1.0) <= ALPHA else "undecided"
        found[place] = replace(found[place], verdict=verdict, p_value=in_favour.get(place))
        if against[place] <= ALPHA:
            found[place] = replace(found[place], verdict="contradicted", p_value=against[place])
    return tuple(found)


def _examine(claim: PaperClaim, runs: Sequence[ReadRun]) -> Finding:
    """Evaluate the checks of a claim, in the best setting of each task, or compute an exact claim."""
    if claim.exact:
        holds, numbers = EXACT[claim.exact](**claim.options)
        return Finding(claim, "supported" if holds else "contradicted", computed=numbers)
    filters = {each.name: each for check in claim.checks for each in check.filters}
    free = {*NO_SETTING, *claim.free, *(name for each in filters.values() for name in each.where)}
    settings: dict[str, dict[tuple[Any, ...], list[ReadRun]]] = defaultdict(lambda: defaultdict(list))
    failed = 0
    for config, run in runs:
        if run.status in ("finished", "failed") and any(each.selects(config) for each in filters.values()):
            failed += run.status == "failed"
            if run.status == "finished":
                settings[config.task][_values(config, lambda name: name not in free)].append((config, run))

    def rank(found: Sequence[ReadRun]) -> tuple[int, int, int]:
        arms = [_choose(each, claim, found) or {} for each in filters.values()]
        return sum(len(arm) >= LEAST_SEEDS for arm in arms), found[0][0].total_steps, sum(map(len, arms))

    ranked = [sorted(of_task.values(), key=rank, reverse=True) for of_task in settings.values()]
    found = _judge(claim, filters, [run for best, *_ in ranked for run in best])
    elsewhere = sorted({others[0][0].total_steps for _, *rest in ranked for others in rest})
    return replace(found, elsewhere=tuple(elsewhere), failed=failed)


def _judge(claim: PaperClaim, filters: Mapping[str, RunFilter], runs: Sequence[ReadRun]) -> Finding:
    """Evaluate the checks of a claim on the runs of one setting for each task."""
    found = {name: _choose(each, claim, runs) for name, each in filters.items()}
    several = [name for name, arm in found.items() if arm is None]
    needs = [f"needs one setting of {name}, found several with as many seeds" for name in several]
    enough = {name: arm for name, arm in found.items() if arm is not None and len(arm) >= LEAST_SEEDS}
    too_few = {name: len(arm) for name, arm in found.items() if arm is not None and name not in enough}
    results: list[CheckResult] = []
    used: set[tuple[int, str]] = set()  # seeds, and the folders of their runs
    for check in (check.among(enough) for check in claim.checks):
        if any(arm.name not in enough for arm in check.filters):
            continue
        measured = _measure(check, enough, paired=claim.paired)
        shared = f"{check.measure.title}{' and shared seeds' * claim.paired}"
        lacking = {f"{name} with {shared}": len(of) for name, of in measured.items() if len(of) < LEAST_SEEDS}
        too_few |= lacking
        if not lacking:
            used |= {(seed, enough[arm][seed][1].path.parent.name) for arm, of in measured.items() for seed in of}
            samples = [np.array(list(values.values())) for values in measured.values()]
            results.append(check.evaluate(samples, paired=claim.paired))
    if too_few:
        counts = "none" if not any(too_few.values()) else listed([str(count) for count in too_few.values()])
        verb = "without" if len(results) == len(claim.checks) else "needs"
        needs.append(f"{verb} {counted(LEAST_SEEDS, 'seed')} of {listed(list(too_few))}, found {counts}")
    steps = tuple(sorted({config.total_steps for config, _ in runs})) if results else ()
    seeds, folders = sorted({seed for seed, _ in used}), sorted({folder for _, folder in used})
    return Finding(claim, "not run", tuple(results), tuple(needs), steps, tuple(folders), tuple(seeds))


def _measure(check: Check, chosen: Chosen, *, paired: bool) -> dict[str, dict[int, float]]:
    """Return the values of a check's measure by arm and seed, where runs have one; if paired, of common seeds."""
    arms = {arm.name: chosen[arm.name] for arm in check.filters}
    value = check.measure.among([run for arm in arms.values() for _, run in arm.values()])
    found = {
        name: {seed: v for seed, (_, run) in sorted(arm.items()) if (v := value(run)) is not None}
        for name, arm in arms.items()
    }
    common = set.intersection(*map(set, found.values())) if paired else set().union(*found.values())
    return {name: {seed: v for seed, v in of.items() if seed in common} for name, of in found.items()}


def _choose(arm: RunFilter, claim: PaperClaim, runs: Iterable[ReadRun]) -> Mapping[int, ReadRun] | None:
    """Choose one run of an arm for each seed, and return them by seed; None if the choice is not unique.

    If free options have several values, those of the paper's tables count, if they have enough seeds, or else
    those with most seeds. Of equal runs the one with most logged columns counts.
    """
    variants: dict[tuple[Any, ...], dict[int, ReadRun]] = defaultdict(dict)
    for config, run in runs:
        if arm.selects(config):
            alike = variants[_values(config, lambda name: name in claim.free and name not in arm.where)]
            if config.seed not in alike or _logged(run) > _logged(alike[config.seed][1]):
                alike[config.seed] = config, run

    def rank(variant: Mapping[int, ReadRun]) -> tuple[bool, int]:
        config, _ = next(iter(variant.values()))
        return len(variant) >= LEAST_SEEDS and _is_of_the_paper(config, claim.free), len(variant)

    ranked = sorted(variants.values(), key=rank, reverse=True)
    if len(ranked) > 1 and rank(ranked[0]) == rank(ranked[1]):
        return None
    return ranked[0] if ranked else {}


def _logged(run: Run) -> int:
    """Return the number of columns that have values."""
    return sum(bool(np.isfinite(values).any()) for values in run.columns.values())


def _is_of_the_paper(config: RunConfig, names: Iterable[str]) -> bool:
    """Return whether the named options are as in the paper's tables for the task, delay and order."""
    asked: dict[str, Any] = {name: getattr(config, name) for name in ("delay", "order", "stacked", "trace")}
    try:
        row, _ = paper_row(config.task, **asked)
    except ValueError:  # no such row
        return False
    return all(getattr(config, name) == row[name] for name in names if name in row)


def _values(config: RunConfig, wanted: Callable[[str], bool]) -> tuple[Any, ...]:
    """Return names and values of the wanted options of a configuration."""
    return tuple((item.name, getattr(config, item.name)) for item in fields(config) if wanted(item.name))


# -------------------- verdicts as text


def summary(findings: Sequence[Finding]) -> str:
    """Return the numbers of verdicts: "3 supported, 1 contradicted, 2 undecided, 29 not run"."""
    counts = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict))


def rows_of(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return a row of texts for each claim, by column."""
    return [
        {
            **{"claim": each.claim.name, "place": each.claim.place, "statement": each.claim.words},
            **{"verdict": each.verdict, "numbers": each.numbers, "seeds": each.seeds_shown},
            **{"test": each.statistic, "sweep": ", ".join(each.claim.sweeps) or "–"},
        }
        for each in findings
    ]


def print_claims(findings: Sequence[Finding], console: Console) -> None:
    """Print verdicts and numbers; of claims that were not run only the names."""
    rows = rows_of(findings)
    for row in (row for row in rows if row["verdict"] != "not run"):
        seeds = f"; seeds {row['seeds']}" if row["seeds"] != "–" else ""
        said = "{verdict}: {claim} ({place}): {statement}\n    {numbers}; {test}".format(**row)
        console.print(f"{said}{seeds}\n", markup=False, highlight=False)  # square brackets are intervals
    if missing := [row["claim"] for row in rows if row["verdict"] == "not run"]:
        said = f"Not run, with what each needs in claims.md (--out DIR): {', '.join(missing)}.\n"
        console.print(said, markup=False, highlight=False)
    console.print(f"{summary(findings)}. {METHOD}", highlight=False)


def write_claims(
    findings: Sequence[Finding], folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> Path:
    """Write the Markdown page claims.md, which names the folders of the runs, to `out`, and return its path.

    The folder `out` is created if missing. Raises OSError if the file cannot be written.
    """
    file = Path(out) / "claims.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, as_markdown(findings, ", ".join(f"`{folder}`" for folder in folders)))
    return file


def as_markdown(findings: Sequence[Finding], runs: str, sweep: str = "`{}`", test: str = "{}") -> str:
    """Return the page with a list for each verdict; that of claims that were not run is folded.

    `runs` names the runs. `sweep` and `test` format the names of sweeps and of tests, for example as links.
    """
    lines = ["# Claims", "", f"Judged by the runs in {runs}: {summary(findings)}.", "", METHOD]
    for verdict in get_args(Verdict):
        found = [finding for finding in findings if finding.verdict == verdict]
        folded = f'<details markdown="1"><summary>{len(found)} not run</summary>' if verdict == "not run" else ""
        lines += ["", folded or f"## {verdict.capitalize()}", ""] if found else []
        for finding, row in zip(found, rows_of(found), strict=True):
            made = [f"seeds {row['seeds']}"] * (row["seeds"] != "–")
            made += [f"sweep {' and '.join(map(sweep.format, finding.claim.sweeps))}"] * bool(finding.claim.sweeps)
            tested = [test.format(row["test"])] * (row["test"] != "–")
            lines.append("- `{claim}` ({place}): {statement}".format(**row))
            lines += [f"    - {line}" for line in (row["numbers"], ", ".join([*tested, *made])) if line]
        lines += ["", "</details>"] * bool(found and folded)
    return "\n".join(lines) + "\n"
