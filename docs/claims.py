"""Judges the claims by the numbers in docs/data, and writes docs/claims.md.

    python docs/claims.py

full.csv there has all options of its runs, as `cet-rl sweep --known` writes them. Any other table has a row for
each run of a sweep, but only what differs between its runs: the rest is read from the sweep's file. Curves and
alignment are in a second table, where they were kept.
"""

from __future__ import annotations

import csv
import re
import runpy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cet_rl.report.claims import CLAIMS, examine
from cet_rl.report.claims.judging import as_markdown
from cet_rl.report.reading import ALIGNMENT, FloatArray, Run, read_runs
from cet_rl.runs.config import RunConfig
from cet_rl.runs.files import write_text
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.task_kinds import RL, TaskKind
from cet_rl.sweeps.build import build, configuration
from cet_rl.sweeps.file import read_sweep

DOCS = Path(__file__).parent
SWEEPS = {
    **{
        name: (f"sweeps/{name}.yaml", f"{name}-summary")
        for name in (
            "cartpole",
            "cartpole-traces",
            "space-invaders",
            "retrograde",
            "lunar-lander",
            "mnist-retrograde",
            "late-add",
            "mimic",
        )
    },
    "traces-mnist": ("sweeps/traces-mnist.yaml", "traces-mnist"),
    "traces-mnist-long": ("sweeps/traces-mnist-long.yaml", "traces-mnist"),
    "mnist": ("fig3-mnist", "mnist-summary"),
    "beyond-mnist": ("beyond-mnist", "beyond-mnist-summary"),
    "wrong-delay": ("wrong-delay", "wrong-delay"),
    "split-cartpole": ("split-cartpole", "split-cartpole-summary"),
    **{name: (name, name) for name in ("rules-fig1-add", "rules-fig1-mimic")},
}
"""Sweep and table of final numbers of each study; Add at 100,000 steps is left out for the paper's million."""

WHERE = "[data](data), by `python docs/claims.py`, which writes this page ([results](results.md) has the tables)"

Key = tuple[str, str, str]
"""Arm, delay and seed, as the tables have them."""


def runs() -> list[Run]:
    """Return the runs behind the tables."""
    found = [run for name, (sweep, table) in SWEEPS.items() for run in _of_study(name, sweep, table)]
    known, _ = read_runs([DOCS / "data" / "full.csv"])
    full = runpy.run_path(str(DOCS / "tables.py"))["FULL"]
    curves = {study: _curves(DOCS / "data" / f"{name}.csv", RL) for name, study in full.items()}
    for run in known:
        assert run.config is not None
        study = run.config.task, run.config.stacked
        found.append(replace(run, columns=curves[study].get(_key_of(run.config), {})))
    return found


def _of_study(name: str, sweep: str, table: str) -> Iterator[Run]:
    file = DOCS / sweep
    jobs = [configuration(job) for job in build(read_sweep(str(file) if file.exists() else sweep)).jobs]
    curves = _curves(DOCS / "data" / f"{name}.csv", jobs[0][0])
    with open(DOCS / "data" / f"{table}.csv", newline="", encoding="utf-8") as stream:
        rows = {(_key(row), row.get("updates", "")): row for row in csv.DictReader(stream)}
    for kind, config in jobs:
        key = _key_of(config)
        row = rows.get((key, str(config.total_steps))) or rows.get((key, ""))
        if row is not None:
            scores = [score.on("test") for score in kind.scores]
            metrics = {score.key: float(row[score.key]) for score in scores if row.get(score.key)}
            path = Path(name, "-".join(key))
            yield Run(path, "finished", "", kind, config, metrics=metrics, columns=curves.get(key, {}))


def _key(row: Mapping[str, str]) -> Key:
    return row["arm"].replace("-none", ""), row.get("trace_delay", row.get("delay", "")), row["seed"]


def _key_of(config: RunConfig) -> Key:
    """Return the key of a run: its arm, and the delay of its trace, which the recurrent tables leave out."""
    label = re.sub(r"\bet[\d.]+", "et", "-".join(config.arm))
    label = re.sub(r"-salient|-for[\d.]+|-tolerance0(?!\.)", "", label)
    delay = (config.trace_delay or config.delay) if config.task != "late-add" else 0
    return label, f"{delay:g}s" if delay else "", str(config.seed)


def _curves(file: Path, kind: TaskKind) -> dict[Key, dict[str, FloatArray]]:
    """Return steps, learning curve and alignment by run; nothing where no such table was kept."""
    if not file.exists():
        return {}
    with open(file, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        names = list(reader.fieldnames or [])
        if "arm" not in names or not {"samples", "updates"} & {*names} or "alignment_0" not in names:
            return {}
        _, _, _, steps, curve, *layers = names
        wanted = {steps: MetricsTable.STEP, curve: kind.curve.on("test").key}
        wanted |= {layer: ALIGNMENT + layer.removeprefix("alignment_") for layer in layers}
        found: dict[Key, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in reader:
            for name, column in wanted.items():
                found[_key(row)][column].append(float(row[name] or "nan"))
    return {key: {name: np.array(values) for name, values in columns.items()} for key, columns in found.items()}


def page() -> str:
    """Return docs/claims.md."""
    links = "[{0}](../cet_rl/configs/{0}.yaml)", "[{}](sweeps.md#claims)"
    return as_markdown(examine(runs(), CLAIMS), WHERE, *links)


if __name__ == "__main__":
    write_text(DOCS / "claims.md", page())
