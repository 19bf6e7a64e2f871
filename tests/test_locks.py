"""Who runs in a folder: one process at a time, whatever becomes of it."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from unittest.mock import Mock

import pytest

from cet_rl.runs import lock as locks
from cet_rl.runs.lock import EXIT_BUSY, Lock, lock_owners


def leave_lock(folder, name="job", number=1, age=0.0, **changes):
    """A lock as another process may have left it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.{number}"
    file.write_text(json.dumps(asdict(replace(locks._this_process(), **changes))))
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def a_dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def start_owner(folder):
    """A process that holds the lock, and gives a sign of life every 20 ms."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom cet_rl.runs import lock\nlock.HEARTBEAT = 0.02\n"
        "assert lock.Lock(Path(sys.argv[1]), 'job').acquire(); print('has it', flush=True); time.sleep(600)"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], text=True, **pipes)
    assert process.stdout.readline() == "has it\n"
    return process


def test_one_of_two_has_the_lock(tmp_path, monkeypatch):
    first, second = Lock(tmp_path / "locks", "job"), Lock(tmp_path / "locks", "job")
    assert first.acquire()
    assert not second.acquire()
    assert lock_owners(tmp_path / "locks").keys() == {"job"}
    assert str(second.owner).endswith(f"process {os.getpid()}")
    assert Lock(tmp_path / "locks", "job.1").acquire()  # another job
    threading.Timer(0.2, first.release).start()
    assert second.acquire(wait=20)
    second.release()
    assert lock_owners(tmp_path / "locks").keys() == {"job.1"}
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as after a fork
    assert locks._this_process().pid == 1


def test_a_killed_owners_lock_is_free_at_once(tmp_path):
    owner = start_owner(tmp_path)
    assert not Lock(tmp_path, "job").acquire()
    os.kill(owner.pid, signal.SIGKILL)
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie until its parent waits for it
    began = time.monotonic()
    assert Lock(tmp_path, "job").acquire()
    assert time.monotonic() - began < 0.1
    owner.communicate()


@pytest.mark.parametrize(
    ("changes", "age", "held"),
    [
        ({}, 10_000, True),  # its process lives, though it has been suspended
        ({"pid": a_dead_process()}, 0, False),
        ({"started": 12345}, 0, False),  # the number has gone to another process
        ({"started": None}, 0, True),
        ({"started": None}, 10_000, False),
        ({"boot": "an earlier one"}, 0, False),
        ({"namespace": 5}, 0, True),  # another container on this machine
        ({"namespace": 5}, 10_000, False),
        ({"host": "another"}, 200, True),
        ({"host": "another"}, 400, False),
        ({"machine": "another", "boot": "another", "pid": 1}, 200, True),  # of the same name
    ],
)
def test_a_dead_owners_lock_is_broken(tmp_path, changes, age, held):
    if not locks._this_process().machine:
        changes = {"boot": changes["boot"], "machine": ""} if "boot" in changes else changes
        held = held or "boot" in changes
    file = leave_lock(tmp_path / "locks", age=age, **changes)
    lock = Lock(tmp_path / "locks", "job")
    assert (lock_owners(tmp_path / "locks").keys() == {"job"}) == held
    assert lock.acquire() != held
    assert file.exists() == held
    lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_cannot_be_read_counts_by_its_age(tmp_path, text):
    (tmp_path / "job.3").write_text(text)
    assert not Lock(tmp_path, "job").acquire()
    os.utime(tmp_path / "job.3", (time.time() - 400,) * 2)
    assert Lock(tmp_path, "job").acquire()
    assert [path.name for path in tmp_path.glob("job*")] == ["job.4"]


def test_of_many_who_find_a_dead_owners_lock_one_takes_it(tmp_path):
    dead, start = a_dead_process(), threading.Barrier(8)

    def contend(lock):
        start.wait()
        return lock.acquire()

    with ThreadPoolExecutor(8) as pool:
        for folder in [tmp_path / str(number) for number in range(20)]:
            leave_lock(folder, pid=dead)
            assert sum(pool.map(contend, [Lock(folder, "job") for _ in range(8)])) == 1
            assert len(list(folder.glob("job.*"))) == 1


def test_a_lock_whose_folder_is_removed_meanwhile_is_taken_all_the_same(tmp_path, monkeypatch):
    def after_the_last_owner_has_left(folder, listdir=os.listdir):
        monkeypatch.undo()
        os.rmdir(folder)
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", after_the_last_owner_has_left)
    assert Lock(tmp_path / "lock", "run").acquire(wait=20)


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.json, "dump", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device: '.*job\.1'"):
        Lock(tmp_path, "job").acquire()
    assert not list(tmp_path.iterdir())


def test_one_who_looked_too_long_ago_steps_back(tmp_path, monkeypatch):
    """While it looks at a dead owner's lock, others break it and end, and a third takes one of another number."""
    leave_lock(tmp_path, pid=a_dead_process(), number=5)
    late = Lock(tmp_path, "job")
    looked = locks._living

    def and_then(folder, entries):
        found = looked(folder, entries)
        monkeypatch.setattr(locks, "_living", looked)
        (tmp_path / "job.5").unlink()
        assert Lock(tmp_path, "job").acquire()
        return found

    monkeypatch.setattr(locks, "_living", and_then)
    assert not late.acquire()
    assert [path.name for path in tmp_path.glob("job*")] == ["job.1"]


def test_an_owner_gives_signs_of_life_and_ends_when_its_lock_is_gone(tmp_path):
    owner, file, deadline = start_owner(tmp_path), tmp_path / "job.1", time.monotonic() + 20
    os.utime(file, (0, 0))
    while file.stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert owner.poll() is None
    file.unlink()
    _, err = owner.communicate(timeout=20)
    assert owner.returncode == EXIT_BUSY
    assert "another process took the lock of job: stopping" in err
