"""The process that runs one cell of a sweep: `python -m cet_rl.sweeps.worker FOLDER CELL [--retry] [--watch]`.

It holds the cell's lock for as long as it lives, goes on from the cell's checkpoint, and writes down why it fails
if it does. Its exit status says what happened: 0 finished, 1 failed, 75 the cell is another's, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

from cet_rl.files import replacing
from cet_rl.sweeps.cells import Cell
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.locks import EXIT_BUSY, Lock
from cet_rl.sweeps.states import look, read_summary

EXIT_FINISHED, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130

Trainer = Callable[[SweepFolder, Cell], str]
"""Runs a cell in its folder, or goes on with it; returns "finished" or "interrupted"."""


def train_cell(folder: SweepFolder, cell: Cell) -> str:
    """Run a cell as `cet-rl train --resume` would, on one thread."""
    from cet_rl.sweeps.build import configuration  # takes a second, and what trains takes more

    family, config = configuration(cell)
    return family.train(config, folder.run_path(cell.name), resume=True, quiet=True)


def work(folder: SweepFolder, name: str, *, retry: bool = False, train: Trainer = train_cell) -> int:
    """Run one cell, unless it is finished or another's.

    Args:
        folder: of the sweep.
        name: of the cell.
        retry: whether to run it although it has failed.
        train: what runs it.

    Returns:
        The exit status.

    Raises:
        ValueError: if the sweep has no such cell.
        OSError: if the folder cannot be written.
    """
    cell = next((cell for cell in folder.read().cells if cell.name == name), None)
    if cell is None:
        raise ValueError(f"{folder.path} has no cell {name}")
    lock = Lock(folder.locks, name)
    if not lock.acquire():
        return EXIT_BUSY
    try:
        state = look(folder, name).state
        if state == "finished":
            return EXIT_FINISHED
        if state == "failed" and not retry:
            return EXIT_FAILED
        if state == "failed":
            _forget_failure(folder, name)
        status = train(folder, cell)
        return EXIT_FINISHED if status == "finished" else EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # whatever it is, it is this cell's, and written down
        traceback.print_exc()
        note_failure(folder, name, f"{type(error).__name__}: {error}")
        return EXIT_FAILED
    finally:
        lock.release()


def note_failure(folder: SweepFolder, name: str, reason: str) -> None:
    """Write down why a cell has failed; on stderr if it cannot be written."""
    file = folder.failure_file(name)
    try:
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as stream:
            stream.write(f"{reason}\n".encode(errors="replace"))
    except OSError as error:
        print(f"cannot write {file}: {error.strerror}; {name} has failed: {reason}", file=sys.stderr, flush=True)


def _forget_failure(folder: SweepFolder, name: str) -> None:
    folder.failure_file(name).unlink(missing_ok=True)
    if (read_summary(folder, name) or {}).get("status") == "failed":
        (folder.run_path(name) / "summary.json").unlink(missing_ok=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _watch_parent() -> None:
    """Stop, as after Ctrl-C, when the process at the other end of stdin is gone."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str], train: Trainer = train_cell) -> int:
    """Run the process; its exit status.

    Args:
        arguments: FOLDER CELL, then --retry to run a cell that has failed, --watch to stop when stdin ends.
        train: what runs the cell.
    """
    folder, name, *options = arguments
    signal.signal(signal.SIGTERM, _interrupt)  # until the run listens for itself
    if "--watch" in options:
        _watch_parent()
    try:
        return work(SweepFolder(folder), name, retry="--retry" in options, train=train)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
