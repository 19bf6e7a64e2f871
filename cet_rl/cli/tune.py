"""`cet-rl tune`: search for hyper-parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cet_rl.cli import parse


@dataclass(frozen=True)
class TuneArguments:
    """Search for hyper-parameters with Optuna.

    A trial is a run for each seed; a trial that is worse than others at the same step is stopped. The same command
    resumes the search. Writes best.yaml, a configuration file, and trials.csv.

    Examples:
      cet-rl tune examples/search.yaml --trials 40 --workers 4
    """

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """YAML file of a search: settings, and under space the options to search."""
    trials: int | None = None
    """Number of trials in all, including those of earlier commands. Default: the file's trials, else 50."""
    workers: int | None = None
    """Trials at a time, one thread each. Default: the number of processors."""
    storage: str | None = None
    """URL of Optuna's storage, such as postgresql://user@host/name. Default: an SQLite file in the search's
    folder, which is for one machine; several need a server, and a folder that they share."""
    run_dir: str | None = None
    """The search's folder. Default: runs/NAME, with the name of the file."""
    quiet: bool = False
    """Print nothing but errors."""

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise ValueError(f"--trials must be at least 1, got {self.trials}")


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    options = parse(TuneArguments, arguments, "cet-rl tune")
    from cet_rl.sweeps.build import check_data
    from cet_rl.sweeps.folder import SweepFolder
    from cet_rl.sweeps.worker import Launcher
    from cet_rl.tuning.study import SearchFolder, open_study, print_outcome, require_optuna, storage_errors

    require_optuna()
    from cet_rl.tuning.file import params_to_try, read_search
    from cet_rl.tuning.search import Search

    launcher = Launcher(options.workers, options=["--wait"])
    file = read_search(options.file)
    folder = SearchFolder(options.run_dir or Path("runs") / Path(options.file).stem)
    check_data(file.sweep(params_to_try(file.space)[0]).jobs, SweepFolder(folder.path))
    with storage_errors():
        study = open_study(file, folder, options.storage)
        search = Search(file, folder, study, launcher, trials=options.trials or file.trials, quiet=options.quiet)
        status = search.run()
        if not options.quiet:
            print_outcome(folder, file, study)
    return status
