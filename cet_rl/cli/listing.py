"""`cet-rl list`: list agents, environments, data sets, tasks, rules, traces and configurations."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cet_rl.rl.agent_registry import agents
from cet_rl.runs.config_files import package_configs
from cet_rl.runs.paper import PAPER
from cet_rl.runs.task_kinds import RECURRENT, VISION
from cet_rl.runs.values import unknown
from cet_rl.traces.registry import traces

SHARED = ("order", "normalization")  # options of traces that are options of `cet-rl train` by themselves


def _rules() -> dict[str, str]:
    from cet_rl.recurrent.rules import rules

    return {name: _with_options(entry.summary, entry.options()) for name, entry in rules().items()}


def _traces() -> dict[str, str]:
    kinds = traces().items()
    return {n: _with_options(kind.summary, [o for o in kind.options if o not in SHARED]) for n, kind in kinds}


def _with_options(summary: str, options: Iterable[str]) -> str:
    named = ", ".join(f"{option}=" for option in options)
    return f"{summary} ({named})" if named else summary


def _configs() -> dict[str, str]:
    files = sorted(package_configs().items())
    first_lines = {name: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name, file in files}
    return {**first_lines, PAPER: "the row of the paper's tables for the task, delay and order that are given"}


LISTS: dict[str, Callable[[], Mapping[str, str]]] = {
    "agents": agents,
    "envs": lambda: importlib.import_module("cet_rl.envs.tasks").environments(),  # imports Gymnasium
    "datasets": VISION.tasks,
    "tasks": RECURRENT.tasks,
    "rules": _rules,
    "traces": _traces,
    "configs": _configs,
}


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(f"usage: cet-rl list [{'|'.join(LISTS)}]\n\nList what is available; without an argument, all.")
        return 0
    if strange := [name for name in arguments if name not in LISTS]:
        raise unknown("list", strange[0], LISTS)
    console = Console()
    for name in arguments or LISTS:
        table = Table(title=name, title_justify="left", box=None, show_header=False, pad_edge=False)
        for entry, summary in LISTS[name]().items():
            table.add_row(f"[bold]{escape(entry)}[/bold]", escape(summary))
        console.print(table)
        if name == "envs":
            console.print(
                "Any other Gymnasium id works as well, if observations are vectors or maps (channels first) and "
                "actions discrete or a Box of vectors; module:Id-v0 imports the module that registers it."
            )
        console.print()
    return 0
