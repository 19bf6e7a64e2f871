"""Runs put together: what is one arm, what is another, and what is a seed of the same.

An arm is a configuration without its delay and its seed, named by the run's label or by its sweep. Options in
which runs of one label and one delay differ make arms of their own, and join the name; options that only go with
the delay, as the rates of the paper's tables do, do not. Nor does the decay of a classical trace, though it is
in a run's label.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cet_rl.report.arms import Arm, Cell, Study
from cet_rl.report.reading import Run, held_out
from cet_rl.report.text import clean
from cet_rl.runs.config import Mark, RunConfig, marked
from cet_rl.traces.registry import TRACES

NO_ARM = {"task", "seed", "delay", "alignment"}
"""Options that make no arm, beside those of the machine: how often it ran, and what was logged."""

LONGEST_LABEL = 44
"""Characters of an arm's name; longer ones are numbered, and their options are in the table."""


def studies(runs: Iterable[Run]) -> list[Study]:
    """Runs by task, damaged ones left out; tasks in the order of their names.

    What is tested on other data, and what has stacked delays, is a study of its own.
    """
    groups: dict[tuple[str, str, bool], list[Run]] = defaultdict(list)
    for run in runs:
        if run.config is not None and run.status != "damaged":
            groups[run.config.task, held_out(run.config), run.config.stacked].append(run)
    return [_study(*kind, group) for kind, group in sorted(groups.items(), key=lambda item: item[0])]


def _study(task: str, tested: str, stacked: bool, runs: list[Run]) -> Study:
    task_kind = runs[0].task_kind
    assert task_kind is not None
    kind = task_kind.config()
    names = [
        item.name for item in dataclasses.fields(kind) if item.name not in NO_ARM | marked(kind, Mark.MACHINE)
    ]
    configurations: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        assert run.config is not None
        values = tuple(getattr(run.config, name) for name in names)
        configurations[run.config.delay, *values].append(run)
    by_label = {
        base: {values: _cell(values[0], alike) for values, alike in of_base.items()}
        for base, of_base in _by_base(configurations).items()
    }
    told = frozenset() if any(run.arm for run in runs) else marked(kind, Mark.LABELLED)
    varied = [
        name
        for place, name in enumerate(names, 1)
        if len({values[place] for values in configurations}) > 1 and name not in told
    ]
    arms: dict[str, tuple[tuple[Any, ...], Arm]] = {}
    for (base, delayed), of_label in by_label.items():
        if not delayed and (base, True) in by_label:
            base = f"{base}, no delay"
        telling = _telling(list(of_label))
        rows: dict[tuple[Any, ...], dict[float, Cell]] = defaultdict(dict)
        for values, cell in of_label.items():
            rows[tuple(values[place] for place in telling)][values[0]] = cell
        own_names = [names[place - 1] for place in telling]
        for own, cells in sorted(rows.items(), key=lambda row: list(map(_sortable, row[0]))):
            label = _label(base, [_option(*option) for option in zip(own_names, own, strict=True)], arms)
            found = {name: {getattr(cell.config, name) for cell in cells.values()} for name in varied}
            following = tuple(name for name, different in found.items() if len(different) > 1)
            arm = Arm(label, dict(sorted(cells.items())), following)
            arms[label] = (*_place(arm.config), list(map(_sortable, own)), label), arm
    ordered = tuple(arm for _, arm in sorted(arms.values(), key=lambda pair: pair[0]))
    differing = {
        (arm.label, delay): ", ".join(_option(name, getattr(cell.config, name)) for name in varied)
        for arm in ordered
        for delay, cell in arm.cells.items()
    }
    return Study(task, tested, stacked, task_kind, ordered, differing)


def _by_base(
    configurations: Mapping[tuple[Any, ...], list[Run]],
) -> dict[tuple[str, bool], dict[tuple[Any, ...], list[Run]]]:
    """Configurations by the name of their arm and by whether they have a delay (at place 0).

    Names that differ in nothing but a trace's decay become one, without it, where each delay has one decay only.
    """
    alike: dict[tuple[str, bool], list[tuple[str, tuple[Any, ...]]]] = defaultdict(list)
    for values, runs in configurations.items():
        alike[_base(runs, decay=False), bool(values[0])].append((_base(runs), values))
    found: dict[tuple[str, bool], dict[tuple[Any, ...], list[Run]]] = defaultdict(dict)
    for (short, delayed), members in alike.items():
        decays: dict[float, set[str]] = defaultdict(set)
        for base, values in members:
            decays[values[0]].add(base)
        joined = len({base for base, _ in members}) > 1 and all(len(bases) == 1 for bases in decays.values())
        for base, values in members:
            found[short if joined else base, delayed][values] = configurations[values]
    return found


def _base(runs: list[Run], *, decay: bool = True) -> str:
    """The name of a configuration's arm: one that a sweep gives to any of its runs, or the run's label.

    Args:
        runs: of the configuration.
        decay: whether the label tells that of a trace.
    """
    config = runs[0].config
    assert config is not None
    trace = config.trace_config
    without = dataclasses.replace(trace, options={**trace.options, "decay": None})
    shown = {} if decay else {trace.label: without.label}
    label = "-".join(shown.get(part, part) for part in config.arm)
    return clean(next((run.arm for run in runs if run.arm), label), LONGEST_LABEL)


def _label(base: str, options: list[str], taken: Collection[str]) -> str:
    """The name of an arm: with the options that tell it from others of its label, or with a number."""
    label = f"{base} ({', '.join(options)})" if options else base
    number = 1
    while len(label) > LONGEST_LABEL or label in taken:
        label = f"{base[: LONGEST_LABEL - 6]} [{number}]"
        number += 1
    return label


def _telling(configurations: list[tuple[Any, ...]]) -> list[int]:
    """Places of the options that tell configurations of the same delay (at place 0) apart: as few as it takes."""
    chosen: list[int] = []
    kinds = len({values[:1] for values in configurations})
    for place in range(1, len(configurations[0])):
        finer = len({(values[0], *(values[other] for other in (*chosen, place))) for values in configurations})
        if finer > kinds:
            chosen.append(place)
            kinds = finer
    return chosen


def _cell(delay: float, runs: list[Run]) -> Cell:
    """One run for each seed: a finished one before others, then by path."""
    chosen: dict[int, Run] = {}
    repeats = []
    for run in sorted(runs, key=lambda run: (run.status != "finished", run.path)):
        assert run.config is not None
        if run.config.seed in chosen:
            repeats.append(run)
        else:
            chosen[run.config.seed] = run
    return Cell(delay, tuple(run for _, run in sorted(chosen.items())), tuple(repeats))


def _place(config: RunConfig) -> tuple[Any, ...]:
    """Where an arm is shown: without delay first, then by what learns, then by trace and order."""
    trace = config.trace_config
    others = tuple(part for part in config.arm if part != trace.label)
    kinds = list(TRACES)
    return (
        bool(config.delay),
        [_sortable(part) for part in others],
        kinds.index(trace.kind) if trace.kind in kinds else len(kinds),
        trace.states,
    )


def _sortable(value: Any) -> tuple[int, Any]:
    """Values of different types in one order: None, numbers, then text, numbers in it as numbers."""
    if value is None:
        return 0, 0
    if isinstance(value, (bool, int, float)):
        return 1, value
    pieces = re.split(r"(\d+)", str(value))
    return 2, [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def _option(name: str, value: Any) -> str:
    shown = "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple):
        shown = " ".join(map(str, value))
    return f"{name.replace('_', '-')} {clean(shown, 60)}"
