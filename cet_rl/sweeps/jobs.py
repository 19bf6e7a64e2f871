"""One cell of a sweep: the configuration of a run, its arm, and a name that tells it from all others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cet_rl.runs.task_kinds import identity

DIGITS = 8
"""Of the fingerprint in a cell's name."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its folder: TASK-LABEL-SEED-FINGERPRINT.
        arm: its name in legends; all seeds of an arm share it.
        values: its full configuration as plain data, resolved but for device and threads.
    """

    name: str
    arm: str
    values: Mapping[str, Any]

    @property
    def readable(self) -> str:
        """The name without its fingerprint."""
        return self.name.rpartition("-")[0]


@dataclass(frozen=True)
class Sweep:
    """What is to be run.

    Attributes:
        title: in a few words.
        cells: in the order of the file, seed by seed.
        made_from: digest of all that the cells follow from; empty if that is not known.
    """

    title: str
    cells: tuple[Cell, ...]
    made_from: str = ""


def fingerprint(values: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a configuration: SHA-256 of its identity as JSON, keys sorted, no spaces.

    Args:
        values: plain data; floats must be finite.
    """
    text = json.dumps(identity(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def settings_shared(cells: Iterable[Cell]) -> dict[str, Any]:
    """The keys, with their values, that all cells have in common."""
    first, *others = [cell.values for cell in cells]
    absent = object()
    return {key: value for key, value in first.items() if all(other.get(key, absent) == value for other in others)}
