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

from cet_rl.runs.files import replacing
from cet_rl.runs.lock import EXIT_BUSY, Lock
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Cell
from cet_rl.sweeps.states import look, read_summary

EXIT_FINISHED, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130

Trainer = Callable[[SweepFolder, Cell], str]
"""Runs a cell in its folder, or goes on with it; returns "finished" or "interrupted"."""


def train_cell(folder: SweepFolder, cell: Cell) -> str:
    """Run a cell as `cet-rl train --resume` would, on one thread."""
    from cet_rl.sweeps.build import configuration  # takes a second, and what trains takes more

    task_kind, config = configuration(cell)
    status: str = task_kind.training().train(config, folder.run_path(cell.name), resume=True, quiet=True)
    return status


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
        if not is_due(folder, name, retry):
            return EXIT_FAILED if look(folder, name).state == "failed" else EXIT_FINISHED
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


def is_due(folder: SweepFolder, name: str, retry: bool) -> bool:
    """Whether a cell is to be run: it is not finished, and has not failed, or is told to retry and forgets why."""
    state = look(folder, name).state
    if state == "failed" and retry:
        _forget_failure(folder, name)
    return state not in ("finished", "failed") or (state == "failed" and retry)


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


def run_worker(arguments: Sequence[str], work: Callable[[SweepFolder, Sequence[str], bool], int]) -> int:
    """Run a worker's process; its exit status.

    Args:
        arguments: FOLDER CELL …, --retry to run cells that have failed, --watch to stop when stdin ends.
        work: what it does with folder, names of cells, and whether to retry.
    """
    folder, *words = arguments
    names = [word for word in words if not word.startswith("--")]
    signal.signal(signal.SIGTERM, _interrupt)  # until the run listens for itself
    if "--watch" in words:
        _watch_parent()
    try:
        return work(SweepFolder(folder), names, "--retry" in words)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def main(arguments: Sequence[str], train: Trainer = train_cell) -> int:
    """Run the process for one cell; its exit status.

    Args:
        arguments: as for `run_worker`, with one cell.
        train: what runs the cell.
    """
    return run_worker(arguments, lambda folder, names, retry: work(folder, names[0], retry=retry, train=train))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
