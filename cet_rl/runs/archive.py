"""Files of networks and agents: JSON and tensors in one zip archive. Reading one never runs anything in it.

`agent.zip` holds `agent.json` and `agent.safetensors`, `network.zip` accordingly; a checkpoint of a run also holds
`run.json` and `run.safetensors`. The checksums of the zip format tell a damaged file from a whole one.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import safetensors.torch
from torch import Tensor

from cet_rl.runs.files import replacing

VERSION = 3
"""Version of the format, written into every file; others are refused."""

RUN = "run"
"""Name of the part of a checkpoint that belongs to the run and not to the agent or network."""

Contents = tuple[dict[str, Any], dict[str, Tensor]]
"""What a file holds: plain JSON data, and tensors by name."""

File = str | os.PathLike[str] | IO[bytes]


class DamagedFileError(ValueError):
    """Report a file that is damaged or has another format."""


class UnsupportedVersionError(ValueError):
    """Report a file whose format version this package does not read."""


def write(
    file: File, data: dict[str, Any], tensors: dict[str, Tensor], *, what: str, run: Contents | None = None
) -> None:
    """Write a file; one on disk is replaced atomically or stays as it is.

    Args:
        file: a path, ".zip" added unless it ends so, or a binary file object.
        data: plain JSON data.
        tensors: tensors by name.
        what: kind of file: "agent" or "network".
        run: contents of the run's own part, for a checkpoint.

    Raises:
        OSError: if the file cannot be written.
    """
    header = {"format": f"cet-rl {what}", "format_version": VERSION, **data}
    parts = {what: (header, tensors)} | ({} if run is None else {RUN: run})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, (part, its_tensors) in parts.items():
            # Without a date, equal contents are equal files.
            archive.writestr(zipfile.ZipInfo(f"{name}.json"), json.dumps(part, indent=2, allow_nan=False))
            archive.writestr(zipfile.ZipInfo(f"{name}.safetensors"), safetensors.torch.save(its_tensors))
    if not isinstance(file, (str, os.PathLike)):
        file.write(stream.getvalue())
        return
    path = with_suffix(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as target:
        target.write(stream.getbuffer())


def read(file: File, *, what: str) -> Contents:
    """Read a file that `write` has written.

    Args:
        file: a path, ".zip" added unless it ends so, or a binary file object.
        what: kind of file expected: "agent" or "network".

    Returns:
        Data, including the format and its version, and tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is damaged or of another kind; this is a ValueError.
        UnsupportedVersionError: if it has another format version; this is a ValueError.
    """
    with _opened(file, what) as (header, archive):
        return header, safetensors.torch.load(archive.read(f"{what}.safetensors"))


def read_run(path: Path, *, what: str) -> Contents | None:
    """Return the run's own part of a checkpoint, None if it has none; errors as of `read`."""
    with _opened(path, what) as (_, archive):
        if f"{RUN}.json" not in archive.namelist():
            return None
        data: dict[str, Any] = json.loads(archive.read(f"{RUN}.json"))
        return dict(data), safetensors.torch.load(archive.read(f"{RUN}.safetensors"))


def check(path: Path, *, what: str) -> None:
    """Verify the checksums of a file without loading its tensors; errors as of `read`."""
    with _opened(path, what) as (_, archive):
        bad = archive.testzip()
        if bad is not None:
            raise zipfile.BadZipFile(f"bad checksum of {bad}")


@contextmanager
def _opened(file: File, what: str) -> Iterator[tuple[dict[str, Any], zipfile.ZipFile]]:
    """Open a file and check its header; errors of the block that uses it count as damage of the file."""
    path = with_suffix(file) if isinstance(file, (str, os.PathLike)) else None
    name = "the file object" if path is None else str(path)
    try:
        stream = open(path, "rb") if path else io.BytesIO(_read_all(file))  # type: ignore[arg-type]  # noqa: SIM115
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {what} file {name}") from None
    with stream:
        try:
            archive = zipfile.ZipFile(stream)
            header = json.loads(archive.read(f"{what}.json"))
            if not isinstance(header, dict) or header.get("format") != f"cet-rl {what}":
                raise ValueError("it names another format")
            version = header.get("format_version")
            if version != VERSION:
                raise UnsupportedVersionError(
                    f"{name} has format version {version}, this cet-rl reads version {VERSION}"
                )
            yield header, archive
        except UnsupportedVersionError:
            raise
        except Exception as error:  # zipfile, zlib, json and safetensors each have errors of their own
            raise DamagedFileError(f"{name} is damaged or no cet-rl {what} file ({error})") from None


def _read_all(stream: IO[bytes]) -> bytes:
    if stream.seekable():
        stream.seek(0)
    return stream.read()


def with_suffix(file: str | os.PathLike[str]) -> Path:
    """Return the path with ".zip" added unless it ends so, as Stable-Baselines3 does."""
    path = Path(file)
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")


def as_json(name: str, value: object) -> Any:
    """Return `value` as plain JSON data; tuples become lists.

    Raises:
        ValueError: if it holds anything else, such as a class or a function; the message names it by `name`.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be saved as data: {error}; use numbers, strings, lists and dicts"
        ) from None


def flatten(tree: dict[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a nested dict into its tensors, named by their paths, and the rest without the tensors."""
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
    """Invert `flatten`; as in JSON, all keys are strings then and tuples are lists."""
    tree: dict[str, Any] = json.loads(json.dumps(rest))
    for path, tensor in tensors.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = tensor
    return tree


def as_state_dicts(saved: dict[str, Any]) -> dict[str, Any]:
    """Restore what JSON cannot express in optimisers' state dicts: parameter numbers, and betas as a tuple."""
    for state_dict in saved.values():
        if "param_groups" in state_dict:
            states = state_dict.get("state", {})
            state_dict["state"] = {int(index): state for index, state in states.items()}
            for group in state_dict["param_groups"]:
                if "betas" in group:
                    group["betas"] = tuple(group["betas"])
    return saved
