"""Sides of a comparison: which runs belong to an arm, by their configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cet_rl.runs.config import RunConfig
from cet_rl.traces.timing import RELATIVE_TOLERANCE

NAMES = {"cet": "CET", "sharp": "SharpCET", "legendre": "Legendre", "et": "ET", "perfect": "perfect memory"}
"""Of traces, in words."""

RULE_NAMES = {
    "fixed-w": "fixed-W",
    "rflo": "RFLO",
    "dni": "DNI",
    "dni-b": "DNI(b)",
    "bptt": "BPTT",
    "rtrl": "RTRL",
}
"""Of learning rules, in words."""


@dataclass(frozen=True)
class Side:
    """The runs of one arm at one delay.

    Attributes:
        name: in words: "CET 10 at 8 s".
        where: values that a run's configuration has. `trace` and `order` are those of the trace that it builds: a
            cascade of one state is the classical trace, and has none.
    """

    name: str
    where: Mapping[str, Any]

    def has(self, config: RunConfig) -> bool:
        """Whether a run of this configuration belongs to it."""
        return all(_same(_found(config, name), wanted) for name, wanted in self.where.items())


def side(task: str, trace: str, order: int | None = None, delay: float = 0.0, **options: Any) -> Side:
    """The runs of a task with a trace.

    Args:
        task: name or Gymnasium id.
        trace: a kind that `cet-rl list traces` shows; "none" goes with no delay.
        order: states of the trace, for kinds that have a choice.
        delay: in seconds.
        options: further values of the configuration; delays are uniform unless these say `stacked`.
    """
    states = "" if order is None else f" {order}"
    name = f"{NAMES[trace]}{states} at {delay:g} s" if delay else "no delay"
    where: dict[str, Any] = {"task": task, "trace": trace, "delay": delay, "stacked": False, **options}
    if order is not None:
        where["order"] = order
    return Side(name, where)


def cascade(task: str, order: int, delay: float, **options: Any) -> Side:
    """The runs of a task with the paper's trace of some order; order 1 is the classical trace."""
    return side(task, "et" if order == 1 else "cet", None if order == 1 else order, delay, **options)


def with_rule(task: str, rule: str, **options: Any) -> Side:
    """The runs of a sequence task with a learning rule and no delay."""
    return Side(RULE_NAMES[rule], {"task": task, "rule": rule, "delay": 0.0, **options})


def named(name: str, given: Side) -> Side:
    """The same side under another name."""
    return Side(name, given.where)


def _found(config: RunConfig, name: str) -> object:
    """A value of a configuration, with the trace that it stands for."""
    trace = config.trace_config
    if name == "trace":
        return "et" if trace.kind == "cet" and trace.states == 1 else trace.kind
    if name == "order":
        return trace.states
    return getattr(config, name, None)


def _same(found: object, wanted: object) -> bool:
    if isinstance(found, float) and isinstance(wanted, (int, float)):
        return math.isclose(found, wanted, rel_tol=RELATIVE_TOLERANCE)
    return found == wanted
