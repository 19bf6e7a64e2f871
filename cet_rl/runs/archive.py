"""Files of networks and agents, and the last two checkpoints of a run. Reading a file never runs anything in it.

A file is a zip archive of JSON and tensors: `agent.zip` holds `agent.json` and `agent.safetensors`, `network.zip`
accordingly; a checkpoint of a run also holds `run.json` and `run.safetensors`. The checksums of the zip format
tell a damaged file from a whole one.
"""

from __future__ import annotations

import io
import json
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import safetensors.torch
from torch import Tensor

from cet_rl.runs import typed_json
from cet_rl.runs.files import replacing, sync
from cet_rl.runs.task_kinds import differing

VERSION = 3
"""Version of the format, written into every file; others are refused."""

RUN = "run"
"""Name of the part of a checkpoint that belongs to the run and not to the agent or network."""

File = str | os.PathLike[str] | IO[bytes]


class DamagedFileError(ValueError):
    """Report a file that is damaged or has another format."""


class UnsupportedVersionError(ValueError):
    """Report a file whose format version this package does not read."""


def write(file: File, state: dict[str, Any], *, what: str, run: dict[str, Any] | None = None) -> None:
    """Write a file; one on disk is replaced atomically or stays as it is.

    Args:
        file: a path, ".zip" added unless it ends so, or a binary file object.
        state: what has been learned, as `cet_rl.runs.typed_json.encode` takes it.
        what: kind of file: "agent" or "network".
        run: state of the run itself, for a checkpoint.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the state holds anything but plain data and tensors.
    """
    parts = {what: state} | ({} if run is None else {RUN: run})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, part in parts.items():
            tensors: dict[str, Tensor] = {}
            encoded = typed_json.encode(part, tensors)
            data = {"format": f"cet-rl {name}", "format_version": VERSION, "state": encoded}
            # Without a date, equal contents are equal files.
            archive.writestr(zipfile.ZipInfo(f"{name}.json"), json.dumps(data, indent=2, allow_nan=False))
            archive.writestr(zipfile.ZipInfo(f"{name}.safetensors"), safetensors.torch.save(tensors))
    if not isinstance(file, (str, os.PathLike)):
        file.write(stream.getvalue())
        return
    path = with_suffix(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as target:
        target.write(stream.getbuffer())


def read(file: File, *, what: str) -> dict[str, Any]:
    """Return the state in a file that `write` has written.

    Args:
        file: a path, ".zip" added unless it ends so, or a binary file object.
        what: kind of file expected: "agent" or "network".

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is damaged or of another kind; this is a ValueError.
        UnsupportedVersionError: if it has another format version; this is a ValueError.
    """
    with _opened(file, what) as archive:
        return _read_part(archive, what)


def read_run(path: Path, *, what: str) -> dict[str, Any]:
    """Return the state of the run itself in a checkpoint, empty if it has none; errors as of `read`."""
    with _opened(path, what) as archive:
        return _read_part(archive, RUN) if f"{RUN}.json" in archive.namelist() else {}


def check(path: Path, *, what: str) -> None:
    """Verify the checksums of a file without loading its tensors; errors as of `read`."""
    with _opened(path, what) as archive:
        bad = archive.testzip()
        if bad is not None:
            raise zipfile.BadZipFile(f"bad checksum of {bad}")


def _read_part(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    data, tensors = json.loads(archive.read(f"{name}.json")), archive.read(f"{name}.safetensors")
    state = typed_json.decode(data["state"], safetensors.torch.load(tensors))
    if not isinstance(state, dict):
        raise ValueError("its state is no mapping")
    return state


@contextmanager
def _opened(file: File, what: str) -> Iterator[zipfile.ZipFile]:
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
            yield archive
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


class Checkpoints:
    """Keep a checkpoint and the one before it, NAME.zip and NAME.previous.zip.

    A new checkpoint is written beside them and takes its place only when it is whole and on the disk, so that one
    of the two is always good. Both hold the configuration of their run; a file copied from another run is not
    used.

    Args:
        newest: path of the newest; its stem is the kind of file, "agent" or "network".

    Attributes:
        newest: as given.
        previous: path of the one before.
    """

    def __init__(self, newest: Path) -> None:
        self.newest = newest
        self.previous = newest.with_name(f"{newest.stem}.previous{newest.suffix}")
        self._bad: set[Path] = set()

    def save(self, state: dict[str, Any], config: Mapping[str, Any] | None, runtime_state: object = None) -> None:
        """Write a checkpoint; the newest so far becomes the previous one.

        Args:
            state: what has been learned, see `write`.
            config: the run's configuration as JSON data; None if it is unknown.
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
        """Return the newest checkpoint that is whole and of this run, None if there is none at all.

        One that has to be passed over is named in the log, once.

        Args:
            config: the run's configuration; None if it is unknown.

        Raises:
            ValueError: if there are checkpoints but none is good, or one has another format version.
        """
        reasons: dict[Path, str] = {}
        for path in (self.newest, self.previous):
            try:
                self._check(path, config)
            except FileNotFoundError:
                continue
            except DamagedFileError as error:
                reasons[path] = str(error)
                continue
            reported = self._bad.issuperset(reasons)
            self._bad.update(reasons)
            if reasons and not reported:
                logging.getLogger(__name__).warning("%s; using %s", "; ".join(reasons.values()), path)
            return path
        if reasons:
            raise ValueError("; ".join(reasons.values()))
        return None

    def _check(self, path: Path, config: Mapping[str, Any] | None) -> None:
        check(path, what=self.newest.stem)
        theirs = read_run(path, what=self.newest.stem).get("config")
        if not isinstance(theirs, dict) or config is None:
            return
        changes = differing(theirs, config)
        if changes:
            raise DamagedFileError(f"{path} is of a run of another configuration ({', '.join(changes)})")

    def runtime_state(self, path: Path) -> Any:
        """Return the runtime state of a checkpoint that `find` returned, None if it has none.

        Raises:
            ValueError: if it cannot be read.
        """
        return read_run(path, what=self.newest.stem).get("runtime_state")
