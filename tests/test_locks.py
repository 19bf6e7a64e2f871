"""Who runs a cell: one process at a time, whatever becomes of it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from dataclasses import replace

import pytest

from cet_rl.runs import lock as locks
from cet_rl.runs.lock import Lock, holders


def leave_lock(folder, name="cell", number=1, age=0.0, **changes):
    """A lock as another process may have left it."""
    folder.mkdir(exist_ok=True)
    owner = replace(locks._this_process(), **changes)
    file = folder / f"{name}.{number}"
    file.write_text(json.dumps(owner.__dict__))
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def a_dead_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_one_of_two_has_the_lock(tmp_path):
    first, second = Lock(tmp_path / "locks", "cell"), Lock(tmp_path / "locks", "cell")
    assert first.acquire()
    assert not second.acquire()
    assert holders(tmp_path / "locks").keys() == {"cell"}
    assert Lock(tmp_path / "locks", "cell.1").acquire()  # another cell
    first.release()
    assert second.acquire()
    second.release()
    assert holders(tmp_path / "locks").keys() == {"cell.1"}


@pytest.mark.parametrize(
    ("changes", "age", "held"),
    [
        ({}, 10_000, True),  # its process lives, though it has been suspended
        ({"pid": a_dead_process()}, 0, False),
        ({"started": 12345}, 0, False),  # the number has gone to another process
        ({"started": None}, 0, True),
        ({"started": None}, 10_000, False),
        ({"boot": "an earlier one"}, 0, False),
        ({"space": 5}, 0, True),  # another container on this machine
        ({"space": 5}, 10_000, False),
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
    lock = Lock(tmp_path / "locks", "cell")
    assert (holders(tmp_path / "locks").keys() == {"cell"}) == held
    assert lock.acquire() != held
    assert file.exists() == held
    lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_is_not_legible_counts_by_its_age(tmp_path, text):
    (tmp_path / "cell.3").write_text(text)
    assert not Lock(tmp_path, "cell").acquire()
    os.utime(tmp_path / "cell.3", (time.time() - 400,) * 2)
    assert Lock(tmp_path, "cell").acquire()
    assert [path.name for path in tmp_path.glob("cell*")] == ["cell.4"]


def test_of_many_who_find_a_dead_owners_lock_one_takes_it(tmp_path):
    dead = a_dead_process()
    for number in range(20):
        folder = tmp_path / str(number)
        leave_lock(folder, pid=dead)
        contenders = [Lock(folder, "cell") for _ in range(8)]
        start, won = threading.Barrier(8), []

        def contend(lock, start=start, won=won):
            start.wait()
            won.append(lock.acquire())

        threads = [threading.Thread(target=contend, args=(lock,)) for lock in contenders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(won) == 1
        assert len(list(folder.glob("cell.*"))) == 1


def test_one_who_looked_too_long_ago_steps_back(tmp_path, monkeypatch):
    """While it looks at a dead owner's lock, others break it and end, and a third takes one of another number."""
    leave_lock(tmp_path, pid=a_dead_process(), number=5)
    late = Lock(tmp_path, "cell")
    looked = locks._living

    def and_then(folder, entries):
        found = looked(folder, entries)
        monkeypatch.setattr(locks, "_living", looked)
        (tmp_path / "cell.5").unlink()
        assert Lock(tmp_path, "cell").acquire()
        return found

    monkeypatch.setattr(locks, "_living", and_then)
    assert not late.acquire()
    assert [path.name for path in tmp_path.glob("cell*")] == ["cell.1"]


def test_a_heartbeat_and_the_loss_of_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.02)
    lost = threading.Event()
    lock = Lock(tmp_path, "cell", on_loss=lost.set)
    assert lock.acquire()
    os.utime(tmp_path / "cell.1", (0, 0))
    deadline = time.monotonic() + 10
    while (tmp_path / "cell.1").stat().st_mtime == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not lost.is_set()
    (tmp_path / "cell.1").unlink()
    assert lost.wait(10)
    kept = Lock(tmp_path, "cell", on_loss=pytest.fail)
    assert kept.acquire()
    kept.release()
    time.sleep(0.05)
