"""Import code by name: plugins of other packages, modules that a user names, and public names on first use.

A package with agents, environments, data sets, traces, learning rules or sequence tasks of its own names a
function in its `pyproject.toml`,

    [project.entry-points."cet_rl.plugins"]
    mine = "my_package.cet_rl_plugin:register"

which calls `register_agent`, `register_env`, `register_dataset`, `register_trace`, `register_rule` and
`register_task`. It runs once, before any of these is first looked up.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

GROUP = "cet_rl.plugins"

_loaded = False


def load_plugins() -> None:
    """Run every plugin once. One that fails is left out, with a warning that says why."""
    global _loaded
    if _loaded:
        return
    _loaded = True  # before they run: a plugin may look things up itself
    from importlib.metadata import entry_points

    for plugin in entry_points(group=GROUP):
        try:
            plugin.load()()
        except Exception as error:  # whatever a third party's code may raise
            warnings.warn(f"plugin {plugin.name} ({plugin.value}) does not load: {error}", stacklevel=2)


def import_named(name: str, wanted_by: str) -> ModuleType:
    """Import a module that a user has named, from the current folder too; raise ValueError whatever it raises."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look there
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"{wanted_by}: cannot import {name!r} ({type(error).__name__}: {error})") from error


def import_attribute(place: str, wanted_by: str) -> Any:
    """Return what a user has named as module:Name; raise ValueError if there is no such thing."""
    module, _, name = place.rpartition(":")
    found = getattr(import_named(module, wanted_by), name, None)
    if found is None:
        raise ValueError(f"{wanted_by}: {module} has nothing named {name!r}")
    return found


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Raise as ValueError, after what failed, any error that a third party's code raises, with its place."""
    try:
        yield
    except (ValueError, ImportError, OSError):
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        named = f"{what}: {type(error).__name__}: {error}"
        raise ValueError(f"{named} ({os.path.basename(place.filename)}, line {place.lineno})") from error


def check_defined(kind: object, name: str) -> None:
    """Raise ValueError if a class lacks methods that its base class wants defined."""
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise ValueError(f"{name} does not define {', '.join(missing)}")


def check_name(name: object, owner: str) -> None:
    """Raise ValueError unless a name can be that of a trace or a rule, `owner` in the message."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"{owner} needs a name of letters, digits, - and _, got {name!r}")


def first_sentence(thing: Any) -> str:
    """Return the first sentence of a docstring, without its full stop, or the thing's name where it has none."""
    return " ".join((thing.__doc__ or getattr(thing, "__qualname__", str(thing))).split(".")[0].split())


def import_on_use(
    package: str, names: Sequence[str], modules: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose public names are imported on first use.

    This keeps the import of its light modules cheap where others need torch. The modules that may have the names
    are searched in turn, so light ones come first.
    """

    def find(name: str) -> Any:
        if name in names:
            for module in modules:
                found = importlib.import_module(f"{package}.{module}")
                if hasattr(found, name):
                    return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted({*vars(sys.modules[package]), *names})
