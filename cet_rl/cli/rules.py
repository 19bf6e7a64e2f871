"""`cet-rl rules`: audit the cost and biological plausibility of learning rules of recurrent networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cet_rl.cli import parse
from cet_rl.runs.files import check_file, write_text

if TYPE_CHECKING:
    from cet_rl.recurrent.audit import Format


@dataclass(frozen=True)
class RulesArguments:
    """Audit learning rules of recurrent networks.

    Runs each rule in small networks, shows its tensors, memory, time and operations, and judges it by the criteria
    of Marschall, Cho and Savin (2019).

    Examples:
      cet-rl rules rflo my_module:MyRule --format markdown
    """

    rules: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[RULE ...]")] = ()
    """Names, or classes of your own as module:Class. Default: all that `cet-rl list rules` shows."""
    format: Literal["table", "markdown", "csv"] | None = None
    """Form of the output. Default: that of the suffix of --out (.md, .csv), else a table."""
    out: str | None = None
    """File to write to. Default: the terminal."""


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    parsed = parse(RulesArguments, arguments, "cet-rl rules")
    out = None if parsed.out is None else check_file("--out", Path(parsed.out))

    from rich.console import Console

    from cet_rl.recurrent.audit import as_text, audit_rule, print_tables
    from cet_rl.recurrent.rules import find_rule, rules

    audits = [audit_rule(entry.kind) for entry in [find_rule(name) for name in parsed.rules or rules()]]
    by_suffix: dict[str, Format] = {".md": "markdown", ".csv": "csv"}
    form = parsed.format or ("table" if out is None else by_suffix.get(out.suffix.lower(), "table"))
    if out is not None:
        write_text(out, as_text(audits, form))
    elif form == "table":
        print_tables(audits, Console())
    else:
        print(as_text(audits, form), end="")
    return 0
