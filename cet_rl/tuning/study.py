"""Keep the folder and Optuna's study of a search, and write its outcome as files and as a table."""

from __future__ import annotations

import math
import os
import shlex
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from cet_rl.runs.config import Mark
from cet_rl.runs.config_files import dump_yaml, load_yaml
from cet_rl.runs.files import csv_text, holds, make_folder, write_text
from cet_rl.runs.lock import TAKEOVER, Lock
from cet_rl.runs.task_kinds import differing, options_marked
from cet_rl.tuning.file import SearchFile, plain

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

POINTS = 20  # at which the runs of one seed are compared with those of other trials: every twentieth of a run
WARM_UP = 5  # of these points, in the first seed, at which nothing is pruned yet
START_UP = 5  # trials that run until they have finished before any is pruned
BUSY = 100.0  # longest wait, in seconds, for an SQLite file that another process writes to
SHOWN = 20  # trials in a printed table
ENOUGH = 10  # finished trials from which on importances are computed
WIDTH = 140  # of a table that is not printed to a terminal

STATES = {"COMPLETE": "complete", "RUNNING": "open", "PRUNED": "pruned", "FAIL": "failed", "WAITING": "open"}
"""The states of Optuna's trials, in the order of the printed table, and what they are called."""


class SearchFolder:
    """Keep the folder of a search.

    search.yaml     what is searched, and the name of the study
    study.db        the study, unless --storage names another database
    trial-0007/     the runs of a trial, as a sweep over its seeds
    trials.csv      a row for each trial
    best.yaml       the best configuration, for `cet-rl train --config`
    locks/          which process runs which trial
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.file = self.path / "search.yaml"
        self.best_file = self.path / "best.yaml"
        self.table_file = self.path / "trials.csv"
        self.locks = self.path / "locks"

    def trial_path(self, number: int) -> Path:
        """Return the folder with the runs of a trial."""
        return self.path / f"trial-{number:04d}"

    def lock(self, number: int) -> Lock:
        """Return the lock of a trial."""
        return Lock(self.locks, f"trial-{number:04d}")

    def ensure_study_name(self, search: SearchFile) -> str:
        """Write search.yaml with a new name for the study, if there is none, and return the study's name.

        Raises ValueError if the folder is that of a search with other settings, saying which.
        """
        settings = search.identity()
        if not self.file.is_file():
            name = f"{self.path.resolve().name}-{uuid.uuid4().hex[:8]}"
            write_text(self.file, dump_yaml({"study": name, "settings": settings}))
        try:
            saved = load_yaml(self.file.read_text(encoding="utf-8"))
            name, changes = str(saved["study"]), ", ".join(differing(saved["settings"], settings))
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{self.file} is damaged: choose another --run-dir") from None
        if changes:
            raise ValueError(f"{self.path} holds a search of other settings ({changes}): choose another --run-dir")
        return name


def require_optuna() -> None:
    """Raise ValueError, saying how to install Optuna, if it is missing; else keep its log and warnings quiet."""
    try:
        import optuna
    except ImportError:
        raise ValueError("cet-rl tune needs Optuna: pip install 'cet-rl[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(search: SearchFile, folder: SearchFolder, storage: str | None = None) -> Study:
    """Return the study of a search, with the trials it has; the folder is created if need be.

    `storage` is the URL of a database, as Optuna takes it; None for a file in the folder. Raises ValueError if the
    folder holds something else, a search with other settings, or trials that this storage does not have, and
    OSError if the storage cannot be opened, or the folder cannot be written.
    """
    import optuna

    holds(folder.path, folder.file.name, "search")
    make_folder(folder.path, "search")
    lock = Lock(folder.locks, "study")
    if not lock.acquire(wait=TAKEOVER):
        raise OSError(f"another search has been creating the study of {folder.path} for long; try again")
    try:
        name = folder.ensure_study_name(search)  # first: a folder without it would be none of a search
        database: Any = storage
        if storage is None:
            url = f"sqlite:///{(folder.path / 'study.db').resolve()}"
            database = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY}})
        study = optuna.create_study(
            storage=database,
            study_name=name,
            direction="maximize" if search.metric.higher_is_better else "minimize",
            sampler=trial_sampler(search.sampler),
            pruner=_pruner(search),
            load_if_exists=True,
        )
    finally:
        lock.release()
    if not study.get_trials(deepcopy=False) and any(folder.path.glob("trial-*")):
        raise ValueError(f"{folder.path} was begun with another --storage: give that, or choose another --run-dir")
    return study


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the errors that Optuna raises for a database that cannot be used into an OSError of one line."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ImportError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).split("\n")[0]
        raise OSError(f"the storage of the search's trials cannot be used: {reason}") from None


def _pruner(search: SearchFile) -> BasePruner:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if search.pruner == "median":
        return MedianPruner(n_startup_trials=START_UP, n_warmup_steps=WARM_UP)
    if search.pruner == "hyperband":
        return HyperbandPruner(min_resource=WARM_UP, max_resource=POINTS * len(search.seeds))
    return NopPruner()


def trial_sampler(kind: str) -> BaseSampler:
    """Return a sampler, tpe or random, whose draws depend on the trial, not on the process that asks for it.

    With one stream of random numbers a process, processes that share a study would draw the same values, and a
    resumed search would draw others than one that was never interrupted. So each draw has a stream of its own,
    seeded with the number of the trial, which is unique in its study, and the option's name.
    """
    from optuna.samplers import RandomSampler, TPESampler

    class TrialSampler(RandomSampler):
        """Draw as one of Optuna's samplers does, seeded anew for each trial and option."""

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            seed = int(np.random.SeedSequence([trial.number, *param_name.encode()]).generate_state(1)[0])
            # Trials under way count as bad ones, so that trials side by side are not drawn close together.
            sampler = RandomSampler(seed) if kind == "random" else TPESampler(seed=seed, constant_liar=True)
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    return TrialSampler()


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the best of the finished trials, the first of those that are as good; None without any."""
    from optuna.trial import TrialState

    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(ended, key=lambda trial: _rank(study, trial), default=None)


def _rank(study: Study, trial: FrozenTrial) -> tuple[float, ...]:
    """Return a key that sorts trials: those that finished, best first; then open, pruned and failed ones."""
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    ended = trial.state.name == "COMPLETE"
    return [*STATES].index(trial.state.name), sign * (trial.value or 0.0) if ended else 0.0, trial.number


def describe_params(params: Mapping[str, Any]) -> str:
    """Return parameters in words: "lr 0.0012, units 8"."""
    return ", ".join(f"{name} {_text(value)}" for name, value in params.items())


def write_outcome(folder: SearchFolder, search: SearchFile, study: Study) -> None:
    """Write trials.csv, a row for each trial, and best.yaml, if a trial has finished.

    best.yaml is a configuration file: all settings of the best trial, without seed and machine.
    """
    trials, best = study.get_trials(deepcopy=False), best_trial(study)
    columns = ["trial", "state", search.metric.key, *search.space, "reason"]
    rows = ([*_row(search, trial, repr), trial.user_attrs.get("reason", "")] for trial in trials)
    write_text(folder.table_file, csv_text(columns, (dict(zip(columns, row, strict=True)) for row in rows)))
    if best is None:
        return
    # A search tests on images held out of the training set; a run with its best values tests on the test set.
    left_out = {"seed", "validation", *options_marked(Mark.MACHINE) - search.fixed.keys()}
    values = search.sweep(best.params).jobs[0].values
    ordered = {key: values[key] for key in ("task", *best.params)}
    ordered |= {key: value for key, value in values.items() if key not in left_out}
    seeds = f"seed{'s' * (len(search.seeds) > 1)} {', '.join(map(str, search.seeds))}"
    head = f"# The best of {len(trials)} trials: {search.metric.key} {best.value:.6g} over {seeds}"
    searched = f"# Searched: {describe_params(best.params)}."
    write_text(folder.best_file, f"{head} (trial {best.number}).\n{searched}\n{dump_yaml(ordered)}")


def _row(search: SearchFile, trial: FrozenTrial, number: Callable[[float], str]) -> list[str]:
    """Return number, state, score and parameters of a trial as text; `number` writes those that are not whole."""
    score = number(trial.value) if trial.state.name == "COMPLETE" and trial.value is not None else ""
    params = [_text(trial.params.get(name, ""), number) for name in search.space]
    return [str(trial.number), STATES[trial.state.name], score, *params]


def importances(study: Study) -> dict[str, float]:
    """Return the share of the difference between good and other trials that each option explains, largest first.

    The shares sum to one. Empty for fewer than two options or too few trials.
    """
    if sum(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False)) < ENOUGH:
        return {}
    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("ignore", ExperimentalWarning)
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (UserWarning, ValueError, RuntimeError, ZeroDivisionError):  # too few trials, or all alike
        return {}
    return found if len(found) > 1 and all(map(math.isfinite, found.values())) else {}


def print_outcome(folder: SearchFolder, search: SearchFile, study: Study) -> None:
    """Print the best trials, the importances and where the best configuration is, to stdout."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: _rank(study, trial))
    heads = "trial", "state", search.metric.key, *search.space
    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for trial in trials[:SHOWN]:
        table.add_row(*_row(search, trial, "{:.6g}".format))
    console.print(table)
    if len(trials) > SHOWN:
        console.print(f"and {len(trials) - SHOWN} more in {folder.table_file}")
    if weights := importances(study):
        console.print(f"importance: {', '.join(f'{name} {weight:.2f}' for name, weight in weights.items())}")
    if folder.best_file.is_file():
        best = shlex.quote(str(folder.best_file))
        console.print(f"best: cet-rl train {search.fixed['task']} --config {best}", soft_wrap=True)


def _text(value: Any, number: Callable[[float], str] = "{:.4g}".format) -> str:
    """Return a value as the command line takes it."""
    value = plain(value)
    if isinstance(value, float):
        return number(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
