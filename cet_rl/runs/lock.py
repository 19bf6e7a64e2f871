"""Locks that say who runs in a folder, on one machine or on several that share it.

A lock is a file NAME.NUMBER that names its owner. Taking one creates the next number exclusively, which is atomic
on local file systems, NFS from version 3, Lustre, GPFS and BeeGFS; `flock` is not needed. A dead owner's file is
removed only by the process that has taken the next number. (`filelock.SoftFileLease` moves it away before, and may
so move a living owner's: of six processes that found a dead owner's lock, two took it in 3 of 60 trials.)

An owner on this machine is dead when its process is gone. One on another machine is dead after `LEASE` seconds
without a heartbeat; the machines' clocks must agree to within minutes. An owner that was suspended for longer may
find its lock gone: it exits at once, so that no two processes write into one folder.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from functools import cache
from pathlib import Path

from cet_rl.runs.files import naming

HEARTBEAT = 30.0  # seconds between two signs of life of an owner
LEASE = 300.0  # seconds without one after which an owner on another machine counts as dead
TAKEOVER = LEASE + HEARTBEAT  # seconds after which the lock of a dead owner has been free for others to take
POLL = 0.3  # seconds between two attempts to take a lock that is waited for, at most
EXIT_BUSY = 75  # exit status of a process whose lock another has


@dataclass(frozen=True)
class Owner:
    """Identify the process that owns a lock; what the system does not tell is empty, zero or None."""

    host: str
    machine: str  # identity of the machine's installation
    boot: str  # identity of the time since the machine was last started
    namespace: int  # of process numbers; each container has its own
    pid: int
    started: int | None  # when the process started, in clock ticks since boot

    def __str__(self) -> str:
        """Return host and process, for messages."""
        return f"{self.host}, process {self.pid}"

    @property
    def is_here(self) -> bool:
        """Tell whether its process can be seen from this one, so that its death shows at once."""
        return astuple(self)[:4] == astuple(_this_process())[:4]

    def is_alive(self, age: float) -> bool:
        """Tell whether it still runs, `age` seconds after its last sign of life."""
        here = _this_process()
        if self.is_here and self.started is not None:
            return _started(self.pid) == self.started
        restarted = bool(self.machine and self.boot) and self.boot != here.boot
        return age < LEASE and not (restarted and (self.host, self.machine) == (here.host, here.machine))


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _this_process() -> Owner:
    return _process(os.getpid())  # by its number, as a forked process is another owner


@cache
def _process(pid: int) -> Owner:
    machine, boot = _read("/etc/machine-id"), _read("/proc/sys/kernel/random/boot_id")
    namespace = 0
    with suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
    return Owner(platform.node(), machine, boot, namespace, pid, _started(pid))


def _started(pid: int) -> int | None:
    """Return when a process of this machine started; None if it has ended, or where /proc does not say."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return None if not fields or fields[0] in "ZX" else int(fields[19])  # Z: its parent has yet to notice its end


def lock_owners(folder: Path) -> dict[str, Owner | None]:
    """Return the living owners of the locks in a folder, by the locks' names; None for one that cannot be read."""
    try:
        return _living(folder, os.listdir(folder))
    except FileNotFoundError:
        return {}


def _living(folder: Path, entries: Iterable[str]) -> dict[str, Owner | None]:
    found: dict[str, Owner | None] = {}
    for entry in filter(_name, entries):
        try:
            age = time.time() - os.stat(folder / entry).st_mtime
            owner: Owner | None = Owner(**json.loads((folder / entry).read_bytes()))
        except FileNotFoundError:  # released at this moment
            continue
        except (ValueError, TypeError):
            owner = None
        if owner.is_alive(age) if owner is not None else age < LEASE:
            found[_name(entry)] = owner
    return found


def _name(entry: str) -> str:
    """Return the name of the lock that a file stands for; empty if it is no lock."""
    name, _, number = entry.rpartition(".")
    return name if number.isdigit() else ""


class Lock:
    """Hold the right to run in a folder, or to run one job, as a file in a folder that is created when needed."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._file: Path | None = None
        self._released = threading.Event()

    @property
    def owner(self) -> Owner | None:
        """Return the process that has the lock; None if nobody has it, or if its file cannot be read."""
        return lock_owners(self.folder).get(self.name)

    def acquire(self, wait: float = 0.0) -> bool:
        """Take the lock; return False if another process has it for longer than `wait` seconds.

        Raises OSError if the folder cannot be made.
        """
        deadline, failures = time.monotonic() + wait, 0
        while True:
            try:
                if self._try():
                    return True
                if time.monotonic() >= deadline:
                    return False
            except (FileNotFoundError, FileExistsError):  # the last owner may just have removed the empty folder
                failures += 1
                if failures == 3:
                    raise
            time.sleep(random.uniform(POLL / 3, POLL))  # so that two do not step back for each other for ever

    def release(self) -> None:
        """Release the lock; do nothing if it is not held."""
        self._released.set()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None

    def _try(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        dead = self._entries()
        if _living(self.folder, dead):
            return False
        number = 1 + max((int(entry.rpartition(".")[2]) for entry in dead), default=0)
        file = self.folder / f"{self.name}.{number}"
        try:
            with naming(file), open(file, "x", encoding="utf-8") as stream:
                json.dump(asdict(_this_process()), stream)
        except FileExistsError:
            return False
        except OSError:
            file.unlink(missing_ok=True)
            raise
        # A process that listed the folder earlier may have taken another number since: then this one steps back.
        others = self._entries() - {file.name}
        if _living(self.folder, others):
            file.unlink(missing_ok=True)
            return False
        for entry in others:
            (self.folder / entry).unlink(missing_ok=True)
        self._file = file
        self._released = threading.Event()
        threading.Thread(target=self._beat, args=(file, self._released), daemon=True).start()
        return True

    def _entries(self) -> set[str]:
        return {entry for entry in os.listdir(self.folder) if _name(entry) == self.name}

    def _beat(self, file: Path, released: threading.Event) -> None:
        """Give signs of life until released; end the process if another one has removed the file."""
        while not released.wait(HEARTBEAT):
            try:
                os.utime(file)
            except FileNotFoundError:
                if not released.is_set():
                    print(f"another process took the lock of {self.name}: stopping", file=sys.stderr, flush=True)
                    os._exit(EXIT_BUSY)
                return
            except OSError:  # a file server that does not answer for a moment
                continue
