"""Optuna's side of a search: the folder that names its study, storage, sampler and pruner."""

from __future__ import annotations

import json
import os
import random
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cet_rl.runs.config_files import dump_yaml, load_yaml
from cet_rl.runs.files import replacing
from cet_rl.runs.lock import Lock
from cet_rl.tuning.spec import TuningSpec

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import URL

POINTS = 20
"""At which the runs of one seed are compared with those of other trials: every twentieth of a run."""
WARM_UP = 5
"""Of these points, in the first seed, at which nothing is pruned yet."""
START_UP = 5
"""Trials that are run to their end before any is pruned."""
BUSY = 100.0
"""Seconds to wait for an SQLite file that another process writes to."""
PATIENCE = 60.0
"""Seconds to wait for another process that creates the study of the same folder."""
TRIES = 6
"""At opening a database in which another process may be creating the same tables."""
PAUSE = 0.5
"""Seconds between two of these, at most."""
OWN = "study.db"
"""The file of the study, unless its storage is elsewhere."""

_PACKAGES = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "mysql": "mysql-connector-python",
}
"""What to install for modules that have another name."""


class SearchFolder:
    """The folder of a search.

    search.yaml     what is searched, and the name of the study
    study.db        the study, unless its storage is elsewhere
    storage.txt     where it is, without password
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
        self.storage_file = self.path / "storage.txt"
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
            text = dump_yaml({"study": name, "settings": settings})
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
            saved = load_yaml(self.file.read_text(encoding="utf-8"))
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

    def storage(self) -> str | None:
        """Where the study is that has been created, without password; None if none has.

        Raises:
            OSError: if that cannot be read.
        """
        try:
            return self.storage_file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def remember_storage(self, where: str) -> None:
        """Note where the study is.

        Args:
            where: without password.

        Raises:
            OSError: if the folder cannot be written.
        """
        with replacing(self.storage_file) as stream:
            stream.write(f"{where}\n".encode())

    @contextmanager
    def creation(self) -> Iterator[None]:
        """Hold the right to create the study, which one process at a time has.

        Raises:
            OSError: if another has it for too long, or the folder cannot be written.
        """
        lock = Lock(self.locks, "study")
        if not lock.acquire(wait=PATIENCE):
            raise OSError(f"another search has been creating the study of {self.path} for long; try again")
        try:
            yield
        finally:
            lock.release()


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
        ValueError: if the storage cannot be opened, keeps nothing, or is another than the folder's search has.
        OSError: if the folder cannot be written.
    """
    import optuna

    from cet_rl.tuning.sampler import TrialSampler

    url = None if storage is None else _parsed(storage)
    where = OWN if url is None else _public(url)
    with folder.creation():
        begun = folder.storage()
        elsewhere = begun is not None and begun != where
        if elsewhere and (url is None or _missing_file(url)):
            raise ValueError(_begun_elsewhere(folder, begun))
        database = _database(storage or f"sqlite:///{(folder.path / OWN).resolve()}")
        options: dict[str, Any] = {"storage": database, "study_name": name, "pruner": _pruner(spec)}
        if elsewhere:  # a database may be known by several names, so only its content tells
            try:
                study = optuna.load_study(**options)
            except KeyError:
                raise ValueError(_begun_elsewhere(folder, begun)) from None
        else:
            study = optuna.create_study(**options, direction=spec.direction, load_if_exists=True)
        if begun is None:
            folder.remember_storage(where)
    study.sampler = TrialSampler(spec.sampler)
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


def _parsed(url: str) -> URL:
    """The URL of a database that keeps what is written to it.

    Raises:
        ValueError: if it is none.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        found = make_url(url)
    except (SQLAlchemyError, ValueError):
        raise ValueError(
            "--storage cannot be opened: it must be the URL of a database, such as postgresql://user@host/name"
        ) from None
    if found.get_backend_name() == "sqlite":
        file = found.database or ""
        if file in ("", "file:") or ":memory:" in file or found.query.get("mode") == "memory":
            raise ValueError(
                "--storage is a database in memory, which keeps no trials: name a file, such as "
                "sqlite:////home/me/study.db, or leave out --storage"
            )
    return found


def _public(url: URL) -> str:
    """A URL without password, nor options that may hold one."""
    from sqlalchemy.engine import URL

    file = _sqlite_file(url)
    database = url.database if file is None else str(file.resolve())
    bare = URL.create(url.drivername, url.username, host=url.host, port=url.port, database=database)
    return bare.render_as_string()


def _sqlite_file(url: URL) -> Path | None:
    """The file of an SQLite database; None for other databases."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database.startswith("file:"):
        return None
    return Path(url.database)


def _missing_file(url: URL) -> bool:
    file = _sqlite_file(url)
    return file is not None and not file.exists()


def _begun_elsewhere(folder: SearchFolder, begun: str | None) -> str:
    if begun == OWN:
        return (
            f"the search in {folder.path} was begun without --storage: leave it out, or choose another --run-dir"
        )
    return (
        f"the search in {folder.path} was begun with another --storage, {begun}: give that (passwords are not "
        "noted), or choose another --run-dir"
    )


def _database(url: str) -> RDBStorage:
    """The database of a URL, its tables created if need be.

    Raises:
        ValueError: if it cannot be opened.
    """
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    options: dict[str, Any] = {"connect_args": {"timeout": BUSY}} if url.startswith("sqlite") else {}
    for left in reversed(range(TRIES)):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except ImportError as error:
            raise ValueError(f"--storage cannot be opened: {_missing_module(error)}") from None
        except (SQLAlchemyError, StorageInternalError, RuntimeError, ValueError, AssertionError) as error:
            if left and _perhaps_a_race(error):
                time.sleep(random.uniform(PAUSE / 5, PAUSE))
                continue
            # A URL may hold a password: only what went wrong is told, not where.
            cause = error.__cause__ if isinstance(error, StorageInternalError) else None
            reason = str(getattr(cause or error, "orig", None) or cause or error).split("\n")[0]
            raise ValueError(f"--storage cannot be opened: {reason.replace(url, 'the URL')}") from None
    raise AssertionError("the last try returns or raises")


def _perhaps_a_race(error: Exception) -> bool:
    """Whether the tables may just have been half created, by a search from another folder."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    if isinstance(error, StorageInternalError | IntegrityError | ProgrammingError | AssertionError):
        return True
    return any(sign in str(error) for sign in ("already exists", "is locked"))


def _missing_module(error: ImportError) -> str:
    """Which module a database needs, from the error about it or from its cause."""
    cause = error.__cause__
    name = (cause.name if isinstance(cause, ImportError) else None) or error.name
    if name is None:
        return str(cause or error).split("\n")[0]
    return f"it needs the Python module {name}: pip install {_PACKAGES.get(name, name)}"


def _pruner(spec: TuningSpec) -> BasePruner:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if spec.pruner == "median":
        return MedianPruner(n_startup_trials=START_UP, n_warmup_steps=WARM_UP)
    if spec.pruner == "hyperband":
        return HyperbandPruner(min_resource=WARM_UP, max_resource=POINTS * len(spec.seeds))
    return NopPruner()
