"""Files of plain data, read with care: they may be damaged, endless, or of anybody's making."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cet_rl.report.text import clean
from cet_rl.runs.config_files import load_yaml

LARGEST_FILE = 64 * 2**20
"""Bytes of a file beyond which it is called damaged."""


def read_bytes(file: Path) -> bytes:
    """A file's bytes.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no ordinary file, or too large.
    """
    check_file(file)
    return file.read_bytes()


def check_file(file: Path) -> None:
    """Raise what `read_bytes` does, without reading."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no ordinary file")  # a pipe would be read for ever
    if found.st_size > LARGEST_FILE:
        raise ValueError(f"it is larger than {LARGEST_FILE >> 20} MiB")


def load_plain(file: Path, most: int) -> Mapping[str, Any]:
    """A YAML mapping of plain data: nothing but that is ever built.

    Args:
        file: to read.
        most: values in it, counted as if written without aliases, by which a small file can be an endless one.

    Raises:
        OSError, ValueError, yaml.YAMLError, RecursionError, and others of Python's: if it is none.
    """
    loaded = load_yaml(read_bytes(file))
    if not isinstance(loaded, Mapping):
        raise ValueError("it holds no mapping of names to values")
    waiting: list[object] = [loaded]
    for _ in range(most):
        if not waiting:
            return loaded
        node = waiting.pop()
        if isinstance(node, Mapping):
            waiting += [*node.keys(), *node.values()]
        elif isinstance(node, (list, tuple, set)):
            waiting += node
    raise ValueError(f"it holds more than {most:,} values")


def reason(file: Path, error: Exception) -> str:
    """Why a file cannot be read, in one line that names it."""
    if isinstance(error, FileNotFoundError):
        return f"there is no {file.name}"
    text = str(error.strerror if isinstance(error, OSError) else error) or type(error).__name__
    text = text.replace(str(file), file.name)
    return clean(text if text.startswith(file.name) else f"{file.name}: {text}")
