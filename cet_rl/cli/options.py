"""Read a command's options from a dataclass, and let tyro show them in groups and parse them."""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from itertools import pairwise
from typing import Annotated, Any

import tyro

from cet_rl.runs.values import flag

SHORT = {"-c": "--config", "-q": "--quiet", "-s": "--seed"}
"""Short names of common options."""

_WORDS = {int: "INT", float: "FLOAT", str: "TEXT"}
"""Names of the types in `--help`."""

_POSITIONAL: Any = tyro.conf.Positional[int]
_UNPREFIXED: Any = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True)
class Option:
    """Describe an option: its type with tyro's annotations, its default or `MISSING`, and its help."""

    hint: Any
    default: Any
    help: str

    @property
    def is_positional(self) -> bool:
        """Return whether the option is positional: given without its name."""
        return _POSITIONAL.__metadata__[0] in getattr(self.hint, "__metadata__", ())

    @property
    def word(self) -> str | None:
        """Return the word for its values in `--help`: its own metavar, or else that of its type, if any."""
        own = [getattr(each, "metavar", None) for each in getattr(self.hint, "__metadata__", ())]
        return next(filter(None, own), _word(self.hint))

    @property
    def shown_default(self) -> str:
        """Return the default as text; empty for None, whose meaning the help describes."""
        if self.default in (None, MISSING, ()):
            return "(required)" if self.default is MISSING else ""
        if isinstance(self.default, bool):
            return f"(default: {'on' if self.default else 'off'})"
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        shown = (f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        return f"(default: {' '.join(shown)})"


def long_names(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with short names of options replaced by long ones; raise ValueError for -s5 and -qs."""
    if odd := [word for word in arguments if word[:2] in SHORT and word[2:]]:
        raise ValueError(f"give a short option by itself, as in -s 5, got {odd[0]}")
    return [SHORT.get(word, word) for word in arguments]


def options_of(kind: type, defaults: Mapping[str, Any] | None = None) -> dict[str, Option]:
    """Return the fields of a dataclass as options by name; `defaults` override its own defaults."""
    hints, docs = typing.get_type_hints(kind, include_extras=True), _field_docs(kind)
    own = {item.name: item.default for item in fields(kind)} | dict(defaults or {})
    return {item.name: Option(hints[item.name], own[item.name], docs[item.name]) for item in fields(kind)}


def parse_groups(
    groups: Mapping[str, Mapping[str, Option]], arguments: Sequence[str], prog: str, description: str
) -> dict[str, Any]:
    """Return the values of all options by name, or exit as tyro does.

    `--help` shows a box for each group; above them are positional options and those of the group "".
    """
    parts: list[tuple[str, Any, Any]] = []
    for title, options in groups.items():
        boxed = {name: each for name, each in options.items() if title and not each.is_positional}
        parts += [_field(name, each) for name, each in options.items() if name not in boxed]
        if boxed:
            box: Any = make_dataclass(title, [_field(name, each) for name, each in boxed.items()])
            box.__doc__ = ""
            parts.append((title.replace(" ", "_"), _UNPREFIXED[box], field(default_factory=box)))
    root = make_dataclass("Options", parts, kw_only=True)
    parsed = vars(tyro.cli(root, args=list(arguments), prog=prog, description=description))
    boxes = [vars(part) for part in parsed.values() if is_dataclass(part)]
    return {name: value for part in (parsed, *boxes) for name, value in part.items() if not is_dataclass(value)}


def _field(name: str, option: Option) -> tuple[str, Any, Any]:
    """Return a field for tyro whose help is ours: tyro's would show None among the values and as a default."""
    short = tuple(key for key, long in SHORT.items() if long == flag(name))
    shown = tyro.conf.arg(
        metavar=option.word, help=option.help, help_behavior_hint=option.shown_default, aliases=short
    )
    default = field() if option.default is MISSING else field(default=option.default)
    return name, Annotated[option.hint, shown], default


def _word(hint: Any) -> str | None:
    """Return the word for values of a type, which may be optional; None if tyro's own word is good."""
    if typing.get_origin(hint) is Annotated:
        hint = hint.__origin__
    kinds = [each for each in typing.get_args(hint) if each is not type(None)]
    if type(None) in typing.get_args(hint) and len(kinds) == 1:
        (hint,) = kinds
    if typing.get_origin(hint) is tuple:
        return " ".join("..." if each is Ellipsis else _WORDS[each] for each in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return f"{{{','.join(map(str, typing.get_args(hint)))}}}"
    return _WORDS.get(hint)


def _field_docs(kind: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, base classes included, by the field's name."""
    found: dict[str, str] = {}
    for part in filter(is_dataclass, reversed(kind.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0].body  # type: ignore[attr-defined]
        for item, text in pairwise(body):
            match item, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=value)):
                    found[name] = " ".join(str(value).split())
    return found
