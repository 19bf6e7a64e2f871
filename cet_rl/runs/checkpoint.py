"""Checkpoints of a run: the last two are kept, each whole or not there, and the newest good one is used."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cet_rl.runs import archive, typed_json
from cet_rl.runs.files import sync
from cet_rl.runs.task_kinds import differing


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

    def save(
        self, contents: archive.Contents, config: Mapping[str, Any] | None, runtime_state: object = None
    ) -> None:
        """Write a checkpoint; the newest so far becomes the previous one.

        Args:
            contents: what has been learned.
            config: the run's configuration as JSON data; None if it is unknown.
            runtime_state: whatever else the run needs to resume, see `cet_rl.runs.typed_json.encode`.

        Raises:
            OSError: if it cannot be written, naming the file; the existing checkpoints stay as they are.
            ValueError: if the runtime state holds anything but plain data.
        """
        tensors: dict[str, Tensor] = {}
        run = {"config": config, "runtime_state": typed_json.encode(runtime_state, tensors)}
        fresh = self.newest.with_name(f".{self.newest.stem}.{os.getpid()}.tmp.zip")
        try:
            archive.write(fresh, *contents, what=self.newest.stem, run=(run, tensors))
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
            except archive.DamagedFileError as error:
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
        archive.check(path, what=self.newest.stem)
        run = archive.read_run(path, what=self.newest.stem)
        theirs = run[0].get("config") if run else None
        if not isinstance(theirs, dict) or config is None:
            return
        changes = differing(theirs, config)
        if changes:
            raise archive.DamagedFileError(f"{path} is of a run of another configuration ({', '.join(changes)})")

    def runtime_state(self, path: Path) -> Any:
        """Return the runtime state of a checkpoint that `find` returned, None if it has none.

        Raises:
            ValueError: if it cannot be read.
        """
        run = archive.read_run(path, what=self.newest.stem)
        if run is None:
            return None
        try:
            return typed_json.decode(run[0].get("runtime_state"), run[1])
        except ValueError as error:
            raise archive.DamagedFileError(f"{path} is damaged: {error}") from None
