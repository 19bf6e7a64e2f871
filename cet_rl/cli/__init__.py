"""The command line: one module for each command, imported when it is called."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cet_rl import __version__
from cet_rl.runs.values import flag, in_words, unknown

if TYPE_CHECKING:
    from cet_rl.cli.options import Option

T = TypeVar("T")

COMMANDS = {
    **{name: name for name in ("train", "sweep", "tune", "plot", "export", "report", "traces", "rules", "bench")},
    **{"eval": "evaluate", "list": "listing", "completion": "completion"},
}
"""The commands, each with the module that runs it."""

_NO_VALUE = r"""(?:-\w/)?(--[\w-]+): .*?(['"].*['"]).*|invalid choice ('.*') for argument '(--[\w-]+)'.*"""
"""What tyro says of a value that an option cannot have."""

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default that of `sys.argv`, and return the exit status.

    It is 1 if jobs of a sweep have failed, 2 for bad input (with one line on stderr), 130 after Ctrl-C, else 0.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        prepare_output()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(Path(__file__).with_name("usage.txt").read_text(encoding="utf-8"), end="")
        return 0 if arguments else EXIT_BAD_INPUT
    if arguments[0] in ("-V", "--version"):
        print(f"cet-rl {__version__}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        return refuse(str(unknown("command", command, COMMANDS)))
    try:
        return int(importlib.import_module(f"cet_rl.cli.{COMMANDS[command]}").run(arguments[1:]))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        too_large = isinstance(error, MemoryError) or all(word in str(error) for word in ("memory", "alloc"))
        if os.environ.get("CET_RL_TRACEBACK") or (isinstance(error, RuntimeError) and not too_large):
            raise
        file = error.filename if isinstance(error, OSError) else None
        reason = f"{file}: {error.strerror}" if file else " ".join(str(error).split())  # type: ignore[union-attr]
        return refuse("this takes more memory than there is: " * too_large + reason)


class _Output(io.FileIO):
    """Write to a file descriptor, and discard the output once its reader has closed the pipe."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())
            return len(data)


def prepare_output() -> None:
    """Let a command continue when the reader of its output has closed the pipe; print ? for unknown characters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # its file descriptor is closed
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
            continue
        with contextlib.suppress(AttributeError, OSError, ValueError):  # streams without a file descriptor
            buffer = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
            lines = name == "stderr" or stream.line_buffering
            text = io.TextIOWrapper(buffer, stream.encoding, "replace", None, lines, stream.write_through)
            setattr(sys, name, text)


def refuse(reason: str) -> int:
    """Print an error as one line on stderr, and return the exit status for bad input."""
    print(f"cet-rl: error: {reason}", file=sys.stderr)
    return EXIT_BAD_INPUT


def parse(kind: type[T], arguments: Sequence[str], prog: str) -> T:
    """Parse a command's arguments into a dataclass, whose docstring heads its `--help`; see `parse_into`."""
    from cet_rl.cli.options import long_names, options_of  # 0.1 s, not needed for `cet-rl --help`

    return kind(**parse_into({"": options_of(kind)}, long_names(arguments), prog, str(kind.__doc__)))


def parse_into(
    groups: Mapping[str, Mapping[str, Option]], arguments: Sequence[str], prog: str, description: str
) -> dict[str, Any]:
    """Return the values of a command's options by name; raise ValueError with one line for bad arguments.

    `--help` prints the help and exits. It shows `prog`, the command as it is typed; the description; the options
    in their groups; and the examples, which follow a line "Examples:" in the description.
    """
    from cet_rl.cli.options import parse_groups

    known = {"help", *(name for options in groups.values() for name in options)}
    for name in options_among(arguments):
        if name not in known and name.removeprefix("no_") not in known:
            prefix = "no_" * name.startswith("no_")
            raise unknown("option", flag(name), [flag(prefix + n) for n in sorted(known)], f"see {prog} --help")
    # tyro prints the help into `shown`, with colours if the terminal has them; the description is wrapped here.
    shown, printed = io.TextIOWrapper(io.BytesIO(), sys.stdout.encoding, "replace"), io.StringIO()
    shown.isatty = sys.stdout.isatty  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(printed):
            return parse_groups(groups, arguments, prog, "DESCRIPTION")
    except SystemExit as stop:
        if not stop.code:
            text, *examples = re.split(r"\n\n(?=Examples:\n)", inspect.cleandoc(description))
            width = shutil.get_terminal_size().columns
            wrapped = "\n\n".join(textwrap.fill(" ".join(part.split()), width) for part in text.split("\n\n"))
            shown.seek(0)
            print("\n\n".join([shown.read().replace("DESCRIPTION", wrapped, 1).rstrip(), *examples]))
            raise
        reason = _one_line(printed.getvalue()) or "these arguments do not fit"
        flags = {flag(name): option for options in groups.values() for name, option in options.items()}
        if found := re.fullmatch(_NO_VALUE, reason):
            option, value = found[1] or found[4], found[2] or found[3]
            reason = f"{option} must be {in_words(flags[option].hint).removesuffix(' or none')}, got {value}"
        elif found := re.fullmatch(r"Unrecognized options: (.*)", reason):
            words = [prog, "[OPTIONS]", *(str(option.word) for option in flags.values() if option.is_positional)]
            reason = f"unexpected {found[1]}: usage is {' '.join(words)}"
        elif reason.startswith("Missing from"):  # the help of each missing option follows
            labels = [str(one.word if one.is_positional else f"{name} {one.word}") for name, one in flags.items()]
            reason = f"{prog} needs {' and '.join(each for each in labels if each in reason)}; see {prog} --help"
        raise ValueError(reason) from None


def options_among(arguments: Sequence[str]) -> list[str]:
    """Return the names of the options in the arguments, as names of fields; for a --no- option with no_ before."""
    return [word[2:].split("=")[0].replace("-", "_") for word in arguments if word.startswith("--")]


def _one_line(box: str) -> str:
    """Return the error in tyro's box of title, error, rule and hints; without Unicode a rule follows the title."""
    texts = [line.strip("│╰╯╭╮ \t") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    _title, *rest = [text for text in texts if text] or [""]
    blocks = re.split(r"(?m)^[─-]+$|^Got errors.*$", "\n".join(rest))
    words = next((block.split() for block in blocks if block.strip()), [])
    return re.sub(r"^Error parsing (?:[A-Za-z]+: )?", "", " ".join(words))
