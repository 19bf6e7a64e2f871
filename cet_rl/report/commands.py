"""The commands that repeat runs."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from cet_rl.report.presentation import Presentation
from cet_rl.runs.config import Mark, RunConfig, marked
from cet_rl.runs.config_files import tuned_defaults
from cet_rl.runs.values import flag


def command(config: RunConfig, presentation: Presentation) -> str:
    """The `cet-rl train` that repeats a run, but for its seed: the options that differ from its task's defaults.

    Args:
        config: as the run's config.yaml has it, with nothing left to choose.
        presentation: of its task kind; says what else a run fills in.
    """
    defaults = _defaults(config.task, type(config))
    options = {
        name: default
        for name, default in defaults.items()
        if getattr(config, name) != default and name not in marked(type(config), Mark.MACHINE) | {"seed"}
    }
    shorter = config
    for name, default in list(options.items()):
        try:
            candidate = dataclasses.replace(shorter, **{name: default})
            same = _filled_in(candidate, presentation) == config
        except ValueError:  # the default does not go with the rest
            continue
        if same:  # a default that says "choose", and would choose this
            shorter = candidate
            del options[name]
    words = ["cet-rl", "train", config.task]
    for name in options:
        words += _words(name, getattr(config, name))
    return shlex.join(words)


@cache
def _defaults(task: str, kind: type[RunConfig]) -> Mapping[str, Any]:
    """What `cet-rl train TASK` starts from."""
    own = {item.name: item.default for item in dataclasses.fields(kind) if item.name != "task"}
    return {**own, **{name: value for name, value in tuned_defaults(task, kind).items() if name != "task"}}


def _filled_in(config: RunConfig, presentation: Presentation) -> RunConfig:
    named = {name: getattr(config, source) for name, source in presentation.defaults.items()}
    return dataclasses.replace(config.with_trace(), **named)


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    values = value if isinstance(value, tuple) else (value,)
    # Shortest text that reads back as the same number: 8 and not 8.0, 1e-05.
    return [
        flag(name),
        *(repr(each).removesuffix(".0") if isinstance(each, float) else str(each) for each in values),
    ]
