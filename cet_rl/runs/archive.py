"""Files of networks and agents, and the last two checkpoints of a run. Reading a file never runs anything in it.

A file is a zip archive of JSON and tensors: `agent.zip` holds `agent.json` and `agent.safetensors`, `network.zip`
accordingly; a checkpoint of a run also holds `run.json` and `run.safetensors`. The checksums of the zip format
tell a damaged file from a whole one.

Saved state is full of things that JSON cannot express: tensors, tuples, deques, arrays, numpy's own numbers,
dictionaries whose keys are no strings. If a tuple came back as a list, or an int64 as a float, a resumed run would
not be identical. Each such value becomes a mapping whose first key, such as "$tuple", names its type.
"""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from cet_rl.runs.files import replacing, sync
from cet_rl.runs.task_kinds import differing

VERSION = 3
"""Version of the format, written into every file; others are refused."""

RUN = "run"
"""Name of the part of a checkpoint that belongs to the run and not to the agent or network."""

_NUMBERS = "biufcSU"
"""Kinds of numpy types that are plain data."""

File = str | os.PathLike[str] | IO[bytes]
T = TypeVar("T")


class DamagedFileError(ValueError):
    """Report a file that is damaged or has another format."""


def encode(value: object, tensors: dict[str, Tensor], where: str = "") -> Any:
    """Return a value as JSON data.

    Args:
        value: None, numbers, strings, numpy arrays and scalars, tensors; lists, tuples, deques and dictionaries of
            them.
        tensors: gets the tensors found, and arrays as bytes, by their paths within the value.
        where: path of the value itself.

    Raises:
        ValueError: naming the path of anything else.
    """

    def inner(item: object, key: object) -> Any:
        return encode(item, tensors, f"{where}/{key}" if where else str(key))

    def add(tensor: Tensor) -> str:
        name = where if where not in tensors else f"{where}#{len(tensors)}"
        tensors[name] = tensor
        return name

    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
    if type(value) in (list, tuple, deque):
        items = [inner(item, i) for i, item in enumerate(cast(Iterable[Any], value))]
        if isinstance(value, deque):
            return {"$deque": items, "maxlen": value.maxlen}
        return {"$tuple": items} if type(value) is tuple else items
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: inner(item, key) for key, item in value.items()}
        return {"$dict": [[encode(key, tensors, where), inner(item, key)] for key, item in value.items()]}
    if isinstance(value, Tensor):
        return {"$tensor": add(value.detach().cpu().contiguous().clone())}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in _NUMBERS:
        name = add(torch.from_numpy(np.frombuffer(value.tobytes(), np.uint8).copy()))
        kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
        return {kind: name, "dtype": value.dtype.str, "shape": list(value.shape)}
    raise ValueError(
        f"{where or 'this'} is of type {type(value).__name__} and cannot be saved as data; "
        "use numbers, strings, arrays, lists and dicts"
    )


def decode(data: Any, tensors: dict[str, Tensor]) -> Any:
    """Invert `encode`.

    Raises:
        ValueError: for data that `encode` does not write.
    """
    try:
        return _decode(data, tensors)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError, struct.error) as error:
        raise ValueError(f"this is no encoded state ({type(error).__name__}: {error})") from None


