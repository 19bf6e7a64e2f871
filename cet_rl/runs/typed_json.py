"""Python values as JSON and tensors, and back with the types they had. Reading never runs anything.

Saved state is full of things that JSON cannot express: tensors, tuples, deques, arrays, numpy's own numbers,
dictionaries whose keys are no strings. If a tuple came back as a list, or an int64 as a float, a resumed run would
not be identical. Each such value becomes a mapping whose first key, such as "$tuple", names its type.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_NUMBERS = "biufcSU"
"""Kinds of numpy types that are plain data."""


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
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
    if type(value) in (list, tuple, deque):
        items = [encode(item, tensors, _path(where, i)) for i, item in enumerate(cast(Iterable[Any], value))]
        if isinstance(value, deque):
            return {"$deque": items, "maxlen": value.maxlen}
        return {"$tuple": items} if type(value) is tuple else items
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encode(item, tensors, _path(where, key)) for key, item in value.items()}
        pairs = [[encode(k, tensors, where), encode(v, tensors, _path(where, k))] for k, v in value.items()]
        return {"$dict": pairs}
    if isinstance(value, Tensor):
        return {"$tensor": _add(tensors, where, value.detach().cpu().contiguous().clone())}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in _NUMBERS:
        kind = "$array" if isinstance(value, np.ndarray) else "$scalar"
        flat = np.frombuffer(value.tobytes(), np.uint8).copy()
        name = _add(tensors, where, torch.from_numpy(flat))
        return {kind: name, "dtype": value.dtype.str, "shape": list(value.shape)}
    raise ValueError(
        f"{where or 'this'} is of type {type(value).__name__} and cannot be saved as data; "
        "use numbers, strings, arrays, lists and dicts"
    )


def _path(where: str, key: object) -> str:
    return f"{where}/{key}" if where else str(key)


def _add(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> str:
    unique = name if name not in tensors else f"{name}#{len(tensors)}"
    tensors[unique] = tensor
    return unique


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
