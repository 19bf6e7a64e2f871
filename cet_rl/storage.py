"""What has been learned as a file: JSON and tensors in a zip archive. Reading one never runs anything in it."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import safetensors.torch
from torch import Tensor

from cet_rl.files import replacing

VERSION = 1

File = str | os.PathLike[str] | IO[bytes]


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


def write(file: File, data: dict[str, Any], tensors: dict[str, Tensor], *, what: str) -> None:
    """Write a file; one on disk is replaced in one stroke or not at all.

    Args:
        file: a path, ".zip" added unless it ends so, or a binary file object.
        data: plain JSON data.
        tensors: by name.
        what: the file holds: "agent", "network".
    """
    if not isinstance(file, (str, os.PathLike)):
        _write_archive(file, data, tensors, what)
        return
    path = with_suffix(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        _write_archive(stream, data, tensors, what)


def _write_archive(stream: IO[bytes], data: dict[str, Any], tensors: dict[str, Tensor], what: str) -> None:
    header = {"format": f"cet-rl {what}", "format_version": VERSION, **data}
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{what}.json", json.dumps(header, indent=2, allow_nan=False))
        archive.writestr("tensors.safetensors", safetensors.torch.save(tensors))


def read(file: File, *, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file that `write` has written.

    Args:
        file: a path, ".zip" added unless it ends so, or a binary file object.
        what: the file has to hold: "agent", "network".

    Returns:
        Data, with the format and its version, and tensors.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, of another kind, or from a newer version of this package.
    """
    source = with_suffix(file) if isinstance(file, (str, os.PathLike)) else file
    name = str(source) if isinstance(source, Path) else "the file object"
    try:
        with zipfile.ZipFile(source) as archive:
            data = json.loads(archive.read(f"{what}.json"))
            tensors = safetensors.torch.load(archive.read("tensors.safetensors"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {what} file {name}") from None
    except Exception as error:  # a damaged archive can fail in any of zipfile's, zlib's or json's ways
        raise ValueError(f"{name} is damaged or no cet-rl {what} file ({error})") from None
    if not isinstance(data, dict) or data.get("format") != f"cet-rl {what}":
        raise ValueError(f"{name} is no cet-rl {what} file")
    if data.get("format_version") != VERSION:
        raise ValueError(
            f"{name} has format version {data.get('format_version')}, this cet-rl reads version {VERSION}"
        )
    return data, tensors


def with_suffix(file: str | os.PathLike[str]) -> Path:
    """The path with ".zip" added unless it has it, as Stable-Baselines3 does."""
    path = Path(file)
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")
