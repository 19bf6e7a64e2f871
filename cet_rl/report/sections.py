"""What stands on the page: an overview, a section for each study, the table of all runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cet_rl.report.arms import Arm, Cell, Study
from cet_rl.report.commands import command
from cet_rl.report.drawing import Picture, in_seconds
from cet_rl.report.page import Content, Entry, Html, element, figure, link, table
from cet_rl.report.reading import STATES, Run
from cet_rl.report.statistics import LEAST, Estimate
from cet_rl.report.text import clean, counted, listed, number
from cet_rl.runs.config import Mark
from cet_rl.runs.task_kinds import options_marked


def overview(title: str, runs: Sequence[Run], studies: Sequence[Study], problems: Sequence[str]) -> list[Content]:
    """Title, what the report rests on, what is wrong with it, and where to find what."""
    states = Counter(run.status for run in runs)
    said = [
        f"{states[state]:,} {state}{f' ({meaning})' * bool(meaning)}"
        for state, meaning in STATES.items()
        if states[state]
    ]
    places = [element("a", study.title, href=f"#study-{place}") for place, study in enumerate(studies, 1)]
    places.append(element("a", "All runs", href="#runs"))
    return [
        element("h1", title),
        element("p", f"{counted(len(runs), 'run')}: {'; '.join(said)}."),
        element("p", _versions(runs), class_="note"),
        *(element("p", problem) for problem in problems),
        element("nav", element("ul", *(element("li", place) for place in places))),
    ]


def section(study: Study, place: int, pictures: Mapping[str, Picture]) -> list[Content]:
    """A study: its notes, figures, results and commands.

    Args:
        study: to show.
        place: its number on the page, from 1.
        pictures: by the names of their files.
    """
    parts: list[Content] = [element("h2", study.title, id=f"study-{place}")]
    parts.append(element("ul", *(element("li", note) for note in _notes(study)), class_="plain"))
    parts += [figure(picture, file, count) for count, (file, picture) in enumerate(pictures.items(), 1)]
    parts.append(_results(study))
    lines = []
    for _, cell in study.cells:
        repeat = command(cell.config, study.presentation)
        lines += [f"{repeat} --seed {run.config.seed}" for run in cell.runs if run.config]
    left = ", ".join(name.replace("_", "-") for name in sorted(options_marked(Mark.MACHINE)))
    parts.append(
        element(
            "details",
            element("summary", f"Commands that repeat these runs ({len(lines)})"),
            element(
                "p",
                f"Options that differ from the task's defaults; {left} are left to the machine.",
                class_="note",
            ),
            element("pre", "\n".join(lines)),
        )
    )
    return parts


def all_runs(runs: Sequence[Run], studies: Sequence[Study], start: Path) -> list[Content]:
    """The table of runs, damaged ones first where there are any, with links relative to the page's folder."""
    known = {run.path: (study, arm, cell) for study in studies for arm, cell in study.cells for run in cell.runs}
    repeats = {
        run.path: (study, arm, cell) for study in studies for arm, cell in study.cells for run in cell.repeats
    }
    order = {path: place for place, path in enumerate([*known, *repeats], 1)}
    rows = []
    for run in sorted(runs, key=lambda run: (order.get(run.path, 0), run.path)):
        found = known.get(run.path) or repeats.get(run.path)
        said = ["repeats a run of the same seed; not counted"] if run.path in repeats else []
        problem = "; ".join([*said, *filter(None, [run.problem])])
        rows.append((run.status, _row(run, found, problem, start)))
    heads = {
        **dict.fromkeys(["run", "state", "task", "arm"], ""),
        **dict.fromkeys(["delay", "seed", "score", "steps", "steps/s"], "number"),
        "note": "",
    }
    caption = "A click on a column's name sorts by it. Scores are those that the arms of a task are compared on."
    return [element("h2", "All runs", id="runs"), table(caption, heads, rows, sortable=True)]


def _versions(runs: Sequence[Run]) -> str:
    """What the runs ran with: "torch 2.13.0; numpy 2.4.6 or 2.4.5"."""
    found: dict[str, Counter[str]] = {}
    for run in runs:
        for name, version in run.versions.items():
            found.setdefault(name, Counter())[version] += 1
    if not found:
        return "No run has written which versions it ran with."
    shown = [f"{name} {' or '.join(sorted(versions))}" for name, versions in sorted(found.items())]
    return f"Runs were made with {listed(shown, 20)}."


