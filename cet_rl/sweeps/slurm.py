"""The cells of a sweep as job arrays on a SLURM cluster, over the same folders; through submitit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cet_rl.runs.files import replacing
from cet_rl.sweeps.display import counts, describe_counts
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.jobs import Sweep
from cet_rl.sweeps.launcher import Command, check_workers, worker_command
from cet_rl.sweeps.slurm_job import CellJob
from cet_rl.sweeps.states import look_at_all

if TYPE_CHECKING:
    from submitit import SlurmExecutor

DEFAULT_MINUTES = 60
"""Of a job, unless told otherwise. Little, as a cell that needs more is put back into the queue."""
REQUEUES = 1000
"""Times that a cell may run out of time."""
MOST_JOBS = 1000
"""In one array: what SLURM takes unless it is configured otherwise."""

_OURS = {
    "array": "--workers sets how many cells run at a time",
    "array-parallelism": "--workers does that",
    "workers": "--workers is an option of its own",
    "nodes": "a cell runs on one node",
    "ntasks": "a cell is one task",
    "ntasks-per-node": "a cell is one task",
    "output": "logs go to the sweep's folder",
    "error": "logs go to the sweep's folder",
    "open-mode": "logs go to the sweep's folder",
    "signal": "use signal-delay, the seconds that a cell has for saving",
    "requeue": "cells are always requeued",
    "no-requeue": "cells are always requeued",
    "wrap": "a job runs a cell",
}
"""Options of sbatch that a sweep sets itself, and what to do instead."""


def parse_options(words: Sequence[str]) -> dict[str, str | bool]:
    """KEY=VALUE words as options of sbatch.

    Args:
        words: such as partition=long, time=4:00:00, mem=8G, signal-delay=120, exclusive.

    Returns:
        Values by option, with dashes; True for an option without a value.

    Raises:
        ValueError: for a word that is none, an option given twice, or one that a sweep sets itself.
    """
    options: dict[str, str | bool] = {}
    for word in words:
        match = re.fullmatch(r"(?:--)?([A-Za-z][\w-]*)(?:=(.+))?", word)
        if match is None:
            raise ValueError(f"--slurm takes KEY=VALUE, such as partition=long or time=4:00:00, got {word!r}")
        key = match[1].replace("_", "-")
        if key in _OURS:
            raise ValueError(f"--slurm {key}: {_OURS[key]}")
        if key in options:
            raise ValueError(f"--slurm {key} is given twice")
        options[key] = match[2] or True
    for key, read in (("time", minutes), ("signal-delay", _seconds)):
        read(options.get(key, "1"))
    return options


def minutes(text: str | bool) -> int:
    """A time limit in one of sbatch's formats, in whole minutes, at least one.

    Args:
        text: MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, DAYS-HOURS:MINUTES or
            DAYS-HOURS:MINUTES:SECONDS.

    Raises:
        ValueError: if it is none of these.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(text))
    if match is None:
        raise ValueError(f"--slurm time must be minutes, hours:minutes:seconds or days-hours, got {text!r}")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    without_days = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}
    units = (3600, 60, 1) if days is not None else without_days[len(numbers)]
    total = int(days or 0) * 86400 + sum(number * unit for number, unit in zip(numbers, units, strict=False))
    if total < 60:
        raise ValueError(f"--slurm time must be at least a minute, got {text!r}")
    return -(-total // 60)


def _seconds(text: str | bool) -> int:
    if not str(text).isdecimal() or int(text) < 1:
        raise ValueError(f"--slurm signal-delay must be a whole number of seconds, got {text!r}")
    return int(text)


class SlurmLauncher:
    """Hands cells to SLURM and does not wait for them.

    Args:
        options: of sbatch, from `parse_options`; those left out are the cluster's defaults.
        workers: cells at a time in an array; None for as many as SLURM can place.
        command: of a worker.

    Raises:
        ValueError: if submitit or SLURM is not there, or `workers` is not at least one.
    """

    def __init__(
        self, options: Mapping[str, str | bool], workers: int | None = None, command: Command = worker_command
    ) -> None:
        check_workers(workers)
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise ValueError("--launcher slurm needs submitit: pip install 'cet-rl[slurm]'") from None
        for program in ("sbatch", "srun", "squeue", "scontrol"):
            if shutil.which(program) is None:
                raise ValueError(f"--launcher slurm: there is no SLURM here, {program} is not on the PATH")
        self.options, self.workers, self.command = dict(options), workers, command

    def executor(self, folder: SweepFolder) -> SlurmExecutor:
        """Submitit's executor, with the options of sbatch."""
        from submitit import SlurmExecutor

        options = dict(self.options)
        executor = SlurmExecutor(folder.path.resolve() / "slurm", max_num_timeout=REQUEUES)
        executor.update_parameters(
            job_name=str(options.pop("job-name", folder.path.resolve().name)),
            time=minutes(options.pop("time", str(DEFAULT_MINUTES))),
            signal_delay_s=_seconds(options.pop("signal-delay", "90")),
            array_parallelism=self.workers or MOST_JOBS,
            stderr_to_stdout=True,
            additional_parameters={**options, "requeue": True},
        )
        return executor

    def submit(self, folder: SweepFolder, cells: Mapping[str, bool]) -> dict[str, str]:
        """Hand over cells.

        Args:
            folder: of the sweep.
            cells: by name, whether to run them although they have failed.

        Returns:
            The number of the job of each cell, as `squeue` shows it: 12_0.

        Raises:
            ValueError: if SLURM refuses them, with its reason.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        path = str(folder.path.resolve())
        jobs = [CellJob(path, name, retry, self.command) for name, retry in cells.items()]
        numbers: dict[str, str] = {}
        for start in range(0, len(jobs), MOST_JOBS):
            some = jobs[start : start + MOST_JOBS]
            try:
                submitted = self.executor(folder).submit_array(some)
            except (FailedJobError, FailedSubmissionError) as error:
                raise ValueError(f"SLURM refuses the jobs: {' '.join(str(error).split())}") from None
            numbers |= {job.cell: one.job_id for job, one in zip(some, submitted, strict=True)}
            _note_jobs(folder, numbers)
        return numbers


def submit_sweep(
    sweep: Sweep, folder: SweepFolder, launcher: SlurmLauncher, *, retry: bool = False, quiet: bool = False
) -> int:
    """Put every cell that is neither finished, nor running, nor queued into SLURM's queue, and return.

    Args:
        sweep: what to run.
        folder: where, on a file system that all nodes share.
        launcher: that hands cells to SLURM.
        retry: run those that have failed again.
        quiet: print nothing but errors.

    Returns:
        The exit status: 0.

    Raises:
        ValueError: if the folder is another sweep's, or SLURM refuses the jobs.
        OSError: if the folder cannot be written.
    """
    say: Callable[[str], None] = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr))
    folder.claim(sweep)
    states, queued = look_at_all(folder, sweep.cells), queued_jobs(folder)
    wanted = ("waiting", "partial", *["failed"] * retry)
    cells = {
        cell.name: states[cell.name].state == "failed"
        for cell in sweep.cells
        if states[cell.name].state in wanted and cell.name not in queued
    }
    say(f"sweep folder {folder.path}")
    there = f"; {len(queued)} of them waiting or running in SLURM" * bool(queued)
    say(f"{len(sweep.cells)} cells: {describe_counts(states)}{there}")
    if not retry and counts(states)["failed"]:
        say(f"--retry runs the {counts(states)['failed']} that failed again")
    if not cells:
        say("nothing to submit")
        return 0
    numbers = launcher.submit(folder, cells)
    arrays = dict.fromkeys(number.partition("_")[0] for number in numbers.values())
    say(f"submitted {len(cells)} cells as SLURM job {', '.join(arrays)}; --status shows how far they are")
    return 0


def queued_jobs(folder: SweepFolder) -> dict[str, str]:
    """The cells of a sweep that wait or run in SLURM, and the numbers of their jobs; empty without SLURM.

    Raises:
        ValueError: if SLURM does not answer.
    """
    try:
        known: dict[str, str] = json.loads(_jobs_file(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise ValueError(f"{_jobs_file(folder)} is damaged: look into squeue, and remove it") from None
    if not known or shutil.which("squeue") is None:
        return {}
    asked = subprocess.run(
        ["squeue", "--noheader", "--array", "--me", "--format=%i"], capture_output=True, text=True, timeout=120
    )
    if asked.returncode:
        raise ValueError(f"squeue does not answer: {' '.join(asked.stderr.split())}")
    there = set(asked.stdout.split())
    return {cell: number for cell, number in known.items() if number in there}


def describe_queue(folder: SweepFolder) -> str:
    """The jobs of a sweep that SLURM has, in a line; empty if there are none."""
    queued = queued_jobs(folder)
    arrays = dict.fromkeys(number.partition("_")[0] for number in queued.values())
    return f"SLURM has {len(queued)} of the cells, waiting or running: job {', '.join(arrays)}" if queued else ""


def _jobs_file(folder: SweepFolder) -> Any:
    return folder.path / "slurm" / "jobs.json"


def _note_jobs(folder: SweepFolder, numbers: Mapping[str, str]) -> None:
    file = _jobs_file(folder)
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    with replacing(file) as stream:
        stream.write(json.dumps({**earlier, **numbers}, indent=1).encode())
