"""Submit the jobs of a sweep as job arrays to a SLURM cluster, with submitit; folders are as on one machine.

A SLURM job is a small process that starts the same worker as a sweep on one machine. Near the end of its time, or
when it is pre-empted, SLURM sends it SIGUSR2: it has the worker save its checkpoint, and is queued again. When a
node fails, or a partition requeues by itself, a job resumes from its last checkpoint.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cet_rl.runs.files import write_text
from cet_rl.runs.lock import EXIT_BUSY
from cet_rl.sweeps.folder import Sweep, SweepFolder, counts, describe_counts
from cet_rl.sweeps.worker import EXIT_FINISHED, STOPPED, Command, Worker, record_failure, worker_command

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

DEFAULT_MINUTES = 60  # of a SLURM job's time, unless told otherwise: short, as one that needs more is queued again
REQUEUES = 1000  # times that a job may run out of time
MOST_JOBS = 1000  # in one array: what SLURM takes unless it is configured otherwise
TICK = 0.5  # seconds between two looks at the worker
ANSWER = 120.0  # longest wait for squeue, in seconds
LINGER = 120.0  # seconds that a SLURM job waits for its end, or for SIGUSR2, after its worker got a SIGTERM

_OURS = {
    "workers": "--workers is an option of its own",
    "signal": "use signal-delay, the seconds that a job has for saving",
    "wrap": "a sweep sets what runs",
    **dict.fromkeys(("array", "array-parallelism"), "--workers sets how many jobs run at a time"),
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), "a job is one task on one node"),
    **dict.fromkeys(("output", "error", "open-mode"), "logs go to the sweep's folder"),
    **dict.fromkeys(("requeue", "no-requeue"), "jobs are always requeued"),
}
"""Options of sbatch that a sweep sets itself, and what to do instead."""

Options = Mapping[str, str | bool]
"""Options of sbatch, with dashes; True for one without a value."""


def parse_options(words: Sequence[str]) -> Options:
    """Return words such as time=4:00:00, mem=8G, signal-delay=120 and exclusive as options of sbatch.

    Raises ValueError for anything else, an option given twice, or one that a sweep sets itself.
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
    minutes(options.get("time", "1"))
    _seconds(options.get("signal-delay", "1"))
    return options


def minutes(text: str | bool) -> int:
    """Return a time limit in whole minutes, at least one; ValueError if it is in none of sbatch's formats.

    These are MINUTES[:SECONDS], HOURS:MINUTES:SECONDS and DAYS-HOURS[:MINUTES[:SECONDS]].
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(text))
    if match is None:
        raise ValueError(f"--slurm time must be minutes, hours:minutes:seconds or days-hours, got {text!r}")
    days, *given = match.groups()
    parts = [int(part) for part in given if part is not None]
    if days is None and len(parts) < 3:
        parts.insert(0, 0)  # hours
    total = int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if total < 60:
        raise ValueError(f"--slurm time must be at least a minute, got {text!r}")
    return -(-total // 60)


def _seconds(text: str | bool) -> int:
    if not str(text).isdecimal() or int(text) < 1:
        raise ValueError(f"--slurm signal-delay must be a whole number of seconds, got {text!r}")
    return int(text)


@dataclass
class SlurmJob:
    """Run one job of a sweep in a worker. Submitit calls it, and `checkpoint` on SIGUSR2."""

    folder: str  # of the sweep, absolute
    name: str
    retry: bool = False  # run it although it has failed
    command: Command = worker_command
    linger: float = LINGER  # seconds to wait after SIGTERM before going on

    def __post_init__(self) -> None:
        self._worker: Worker | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_worker": None}  # a process cannot be pickled

    def __call__(self) -> str:
        """Run the job until it has finished, and return "finished", or "busy" if another process runs it.

        Raises RuntimeError if the job has failed: SLURM counts it as failed, too.
        """
        while (status := self._run_worker()) in STOPPED:
            # SLURM has sent SIGTERM, and now ends this process or sends it SIGUSR2. If it does neither, go on.
            time.sleep(self.linger)
        if status not in (EXIT_FINISHED, EXIT_BUSY):
            reason = record_failure(SweepFolder(self.folder), self.name, status)
            raise RuntimeError(f"{self.name} has failed: {reason}")
        return "finished" if status == EXIT_FINISHED else "busy"

    def checkpoint(self) -> DelayedSubmission:
        """Have the worker save its checkpoint and end; return what to put back into the queue."""
        from submitit.helpers import DelayedSubmission

        worker = self._worker
        if worker is not None:
            worker.stop()
            # Not through Popen, whose lock the code that this signal has interrupted may hold.
            with suppress(ChildProcessError):  # it had ended
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        # One that was stopped before it had begun has still to forget that it failed.
        retry = self.retry and SweepFolder(self.folder).state(self.name).state == "failed"
        return DelayedSubmission(replace(self, retry=retry))

    def _run_worker(self) -> int:
        folder = SweepFolder(self.folder)
        # A predecessor's node may have died, which shows after a while: --wait.
        command = [*self.command(folder, [self.name]), "--wait", *["--retry"] * self.retry]
        # SLURM sends SIGUSR2 to all processes of a job. A worker inherits that it is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        try:
            self._worker = Worker([self.name], command, folder.log_file(self.name))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while (status := self._worker.poll()) is None:
            time.sleep(TICK)
        self._worker, self.retry = None, False
        return status


def check_slurm() -> None:
    """Raise ValueError if submitit or SLURM is not installed."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("--launcher slurm needs submitit: pip install 'cet-rl[slurm]'")
    for program in ("sbatch", "srun", "squeue", "scontrol"):
        if shutil.which(program) is None:
            raise ValueError(f"--launcher slurm: there is no SLURM here, {program} is not on the PATH")


