"""results.csv of a sweep: what came out of each cell, and nothing that depends on time or machine."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from cet_rl.runs.files import replacing
from cet_rl.runs.task_kinds import identity
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Cell, settings_shared
from cet_rl.sweeps.states import CellState, read_summary

LEADING = ("cell", "arm", "task", "agent", "seed")
"""Columns that every table has first; then come the other settings that not all cells share."""


def results_table(folder: SweepFolder, cells: Sequence[Cell], states: Mapping[str, CellState]) -> str:
    """The table as CSV: a row for each cell, in the order of the sweep's file.

    Args:
        folder: of the sweep.
        cells: of the sweep.
        states: of its cells, by name.

    Returns:
        Columns: cell, arm, task, agent, seed, the settings that not all cells share, status, steps and the metrics
        of the summaries. Cells that are not finished have neither steps nor metrics.
    """
    shared = settings_shared(cells)
    varied = {
        key: None for cell in cells for key in identity(cell.values) if key not in shared and key not in LEADING
    }
    rows: list[dict[str, Any]] = []
    metrics: dict[str, None] = {}
    for cell in cells:
        summary = read_summary(folder, cell.name) if states[cell.name].state == "finished" else None
        found: Mapping[str, Any] = (summary or {}).get("metrics") or {}
        metrics |= dict.fromkeys(found)
        row = {key: _text(cell.values.get(key)) for key in varied}
        row |= {"cell": cell.name, "arm": cell.arm, "task": cell.values["task"], "seed": cell.values["seed"]}
        row["agent"] = (summary or {}).get("agent") or cell.values.get("agent", "")
        rows.append({**row, "status": states[cell.name].state, "steps": (summary or {}).get("steps"), **found})
    text = io.StringIO(newline="")
    columns = dict.fromkeys([*LEADING, *varied, "status", "steps", *metrics])
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_results(folder: SweepFolder, cells: Sequence[Cell], states: Mapping[str, CellState]) -> None:
    """Write results.csv, in one stroke.

    Raises:
        OSError: if the folder cannot be written.
    """
    text = results_table(folder, cells, states)
    with replacing(folder.results_file) as stream:
        stream.write(text.encode())


def _text(value: object) -> object:
    """A list as words, as the command line takes it; everything else as it is."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
