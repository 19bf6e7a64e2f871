"""Checkpoints that survive: written whole or not at all, the last two kept, damage noticed, the good one used."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import zipfile
from contextlib import contextmanager

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

from cet_rl.runs import archive, files
from cet_rl.runs.checkpoint import Checkpoints
from cet_rl.runs.events import purge_events
from cet_rl.runs.folder import MetricsTable, RunFolder

CONFIG = {"task": "some", "lr": 0.1, "hidden": [4]}


def writing(step):
    """Of a learner that has come so far."""
    return lambda path: archive.write(path, {"step": step}, {"w": torch.full((50,), float(step))}, what="network")


def step_of(path):
    data, tensors = archive.read(path, what="network")
    assert (tensors["w"] == data["step"]).all()
    return data["step"]


@pytest.fixture
def kept(tmp_path):
    """Checkpoints at steps 1, 2 and 3: the last two of them."""
    checkpoints = Checkpoints(tmp_path / "network.zip")
    for step in (1, 2, 3):
        checkpoints.save(writing(step), CONFIG, {"step": step})
    return checkpoints


def test_the_last_two_are_kept(kept, tmp_path):
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.previous.zip", "network.zip"]
    assert kept.find(CONFIG) == kept.newest
    assert (step_of(kept.newest), step_of(kept.previous)) == (3, 2)
    assert kept.carried(kept.newest) == {"step": 3}
    with zipfile.ZipFile(kept.newest) as archive:
        assert archive.testzip() is None


def test_equal_contents_are_equal_files(tmp_path):
    for name in ("a", "b"):
        Checkpoints(tmp_path / name / "network.zip").save(writing(1), CONFIG, {"step": 1})
    assert (tmp_path / "a/network.zip").read_bytes() == (tmp_path / "b/network.zip").read_bytes()


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def rewrite(path, **changes):
    """With a digest, as the package would."""
    data, tensors = archive.read(path, what="network")
    archive.write(path, {**data, **changes}, tensors, what="network")


DAMAGES = {
    "cut in half": cut,
    "cut at the end": lambda path: cut(path, 0.999),
    "empty": lambda path: path.write_bytes(b""),
    "a bit of the header": lambda path: flip(path, 0),
    "a bit in the middle": flip,
    "a bit of the digest": lambda path: flip(path, 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "something else": lambda path: path.write_bytes(b"hello"),
    "an agent": lambda path: archive.write(path, {}, {}, what="agent"),
    "gone": lambda path: path.unlink(),
    "another run's": lambda path: Checkpoints(path).save(writing(9), {**CONFIG, "lr": 0.2}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_told_of_once_and_the_one_before_is_used(kept, damage, caplog):
    DAMAGES[damage](kept.newest)
    if damage == "another run's":  # nor did that put a good one in the place of the previous
        Checkpoints(kept.previous).save(writing(2), CONFIG)
    assert kept.find(CONFIG) == kept.previous
    assert kept.find(CONFIG) == kept.previous
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (damage != "gone")
    for line in told:
        assert line.startswith(str(kept.newest))
        assert line.endswith(f"; using {kept.previous}")
        assert "\n" not in line
    kept.save(writing(4), CONFIG)
    assert step_of(kept.newest) == 4
    assert step_of(kept.previous) == 2  # not the damaged one
    assert kept.find(CONFIG) == kept.newest


def test_every_single_byte_counts(kept):
    content = kept.newest.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 300)):
        kept.newest.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
        with pytest.raises(archive.DamagedFileError):
            archive.check(kept.newest, what="network")


@pytest.mark.parametrize("damage", ["cut in half", "another run's"])
def test_without_a_good_one_it_is_an_error_and_nothing_is_lost(kept, damage, tmp_path):
    DAMAGES[damage](kept.newest)
    cut(kept.previous)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    reason = (
        "no cet-rl network file" if damage == "cut in half" else r"another configuration \(lr 0\.2 there, 0\.1 h"
    )
    with pytest.raises(ValueError, match=rf"network\.zip is .*{reason}.*; .*network\.previous\.zip is damaged"):
        kept.find(CONFIG)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("which", ["newest", "previous"])
def test_one_from_a_newer_version_is_an_error_and_not_passed_over(kept, which):
    rewrite(getattr(kept, which), format_version=archive.VERSION + 1)
    if which == "previous":
        cut(kept.newest)
    with pytest.raises(ValueError, match=r"has format version 3, this cet-rl reads version 2"):
        kept.find(CONFIG)


def test_files_of_the_first_version_are_still_read(kept):
    """They have no digest; the checksums that zip archives have are all there is."""
    with zipfile.ZipFile(kept.newest, "w") as archive:
        header = {"format": "cet-rl network", "format_version": 1, "step": 5}
        archive.writestr("network.json", json.dumps(header))
        archive.writestr("tensors.safetensors", to_bytes({"w": torch.full((50,), 5.0)}))
    assert kept.find(CONFIG) == kept.newest
    assert step_of(kept.newest) == 5
    assert kept.carried(kept.newest) is None
    content = kept.newest.read_bytes()
    place = content.index(bytes(torch.full((1,), 5.0).numpy().tobytes() * 4))
    kept.newest.write_bytes(content[:place] + b"\1" + content[place + 1 :])
    assert kept.find(CONFIG) == kept.previous


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("moment", [0, 1, 2, 3])
def test_killed_while_writing(kept, monkeypatch, moment):
    """Before the new file is there, before it is whole, between the two renames, and after them."""
    replace, count = os.replace, iter(range(9))

    def killed(*arguments):
        if next(count) == moment:
            raise Killed
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        if moment == 1:
            patch.setattr(archive, "attach", lambda *given, **named: killed())
        if moment < 3:
            with pytest.raises(Killed):
                kept.save(writing(4), CONFIG, {})
        else:
            kept.save(writing(4), CONFIG, {})
    found = Checkpoints(kept.newest)
    good = found.find(CONFIG)
    assert step_of(good) == (4 if moment == 3 else 3)
    found.save(writing(5), CONFIG, {})
    assert (step_of(found.newest), step_of(found.previous)) == (5, 4 if moment == 3 else 3)


@contextmanager
def room_for(length):
    """No file may become longer: what the system does is what it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("length", [0, 10, 300, 700, 1000])
