"""Train recurrent networks online: learning rules, tasks, delayed errors, and an audit of the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cet_rl.runs.plugins import import_on_use

if TYPE_CHECKING:
    from cet_rl.recurrent.audit import audit_rule
    from cet_rl.recurrent.cell import LeakyRNN, RNNCell
    from cet_rl.recurrent.config import RecurrentConfig, register_task
    from cet_rl.recurrent.delayed import Delayed, Readout
    from cet_rl.recurrent.online import Memory, Online
    from cet_rl.recurrent.rules import build_rule, register_rule
    from cet_rl.recurrent.rules.base import DeclaredCost, Rule, SeparableRule, StepInputs
    from cet_rl.recurrent.tasks import SequenceTask
    from cet_rl.recurrent.training import train

__all__ = ["DeclaredCost", "Delayed", "LeakyRNN", "Memory", "Online", "RNNCell", "Readout", "RecurrentConfig"]
__all__ += ["Rule", "SeparableRule", "SequenceTask", "StepInputs", "audit_rule", "build_rule", "register_rule"]
__all__ += ["register_task", "train"]

__getattr__, __dir__ = import_on_use(
    __name__, __all__, ("config", "rules", "rules.base", "cell", "online", "delayed", "tasks", "training", "audit")
)
