"""What agents are made of as plain data, for their files (`cet_rl.runs.archive`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule


def schedule_to_data(schedule: object) -> float | dict[str, float]:
    """A learning rate or its schedule as numbers.

    Raises:
        ValueError: for a function: functions cannot be saved as data.
    """
    if isinstance(schedule, FloatSchedule):
        schedule = schedule.value_schedule
    if isinstance(schedule, ConstantSchedule):
        schedule = schedule.val
    if isinstance(schedule, LinearSchedule):
        return {name: float(getattr(schedule, name)) for name in ("start", "end", "end_fraction")}
    if isinstance(schedule, (int, float, np.number)):
        return float(schedule)
    raise ValueError(
        f"learning_rate {schedule!r} cannot be saved as data; use a number, or ConstantSchedule or "
        "LinearSchedule of stable_baselines3.common.utils"
    )


def schedule_from_data(data: float | dict[str, float]) -> float | LinearSchedule:
    """The inverse of `schedule_to_data`."""
    return LinearSchedule(**data) if isinstance(data, dict) else data


def check_rate(schedule: object) -> None:
    """Raise ValueError unless a learning rate or schedule is positive wherever it should be."""
    data = schedule_to_data(schedule)
    start = data["start"] if isinstance(data, dict) else data
    if not (math.isfinite(start) and start > 0):
        raise ValueError(f"learning rate must be positive and finite, got {start:g}")
    if isinstance(data, dict) and not (math.isfinite(data["end"]) and data["end"] >= 0 < data["end_fraction"]):
        raise ValueError(f"learning rate must fall to zero or more over a positive share of the run, got {data}")


def episodes_to_data(episodes: Iterable[dict[str, Any]] | None) -> list[dict[str, float]]:
    """Return "r" and length "l" of recent episodes, without the time they took."""
    return [{key: float(episode[key]) for key in ("r", "l")} for episode in episodes or ()]


def space_to_data(space: spaces.Space[Any]) -> dict[str, Any]:
    """A `Box` or `Discrete` space as plain data."""
    if isinstance(space, spaces.Discrete):
        return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Box):
        bounds = {
            side: [repr(float(x)) for x in getattr(space, side).astype(np.float64).ravel()]
            for side in ("low", "high")
        }
        return {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    raise ValueError(f"a space of kind {type(space).__name__} cannot be saved as data")


def space_from_data(data: dict[str, Any]) -> spaces.Space[Any]:
    """The inverse of `space_to_data`."""
    if data["kind"] == "discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    dtype = np.dtype(data["dtype"])
    low, high = (
        np.array([float(x) for x in data[side]], np.float64).reshape(data["shape"]).astype(dtype)
        for side in ("low", "high")
    )
    return spaces.Box(low, high, dtype=cast(Any, dtype.type))
