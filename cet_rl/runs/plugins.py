"""What third parties bring, found through the entry points of installed packages: agents, environments, data sets,
learning rules and sequence tasks.

A package that brings some names a function in its `pyproject.toml`,

    [project.entry-points."cet_rl.runs.plugins"]
    mine = "my_package.cet_rl_plugin:register"

and calls `register_agent`, `register_env`, `register_dataset`, `register_rule` and `register_task` there. The
function runs once, before any of these is first looked up.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from importlib.metadata import entry_points
from types import ModuleType

GROUP = "cet_rl.runs.plugins"

_loaded = False


def load_plugins() -> None:
    """Run every plugin once. One that fails is left out, with a warning that says why."""
    global _loaded
    if _loaded:
        return
    _loaded = True  # before they run: a plugin may look things up itself
    for plugin in entry_points(group=GROUP):
        try:
            plugin.load()()
        except Exception as error:  # whatever a third party's code may raise
            warnings.warn(f"plugin {plugin.name} ({plugin.value}) does not load: {error}", stacklevel=2)


def import_named(name: str, wanted_by: str) -> ModuleType:
    """Import a module that a user has named, from the current folder too.

    Args:
        name: of the module.
        wanted_by: what names it, for the message.

    Raises:
        ValueError: if that fails, whatever the module raises.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look there
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"{wanted_by}: cannot import {name!r} ({type(error).__name__}: {error})") from error
