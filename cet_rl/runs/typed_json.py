"""Python values as JSON and tensors, and back with the very types they had. Reading never runs anything.

Carried state is full of things that JSON has no word for: tuples, deques, arrays, numpy's own numbers,
dictionaries whose keys are no strings. A tuple that came back as a list, or an int64 as a float, would not go on
bit for bit. Every such value becomes a mapping whose first key says what it is.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_NUMBERS = "biufcSU"
"""Kinds of numpy types that are plain data."""


def encode(value: object, tensors: dict[str, Tensor], where: str = "state") -> Any:
    """A value as JSON data.

    Args:
        value: None, numbers, strings, numpy arrays and scalars, tensors; lists, tuples, deques and dictionaries of
            them.
        tensors: those found, and arrays as bytes, are added here by name.
        where: name of the value, for the names of its tensors and for errors.

    Raises:
        ValueError: naming the place of anything else.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    if type(value) is list:
        return [encode(item, tensors, f"{where}/{i}") for i, item in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": [encode(item, tensors, f"{where}/{i}") for i, item in enumerate(value)]}
    if type(value) is deque:
        return {"deque": encode(list(value), tensors, where), "maxlen": value.maxlen}
    if isinstance(value, dict):
        pairs = [(encode(k, tensors, where), encode(v, tensors, f"{where}/{k}")) for k, v in value.items()]
        return {"dict": [list(pair) for pair in pairs]}
    if isinstance(value, Tensor):
        return {"tensor": _add(tensors, where, value.detach().cpu().contiguous().clone())}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in _NUMBERS:
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        flat = np.frombuffer(value.tobytes(), np.uint8).copy()
        name = _add(tensors, where, torch.from_numpy(flat))
        return {kind: name, "dtype": value.dtype.str, "shape": list(value.shape)}
    raise ValueError(f"{where} is of type {type(value).__name__}, which is no plain data")


def _add(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> str:
    unique = name if name not in tensors else f"{name}#{len(tensors)}"
    tensors[unique] = tensor
    return unique


def decode(data: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `encode`.

    Raises:
        ValueError: for what `encode` does not write.
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
        case {"float": str(text)}:
            (number,) = struct.unpack(">d", bytes.fromhex(text))  # there is more than one "not a number"
            return number
        case {"tuple": list(items)}:
            return tuple(_decode(items, tensors))
        case {"deque": list(items), "maxlen": int() | None as maxlen}:
            return deque(_decode(items, tensors), maxlen)
        case {"dict": list(pairs)}:
            return {_decode(key, tensors): _decode(value, tensors) for key, value in pairs}
        case {"tensor": str(name)}:
            return tensors[name].clone()
        case {"array": str(name), "dtype": str(dtype), "shape": list(shape)}:
            return _array(tensors[name], dtype, shape)
        case {"scalar": str(name), "dtype": str(dtype), "shape": []}:
            return _array(tensors[name], dtype, [])[()]
    raise ValueError(f"unknown kind {', '.join(map(str, data))}")


def _array(content: Tensor, dtype: str, shape: list[int]) -> npt.NDArray[Any]:
    kind = np.dtype(dtype)
    if kind.kind not in _NUMBERS:
        raise ValueError(f"arrays of {dtype} are no plain data")
    return np.frombuffer(content.numpy().tobytes(), kind).reshape(shape).copy()
