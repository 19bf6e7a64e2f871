"""Agents as files: JSON and tensors in a zip archive. Reading one never runs anything in it."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import safetensors.torch
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import Tensor

from cet_rl.files import replacing

FORMAT = "cet-rl agent"
VERSION = 1

File = str | os.PathLike[str] | IO[bytes]


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


def check_data(name: str, value: object) -> Any:
    """`value` as plain JSON data (tuples become lists).

    Raises:
        ValueError: if it holds anything else, such as a class or a function.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be saved as data: {error}; use numbers, strings, lists and dicts"
        ) from None


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


def flatten(tree: dict[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a nested dict into its tensors, by path, and the rest with the tensors left out."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
        elif isinstance(value, dict):
            inner, rest[str(key)] = flatten(value, f"{path}/")
            tensors |= inner
        else:
            rest[str(key)] = value
    return tensors, rest


def unflatten(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, but that all keys are strings and tuples lists, as JSON has them."""
    tree: dict[str, Any] = json.loads(json.dumps(rest))
    for path, tensor in tensors.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = tensor
    return tree


def as_state_dicts(saved: dict[str, Any]) -> dict[str, Any]:
    """State dicts as torch wants them: its optimisers number parameters and have betas as a tuple, JSON cannot."""
    for state_dict in saved.values():
        if "param_groups" in state_dict:
            states = state_dict.get("state", {})
            state_dict["state"] = {int(index): state for index, state in states.items()}
            for group in state_dict["param_groups"]:
                if "betas" in group:
                    group["betas"] = tuple(group["betas"])
    return saved


def write(file: File, data: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write an agent file; a file on disk is replaced in one stroke or not at all.

    Args:
        file: a path, ".zip" added unless it ends so, or a binary file object.
        data: plain JSON data.
        tensors: by name.
    """
    if not isinstance(file, (str, os.PathLike)):
        _write_archive(file, data, tensors)
        return
    path = with_suffix(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        _write_archive(stream, data, tensors)


def _write_archive(stream: IO[bytes], data: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    header = {"format": FORMAT, "format_version": VERSION, **data}
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("agent.json", json.dumps(header, indent=2, allow_nan=False))
        archive.writestr("tensors.safetensors", safetensors.torch.save(tensors))


def read(file: File) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an agent file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, of another kind, or from a newer version of this package.
    """
    source = with_suffix(file) if isinstance(file, (str, os.PathLike)) else file
    name = str(source) if isinstance(source, Path) else "the file object"
    try:
        with zipfile.ZipFile(source) as archive:
            data = json.loads(archive.read("agent.json"))
            tensors = safetensors.torch.load(archive.read("tensors.safetensors"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no agent file {name}") from None
    except Exception as error:  # a damaged archive can fail in any of zipfile's, zlib's or json's ways
        raise ValueError(f"{name} is damaged or no cet-rl agent file ({error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{name} is no cet-rl agent file")
    if data.get("format_version") != VERSION:
        raise ValueError(
            f"{name} has format version {data.get('format_version')}, this cet-rl reads version {VERSION}"
        )
    return data, tensors


def with_suffix(file: str | os.PathLike[str]) -> Path:
    """The path with ".zip" added unless it has it, as Stable-Baselines3 does."""
    path = Path(file)
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")
