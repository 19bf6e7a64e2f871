"""`cet-rl sweep`: run many configurations from one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cet_rl.cli import options_among, parse


@dataclass(frozen=True)
class SweepArguments:
    """Make all runs of a sweep, whose YAML file gives fixed settings, a grid, arms and seeds.

    The same command resumes the sweep: finished runs are skipped, partial ones continue. Several commands on one
    folder at the same time share the work.

    Examples:
      cet-rl sweep quick
      cet-rl sweep fig4-cartpole --quick --workers 4
      cet-rl sweep my.yaml --launcher slurm --slurm partition=long time=4:00:00
    """

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """A sweep's YAML file, or the name of one that comes with the package (`cet-rl list configs`)."""
    run_dir: str | None = None
    """The sweep's folder. Default: runs/NAME, or runs/NAME-quick, with the name of the file."""
    workers: int | None = None
    """Runs at a time, one thread each. Default: the number of processors, or as many as SLURM can place."""
    data_dir: str | None = None
    """For image classification: folder with the data on this machine, in place of the file's."""
    quick: bool = False
    """Use the smaller budget that the file gives under quick."""
    retry: bool = False
    """Repeat runs that have failed."""
    status: bool = False
    """Print the state of all runs, write results.csv with the finished ones, and run nothing."""
    known: str | None = None
    """A CSV file of results that outlives the folder: each run adds a row when it finishes, and runs with a row
    are skipped. It is created if missing; later commands on the folder use it without being told."""
    launcher: Literal["local", "batch", "slurm"] = "local"
    """local: a process for each run, on this machine. batch, for image classification or the agent cet: similar
    runs learn together, on a CPU in one process for each processor (--workers runs at a time, by default 16 a
    processor, 64 on a GPU). slurm: job arrays, which the command submits without waiting for them; all nodes must
    be able to reach the folder."""
    slurm: tuple[str, ...] = ()
    """KEY=VALUE ...: options of sbatch, such as partition=long time=4:00:00 mem=8G. time, by default one hour,
    may be too short: signal-delay seconds before its end (default 90) a run saves a checkpoint and is queued
    again."""
    quiet: bool = False
    """Print nothing but errors."""


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    options = parse(SweepArguments, arguments, "cet-rl sweep")
    from cet_rl.sweeps.build import build_or_read, check_data
    from cet_rl.sweeps.file import read_sweep
    from cet_rl.sweeps.folder import SweepFolder
    from cet_rl.sweeps.scheduler import print_status, run_sweep
    from cet_rl.sweeps.slurm import check_slurm, describe_queue, parse_options, submit_sweep
    from cet_rl.sweeps.worker import Launcher, batch_launcher, check_workers

    if "slurm" in options_among(arguments) and options.launcher != "slurm":
        raise ValueError("--slurm goes with --launcher slurm: add it, or leave out --slurm")
    asked = parse_options(options.slurm)
    check_workers(options.workers)
    slurm = options.launcher == "slurm" and not options.status
    if slurm:
        check_slurm()
    elsewhere = {} if options.data_dir is None else {"data_dir": options.data_dir}
    file = read_sweep(options.file, quick=options.quick, **elsewhere)
    name = Path(options.file).stem + "-quick" * options.quick
    folder = SweepFolder(options.run_dir or Path("runs") / name, options.known)
    sweep = build_or_read(file, folder)
    if options.status:
        print_status(sweep, folder)
        if queue := describe_queue(folder):
            print(queue)
        return 0
    if slurm:
        submit_sweep(sweep, folder, asked, options.workers, retry=options.retry, quiet=options.quiet)
        return 0
    check_data(sweep.jobs, folder)
    batch = options.launcher == "batch"
    launcher = batch_launcher(sweep.jobs, options.workers) if batch else Launcher(options.workers)
    return run_sweep(sweep, folder, launcher, retry=options.retry, quiet=options.quiet)
