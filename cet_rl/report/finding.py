"""Where the runs of a report are: run folders at any depth, and the cells of sweeps that have none yet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cet_rl.report.plain import load_plain
from cet_rl.report.text import clean
from cet_rl.sweeps.folder import SweepFolder

MOST_VALUES = 2_000_000
"""In a sweep.yaml."""


@dataclass(frozen=True)
class Place:
    """Where a run is, or is to be.

    Attributes:
        path: of the run folder.
        arm: the name that a sweep gives it in legends; "" for none.
        planned: its configuration, of a sweep's cell that has no folder yet; None where there is a folder.
    """

    path: Path
    arm: str = ""
    planned: Mapping[str, Any] | None = None


def find_runs(roots: Iterable[str | os.PathLike[str]]) -> tuple[list[Place], list[str]]:
    """The run folders at or below some folders, each once, and the cells that sweeps there have not started.

    A run folder has a config.yaml, or a summary.json whose config.yaml is lost. Folders whose names start with a
    dot are left out; links are followed.

    Returns:
        The places in the order of their paths, and what is wrong with sweeps, a line each.

    Raises:
        ValueError: if one of the folders is none, or has neither a run nor a sweep.
    """
    found: dict[str, Place] = {}
    problems: list[str] = []
    for root in map(Path, roots):
        if not root.is_dir():
            raise ValueError(f"there is no folder {root}: name run folders, or folders that hold some")
        places, sweeps = _walk(root)
        for folder in sweeps:
            try:
                places = {**_cells(folder, places), **places}
            except Exception:  # whatever a file of anybody's making can raise
                why = "its sweep.yaml is damaged, edited, or of another version"
                problems.append(f"Which runs {clean(folder)} still waits for is not known: {why}.")
        if not places:
            raise ValueError(f"there is no run folder in {root}: one has a config.yaml, as cet-rl train writes it")
        found = {**places, **found}
    return sorted(found.values(), key=lambda place: place.path), problems


def _walk(root: Path) -> tuple[dict[str, Place], list[Path]]:
    """Run folders by their real paths, and folders of sweeps."""
    seen: set[str] = set()
    places: dict[str, Place] = {}
    sweeps: list[Path] = []
    for name, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(name)
        if real in seen:  # a link to where we have been
            inner.clear()
            continue
        seen.add(real)
        if "config.yaml" in files or "summary.json" in files:
            places[real] = Place(Path(name))
        if "sweep.yaml" in files:
            sweeps.append(Path(name))
        inner[:] = sorted(folder for folder in inner if folder != "checkpoint" and not folder.startswith("."))
    return places, sweeps


def _cells(folder: Path, places: dict[str, Place]) -> dict[str, Place]:
    """Names for the runs of a sweep that are there, set in `places`, and the cells that are not."""
    sweep = SweepFolder(folder)
    load_plain(sweep.spec_file, MOST_VALUES)  # refuses what would take for ever to read
    planned: dict[str, Place] = {}
    for cell in sweep.read().cells:
        path = sweep.run_path(cell.name)
        real = os.path.realpath(path)
        if os.path.dirname(real) != os.path.realpath(folder):
            raise ValueError("a cell's name is no name of a folder in it")
        if real in places:
            places[real] = Place(places[real].path, cell.arm)
        else:
            planned[real] = Place(path, cell.arm, cell.values)
    return planned
