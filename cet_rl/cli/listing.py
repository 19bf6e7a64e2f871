"""`cet-rl list`: list agents, environments, data sets, tasks, rules, traces and configurations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from cet_rl.runs.values import unknown


def _agents() -> dict[str, str]:
    from cet_rl.rl.agent_registry import agents

    return agents()


def _envs() -> dict[str, str]:
    from cet_rl.envs.tasks import ready

    return ready()


def _datasets() -> dict[str, str]:
    from cet_rl.runs.task_kinds import VISION

    return dict(VISION.tasks())


def _tasks() -> dict[str, str]:
    from cet_rl.runs.task_kinds import RECURRENT

    return dict(RECURRENT.tasks())


def _rules() -> dict[str, str]:
    from cet_rl.recurrent.rules import rules

    options = {name: ", ".join(f"{option}=" for option in entry.options()) for name, entry in rules().items()}
    return {
        name: entry.summary + (f" ({options[name]})" if options[name] else "") for name, entry in rules().items()
    }


def _traces() -> dict[str, str]:
    from cet_rl.traces.registry import traces

    found = {}
    for name, kind in traces().items():
        own = ", ".join(f"{option}=" for option in kind.options if option not in ("order", "normalization"))
        found[name] = f"{kind.summary} ({own})" if own else kind.summary
    return found


def _configs() -> dict[str, str]:
    from cet_rl.runs.config_files import package_configs

    first_lines = {
        name: file.read_text(encoding="utf-8").splitlines()[0] for name, file in package_configs().items()
    }
    named = {name: line.lstrip("# ") for name, line in sorted(first_lines.items())}
    return {**named, "paper": "the row of the paper's tables for the task, delay and order that are given"}


SHELVES: dict[str, Callable[[], dict[str, str]]] = {
    "agents": _agents,
    "envs": _envs,
    "datasets": _datasets,
    "tasks": _tasks,
    "rules": _rules,
    "traces": _traces,
    "configs": _configs,
}


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(
            f"usage: cet-rl list [{'|'.join(SHELVES)}]\n\nList what is available; everything without an argument."
        )
        return 0
    for name in arguments:
        if name not in SHELVES:
            raise unknown("list", name, SHELVES)
    console = Console()
    for name in arguments or SHELVES:
        table = Table(title=name, title_justify="left", box=None, show_header=False, pad_edge=False)
        for entry, summary in SHELVES[name]().items():
            table.add_row(f"[bold]{entry}[/bold]", summary)
        console.print(table)
        if name == "envs":
            console.print(
                "Any other Gymnasium id works as well, if observations are vectors or maps (channels first) and "
                "actions discrete or a Box of vectors; module:Id-v0 imports the module that registers it."
            )
        console.print()
    return 0
