"""Recurrent networks that learn online: rules, tasks, errors that come late, and the audit of the rules.

The names below are imported on first use, so that listing tasks stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cet_rl.runs.lazy import lazy_names

if TYPE_CHECKING:
    from cet_rl.recurrent.auditing.audit import audit as audit
    from cet_rl.recurrent.cell import Cell as Cell
    from cet_rl.recurrent.config import RecurrentConfig as RecurrentConfig
    from cet_rl.recurrent.delayed import Delayed as Delayed
    from cet_rl.recurrent.delayed import Readout as Readout
    from cet_rl.recurrent.network import LeakyRNN as LeakyRNN
    from cet_rl.recurrent.online import Memory as Memory
    from cet_rl.recurrent.online import Online as Online
    from cet_rl.recurrent.rules.base import Claims as Claims
    from cet_rl.recurrent.rules.base import Moment as Moment
    from cet_rl.recurrent.rules.base import Rule as Rule
    from cet_rl.recurrent.rules.base import SeparableRule as SeparableRule
    from cet_rl.recurrent.rules.registry import build_rule as build_rule
    from cet_rl.recurrent.rules.registry import register_rule as register_rule
    from cet_rl.recurrent.task_registry import register_task as register_task
    from cet_rl.recurrent.training import train as train

_HOME = {
    "Cell": "cell",
    "Claims": "rules.base",
    "Delayed": "delayed",
    "LeakyRNN": "network",
    "Memory": "online",
    "Moment": "rules.base",
    "Online": "online",
    "Readout": "delayed",
    "RecurrentConfig": "config",
    "Rule": "rules.base",
    "SeparableRule": "rules.base",
    "audit": "auditing.audit",
    "build_rule": "rules.registry",
    "register_rule": "rules.registry",
    "register_task": "task_registry",
    "train": "training",
}

__all__ = [
    "Cell",
    "Claims",
    "Delayed",
    "LeakyRNN",
    "Memory",
    "Moment",
    "Online",
    "Readout",
    "RecurrentConfig",
    "Rule",
    "SeparableRule",
    "audit",
    "build_rule",
    "register_rule",
    "register_task",
    "train",
]

__getattr__ = lazy_names(__name__, _HOME)
