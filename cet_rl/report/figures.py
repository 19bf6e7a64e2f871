"""All figures of a report, drawn by several processes where there are several studies and processors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from cet_rl.report.arms import Study
from cet_rl.report.curves import alignment, learning_curves
from cet_rl.report.drawing import Picture, drawing
from cet_rl.report.heatmap import heatmap
from cet_rl.report.kernels import kernels
from cet_rl.report.scores import scores
from cet_rl.sweeps.launcher import processors

FIGURES: tuple[Callable[[Study], list[Picture]], ...] = (heatmap, scores, learning_curves, alignment, kernels)
"""In the order of the page; each returns no picture where there is nothing to draw."""

MOST_PROCESSES = 4
"""Each takes some 200 MB."""


def draw_all(studies: Sequence[Study]) -> Iterator[list[Picture]]:
    """The pictures of each study, in turn: the same ones however many processes draw."""
    count = _processes(len(studies))
    if count == 1:
        yield from map(draw, studies)
        return
    context = multiprocessing.get_context("fork")  # a new process would have to import and to read everything anew
    processes, readers = [], []
    drawn: dict[int, list[Picture]] = {}
    try:
        for first in range(count):
            reader, writer = context.Pipe(duplex=False)
            share = {place: studies[place] for place in range(first, len(studies), count)}
            process = context.Process(target=_draw_share, args=(share, reader, writer), daemon=True)
            process.start()
            writer.close()  # so that its end is seen here
            processes.append(process)
            readers.append(reader)
        for place, study in enumerate(studies):
            while place not in drawn and readers:
                ready = wait(readers)
                for reader in [each for each in readers if each in ready]:
                    try:
                        drawn.update([reader.recv()])
                    except (EOFError, OSError):  # it is done, or was killed
                        readers.remove(reader)
            yield drawn.pop(place) if place in drawn else draw(study)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def draw(study: Study) -> list[Picture]:
    """The pictures of one study."""
    with drawing():
        return [picture for figure in FIGURES for picture in figure(study)]


def _processes(studies: int) -> int:
    """How many processes draw; 1 is this one alone.

    One for each study at most: its estimates and floors, which several figures show, are then computed once.
    """
    # A lock that another thread holds while a process forks is never released there; and torch's threads are lost.
    threads = threading.active_count() > 1 or "torch" in sys.modules
    if sys.platform != "linux" or threads or multiprocessing.current_process().daemon:
        return 1
    free = (os.cpu_count() or 1) - round(os.getloadavg()[0])  # where all are busy, more processes gain nothing
    return max(1, min(free, processors(), studies, MOST_PROCESSES))


def _draw_share(share: dict[int, Study], reader: Connection, writer: Connection) -> None:
    """In a process of its own: send the place and the pictures of each of these studies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that waits, which ends the others
    reader.close()  # so that the end of that one is seen here
    with suppress(Exception):  # what cannot be drawn here, is drawn there: and fails there, if it does
        for place, study in share.items():
            writer.send((place, draw(study)))