def _notes(study: Study) -> list[Content]:
    """What the study consists of, and what it lacks."""
    runs = [run for _, cell in study.cells for run in cell.runs]
    states = Counter(run.status for run in runs)
    delays = ", ".join(f"{delay:g} s" for delay in sorted({cell.delay for _, cell in study.cells}))
    counts = [len(cell.runs) for _, cell in study.cells]
    seeds = counted(counts[0], "seed") if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)} seeds"
    notes: list[Content] = [
        f"{counted(len(runs), 'run')}: {counted(len(study.arms), 'arm')}, {seeds} each; credit delay {delays}."
    ]
    others = [f"{states[state]} {state}" for state in STATES if state != "finished" and states[state]]
    if others:
        notes.append(f"Not among the results: {listed(others)}.")
    if study.missing:
        names = [f"{arm.label} at {in_seconds(delay)}" for arm, delay in study.missing]
        notes.append(f"Missing, without any result: {listed(names)}.")
    repeats = sum(len(cell.repeats) for _, cell in study.cells)
    if repeats:
        notes.append(f"{counted(repeats, 'run')} of the same configuration and seed as another, not counted.")
    unscored = [
        run for run in runs if run.status == "finished" and study.presentation.score.key not in run.metrics
    ]
    if unscored:
        notes.append(f"{counted(len(unscored), 'finished run')} without a {study.presentation.score.title}.")
    failed = [f"{clean(run.path.name, 60)}: {clean(run.problem, 160)}" for run in runs if run.status == "failed"]
    notes += [f"Failed: {text}" for text in failed[:8]]
    if len(failed) > 8:
        notes.append(f"{len(failed) - 8} more failed; see the table of runs.")
    return notes


def _results(study: Study) -> Html:
    """The table of arms and delays."""
    presentation = study.presentation
    score, *others = presentation.scores
    pooled = {arm.label: each for arm in study.compared if (each := study.over_delays(arm))}
    heads = {
        "arm": "",
        **dict.fromkeys(["delay", "n", score.heading], "number"),
        **dict.fromkeys(["95 % interval", "lowest to highest"], "number"),
        **dict.fromkeys([measure.heading for measure in others], "number"),
        "steps/s": "number",
        "options that differ": "",
    }
    rows = []
    for arm in study.arms:
        for cell in arm.cells.values():
            rows.append(("", _result(study, arm, cell)))
        if arm.label in pooled:
            numbers = _numbers(study, pooled[arm.label])
            rest = [Entry("", "", "number") for _ in (*others, score)]
            rows.append(("", [Entry(arm.label), Entry("all", "", "number"), *numbers, *rest, Entry("")]))
    caption = (
        f"Results of finished runs: {presentation.statistic_title} over n seeds, with an interval of a bootstrap "
        f"where n is at least {LEAST}. Steps are {presentation.steps}."
    )
    if pooled:
        caption += " All: the seeds of all delays together, resampled within each."
    return table(caption, heads, rows, sortable=True)


def _result(study: Study, arm: Arm, cell: Cell) -> list[Entry]:
    """A row of the results."""
    _, *others = study.presentation.scores
    found = [study.estimate(arm, cell.delay, measure) for measure in others]
    speeds = sorted(run.speed for run in cell.finished if run.speed is not None)
    speed = speeds[len(speeds) // 2] if speeds else None
    return [
        Entry(arm.label),
        Entry(in_seconds(cell.delay), cell.delay, "number"),
        *_numbers(study, study.estimate(arm, cell.delay)),
        *(
            _number(each.centre if each else None, measure.digits)
            for each, measure in zip(found, others, strict=True)
        ),
        _number(speed, 0),
        Entry(study.differing[arm.label, cell.delay], kind="text"),
    ]


def _numbers(study: Study, found: Estimate | None) -> list[Entry]:
    """Count, centre, interval and range."""
    score = study.presentation.score
    if found is None:
        return [Entry("0", 0, "number"), *[Entry("–", "", "number")] * 3]
    interval = Entry("n too small", "", "number")
    if found.low is not None and found.high is not None:
        interval = Entry(f"{score.show(found.low)} to {score.show(found.high)}", found.low, "number")
    spread = f"{score.show(found.least)} to {score.show(found.most)}"
    return [
        Entry(str(found.count), found.count, "number"),
        _number(found.centre, score.digits),
        interval,
        Entry(spread, found.least, "number"),
    ]


def _number(value: float | None, digits: int) -> Entry:
    return Entry(number(value, digits), "" if value is None else value, "number")


def _row(run: Run, found: tuple[Study, Arm, Cell] | None, problem: str, start: Path) -> list[Entry]:
    """A row of the table of runs."""
    config, name = run.config, clean(run.path.name or run.path, 80)
    score, digits = None, 0
    if found:
        measure = found[0].presentation.score
        value = run.metrics.get(measure.key)
        score, digits = None if value is None else measure.factor * value, measure.digits
    arm = found[1].label if found else clean(config.label, 60) if config else "–"
    return [
        Entry(name if run.status == "waiting" else link(run.path, start, name)),
        Entry(run.status, kind="state"),
        Entry(found[0].title if found else clean(config.task, 80) if config else "–"),
        Entry(arm),
        Entry(in_seconds(config.delay) if config else "–", config.delay if config else "", "number"),
        Entry(str(config.seed) if config else "–", config.seed if config else "", "number"),
        _number(score, digits),
        _number(run.steps, 0),
        _number(run.speed, 0),
        Entry(problem, kind="text"),
    ]
