"""How a run ends: finished, interrupted or failed, and a summary that says which."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, Protocol

from cet_rl.runs.folder import Status
from cet_rl.runs.interrupt import Interruption


class Summarise(Protocol):
    """Write summary.json."""

    def __call__(self, status: Status, metrics: dict[str, Any], error: str | None = None) -> None:
        """With the results of the evaluation, and with what went wrong."""


def to_its_end(
    learn: Callable[[], Status], interruption: Interruption, summarise: Summarise, close: Callable[[], None]
) -> Status:
    """Learn, and leave a summary and closed files however that ends.

    Args:
        learn: to the end, or until it sees that an interruption is wanted; it writes the summary of either.
        interruption: that `learn` looks at. A second Ctrl-C ends the run without asking it.
        summarise: for what `learn` could not say.
        close: files and display, whatever has happened.

    Returns:
        "finished" or "interrupted".

    Raises:
        Exception: what `learn` raised; the summary says "failed", if it can be written.
    """
    try:
        with interruption.watched():
            return learn()
    except KeyboardInterrupt:
        summarise("interrupted", {})
        return "interrupted"
    except Exception as error:
        with suppress(OSError):  # what went wrong is what there is to tell
            summarise("failed", {}, error=f"{type(error).__name__}: {error}")
        raise
    finally:
        with suppress(OSError) if sys.exc_info()[0] else nullcontext():
            close()
