"""Checkpoints and logs of runs: written whole or not at all, the last two kept, damage noticed, the good used."""

import errno
import os
import resource
import zipfile
from contextlib import contextmanager, suppress
from itertools import count
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import yaml
from saved_files import members, write_members
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from cet_rl.runs import archive, files
from cet_rl.runs.folder import MetricsTable, RunFolder
from cet_rl.runs.log import RunLog

CONFIG = {"task": "some", "lr": 0.1, "hidden": [4]}


def state(step):
    """Return the state of a learner at a step."""
    return {"step": step, "w": torch.full((50,), float(step))}


def step_of(path):
    found = archive.read(path, what="network")
    assert (found["w"] == found["step"]).all()
    return found["step"]


@pytest.fixture
def kept(tmp_path):
    """Checkpoints at steps 1, 2 and 3: the last two of them."""
    folder = RunFolder(tmp_path / "run", "network.zip")
    folder.open_for(CONFIG, resume=True)
    for step in (1, 2, 3):
        folder.save_checkpoint(state(step), {"step": step})
    return folder


def test_the_last_two_are_kept(kept):
    assert sorted(path.name for path in kept.newest.parent.iterdir()) == ["network.previous.zip", "network.zip"]
    assert kept.checkpoint_file == kept.newest
    assert (step_of(kept.newest), step_of(kept.previous), kept.runtime_state(kept.newest)) == (3, 2, {"step": 3})
    with zipfile.ZipFile(kept.newest) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == ["network.json", "network.safetensors", "run.json", "run.safetensors"]
    kept.save_checkpoint(state(3), {"step": 3})
    assert kept.newest.read_bytes() == kept.previous.read_bytes()  # equal contents are equal files
    kept.write_summary(metrics={}, status="interrupted")
    assert kept.open_for(CONFIG, resume=True)
    assert not kept.summary  # that of an earlier end


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "cut in half": cut,
    "cut at the end": lambda path: cut(path, 0.999),
    "empty": lambda path: path.write_bytes(b""),
    "a bit of the header": lambda path: flip(path, 0),
    "a bit of a number": lambda path: flip(path, 0.3),
    "something else": lambda path: path.write_bytes(b"hello"),
    "an agent": lambda path: archive.write(path, {}, what="agent"),
    "gone": lambda path: path.unlink(),
    "another run's": lambda path: archive.write(
        path, state(9), what="network", run={"config": {**CONFIG, "lr": 0.2}}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_told_of_once_and_the_one_before_is_used(kept, damage, caplog):
    DAMAGES[damage](kept.newest)
    assert kept.checkpoint_file == kept.previous
    assert kept.checkpoint_file == kept.previous
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (damage != "gone")
    for line in told:
        assert line.startswith(str(kept.newest))
        assert line.endswith(f"; using {kept.previous}")
        assert "\n" not in line
    kept.save_checkpoint(state(4))
    assert step_of(kept.newest) == 4
    assert step_of(kept.previous) == 2  # not the damaged one
    assert kept.checkpoint_file == kept.newest


def test_whichever_byte_is_damaged_the_numbers_are_right_or_it_is_refused(kept):
    """A zip archive has bytes without meaning to us, such as dates."""
    good, refused = kept.newest.read_bytes(), 0
    for place in range(len(good)):
        kept.newest.write_bytes(good[:place] + bytes([good[place] ^ 64]) + good[place + 1 :])
        try:
            found = kept.runtime_state(kept.newest)
        except archive.DamagedFileError:
            refused += 1
            continue
        assert (found, step_of(kept.newest)) == ({"step": 3}, 3)
    assert refused > 0.75 * len(good)


@pytest.mark.parametrize("damage", ["cut in half", "another run's"])
def test_without_a_good_one_it_is_an_error_and_nothing_is_lost(kept, damage):
    DAMAGES[damage](kept.newest)
    cut(kept.previous)
    before = {path: path.read_bytes() for path in kept.newest.parent.iterdir()}
    reason = (
        "no cet-rl network file" if damage == "cut in half" else r"another configuration \(lr 0\.2 there, 0\.1 h"
    )
    with pytest.raises(ValueError, match=rf"network\.zip is .*{reason}.*; .*network\.previous\.zip is damaged"):
        _ = kept.checkpoint_file
    assert before == {path: path.read_bytes() for path in kept.newest.parent.iterdir()}


@pytest.mark.parametrize("which", ["newest", "previous"])
def test_one_from_a_newer_version_is_an_error_and_not_passed_over(kept, which):
    found = members(getattr(kept, which))
    found["network"][0]["format_version"] = archive.VERSION + 1
    write_members(getattr(kept, which), found)
    if which == "previous":
        cut(kept.newest)
    with pytest.raises(
        ValueError, match=f"format version {archive.VERSION + 1}, this cet-rl reads version {archive.VERSION}"
    ):
        _ = kept.checkpoint_file


class Killed(BaseException):
    """Stand for the end of a process."""


@pytest.mark.parametrize("moment", range(4))
def test_killed_while_writing(kept, monkeypatch, moment):
    """Die before the new file is there, before each of the two renames, and after them."""
    replace, number = os.replace, count()

    def killed(*arguments):
        if next(number) == moment:
            raise Killed
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with suppress(Killed):
            kept.save_checkpoint(state(4), {})
    found = RunFolder(kept.path, "network.zip")
    assert step_of(found.checkpoint_file) == (4 if moment == 3 else 3)
    found.save_checkpoint(state(5), {})
    assert (step_of(found.newest), step_of(found.previous)) == (5, 4 if moment == 3 else 3)


@contextmanager
def room_for(length):
    """Let no file become longer: the system behaves as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused(number):
    """Let no file be opened for writing."""

    def refuse(path, mode="r", **options):
        if "w" in mode:
            raise OSError(number, os.strerror(number), str(path))
        return open(path, mode, **options)

    return patch.object(files, "open", refuse, create=True)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        *[(room_for(length), ".*too large") for length in (0, 10, 300, 900)],
        *[(refused(n), os.strerror(n)) for n in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT)],
    ],
)
def test_a_disk_that_is_full_or_cannot_be_written_costs_no_checkpoint(kept, fault, words):
    before = {path: path.read_bytes() for path in kept.newest.parent.iterdir()}
    assert len(before[kept.newest]) > 900
    words = rf"cannot write checkpoint .*network\.zip: {words}; the checkpoints before it are as they were"
    with pytest.raises(OSError, match=words) as error, fault:
        kept.save_checkpoint(state(4), {"step": 4})
    assert "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in kept.newest.parent.iterdir()}


def test_what_cannot_be_encoded_is_named_and_costs_no_checkpoint(kept):
    with pytest.raises(ValueError, match="runtime_state/env is of type object"):
        kept.save_checkpoint(state(4), {"env": object()})
    assert step_of(kept.checkpoint_file) == 3


def test_a_run_folder_finds_the_good_one(kept, caplog):
    cut(kept.newest)
    half = kept.newest.with_name(".network.99.tmp.zip")
    half.write_bytes(b"half")
    again = RunFolder(kept.path, "network.zip")
    assert again.open_for(CONFIG, resume=True)
    assert (step_of(again.checkpoint_file), len(caplog.records)) == (2, 1)
    assert not half.exists()
    edited = {**CONFIG, "lr": 0.3}
    kept.config_file.write_text(yaml.safe_dump({**edited, "device": "cuda", "threads": 4}))
    with pytest.raises(ValueError, match=r"another configuration \(lr 0\.1 there, 0\.3 here\)"):
        again.open_for(edited, resume=True)


def log_run(path, monkeypatch, last_step, values, evaluation):
    """Log a value a step in a run folder, resumed or not, and an evaluation at the last step."""
    clock = count(1000 + sum(1 for _ in path.glob("events*")))
    fake = SimpleNamespace(time=lambda: next(clock))
    monkeypatch.setattr(event_file_writer, "time", fake)  # files of one second have no order
    log = RunLog(RunFolder(path), last_step)
    for step, value in enumerate(values, (last_step or 0) + 1):
        log.add({"a": value, "nothing": float("nan")}, step)
    step = (last_step or 0) + len(values)
    log.add_evaluation({"b": evaluation}, step)
    log.close()


@pytest.mark.parametrize("last_step", [2, 4], ids=["from before the end", "while evaluating"])
def test_what_a_resumed_run_logs_again_is_shown_once(tmp_path, monkeypatch, last_step):
    log_run(tmp_path, monkeypatch, None, [1, 2, 3, 4], 5.0)
    first = sorted(tmp_path.glob("events*"))[0]
    first.write_bytes(first.read_bytes()[:-3])  # the process was killed while it wrote the last point
    log_run(tmp_path, monkeypatch, last_step, [7, 8][last_step - 2 :], 9.0)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(found.Tags()["scalars"]) == ["a", "eval/b"]
    shown = [1, 2, 7, 8] if last_step == 2 else [1, 2, 3]  # the damaged point
    assert [(point.step, point.value) for point in found.Scalars("a")] == list(enumerate(shown, 1))
    assert [(point.step, point.value) for point in found.Scalars("eval/b")] == [(4, 9)]
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "time/total_timesteps,a,eval/b"
    assert [float(line.split(",")[1]) for line in lines[1:]] == ([1, 2, 7, 8] if last_step == 2 else [1, 2, 3, 4])
    assert [line.split(",")[2] for line in lines[1:]] == ["", "", "", "9.0"]


def test_a_logged_zero_is_a_logged_number(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv")
    table.add({table.STEP: 5, "a": 0.0, "b": ""})
    for each in (table, MetricsTable(table.path, last_step=5)):
        assert [each.has(name, 5) for name in "abc"] == [True, False, False]
        assert not each.has("a", 4)


def test_a_run_killed_before_its_configuration_is_written_begins_again(tmp_path):
    folder, config = RunFolder(tmp_path / "run", "network.zip"), {"task": "digits"}
    with patch("cet_rl.runs.folder.write_text", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        folder.open_for(config, resume=False)
    assert not folder.open_for(config, resume=True)
    assert folder.checkpoint_file == folder.path / "checkpoint" / "network.zip"