def _decode(data: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(data, list):
        return [_decode(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    match data:
        case {"$float": str(text)}:
            (number,) = struct.unpack(">d", bytes.fromhex(text))  # there is more than one "not a number"
            return number
        case {"$tuple": list(items)}:
            return tuple(_decode(items, tensors))
        case {"$deque": list(items), "maxlen": int() | None as maxlen}:
            return deque(_decode(items, tensors), maxlen)
        case {"$dict": list(pairs)}:
            return {_decode(key, tensors): _decode(value, tensors) for key, value in pairs}
        case {"$tensor": str(name)}:
            return tensors[name].clone()
        case {"$array": str(name), "dtype": str(dtype), "shape": list(shape)}:
            return _array(tensors[name], dtype, shape)
        case {"$scalar": str(name), "dtype": str(dtype), "shape": []}:
            return _array(tensors[name], dtype, [])[()]
    if any(key.startswith("$") for key in data):
        raise ValueError(f"unknown type {', '.join(data)}")
    return {key: _decode(value, tensors) for key, value in data.items()}


def _array(content: Tensor, dtype: str, shape: list[int]) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    if kind.kind not in _NUMBERS:
        raise ValueError(f"arrays of {dtype} are no plain data")
    return np.frombuffer(content.numpy().tobytes(), kind).reshape(shape).copy()


def write(file: File, state: dict[str, Any], *, what: str, run: dict[str, Any] | None = None) -> None:
    """Write a file; one on disk is replaced atomically or stays as it is.

    Args:
        file: a path, ".zip" added unless it ends so, or a binary file object.
        state: what has been learned, as `encode` takes it.
        what: kind of file: "agent" or "network".
        run: state of the run itself, for a checkpoint.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the state holds anything but plain data and tensors.
    """
    parts = {what: state} | ({} if run is None else {RUN: run})
    path = _path_of(file)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) if path else nullcontext(file) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, part in parts.items():
            tensors: dict[str, Tensor] = {}
            encoded = encode(part, tensors)
            data = {"format": f"cet-rl {name}", "format_version": VERSION, "state": encoded}
            # Without a date, equal contents are equal files.
            archive.writestr(zipfile.ZipInfo(f"{name}.json"), json.dumps(data, indent=2, allow_nan=False))
            archive.writestr(zipfile.ZipInfo(f"{name}.safetensors"), safetensors.torch.save(tensors))


def read(file: File, *, what: str) -> dict[str, Any]:
    """Return the state in a file that `write` has written.

    Args:
        file: a path, ".zip" added unless it ends so, or a binary file object.
        what: kind of file expected: "agent" or "network".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another kind or of another format version.
    """
    return _use(file, what, lambda archive: _read_part(archive, what))


def read_run(path: Path, *, what: str) -> dict[str, Any]:
    """Return the state of the run itself in a checkpoint whose checksums are all right; errors as of `read`."""

    def verified(archive: zipfile.ZipFile) -> dict[str, Any]:
        if bad := archive.testzip():
            raise zipfile.BadZipFile(f"bad checksum of {bad}")
        return _read_part(archive, RUN) if f"{RUN}.json" in archive.namelist() else {}

    return _use(path, what, verified)


def _read_part(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    data, tensors = json.loads(archive.read(f"{name}.json")), archive.read(f"{name}.safetensors")
    state = decode(data["state"], safetensors.torch.load(tensors))
    if not isinstance(state, dict):
        raise ValueError("its state is no mapping")
    return state


def _use(file: File, what: str, function: Callable[[zipfile.ZipFile], T]) -> T:
    """Return the function's value of a file, after a look at the header."""
    path = _path_of(file)
    name = "the file object" if path is None else str(path)
    try:
        opened = nullcontext(cast(IO[bytes], file)) if path is None else open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {what} file {name}") from None
    with opened as stream:
        try:
            archive = zipfile.ZipFile(stream)
            header = json.loads(archive.read(f"{what}.json"))
            if header["format"] != f"cet-rl {what}":
                raise ValueError("it names another format")
            version = header["format_version"]
            if version == VERSION:
                return function(archive)
        except Exception as error:  # zipfile, zlib, json and safetensors each have errors of their own
            raise DamagedFileError(f"{name} is damaged or no cet-rl {what} file ({error})") from None
    raise ValueError(f"{name} has format version {version}, this cet-rl reads version {VERSION}")


def _path_of(file: File) -> Path | None:
    """Return the path with ".zip" added unless it ends so, as Stable-Baselines3 does; None for a file object."""
    if not isinstance(file, (str, os.PathLike)):
        return None
    path = Path(file)
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")


class Checkpoints:
    """Keep a checkpoint and the one before it, NAME.zip and NAME.previous.zip.

    A new checkpoint is written beside them and takes its place only when it is whole and on the disk, so that one
    of the two is always good. Both hold the configuration of their run; a file copied from another run is not
    used.

    Args:
        newest: path of the newest; its stem is the kind of file, "agent" or "network".
    """

    def __init__(self, newest: Path) -> None:
        self.newest = newest
        self.previous = newest.with_name(f"{newest.stem}.previous{newest.suffix}")
        self._bad: set[Path] = set()

    def save(self, state: dict[str, Any], config: Mapping[str, Any] | None, runtime_state: object = None) -> None:
        """Write a checkpoint; the newest so far becomes the previous one.

        Args:
            state: what has been learned, see `write`.
            config: the run's configuration; None if it is unknown.
            runtime_state: whatever else the run needs to resume.

        Raises:
            OSError: if it cannot be written, naming the file; the existing checkpoints stay as they are.
            ValueError: if a state holds anything but plain data and tensors.
        """
        run = {"config": config and dict(config), "runtime_state": runtime_state}
        fresh = self.newest.with_name(f".{self.newest.stem}.{os.getpid()}.tmp.zip")
        try:
            write(fresh, state, what=self.newest.stem, run=run)
            if self.newest.exists() and self.newest not in self._bad:
                os.replace(self.newest, self.previous)
                self._bad.discard(self.previous)
            os.replace(fresh, self.newest)
            self._bad.discard(self.newest)
            sync(self.newest.parent)
        except OSError as error:
            kept = "; the checkpoints before it are as they were" if self.newest.exists() else ""
            raise OSError(f"cannot write checkpoint {self.newest}: {error.strerror or error}{kept}") from error
        finally:
            fresh.unlink(missing_ok=True)

    def find(self, config: Mapping[str, Any] | None) -> Path | None:
        """Return the newest checkpoint that is whole and of the run with a configuration, None if there is none.

        One that has to be passed over is named in the log, once.

        Raises:
            ValueError: if there are checkpoints but none is good, or one has another format version.
        """
        reasons: dict[Path, str] = {}
        for path in (self.newest, self.previous):
            try:
                theirs = read_run(path, what=self.newest.stem).get("config")
                changes = differing(theirs, config) if isinstance(theirs, dict) and config is not None else []
                if changes:
                    raise DamagedFileError(f"{path} is of a run of another configuration ({', '.join(changes)})")
            except FileNotFoundError:
                continue
            except DamagedFileError as error:
                reasons[path] = str(error)
                continue
            if reasons.keys() - self._bad:
                logging.getLogger(__name__).warning("%s; using %s", "; ".join(reasons.values()), path)
            self._bad.update(reasons)
            return path
        if reasons:
            raise ValueError("; ".join(reasons.values()))
        return None

    def runtime_state(self, path: Path) -> Any:
        """Return the runtime state in a checkpoint that `find` returned, or None; errors as of `read`."""
        return read_run(path, what=self.newest.stem).get("runtime_state")
