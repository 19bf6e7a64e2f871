"""Optuna's side of a search: the folder that names its study, storage, sampler and pruner."""

from __future__ import annotations

import json
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cet_rl.tuning.spec import TuningSpec

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage

POINTS = 20
"""At which the runs of one seed are compared with those of other trials: every twentieth of a run."""
WARM_UP = 5
"""Of these points, in the first seed, at which nothing is pruned yet."""
START_UP = 5
"""Trials that are run to their end before any is pruned."""
BUSY = 100.0
"""Seconds to wait for an SQLite file that another process writes to."""


class SearchFolder:
    """The folder of a search.

    search.yaml     what is searched, and the name of the study
    study.db        the study, unless its storage is elsewhere
    trial-0007/     the runs of a trial, as a sweep over its seeds
    trials.csv      a row for each trial
    best.yaml       the best configuration, for `cet-rl train --config`
    locks/          who runs which trial

    Args:
        path: of the folder itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.file = self.path / "search.yaml"
        self.best_file = self.path / "best.yaml"
        self.table_file = self.path / "trials.csv"
        self.locks = self.path / "locks"

    def trial_path(self, number: int) -> Path:
        """The runs of a trial."""
        return self.path / f"trial-{number:04d}"

    def claim(self, spec: TuningSpec) -> str:
        """Take the folder for a search, or for going on with it; the name of its study.

        Raises:
            ValueError: if it holds something else, or a search with other settings, saying which.
            OSError: if it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"the search's folder {self.path} is a file")
        settings = json.loads(json.dumps(spec.identity()))
        if not self.file.is_file():
            if self.path.is_dir() and any(not entry.startswith(".") for entry in os.listdir(self.path)):
                raise ValueError(f"{self.path} is not empty and holds no search: choose another --run-dir")
            name = f"{self.path.resolve().name}-{uuid.uuid4().hex[:8]}"
            text = yaml.safe_dump({"study": name, "settings": settings}, sort_keys=False, allow_unicode=True)
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                draft = self.path / f".{name}.tmp"
                draft.write_text(text, encoding="utf-8")
                try:
                    os.link(draft, self.file)  # of several machines that begin at once, one does
                except FileExistsError:
                    pass
                finally:
                    draft.unlink()
            except OSError as error:
                raise OSError(f"cannot write to the search's folder {self.path}: {error.strerror}") from None
        try:
            saved = yaml.safe_load(self.file.read_text(encoding="utf-8"))
            name, earlier = str(saved["study"]), dict(saved["settings"])
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
            raise ValueError(f"{self.file} is damaged: choose another --run-dir") from None
        changes = [
            f"{key} {earlier.get(key)} there, {settings.get(key)} here"
            for key in {**earlier, **settings}
            if earlier.get(key) != settings.get(key)
        ]
        if changes:
            raise ValueError(
                f"{self.path} holds a search with other settings ({', '.join(changes)}): choose another --run-dir"
            )
        return name


def require_optuna() -> None:
    """Raise ValueError, saying how to install it, if Optuna is not there."""
    try:
        import optuna
    except ImportError:
        raise ValueError("cet-rl tune needs Optuna: pip install 'cet-rl[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(spec: TuningSpec, folder: SearchFolder, name: str, storage: str | None = None) -> Study:
    """The study of a search, with the trials there are.

    Args:
        spec: what to search.
        folder: claimed.
        name: of the study.
        storage: URL of a database; None for a file in the folder.

    Raises:
        ValueError: if the storage cannot be opened.
    """
    import optuna

    database = _database(storage or f"sqlite:///{(folder.path / 'study.db').resolve()}")
    study = optuna.create_study(
        storage=database, study_name=name, direction=spec.direction, pruner=_pruner(spec), load_if_exists=True
    )
    # The same seed in each go would draw the same trials again.
    study.sampler = _sampler(spec, len(study.get_trials(deepcopy=False)))
    return study


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what a database raises that is gone, locked or full into an OSError of one line, without its URL."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).split("\n")[0]
        raise OSError(f"the storage of the search's trials does not answer: {reason}; try again") from None


def _database(url: str) -> RDBStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    options: dict[str, Any] = {"connect_args": {"timeout": BUSY}} if url.startswith("sqlite") else {}
    try:
        return RDBStorage(url, engine_kwargs=options)
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        # A URL may hold a password: only what went wrong is told, not where.
        reason = str(getattr(error, "orig", None) or error).split("\n")[0]
        raise ValueError(f"--storage cannot be opened: {reason.replace(url, 'the URL')}") from None


def _sampler(spec: TuningSpec, seed: int) -> BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    # Trials that are under way count as bad ones, so that those side by side do not crowd together.
    return RandomSampler(seed) if spec.sampler == "random" else TPESampler(seed=seed, constant_liar=True)


def _pruner(spec: TuningSpec) -> BasePruner:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if spec.pruner == "median":
        return MedianPruner(n_startup_trials=START_UP, n_warmup_steps=WARM_UP)
    if spec.pruner == "hyperband":
        return HyperbandPruner(min_resource=WARM_UP, max_resource=POINTS * len(spec.seeds))
    return NopPruner()
