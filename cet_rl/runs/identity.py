"""What makes the configuration of a run the one it is, and in what two of them differ; light to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OF_THIS_MACHINE = ("data_dir", "device", "threads")
"""Keys of a configuration that may differ from machine to machine, and from one go at a run to the next."""


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """All of a configuration's keys but those of the machine."""
    return {key: value for key, value in values.items() if key not in OF_THIS_MACHINE}


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Which keys differ between two configurations, each in words: "lr 0.001 there, 0.01 here"."""
    keys = identity({**there, **here})
    return [f"{k} {there.get(k)!r} there, {here.get(k)!r} here" for k in keys if there.get(k) != here.get(k)]
