"""Check values against the types of their fields, and suggest what an unknown name may have meant."""

from __future__ import annotations

import reprlib
import types
import typing
from collections.abc import Iterable
from difflib import SequenceMatcher
from numbers import Integral, Real
from typing import Annotated, Any, Literal

import numpy as np


def flag(name: str, value: object = None) -> str:
    """Return a field's name as an option of the command line: --alignment, or --no-alignment for False."""
    return "--" + "no-" * (value is False) + name.replace("_", "-")


def unknown(kind: str, name: object, known: Iterable[str], otherwise: str | None = None) -> ValueError:
    """Return the error for a name that does not exist: with the nearest that does, or `otherwise`, or all of them.

    `kind` is what the name stands for, as in "trace" or "mine.yaml: unknown key".
    """
    known = list(known)
    near = nearest(str(name), known)
    hint = f"did you mean {near}?" if near else otherwise or f"choose from {', '.join(known)}"
    return ValueError(f"{kind if 'unknown' in kind else f'unknown {kind}'} {name!r}; {hint}")


def in_a_line(error: Exception) -> str:
    """Return an error's message as one line of readable length, or its kind if it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def named_values(words: Iterable[str], option: str) -> dict[str, str]:
    """Return words such as ratio=3 by their names; ValueError for one without =, or a name that is given twice."""
    found: dict[str, str] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not (sign and name):
            raise ValueError(f"{option} takes name=value, got {word!r}")
        if name in found:
            raise ValueError(f"{option} gives {name} twice")
        found[name] = text
    return found


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the first known name that is most like this one, whatever its case; None if none is alike enough."""
    alike = {each: SequenceMatcher(None, each.lower(), name.lower()).ratio() for each in known}
    # Of equals, the one whose letters have only changed places: --delay for --dealy, not --decay.
    best = max(alike, key=lambda each: (alike[each], sorted(each) == sorted(name)), default=None)
    return best if best is not None and alike[best] > 0.65 else None


_TYPES: dict[Any, tuple[Any, str]] = {
    bool: ((bool, np.bool_), "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
    type(None): (type(None), "none"),
}
"""For each type of a field, the types of values that it takes, and the type in words."""


def checked(value: Any, hint: Any, where: str) -> Any:
    """Return a value as its field's type: whole numbers as float, lists as tuples, numpy's numbers as plain ones.

    Raises ValueError for a value of another type, with a message that begins with `where`.
    """
    try:
        return _convert(value, hint)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where} must be {in_words(hint)}, got {reprlib.repr(value)}") from None


def _convert(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return arguments[arguments.index(value)]
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (... not in arguments and len(value) != len(arguments)):
            raise TypeError
        return tuple(_convert(each, arguments[0]) for each in value)
    if origin in (typing.Union, types.UnionType):
        return None if value is None and type(None) in arguments else _convert(value, arguments[0])
    if not isinstance(value, _TYPES[hint][0]) or (isinstance(value, bool) and hint is not bool):
        raise TypeError
    # Of numbers of 32 bits their decimals are meant: 0.2, not 0.20000000298.
    return None if value is None else hint(str(value) if isinstance(value, np.floating) else value)


def in_words(hint: Any) -> str:
    """Return a field's type in words, such as "a whole number or none"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return in_words(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        number = "" if ... in arguments else f"{len(arguments)} "
        return f"a list of {number}{_TYPES[arguments[0]][1].removeprefix('a ')}s"
    return " or ".join(map(in_words, arguments)) if arguments else _TYPES[hint][1]
