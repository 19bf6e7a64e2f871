"""What a job on a SLURM cluster runs: one cell of a sweep, in a worker of its own.

A job is a small process that starts the same worker as a sweep on one machine. Near the end of its time, or when
it is to make way for another, SLURM sends it SIGUSR2: it has the worker save its checkpoint, and puts itself back
into the queue. A node that fails, or a partition that requeues by itself, needs nothing: a cell that is started
again goes on from its last checkpoint.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cet_rl.runs.lock import EXIT_BUSY, HEARTBEAT, LEASE
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.launcher import Command, LocalJob, worker_command
from cet_rl.sweeps.states import look
from cet_rl.sweeps.worker import EXIT_FINISHED, EXIT_INTERRUPTED, note_failure

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

TICK = 0.5
"""Seconds between two looks at the worker."""
LINGER = 120.0
"""Seconds that a job whose worker was ended by SLURM waits for what SLURM does next."""

_STOPPED = (EXIT_INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)


@dataclass
class CellJob:
    """What a job runs: one cell, in a worker of its own. Submitit calls it, and `checkpoint` on SIGUSR2.

    Attributes:
        folder: of the sweep, an absolute path.
        cell: its name.
        retry: whether to run it although it has failed.
        command: of a worker.
        linger: seconds to wait after SIGTERM, before it goes on.
    """

    folder: str
    cell: str
    retry: bool = False
    command: Command = worker_command
    linger: float = LINGER

    def __post_init__(self) -> None:
        self._worker: LocalJob | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_worker": None}  # a process cannot travel

    def __call__(self) -> str:
        """Run the cell to its end.

        Returns:
            "finished", or "busy" if another job, on a machine that is alive, runs the cell.

        Raises:
            RuntimeError: if the cell has failed: SLURM counts the job as failed, too.
        """
        waited = 0.0
        while True:
            status = self._run_worker()
            if status == EXIT_FINISHED:
                return "finished"
            if status in _STOPPED:
                # SIGTERM, from SLURM: what follows is the end of this job, or SIGUSR2. If neither does, go on.
                time.sleep(self.linger)
            elif status == EXIT_BUSY and waited <= LEASE:
                # Perhaps by this job's own predecessor, whose node has died: that shows after a while.
                time.sleep(HEARTBEAT)
                waited += HEARTBEAT
            elif status == EXIT_BUSY:
                return "busy"
            else:
                raise RuntimeError(f"{self.cell} has failed: {self._reason(status)}")

    def checkpoint(self) -> DelayedSubmission:
        """Have the worker save its checkpoint and end; what to put back into the queue."""
        from submitit.helpers import DelayedSubmission

        worker = self._worker
        if worker is not None:
            worker.stop()
            # Not through Popen, whose lock the code that this signal has interrupted may hold.
            with suppress(ChildProcessError):  # it had ended
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        # One that was stopped before it had begun has still to forget that it failed.
        retry = self.retry and look(SweepFolder(self.folder), self.cell).state == "failed"
        return DelayedSubmission(replace(self, retry=retry))

    def _run_worker(self) -> int:
        folder = SweepFolder(self.folder)
        command = [*self.command(folder, self.cell), "--watch", *["--retry"] * self.retry]
        # SLURM sends SIGUSR2 to all processes of a job. A worker inherits that it is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        try:
            self._worker = LocalJob(self.cell, command, folder.log_file(self.cell))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while (status := self._worker.poll()) is None:
            time.sleep(TICK)
        self._worker, self.retry = None, False
        return status

    def _reason(self, status: int) -> str:
        """Why the cell has failed; written down, if its worker could not do so itself."""
        folder = SweepFolder(self.folder)
        state = look(folder, self.cell)
        if state.state == "failed":
            return state.error
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        how = (
            f"was killed by {signal.Signals(-status).name}{hint}" if status < 0 else f"ended with status {status}"
        )
        note_failure(folder, self.cell, f"its process {how}")
        return f"its process {how}"