def submit_sweep(
    sweep: Sweep,
    folder: SweepFolder,
    options: Options,
    workers: int | None = None,
    *,
    retry: bool = False,
    quiet: bool = False,
) -> None:
    """Put every job that is neither finished, nor running, nor queued into SLURM's queue, and return.

    The folder must be on a file system that all nodes share. Options are from `parse_options`; those left out are
    the cluster's defaults. `workers` jobs of an array run at a time, or as many as SLURM can place.

    Raises ValueError if the folder is another sweep's, or SLURM refuses the jobs, with its reason, and OSError if
    the folder cannot be written.
    """

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)

    folder.open_for(sweep)
    states, queued = folder.states(sweep.jobs), queued_jobs(folder)
    failed = counts(states)["failed"]
    wanted = ("waiting", "partial", *["failed"] * retry)
    names = [job.name for job in sweep.jobs if job.name not in queued and states[job.name].state in wanted]
    there = f"; {len(queued)} of them waiting or running in SLURM" * bool(queued)
    say(f"sweep folder {folder.path}\n{len(sweep.jobs)} jobs: {describe_counts(states)}{there}")
    if failed and not retry:
        say(f"--retry runs the {failed} that failed again")
    if names:
        jobs = [SlurmJob(str(folder.path.resolve()), name, retry) for name in names]
        number = _submit(folder, jobs, options, workers)
        say(f"submitted {len(names)} jobs as SLURM job {number}; --status shows how far they are")
    else:
        say("nothing to submit")


def _submit(folder: SweepFolder, jobs: Sequence[SlurmJob], options: Options, workers: int | None) -> str:
    """Hand over jobs, and return the numbers of their arrays as text: "7, 8"."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    others = {key: value for key, value in options.items() if key not in ("job-name", "time", "signal-delay")}
    executor = SlurmExecutor(folder.path.resolve() / "slurm", max_num_timeout=REQUEUES)
    executor.update_parameters(
        job_name=str(options.get("job-name", folder.path.resolve().name)),
        time=minutes(options.get("time", str(DEFAULT_MINUTES))),
        signal_delay_s=_seconds(options.get("signal-delay", "90")),
        array_parallelism=workers or MOST_JOBS,
        stderr_to_stdout=True,
        additional_parameters={**others, "requeue": True},
    )
    numbers: dict[str, str] = {}
    for start in range(0, len(jobs), MOST_JOBS):
        some = jobs[start : start + MOST_JOBS]
        try:
            submitted = executor.submit_array(some)
        except (FailedJobError, FailedSubmissionError) as error:
            raise ValueError(f"SLURM refuses the jobs: {' '.join(str(error).split())}") from None
        numbers |= {job.name: one.job_id for job, one in zip(some, submitted, strict=True)}
        write_text(_numbers_file(folder), json.dumps({**_numbers(folder), **numbers}, indent=1))
    return _arrays(numbers.values())


def queued_jobs(folder: SweepFolder) -> dict[str, str]:
    """Return the numbers in SLURM of the jobs that wait or run there, by name; none where there is no SLURM.

    Raises ValueError if squeue fails, or does not answer within `ANSWER` seconds.
    """
    known = _numbers(folder)
    if not known or shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER)
    except subprocess.SubprocessError as error:
        reason = getattr(error, "stderr", None) or f"nothing came back for {ANSWER:g} seconds"
        raise ValueError(f"squeue does not answer: {' '.join(reason.split())}") from None
    there = set(asked.stdout.split())
    return {name: number for name, number in known.items() if number in there}


def describe_queue(folder: SweepFolder) -> str:
    """Return a line about the jobs of a sweep that SLURM has; empty if it has none."""
    queued = queued_jobs(folder)
    numbers = _arrays(queued.values())
    return f"SLURM has {len(queued)} of the jobs, waiting or running: job {numbers}" if queued else ""


def _arrays(numbers: Iterable[str]) -> str:
    """Return the numbers of the arrays that jobs belong to: "7, 8" for 7_0, 7_1 and 8_0."""
    return ", ".join(dict.fromkeys(number.partition("_")[0] for number in numbers))


def _numbers_file(folder: SweepFolder) -> Path:
    return folder.path / "slurm" / "jobs.json"


def _numbers(folder: SweepFolder) -> dict[str, str]:
    """Return the numbers that jobs have had in SLURM, as `squeue` shows them: 12_0."""
    file = _numbers_file(folder)
    try:
        known: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise ValueError(f"{file} is damaged: look into squeue, and remove it") from None
    return known
