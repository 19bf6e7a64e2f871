"""Files of networks and agents, and checkpoints of runs. Reading a file never runs anything in it.

A file is a zip archive of JSON and tensors: `agent.zip` holds `agent.json` and `agent.safetensors`, `network.zip`
accordingly; a checkpoint of a run also holds `run.json` and `run.safetensors`. The checksums of the zip format
tell a damaged file from a whole one.

Saved state is full of things that JSON cannot express: tensors, tuples, deques, arrays, numpy's own numbers,
dictionaries whose keys are no strings. If a tuple came back as a list, or an int64 as a float, a resumed run would
not be identical. Each such value becomes a mapping whose first key, such as "$tuple", names its type.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections import OrderedDict, deque
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from cet_rl.runs.files import replacing

VERSION = 4  # version of the format, written into every file; others are refused
_NUMBERS = "biufcSU"  # kinds of numpy types that are plain data

File = str | os.PathLike[str] | IO[bytes]


class DamagedFileError(ValueError):
    """Report a file that is damaged or has another format."""


def encode(value: object, tensors: dict[str, Tensor], where: str = "") -> Any:
    """Return a value as JSON data; raise ValueError for anything that is no plain data, naming its path.

    Plain data are None, numbers, strings, numpy arrays and scalars, tensors; lists, tuples, deques and dicts of
    them. `tensors` gets the tensors found, and arrays as bytes, by their paths; `where` is that of the value.
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
    if type(value) in (dict, OrderedDict):  # of other kinds a resumed run would miss what they can do
        value = cast(dict[Any, Any], value)
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: inner(item, key) for key, item in value.items()}
        return {"$dict": [[encode(key, tensors, where), inner(item, key)] for key, item in value.items()]}
    if isinstance(value, Tensor):
        return {"$tensor": add(value.detach().cpu().contiguous().clone())}
    if type(value) is np.ndarray or isinstance(value, np.generic):
        array = cast(npt.NDArray[Any], value)
        if array.dtype.kind in _NUMBERS and array.dtype.itemsize:
            name = add(torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy()))
            kind = "$scalar" if isinstance(value, np.generic) else "$array"
            return {kind: name, "dtype": array.dtype.str, "shape": list(array.shape)}
    raise ValueError(
        f"{where or 'this'} is of type {type(value).__name__} and cannot be saved as data; "
        "use numbers, strings, arrays, lists and dicts"
    )


def decode(data: Any, tensors: dict[str, Tensor]) -> Any:
    """Invert `encode`; raise an error of some kind for data that it does not write."""
    if isinstance(data, list):
        return [decode(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    match data:
        case {"$float": str(text)}:
            (number,) = struct.unpack(">d", bytes.fromhex(text))  # there is more than one "not a number"
            return number
        case {"$tuple": list(items)}:
            return tuple(decode(items, tensors))
        case {"$deque": list(items), "maxlen": int() | None as maxlen}:
            return deque(decode(items, tensors), maxlen)
        case {"$dict": list(pairs)}:
            return {decode(key, tensors): decode(value, tensors) for key, value in pairs}
        case {"$tensor": str(name)}:
            return tensors[name].clone()
        case {"$array": str(name), "dtype": str(dtype), "shape": list(shape)}:
            return _array(tensors[name], dtype, shape)
        case {"$scalar": str(name), "dtype": str(dtype), "shape": []}:
            return _array(tensors[name], dtype, [])[()]
    if any(key.startswith("$") for key in data):
        raise ValueError(f"unknown type {', '.join(data)}")
    return {key: decode(value, tensors) for key, value in data.items()}


def _array(content: Tensor, dtype: str, shape: list[int]) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    if kind.kind not in _NUMBERS:
        raise ValueError(f"arrays of {dtype} are no plain data")
    return np.frombuffer(content.numpy().tobytes(), kind).reshape(shape).copy()


def write(file: File, state: dict[str, Any], *, what: str, run: dict[str, Any] | None = None) -> None:
    """Write the state of an "agent" or a "network", and in a checkpoint that of the run itself; see `encode`.

    The file is a path, ".zip" added unless it ends so, or a binary file object. One on disk is replaced atomically
    or stays as it is. Raises OSError, or ValueError if a state holds anything but plain data and tensors.
    """
    parts = {what: state} | ({} if run is None else {"run": run})
    path = _path_of(file)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) if path else nullcontext(file) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, part in parts.items():
            tensors: dict[str, Tensor] = {}
            data = {"format": f"cet-rl {name}", "format_version": VERSION, "state": encode(part, tensors)}
            # Without a date, equal contents are equal files.
            archive.writestr(zipfile.ZipInfo(f"{name}.json"), json.dumps(data, allow_nan=False))
            archive.writestr(zipfile.ZipInfo(f"{name}.safetensors"), safetensors.torch.save(tensors))


def read(file: File, *, what: str, of_run: bool = False) -> dict[str, Any]:
    """Return the state in a file that `write` has written; with `of_run` that of the run, with checksums verified.

    Raises FileNotFoundError, or ValueError if it is damaged, of another kind or of another format version.
    """
    path, part = _path_of(file), "run" if of_run else what
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
                if of_run and (bad := archive.testzip()):  # of those that the archive's directory names
                    raise zipfile.BadZipFile(f"bad checksum of {bad}")
                archive.getinfo(f"{what}.safetensors")
                data, tensors = json.loads(archive.read(f"{part}.json")), archive.read(f"{part}.safetensors")
                state = decode(data["state"], safetensors.torch.load(tensors))
                if not isinstance(state, dict):
                    raise ValueError("its state is no mapping")
                return state
        except Exception as error:  # zipfile, zlib, json and safetensors each have errors of their own
            raise DamagedFileError(f"{name} is damaged or no cet-rl {what} file ({error})") from None
    raise ValueError(f"{name} has format version {version}, this cet-rl reads version {VERSION}")


def _path_of(file: File) -> Path | None:
    """Return the path with ".zip" added unless it ends so, as Stable-Baselines3 does; None for a file object."""
    if not isinstance(file, (str, os.PathLike)):
        return None
    path = Path(file)
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")
