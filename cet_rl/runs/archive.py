"""What has been learned as a file: JSON and tensors in a zip archive. Reading one never runs anything in it.

The last 64 bytes are the SHA-256 of all bytes before them (`head -c -64 FILE | sha256sum`): a file that was cut
off or altered is known by it. That guards against accidents, not against somebody who computes a new digest.
"""

from __future__ import annotations

import hashlib
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

VERSION = 2
"""Of what is written. Version 1, which had no digest, is still read."""

_MARK = b"sha256:"
_DIGEST_LENGTH = 64

File = str | os.PathLike[str] | IO[bytes]


class DamagedFileError(ValueError):
    """A file that is not whole any more, or was never one of ours."""


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
    header = {"format": f"cet-rl {what}", "format_version": VERSION, **data}
    names = f"{what}.json", "tensors.safetensors"
    if not isinstance(file, (str, os.PathLike)):
        content = io.BytesIO()
        _add(content, "w", header, tensors, names)
        file.write(content.getvalue())
        return
    path = with_suffix(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        _add(stream, "w", header, tensors, names)


def attach(path: Path, data: dict[str, Any], tensors: dict[str, Tensor], *, part: str) -> None:
    """Add a part of its own to a file that `write` has written, in place.

    Args:
        path: of the file; to be one that nobody else reads yet.
        data: plain JSON data.
        tensors: by name.
        part: its name, none that is there already: "run".
    """
    with open(path, "r+b") as stream:
        _add(stream, "a", data, tensors, (f"{part}.json", f"{part}.safetensors"))
        stream.flush()
        os.fsync(stream.fileno())


def _add(stream: IO[bytes], mode: Any, data: Any, tensors: dict[str, Tensor], names: tuple[str, str]) -> None:
    """Put JSON and tensors into an archive, and the digest of it all at its end."""
    with zipfile.ZipFile(stream, mode) as archive:
        # Without a date, equal contents are equal files.
        archive.writestr(zipfile.ZipInfo(names[0]), json.dumps(data, indent=2, allow_nan=False))
        archive.writestr(zipfile.ZipInfo(names[1]), safetensors.torch.save(tensors))
        archive.comment = _MARK + bytes(_DIGEST_LENGTH)  # a zip archive's comment is the last thing in it
    length = stream.seek(0, os.SEEK_END) - _DIGEST_LENGTH
    digest = _digest(stream, length)
    stream.seek(length)
    stream.write(digest)


def _digest(stream: IO[bytes], length: int) -> bytes:
    """SHA-256 of the first bytes of a stream, as hexadecimal text."""
    stream.seek(0)
    found = hashlib.sha256()
    while length > 0 and (block := stream.read(min(length, 1 << 20))):
        found.update(block)
        length -= len(block)
    return found.hexdigest().encode()


def read(file: File, *, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file that `write` has written.

    Args:
        file: a path, ".zip" added unless it ends so, or a binary file object.
        what: the file has to hold: "agent", "network".

    Returns:
        Data, with the format and its version, and tensors.

    Raises:
        FileNotFoundError: if there is none.
        DamagedFileError: if it is damaged or of another kind; this is a ValueError.
        ValueError: if it is from a newer version of this package.
    """
    source = with_suffix(file) if isinstance(file, (str, os.PathLike)) else file
    name = str(source) if isinstance(source, Path) else "the file object"
    with _opened(source, name, what) as (header, archive):
        try:
            return header, safetensors.torch.load(archive.read("tensors.safetensors"))
        except Exception as error:
            raise _damaged(name, what, error) from None


def check(path: Path, *, what: str) -> None:
    """Raise as `read` does for a file that is not whole, of another kind or too new, without loading tensors."""
    with _opened(path, str(path), what) as (_, archive):
        bad = None if archive.comment else archive.testzip()  # version 1 has the checksums of zip archives only
    if bad is not None:
        raise _damaged(str(path), what, f"bad checksum of {bad}")


def read_part(path: Path, part: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What `attach` has added to a file that `check` has found whole; None if there is no such part.

    Raises:
        DamagedFileError: if it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{part}.json" not in archive.namelist():
                return None
            data = json.loads(archive.read(f"{part}.json"))
            tensors = safetensors.torch.load(archive.read(f"{part}.safetensors"))
    except Exception as error:
        raise _damaged(str(path), part, error) from None
    if not isinstance(data, dict):
        raise _damaged(str(path), part, "its data are no mapping")
    return data, tensors


@contextmanager
def _opened(source: Path | IO[bytes], name: str, what: str) -> Iterator[tuple[dict[str, Any], zipfile.ZipFile]]:
    """The header of a file whose bytes are those of its digest, and its archive."""
    try:
        stream = open(source, "rb") if isinstance(source, Path) else io.BytesIO(_whole(source))  # noqa: SIM115
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {what} file {name}") from None
    with stream:
        try:
            sealed = _is_sealed(stream)
            archive = zipfile.ZipFile(stream)
            header = json.loads(archive.read(f"{what}.json"))
            if not isinstance(header, dict) or header.get("format") != f"cet-rl {what}":
                raise ValueError("it names another format")
            version = header.get("format_version")
            if version == VERSION and not sealed:
                raise ValueError("it has no digest")
        except Exception as error:  # a damaged archive can fail in any of zipfile's, zlib's or json's ways
            raise _damaged(name, what, error) from None
        if version not in (1, VERSION):
            raise ValueError(f"{name} has format version {version}, this cet-rl reads version {VERSION}")
        yield header, archive


def _whole(stream: IO[bytes]) -> bytes:
    if stream.seekable():
        stream.seek(0)
    return stream.read()


def _is_sealed(stream: IO[bytes]) -> bool:
    """Whether a file has a digest. ValueError if it is that of other contents."""
    length = stream.seek(0, os.SEEK_END) - _DIGEST_LENGTH
    stream.seek(max(length - len(_MARK), 0))
    if stream.read(len(_MARK)) != _MARK:
        return False
    if stream.read() != _digest(stream, length):
        raise ValueError("its contents are not those of its digest")
    return True


def _damaged(name: str, what: str, reason: object) -> DamagedFileError:
    return DamagedFileError(f"{name} is damaged or no cet-rl {what} file ({reason})")


def with_suffix(file: str | os.PathLike[str]) -> Path:
    """The path with ".zip" added unless it has it, as Stable-Baselines3 does."""
    path = Path(file)
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")
