"""The checkpoints of a run: the last two, each whole or not there, and which of them to go on from."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cet_rl.runs import archive, typed_json
from cet_rl.runs.files import sync
from cet_rl.runs.task_kinds import differing

PART = "run"
"""Name of what a run adds to the file of its learner: its configuration, and what it carries."""


class Checkpoints:
    """A checkpoint and the one before it, NAME.zip and NAME.previous.zip.

    A new one is written beside them and takes its place only when it is whole and on the disk: whatever happens,
    one of the two is good. Both hold the configuration of their run, so that one that has been put there from
    elsewhere is not taken for the run's own.

    Args:
        newest: path of the newest; its stem says what it holds: "agent", "network".

    Attributes:
        newest: as given.
        previous: path of the one before.
    """

    def __init__(self, newest: Path) -> None:
        self.newest = newest
        self.previous = newest.with_name(f"{newest.stem}.previous{newest.suffix}")
        self._bad: set[Path] = set()

    def save(
        self, write: Callable[[Path], None], config: Mapping[str, Any] | None, carried: object = None
    ) -> None:
        """Write a checkpoint; the newest so far becomes the one before.

        Args:
            write: writes what has been learned to a path, with `cet_rl.runs.archive.write`.
            config: of the run, as JSON data; None if it cannot be told.
            carried: what else the run carries, as far as `cet_rl.runs.typed_json` can encode it.

        Raises:
            OSError: if it cannot be written, naming the file; those that are there stay as they are.
            ValueError: if something carried is no plain data.
        """
        tensors: dict[str, Tensor] = {}
        data = {"config": config, "carried": typed_json.encode(carried, tensors)}
        fresh = self.newest.with_name(f".{self.newest.stem}.{os.getpid()}.tmp.zip")
        try:
            write(fresh)
            archive.attach(fresh, data, tensors, part=PART)
            if self.newest.exists() and self.newest not in self._bad:
                os.replace(self.newest, self.previous)
                self._bad.discard(self.previous)
            os.replace(fresh, self.newest)
            self._bad.discard(self.newest)
            sync(self.newest.parent)
        except (OSError, ValueError) as error:  # on a full disk zipfile can end in either
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            kept = "; the checkpoints before it are as they were" if self.newest.exists() else ""
            raise OSError(f"cannot write checkpoint {self.newest}: {cause.strerror or cause}{kept}") from error
        finally:
            fresh.unlink(missing_ok=True)

    def find(self, config: Mapping[str, Any] | None) -> Path | None:
        """The newest checkpoint that is whole and of this run; None if there is none at all.

        One that has to be passed over is told of in the log, once.

        Args:
            config: of the run; None if it cannot be told.

        Raises:
            ValueError: if there are checkpoints but none is good, or one that is too new for this package.
        """
        reasons: dict[Path, str] = {}
        for path in (self.newest, self.previous):
            try:
                self._check(path, config)
            except FileNotFoundError:
                continue
            except archive.DamagedFileError as error:
                reasons[path] = str(error)
                continue
            told = self._bad.issuperset(reasons)
            self._bad.update(reasons)
            if reasons and not told:
                logging.getLogger(__name__).warning("%s; using %s", "; ".join(reasons.values()), path)
            return path
        if reasons:
            raise ValueError("; ".join(reasons.values()))
        return None

    def _check(self, path: Path, config: Mapping[str, Any] | None) -> None:
        archive.check(path, what=self.newest.stem)
        part = archive.read_part(path, PART)
        theirs = part[0].get("config") if part else None
        if not isinstance(theirs, dict) or config is None:
            return
        changes = differing(theirs, config)
        if changes:
            raise archive.DamagedFileError(f"{path} is of a run of another configuration ({', '.join(changes)})")

    def carried(self, path: Path) -> Any:
        """What a run carried when it wrote a checkpoint; None if that says nothing.

        Args:
            path: as `find` gave it.

        Raises:
            ValueError: if it cannot be read.
        """
        part = archive.read_part(path, PART)
        if part is None:
            return None
        try:
            return typed_json.decode(part[0].get("carried"), part[1])
        except ValueError as error:
            raise archive.DamagedFileError(f"{path} is damaged: {error}") from None
