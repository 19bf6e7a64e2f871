"""Options from typed dataclasses, with errors of one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], *, prog: str, description: str, default: Any = None) -> T:
    """Parse a command's arguments into a dataclass; `--help` prints and exits.

    Raises:
        ValueError: for arguments that do not fit, in one line.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed: T = tyro.cli(kind, prog=prog, description=description, args=list(arguments), default=default)
            return parsed
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_one_line(printed.getvalue()) or "these arguments do not fit") from None


def _one_line(box: str) -> str:
    # tyro draws a box with a title, what is wrong, a rule, and hints. Only what is wrong is of interest.
    lines: list[str] = []
    text_only = re.sub(r"\x1b\[[0-9;]*m", "", box)
    for line in text_only.splitlines():
        if line.startswith("╭") or not line.strip("│╰╯ \t"):
            continue
        text = line.strip("│╰╯ \t")
        if set(text) <= {"─"} or text.startswith("Got errors"):
            break
        lines.append(text)
    meant = re.search(r"Perhaps you meant:\W+(--[a-z-]+)", text_only)
    hint = f"; did you mean {meant[1]}?" if meant else ""
    return re.sub(r"^Error parsing [A-Za-z]+: ", "", " ".join(lines)) + hint
