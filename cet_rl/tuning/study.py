"""Optuna's side of a search: the folder that names its study, storage, sampler and pruner."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from cet_rl.runs.config_files import dump_yaml, load_yaml
from cet_rl.runs.files import holds, make_folder, write_text
from cet_rl.runs.lock import Lock
from cet_rl.runs.task_kinds import differing
from cet_rl.tuning.file import SearchFile

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

POINTS = 20  # at which the runs of one seed are compared with those of other trials: every twentieth of a run
WARM_UP = 5  # of these points, in the first seed, at which nothing is pruned yet
START_UP = 5  # trials that run until they have finished before any is pruned
BUSY = 100.0  # seconds to wait for an SQLite file that another process writes to
PATIENCE = 60.0  # seconds to wait for another process that creates the study of the same folder


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

    def study_name(self, search: SearchFile) -> str:
        """Return the name of the search's study, noting it and the search's settings in a new folder.

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
            raise ValueError(
                f"{self.path} holds a search with other settings ({changes}): choose another --run-dir"
            )
        return name


def require_optuna() -> None:
    """Raise ValueError, saying how to install it, if Optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise ValueError("cet-rl tune needs Optuna: pip install 'cet-rl[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(search: SearchFile, folder: SearchFolder, storage: str | None = None) -> Study:
    """Return the study of a search, with the trials it has; the folder is created if need be.

    `storage` is the URL of a database, as Optuna takes it; None stands for a file in the folder. Raises ValueError
    if the folder holds something else, a search with other settings, or trials that this storage does not have,
    and OSError if the storage cannot be opened, or the folder cannot be written.
    """
    import optuna

    holds(folder.path, folder.file.name, "search")
    make_folder(folder.path, "search")
    lock = Lock(folder.locks, "study")
    if not lock.acquire(wait=PATIENCE):
        raise OSError(f"another search has been creating the study of {folder.path} for long; try again")
    try:
        database: Any = storage
        if storage is None:
            url = f"sqlite:///{(folder.path / 'study.db').resolve()}"
            database = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY}})
        study = optuna.create_study(
            storage=database,
            study_name=folder.study_name(search),
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
    """Turn what Optuna raises for a database that cannot be used into an OSError of one line."""
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

    Processes that share a study would draw the same from streams that begin alike, and a search that goes on would
    draw other values than one that was never interrupted. So each draw has a stream of its own, seeded with the
    number of the trial, which is unique in its study, and the option's name.
    """
    from optuna.samplers import BaseSampler, RandomSampler, TPESampler

    def seeded(trial: Any, option: str = "") -> Any:
        seed = int(np.random.SeedSequence([trial.number, *option.encode()]).generate_state(1)[0])
        # Trials that are under way count as bad ones, so that those side by side do not crowd together.
        return RandomSampler(seed) if kind == "random" else TPESampler(seed=seed, constant_liar=True)

    class TrialSampler(BaseSampler):
        """Draw as one of Optuna's samplers does, seeded anew for each trial and option."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return seeded(trial).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Mapping[str, Any]) -> Any:
            return seeded(trial).sample_relative(study, trial, dict(search_space))

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return seeded(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    return TrialSampler()
