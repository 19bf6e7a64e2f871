"""Locks that say who runs in a folder, or a cell of a sweep, on one machine or on many that share it.

A lock is a file `NAME.NUMBER` that holds who made it. Taking one creates the next number exclusively, so of
several who find no lock, or the same dead owner's, one succeeds. That relies on exclusive creation (O_EXCL) being
atomic, as on every local file system, NFS from version 3, Lustre, GPFS and BeeGFS; `flock`, which some of these
keep to one machine without saying so, is not needed.

Whether an owner is dead is seen in one of three ways. On its own machine by its process, at once; if the machine
has been started anew since, at once as well. From another machine, by its heartbeat: it touches the file every
30 s and counts as dead after 300 s, by the clock of the file system, so clocks of machines need not agree. An
owner that was held up for longer finds its lock gone, and exits on the spot, lest two write into one folder.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

HEARTBEAT = 30.0
"""Seconds between two signs of life."""
PATIENCE = 300.0
"""Seconds without one after which an owner on another machine counts as dead."""
EXIT_BUSY = 75
"""Exit status of a worker whose cell is another's."""


@dataclass(frozen=True)
class Owner:
    """A process, told from all others.

    Attributes:
        host: name of its machine.
        machine: identity of the machine's installation; empty if unknown.
        boot: identity of the time since it was last started; empty if unknown.
        space: number of the name space that `pid` counts in, which each container has its own of.
        pid: process number.
        started: when the process started, in clock ticks since boot; None if unknown.
    """

    host: str
    machine: str
    boot: str
    space: int
    pid: int
    started: int | None

    def __str__(self) -> str:
        """Host and process, for people."""
        return f"{self.host}, process {self.pid}"


@cache
def _this_process() -> Owner:
    pid = os.getpid()
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    boot, machine = (_line(file) for file in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"))
    return Owner(platform.node(), machine, boot, space, pid, _started(pid))


def _line(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _started(pid: int) -> int | None:
    """When a process of this machine started; None where /proc does not say, 0 if it has ended and is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        return True
    return True


def _alive(owner: Owner | None, age: float) -> bool:
    """Whether the owner of a lock still runs.

    Args:
        owner: as the lock says; None if it says nothing legible.
        age: seconds since the last sign of life.
    """
    here = _this_process()
    if owner is not None and (owner.host, owner.machine) == (here.host, here.machine):
        if (owner.boot, owner.space) == (here.boot, here.space):
            known = owner.started is not None
            return _runs(owner.pid) and (_started(owner.pid) == owner.started if known else age < PATIENCE)
        if owner.machine and owner.boot and owner.boot != here.boot:
            return False
    return age < PATIENCE


def holders(folder: Path) -> dict[str, Owner | None]:
    """Names of the locks in a folder whose owners are alive, and the owners; None for one that is not legible."""
    try:
        entries = os.listdir(folder)
    except FileNotFoundError:
        return {}
    return _living(folder, [entry for entry in entries if _name(entry)])


def _living(folder: Path, entries: Iterable[str]) -> dict[str, Owner | None]:
    found: dict[str, Owner | None] = {}
    now: float | None = None
    for entry in entries:
        try:
            owner, touched = _read(folder / entry), os.stat(folder / entry).st_mtime
        except FileNotFoundError:  # released in this moment
            continue
        now = _clock(folder) if now is None else now
        if _alive(owner, now - touched):
            found[_name(entry)] = owner
    return found


def _name(entry: str) -> str:
    """What a file is the lock of; empty if it is none."""
    name, _, number = entry.rpartition(".")
    return name if number.isdigit() else ""


def _read(file: Path) -> Owner | None:
    try:
        return Owner(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError):
        return None


def _clock(folder: Path) -> float:
    """The time as the file system has it, which stamps the signs of life."""
    probe = folder / ".clock"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # a folder that may only be read
        return time.time()


class Lock:
    """The right to run one cell, or in one folder.

    Args:
        folder: of all locks; made when it is needed.
        name: of what it is the right to.
        on_loss: called if the lock is gone although it was held; None to exit on the spot.
    """

    def __init__(self, folder: Path, name: str, on_loss: Callable[[], None] | None = None) -> None:
        self.folder, self.name = folder, name
        self._on_loss = on_loss or self._exit
        self._file: Path | None = None
        self._released = threading.Event()

    def acquire(self) -> bool:
        """Take the lock; False if another has it.

        Raises:
            OSError: if the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        dead = self._entries()
        if _living(self.folder, dead):
            return False
        number = 1 + max((int(entry.rpartition(".")[2]) for entry in dead), default=0)
        file = self.folder / f"{self.name}.{number}"
        try:
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            with open(descriptor, "w", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(_this_process())))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            file.unlink(missing_ok=True)
            raise
        # One who looked a while ago may have made a lock of another number: then this one steps back.
        others = self._entries() - {file.name}
        if _living(self.folder, others):
            file.unlink(missing_ok=True)
            return False
        for entry in others:
            (self.folder / entry).unlink(missing_ok=True)
        self._file = file
        threading.Thread(target=self._beat, args=(file,), daemon=True).start()
        return True

    def release(self) -> None:
        """Give it back; nothing happens if it is not held."""
        self._released.set()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None

    def _entries(self) -> set[str]:
        return {entry for entry in os.listdir(self.folder) if _name(entry) == self.name}

    def _beat(self, file: Path) -> None:
        while not self._released.wait(HEARTBEAT):
            try:
                os.utime(file)
            except FileNotFoundError:
                if not self._released.is_set():
                    self._on_loss()
                return
            except OSError:  # a file server that is away for a moment
                continue

    def _exit(self) -> None:
        print(f"the lock of {self.name} has been taken by another: stopping", file=sys.stderr, flush=True)
        os._exit(EXIT_BUSY)
