"""TensorBoard's files of a run that goes on: without what was logged after the checkpoint it goes on from."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from cet_rl.runs.files import replacing
from cet_rl.runs.folder import EVALUATED

_LENGTH, _CHECKSUM = 8, 4
"""Bytes of a record's length and of each of its two checksums."""


def purge_events(folder: Path, last_step: int) -> bool:
    """Drop from TensorBoard's files what a resumed run will log again.

    TensorBoard can be told to overlook such events, but only tools that read files in its way and order do.

    Args:
        folder: of the run.
        last_step: events later than this are dropped, and those of an evaluation at the end of the run.

    Returns:
        Whether there are any files.
    """
    files = sorted(folder.glob("events.out.tfevents.*"))
    for file in files:
        content = file.read_bytes()
        kept = b"".join(_kept(content, last_step))
        if kept != content:
            with replacing(file) as stream:
                stream.write(kept)
    return bool(files)


def _kept(content: bytes, last_step: int) -> Iterator[bytes]:
    """The records to keep; what follows the first one that is cut off or damaged is dropped."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

    start = 0
    while start + _LENGTH <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        first = start + _LENGTH + _CHECKSUM
        end = first + length + _CHECKSUM
        if end > len(content):
            return
        try:
            event = Event.FromString(content[first : first + length])
        except DecodeError:
            return
        if event.step <= last_step and not any(value.tag.startswith(EVALUATED) for value in event.summary.value):
            yield content[start:end]
        start = end
