"""Jobs of image classification as one batched model in one process (`cet_rl.vision.batched`), for a GPU.

One small network leaves a GPU idle, and processes of one job each would only take turns on it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from cet_rl.runs.lock import EXIT_BUSY
from cet_rl.runs.task_kinds import VISION
from cet_rl.sweeps.build import configuration
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Job
from cet_rl.sweeps.worker import EXIT_FAILED, EXIT_FINISHED, LocalJob, SubmittedJob, check_workers, run_worker
from cet_rl.vision.config import VisionConfig, check_batchable, shared

JOBS_AT_A_TIME = 64
"""Most jobs of one batched model, unless told otherwise."""


def vision_config(job: Job) -> VisionConfig:
    """Return a job's configuration; raise ValueError if it cannot be part of a batch."""
    task_kind, config = configuration(job)
    if task_kind is not VISION:
        raise ValueError(
            f"--launcher batch is for {VISION.describe()}, not for {job.values['task']}: leave it out"
        )
    assert isinstance(config, VisionConfig)
    check_batchable(config)
    return config


class BatchLauncher:
    """Start a process on this machine for jobs of the same shapes, as many as there is room for.

    Args:
        jobs: of the sweep.
        capacity: how many at a time; None for 64.

    Raises:
        ValueError: if that is not at least one, or a job cannot be part of a batch.
    """

    def __init__(self, jobs: Iterable[Job], capacity: int | None = None) -> None:
        check_workers(capacity)
        self.capacity = capacity or JOBS_AT_A_TIME
        self._shapes = {job.name: tuple(map(repr, shared(vision_config(job)).items())) for job in jobs}

    def submit(self, folder: SweepFolder, names: Sequence[str], *, retry: bool) -> list[SubmittedJob]:
        """Start a process for those jobs that can be trained together."""
        together: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            together.setdefault(self._shapes[name], []).append(name)
        submitted: list[SubmittedJob] = []
        for batch in together.values():
            command = [sys.executable, "-m", "cet_rl.sweeps.batch", str(folder.path), *batch, "--watch"]
            process = LocalJob(batch[0], [*command, *["--retry"] * retry], folder.log_file(batch[0]))
            submitted += [_BatchedJob(name, process, folder) for name in batch]
        return submitted


class _BatchedJob:
    """Represent one job's part in a process that it shares with others."""

    def __init__(self, name: str, process: LocalJob, folder: SweepFolder) -> None:
        self.name, self._process, self._folder = name, process, folder

    def poll(self) -> int | None:
        """Return what the process has made of this job, as an exit status; None while it runs."""
        status = self._process.poll()
        if status not in (EXIT_FINISHED, EXIT_FAILED):
            return status
        state = self._folder.state(self.name).state
        # One that has neither ended nor failed is run by another process.
        return {"finished": EXIT_FINISHED, "failed": EXIT_FAILED}.get(state, EXIT_BUSY)

    def stop(self) -> None:
        """Ask the process to save all of its jobs and end."""
        self._process.stop()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()


def train_jobs(folder: SweepFolder, jobs: Sequence[Job]) -> str:
    """Train jobs together; each leaves a run folder as if it had been alone, also if it fails."""
    from cet_rl.vision.training import train_batch  # takes a second

    train_batch([vision_config(job) for job in jobs], [folder.run_path(job.name) for job in jobs], quiet=True)
    return "finished"


if __name__ == "__main__":
    sys.exit(run_worker(sys.argv[1:], train_jobs))
