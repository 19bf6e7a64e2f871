"""Look up the hyper-parameters of the paper's experiments (Tables 1 to 7).

`configs/paper` has a file for each task and time scale: what all of its runs share (for environments, Table 5),
and a row for each order and delay (Tables 1 to 4, 6 and 7). They are used only when named (`--config paper`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from cet_rl.runs.config_files import check_values, load_yaml
from cet_rl.runs.task_kinds import task_kind_of
from cet_rl.traces.registry import TraceConfig
from cet_rl.traces.timing import RELATIVE_TOLERANCE

PAPER = "paper"
"""Name of the configuration that stands for the row of the paper's tables for a task, delay and order."""


@dataclass(frozen=True)
class PaperRow:
    """Hold one row of a table: the values of a configuration, with those that all rows share, without task."""

    values: dict[str, Any]

    @property
    def order(self) -> int | None:
        """Return the number of trace states; 1 is the classical trace, None backpropagation without delay."""
        order: int | None = self.values.get("order")
        return order

    @property
    def delay(self) -> float:
        """Return the seconds until credit arrives; 0 in the baseline."""
        return float(self.values.get("delay", 0.0))

    def describe(self) -> str:
        """Return a short description: "32 s, CET order 8: lr 5e-4"."""
        rates = {"lr": "lr", "weight_decay": "weight decay"}
        rate = ", ".join(f"{text} {_short(self.values[key])}" for key, text in rates.items() if key in self.values)
        if self.order is None:
            return f"no delay, backprop: {rate}"
        decay = f", decay {self.values['decay']:g}" if "decay" in self.values else ""
        what = f"classical trace{decay}" if self.order == 1 else f"CET order {self.order}"
        return f"{self.delay:g} s{' a layer' * bool(self.values.get('stacked'))}, {what}: {rate}"


@dataclass(frozen=True)
class PaperTable:
    """Hold the paper's hyper-parameters for one task at one time scale."""

    name: str
    source: str  # of all values: "Tables 5 and 6 of the paper"
    table: int  # number of the table with the rows
    tasks: tuple[str, ...]
    stacked: bool  # whether it is for the time scale of retrograde signalling
    rows: tuple[PaperRow, ...]

    def find(self, task: str, delay: float, order: int | None) -> PaperRow:
        """Return the row for a delay in seconds and an order (None: the baseline), or raise ValueError."""
        for row in self.rows:
            if row.order == order and math.isclose(row.delay, delay, rel_tol=RELATIVE_TOLERANCE):
                return row
        delays, orders = (
            sorted({getattr(row, name) for row in self.rows if row.order is not None})
            for name in ("delay", "order")
        )
        asked = f"a delay of {delay:g} s and order {order}" if delay else "no delay"
        they, have = ("they", "have") if self.source.startswith("Tables ") else ("it", "has")
        raise ValueError(
            f"{self.source} {have} no row for {task} with {asked}: {they} {have} "
            f"{'a delay' if len(delays) == 1 else 'delays'} of {_list(delays)} s with orders {_list(orders)}"
            + ", and backprop without delay"
            * any(row.order is None for row in self.rows)
        )


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Return all tables, in the order of their names."""
    folder = resources.files("cet_rl") / "configs" / "paper"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return tuple(_read(file.read_text(encoding="utf-8"), file.name.removesuffix(".yaml")) for file in files)


def paper_row(
    task: str,
    *,
    delay: float = 0.0,
    order: int | None = None,
    stacked: bool = False,
    trace: str | None = None,
    agent: str = "cet",
    **others: Any,
) -> tuple[dict[str, Any], str]:
    """Return the paper's hyper-parameters for a run with these options of a configuration, and a line on the row.

    The line is such as "paper, Table 6: LunarLander-v3, 32 s, CET order 8: lr 5e-4". Without a delay the row is
    that of the paper's baseline, backpropagation. Other options have no effect. If there is no such row, a
    ValueError names those there are.
    """
    if agent != "cet":
        raise ValueError(f"config paper is for the paper's agent, not for {agent}: leave out one of the two")
    wanted = TraceConfig.for_delay(delay, trace, order)
    if wanted.kind not in ("cet", "et", "none"):
        raise ValueError(
            f"the paper has no row for trace {wanted.kind!r}, only for cet, et: leave out --config paper"
        )
    scale = "the retrograde time scale" if stacked else "behavioural time scales"
    tables = {name: table for table in paper_tables() if table.stacked == stacked for name in table.tasks}
    if task not in tables:
        raise ValueError(f"the paper has no table for {task} at {scale}: it has {', '.join(tables)}")
    states = {"cet": wanted.order_or_default, "et": 1, "none": None}[wanted.kind]
    row = tables[task].find(task, delay, states)
    values = {"task": task, **row.values} | ({"trace": trace} if trace == "et" else {})
    return values, f"paper, Table {tables[task].table}: {task}, {row.describe()}"


def _read(text: str, name: str) -> PaperTable:
    data = load_yaml(text)
    kind = task_kind_of(data["tasks"][0]).config()
    common = check_values(data["common"], f"paper/{name}.yaml, common", kind)
    rows = (
        PaperRow({**common, **check_values(row, f"paper/{name}.yaml, row {number}", kind)})
        for number, row in enumerate(data["rows"], start=1)
    )
    stacked = bool(common.get("stacked", False))
    return PaperTable(name, data["source"], int(data["table"]), tuple(data["tasks"]), stacked, tuple(rows))


def _short(number: float) -> str:
    """Return a number as short text: 5e-4 for 0.0005, 0 for 0.0."""
    mantissa, exponent = f"{number:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if number else "0"


def _list(numbers: list[int] | list[float]) -> str:
    *head, last = (f"{number:g}" for number in numbers)
    return f"{', '.join(head)} and {last}" if head else last
