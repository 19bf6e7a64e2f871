"""The folder of a sweep.

sweep.yaml      its cells: the settings they share, and those of each
results.csv     a row for each cell
NAME/           the run folder of a cell
logs/NAME.log   what a cell's process has said, if anything
failures/NAME   why a cell has failed
locks/          who runs which cell
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from cet_rl.runs.config_files import dump_yaml, load_yaml
from cet_rl.runs.files import replacing
from cet_rl.runs.task_kinds import differing
from cet_rl.sweeps.jobs import Cell, Sweep, fingerprint, settings_shared

_DAMAGE = (yaml.YAMLError, RecursionError, AttributeError, TypeError, ValueError)
"""What a file that is no longer what has been written raises when it is read."""

SHOWN = 3
"""Names listed in a message."""
MOST_CHANGES = 5
"""Settings that may have been edited before a sweep counts as another one."""


class SweepFolder:
    """A folder for one sweep.

    Args:
        path: of the folder itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.spec_file = self.path / "sweep.yaml"
        self.results_file = self.path / "results.csv"
        self.locks = self.path / "locks"

    def run_path(self, name: str) -> Path:
        """The run folder of a cell."""
        return self.path / name

    def log_file(self, name: str) -> Path:
        """What the cell's process has said."""
        return self.path / "logs" / f"{name}.log"

    @property
    def failures(self) -> Path:
        """Where it is written down why cells have failed, a file each."""
        return self.path / "failures"

    def failure_file(self, name: str) -> Path:
        """Why the cell has failed; there is none unless it has."""
        return self.failures / name

    def read(self) -> Sweep:
        """The sweep that the folder is for.

        Raises:
            ValueError: if it is no sweep folder, or sweep.yaml is damaged.
        """
        if not self.spec_file.is_file():
            raise ValueError(f"{self.path} is no sweep folder: it has no {self.spec_file.name}")
        try:
            data = load_yaml(self.spec_file.read_text(encoding="utf-8"))
            cells = []
            for name, own in data["cells"].items():
                values = {**data["common"], **own}
                cells.append(Cell(name, str(values.pop("arm")), values))
            edited = [cell.readable for cell in cells if not cell.name.endswith(f"-{fingerprint(cell.values)}")]
            sweep = Sweep(str(data["title"]), tuple(cells), str(data["made_from"]))
        except (*_DAMAGE, KeyError):
            raise ValueError(f"{self.spec_file} is damaged: choose another --run-dir") from None
        if edited:
            raise ValueError(f"{self.spec_file} has been edited ({_listed(edited)}): choose another --run-dir")
        return sweep

    def check(self, sweep: Sweep) -> int:
        """Make sure that the folder is for a sweep, touching nothing.

        Returns:
            How many cells it has more than the last time; all of them in a new folder.

        Raises:
            ValueError: if the folder is another sweep's or no sweep's, saying what differs, or if the run of one
                of its cells has another configuration than the cell.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"sweep folder {self.path} is a file")
        if not self.spec_file.is_file():
            if self.path.is_dir() and any(not entry.startswith(".") for entry in os.listdir(self.path)):
                raise ValueError(f"{self.path} is not empty and no sweep folder: choose another --run-dir")
            return len(sweep.cells)
        earlier = self.read()
        missing = _names(earlier) - _names(sweep)
        if missing:
            raise ValueError(self._what_differs(earlier, sweep, [c for c in earlier.cells if c.name in missing]))
        self._check_runs(sweep.cells)
        return len(sweep.cells) - len(earlier.cells)

    def claim(self, sweep: Sweep) -> int:
        """Take the folder for a sweep, overwriting nothing; cells may have been added since the last time.

        Returns:
            How many cells it has more than the last time; all of them in a new folder.

        Raises:
            ValueError: as `check` does.
            OSError: if it cannot be written.
        """
        new = self.check(sweep)
        text = _as_yaml(sweep)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable.{os.getpid()}"
            probe.touch()
            probe.unlink()
            if not self.spec_file.is_file() or self.spec_file.read_text(encoding="utf-8") != text:
                with replacing(self.spec_file) as stream:
                    stream.write(text.encode())
        except OSError as error:
            raise OSError(f"cannot write to sweep folder {self.path}: {error.strerror}") from None
        return new

    def _what_differs(self, earlier: Sweep, sweep: Sweep, missing: Sequence[Cell]) -> str:
        """Why a folder with the cells of `earlier`, some missing in `sweep`, is not for it, in one line."""
        hint = "choose another --run-dir"
        added = [cell for cell in sweep.cells if cell.name not in _names(earlier)]
        if not added:
            names = _listed([cell.readable for cell in missing])
            return f"{self.path} holds more cells than asked for ({names}): put them back, or {hint}"
        first = missing[0]
        nearest = min((differing(first.values, cell.values) for cell in added), key=len)
        if len(missing) == len(earlier.cells) and len(nearest) > MOST_CHANGES:
            return f"{self.path} belongs to another sweep ({earlier.title!r}, not {sweep.title!r}): {hint}"
        others = f"; {len(missing)} of its cells differ" if len(missing) > 1 else ""
        what = f"{first.readable} has {', '.join(nearest)}{others}"
        return f"{self.path} holds this sweep with other settings ({what}): {hint}"

    def _check_runs(self, cells: Iterable[Cell]) -> None:
        """Raise ValueError for a run folder whose configuration is not that of its cell."""
        for cell in cells:
            file = self.run_path(cell.name) / "config.yaml"
            try:
                saved = load_yaml(file.read_text(encoding="utf-8"))
                same = fingerprint(saved) == fingerprint(cell.values)
            except FileNotFoundError:
                continue
            except _DAMAGE:
                raise ValueError(f"{file} is damaged: move its folder away, or choose another --run-dir") from None
            if not same:
                changes = ", ".join(differing(saved, cell.values))
                raise ValueError(
                    f"{file} is not what the sweep asks for ({changes}): move its folder away, or choose another "
                    "--run-dir"
                )


def _as_yaml(sweep: Sweep) -> str:
    """The text of sweep.yaml: a block of what all cells share, and a line for each."""
    common = settings_shared(sweep.cells)
    own = {
        cell.name: {"arm": cell.arm, **{key: v for key, v in cell.values.items() if key not in common}}
        for cell in sweep.cells
    }
    head = dump_yaml({"title": sweep.title, "made_from": sweep.made_from, "common": common})
    return head + dump_yaml({"cells": own}, default_flow_style=None, width=1_000_000)


def _names(sweep: Sweep) -> set[str]:
    return {cell.name for cell in sweep.cells}


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
