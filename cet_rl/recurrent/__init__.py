"""Recurrent networks that learn online: rules, tasks, errors that come late, and the audit of the rules.

The names below are imported on first use, so that listing tasks stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cet_rl.runs.lazy import lazy_names

if TYPE_CHECKING:
    from cet_rl.recurrent.audit.audit import audit_rule as audit_rule
    from cet_rl.recurrent.cell import LeakyRNN as LeakyRNN
    from cet_rl.recurrent.cell import RNNCell as RNNCell
    from cet_rl.recurrent.config import RecurrentConfig as RecurrentConfig
    from cet_rl.recurrent.config import register_task as register_task
    from cet_rl.recurrent.delayed import Delayed as Delayed
    from cet_rl.recurrent.delayed import Readout as Readout
    from cet_rl.recurrent.online import Memory as Memory
    from cet_rl.recurrent.online import Online as Online
    from cet_rl.recurrent.rules import build_rule as build_rule
    from cet_rl.recurrent.rules import register_rule as register_rule
    from cet_rl.recurrent.rules.base import DeclaredCost as DeclaredCost
    from cet_rl.recurrent.rules.base import Rule as Rule
    from cet_rl.recurrent.rules.base import SeparableRule as SeparableRule
    from cet_rl.recurrent.rules.base import StepInputs as StepInputs
    from cet_rl.recurrent.training import train as train

_HOME = {
    "RNNCell": "cell",
    "DeclaredCost": "rules.base",
    "Delayed": "delayed",
    "LeakyRNN": "cell",
    "Memory": "online",
    "StepInputs": "rules.base",
    "Online": "online",
    "Readout": "delayed",
    "RecurrentConfig": "config",
    "Rule": "rules.base",
    "SeparableRule": "rules.base",
    "audit": "auditing.audit",
    "build_rule": "rules",
    "register_rule": "rules",
    "register_task": "config",
    "train": "training",
}

__all__ = [
    "DeclaredCost",
    "Delayed",
    "LeakyRNN",
    "Memory",
    "Online",
    "RNNCell",
    "Readout",
    "RecurrentConfig",
    "Rule",
    "SeparableRule",
    "StepInputs",
    "audit_rule",
    "build_rule",
    "register_rule",
    "register_task",
    "train",
]

__getattr__ = lazy_names(__name__, _HOME)
