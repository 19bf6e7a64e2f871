"""Cells of image classification as one batched model in one process (`cet_rl.vision.batched`), for a GPU.

One small network leaves a GPU idle, and processes of one cell each would only take turns on it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Sequence

from cet_rl.runs.lock import EXIT_BUSY, Lock
from cet_rl.runs.task_kinds import VISION
from cet_rl.sweeps.build import configuration
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Cell
from cet_rl.sweeps.launcher import Job, LocalJob, check_workers
from cet_rl.sweeps.states import look
from cet_rl.sweeps.worker import EXIT_FAILED, EXIT_FINISHED, EXIT_INTERRUPTED, is_due, note_failure, run_worker
from cet_rl.vision.config import VisionConfig, check_batchable, shared

CELLS_AT_A_TIME = 64
"""Of one batched model, unless told otherwise."""


def vision_config(cell: Cell) -> VisionConfig:
    """A cell's configuration.

    Raises:
        ValueError: if it cannot be part of a batch.
    """
    task_kind, config = configuration(cell)
    if task_kind is not VISION:
        raise ValueError(
            f"--launcher batch is for {VISION.describe()}, not for {cell.values['task']}: leave it out"
        )
    assert isinstance(config, VisionConfig)
    check_batchable(config)
    return config


class BatchLauncher:
    """Cells of the same shapes in one process on this machine, as many as there is room for.

    Args:
        cells: of the sweep.
        capacity: how many at a time; None for 64.

    Raises:
        ValueError: if that is not at least one, or a cell cannot be part of a batch.
    """

    def __init__(self, cells: Iterable[Cell], capacity: int | None = None) -> None:
        check_workers(capacity)
        self.capacity = capacity or CELLS_AT_A_TIME
        self._shapes = {cell.name: tuple(map(repr, shared(vision_config(cell)).items())) for cell in cells}

    def submit(self, folder: SweepFolder, cells: Sequence[str], *, retry: bool) -> list[Job]:
        """Start a process for those cells that can be trained together."""
        together: dict[tuple[str, ...], list[str]] = {}
        for name in cells:
            together.setdefault(self._shapes[name], []).append(name)
        jobs: list[Job] = []
        for names in together.values():
            command = [sys.executable, "-m", "cet_rl.sweeps.batch", str(folder.path), *names, "--watch"]
            process = LocalJob(names[0], [*command, *["--retry"] * retry], folder.log_file(names[0]))
            jobs += [_Share(process, folder, name) for name in names]
        return jobs


class _Share:
    """One cell's part in a process that it has in common with others."""

    def __init__(self, process: LocalJob, folder: SweepFolder, cell: str) -> None:
        self.cell, self._process, self._folder = cell, process, folder

    def poll(self) -> int | None:
        """What the process has made of this cell."""
        status = self._process.poll()
        if status not in (EXIT_FINISHED, EXIT_FAILED):
            return status
        state = look(self._folder, self.cell).state
        # One that has neither ended nor failed has been another's.
        return {"finished": EXIT_FINISHED, "failed": EXIT_FAILED}.get(state, EXIT_BUSY)

    def stop(self) -> None:
        """Ask the process to save all of its cells and end."""
        self._process.stop()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()


def work(folder: SweepFolder, names: Sequence[str], retry: bool) -> int:
    """Run those of the cells together that are neither finished nor another's.

    Args:
        folder: of the sweep.
        names: of the cells.
        retry: whether to run those that have failed.

    Returns:
        The exit status.

    Raises:
        OSError: if the folder cannot be written.
    """
    cells = {cell.name: cell for cell in folder.read().cells}
    held: list[Lock] = []
    due: list[Cell] = []
    try:
        for name in names:
            lock = Lock(folder.locks, name)
            if lock.acquire():
                held.append(lock)
                due += [cells[name]] * is_due(folder, name, retry)
        if not held:
            return EXIT_BUSY
        if due:
            _train(folder, due)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # whatever it is, it is these cells', and written down
        traceback.print_exc()
        for cell in due:
            if look(folder, cell.name).state not in ("finished", "failed"):
                note_failure(folder, cell.name, f"{type(error).__name__}: {error}")
    finally:
        for lock in held:
            lock.release()
    failed = any(look(folder, cell.name).state == "failed" for cell in due)
    return EXIT_FAILED if failed else EXIT_FINISHED


def _train(folder: SweepFolder, cells: Sequence[Cell]) -> None:
    from cet_rl.vision.training import train_batch  # takes a second

    configs = [vision_config(cell) for cell in cells]
    train_batch(configs, [folder.run_path(cell.name) for cell in cells], quiet=True)


if __name__ == "__main__":
    sys.exit(run_worker(sys.argv[1:], work))
