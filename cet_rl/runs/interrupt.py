"""Ctrl-C as a wish that a run grants when nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Turns the first SIGINT or SIGTERM into a wish to stop; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.wanted = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listen for as long as the block runs. Only a process's main thread can; in others, nothing is heard."""
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
