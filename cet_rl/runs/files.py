"""Write files atomically, and make sure that they reach the disk."""

from __future__ import annotations

import csv
import io
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary stream that takes the place of `path` when the block ends without an error.

    Readers see the old file or the new one, never half of it, also after a crash.
    """
    # Not the number of the process: those of containers are small and often equal.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with naming(path, temporary), open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    with replacing(path) as stream:
        stream.write(text.encode(errors="replace"))


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, object]], line_end: str = "\n") -> str:
    """Return the text of a CSV with these columns; rows need not have all of them, and may have others."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn a system error that names no file (a full disk), or a temporary one, into one that names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename not in (None, str(temporary)) or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of files, are on the disk."""
    with suppress(OSError):  # some systems cannot open folders, some file systems have no fsync
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def holds(path: Path, file: str, kind: str) -> bool:
    """Return whether a folder has the file that makes it one of its kind; False if it is empty or missing.

    Raises ValueError if it has no such file but others, hidden files and locks aside.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{kind} folder {path} is a file")
    entries = os.listdir(path) if path.is_dir() else []
    if file not in entries and any(name[0] != "." and name not in ("lock", "locks") for name in entries):
        raise ValueError(f"{path} is not empty and no {kind} folder: choose another --run-dir")
    return file in entries


def make_folder(path: Path, kind: str) -> None:
    """Create a folder if need be; raise OSError if it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {kind} folder {path}: {error.strerror}") from None


def check_file(option: str, file: Path, *suffixes: str, read: bool = False) -> Path:
    """Return the file that an option names; raise ValueError for a folder, or a suffix not among those given.

    Its folder must exist (ValueError) and, unless the file may be there only to be `read`, be writable (OSError).
    """
    if suffixes and file.suffix.lower() not in suffixes:
        named = " or ".join(filter(None, (", ".join(suffixes[:-1]), suffixes[-1])))
        raise ValueError(f"{option} takes a file named {named}, got {file}")
    if not file.parent.is_dir():
        raise ValueError(f"{option}: there is no folder {file.parent}")
    if file.is_dir():
        raise ValueError(f"{option}: {file} is a folder")
    if not read:
        make_folder(file.parent, "the")
    return file
