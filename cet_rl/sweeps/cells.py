"""One cell of a sweep: the configuration of a run, its arm, and a name that tells it from all others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OF_THIS_MACHINE = ("data_dir", "device", "threads")
"""Keys of a configuration that may differ from machine to machine: they make no other cell."""

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


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a configuration the one it is: all of its keys but those of the machine."""
    return {key: value for key, value in values.items() if key not in OF_THIS_MACHINE}


def fingerprint(values: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a configuration: SHA-256 of its identity as JSON, keys sorted, no spaces.

    Args:
        values: plain data; floats must be finite.
    """
    text = json.dumps(identity(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Which keys differ between two configurations, each in words: "lr 0.001 there, 0.01 here"."""
    keys = identity({**there, **here})
    return [f"{k} {there.get(k)!r} there, {here.get(k)!r} here" for k in keys if there.get(k) != here.get(k)]


def settings_shared(cells: Iterable[Cell]) -> dict[str, Any]:
    """The keys, with their values, that all cells have in common."""
    first, *others = [cell.values for cell in cells]
    absent = object()
    return {key: value for key, value in first.items() if all(other.get(key, absent) == value for other in others)}
