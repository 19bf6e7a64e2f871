"""The terminal of a run: progress on stderr, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Show progress, a number that says how well the run goes, speed and time left, on stderr.

    In a terminal this is a bar, elsewhere a line for every tenth of the run.

    Args:
        total: steps of the whole run.
        unit: name of the steps: "samples", "updates".
        shows: name of the number: "return", "loss".
        digits: digits of the number after its decimal point.
    """

    def __init__(self, total: int, *, unit: str, shows: str, digits: int) -> None:
        self.total, self.unit, self.shows, self.digits = total, unit, shows, digits
        self._shown = 0.0
        self._bar: Progress | None = None

    def start(self, first: int) -> None:
        """Begin at step `first`."""
        self._began, self._first = time.monotonic(), first
        self._next_line = first + self.total / 10
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn(f"{self.shows} {{task.fields[number]}}"),
                TextColumn(f"{{task.fields[speed]:,.0f}} {self.unit}/s"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("learning", total=self.total, number="-", speed=0.0)
            self._bar.start()

    def update(self, step: int, number: float | None) -> None:
        """Show step and number, unless the display has just been updated."""
        now = time.monotonic()
        speed = (step - self._first) / max(now - self._began, 1e-9)
        shown = "-" if number is None else f"{number:.{self.digits}f}"
        made = min(step, self.total)
        if self._bar is not None:
            if now - self._shown > 0.1 or step >= self.total:
                self._shown = now
                self._bar.update(self._task, completed=made, number=shown, speed=speed)
        elif step >= self._next_line:
            self._next_line += self.total / 10
            print(
                f"{made:>12,} of {self.total:,} {self.unit}   {self.shows} {shown:>7}   {speed:,.0f} {self.unit}/s"
                f"   {(self.total - made) / speed:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Restore the terminal, however the run ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Interruption:
    """Turn the first SIGINT or SIGTERM into a request that the run looks at; a second SIGINT stops it at once.

    Attributes:
        wanted: whether the run has been asked to stop.
    """

    def __init__(self) -> None:
        self.wanted = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listen while the block runs; only in the main thread of a process, as others get no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