def test_a_full_disk_costs_no_checkpoint(kept, length, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before[kept.newest]) > 1000
    words = r"cannot write checkpoint .*network\.zip: .*too large; the checkpoints before it are as they were"
    with pytest.raises(OSError, match=words) as error, room_for(length):
        kept.save(writing(4), CONFIG, {"step": 4})
    assert "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_costs_no_checkpoint(kept, number, monkeypatch, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(path, mode="r", **options):
        if "w" in mode:
            raise OSError(number, os.strerror(number), str(path))
        return open(path, mode, **options)

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(OSError, match=rf"network\.zip: {os.strerror(number)}; the checkpoints before"):
        kept.save(writing(4), CONFIG, {})
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_what_cannot_be_encoded_is_named_and_costs_no_checkpoint(kept):
    with pytest.raises(ValueError, match="state/env is of type object"):
        kept.save(writing(4), CONFIG, {"env": object()})
    assert step_of(kept.find(CONFIG)) == 3


def folder_at(path, config=CONFIG):
    folder = RunFolder(path, "network.zip")
    return folder, folder.claim(config, resume=True)


def test_a_run_folder_finds_the_good_one(tmp_path, caplog):
    folder, state = folder_at(tmp_path / "run")
    assert state == "fresh"
    assert folder.checkpoint_file == folder.path / "checkpoint" / "network.zip"
    for step in (1, 2):
        folder.save_checkpoint(writing(step))
    assert step_of(folder.checkpoint_file) == 2
    cut(folder.checkpoint_file)
    (folder.path / "checkpoint" / ".network.99.tmp.zip").write_bytes(b"half")
    again, state = folder_at(tmp_path / "run")
    assert state == "resumed"
    assert step_of(again.checkpoint_file) == 1
    assert len(caplog.records) == 1
    assert not (folder.path / "checkpoint" / ".network.99.tmp.zip").exists()


def test_a_configuration_edited_between_two_goes_is_named(tmp_path):
    folder, _ = folder_at(tmp_path / "run")
    folder.save_checkpoint(writing(1))
    folder.config_file.write_text(yaml.safe_dump({**CONFIG, "lr": 0.3, "device": "cuda", "threads": 4}))
    with pytest.raises(ValueError, match=r"another configuration \(lr 0\.1 there, 0\.3 here\)"):
        folder_at(tmp_path / "run", {**CONFIG, "lr": 0.3})


def test_half_a_row_of_metrics_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path)
    for step in (10, 20, 30):
        table.add({MetricsTable.STEP: step, "a": step / 7, "eval/a": 1.0})
    whole = path.read_text()
    path.write_text(whole + "1")  # of 100
    MetricsTable(path, 20)
    assert path.read_text().splitlines() == [
        "time/total_timesteps,a,eval/a",
        f"10,{10 / 7},",
        f"20,{20 / 7},",
    ]


@given(st.binary(max_size=60), st.integers(0, 400))
def test_event_files_of_any_contents_are_purged_or_left(tmp_path_factory, garbage, place):
    folder = tmp_path_factory.mktemp("run")
    file = folder / "events.out.tfevents.1"
    good = EVENTS
    file.write_bytes(good[:place] + garbage + good[place + len(garbage) :])
    assert purge_events(folder, 2)
    kept = file.read_bytes()
    purge_events(folder, 2)
    assert file.read_bytes() == kept


def events():
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    writer.write(Event(file_version="brain.Event:2").SerializeToString())
    for step in range(5):
        event = Event(step=step)
        event.summary.value.add(tag="eval/a" if step == 1 else "a", simple_value=step)
        writer.write(event.SerializeToString())
    return stream.getvalue()


EVENTS = events()


def test_events_after_the_checkpoint_and_evaluations_are_purged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert not purge_events(tmp_path, 3)
    (tmp_path / "events.out.tfevents.1").write_bytes(EVENTS[:-9])  # the last one half written
    assert purge_events(tmp_path, 3)
    found = EventAccumulator(str(tmp_path)).Reload()
    assert found.Tags()["scalars"] == ["a"]
    assert [(point.step, point.value) for point in found.Scalars("a")] == [(0, 0), (2, 2), (3, 3)]
