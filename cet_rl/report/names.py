"""Name arms for figures and tables, and identify what decides how they are drawn."""

from __future__ import annotations

from dataclasses import replace

from cet_rl.report.palette import Identity
from cet_rl.runs.config import RunConfig
from cet_rl.traces.registry import TraceConfig

RULES = {"fixed-w": "fixed-W", "dni-b": "DNI(b)", "kernl": "KeRNL", "future-bptt": "future-facing BPTT"}
"""Usual spelling of learning rules; others are in capitals, but for module:Class."""

WORDS = {
    **{"sb3-a2c": "A2C (SB3)", "sb3-ppo": "PPO (SB3)", "fa": "feedback alignment", "dfa": "direct feedback"},
    **{"random-lam": "random λ", "conv": "convolutional", "salient": "salience", "soma": "soma trace"},
    **{"random-feedback": "random feedback"},
}
"""Usual spelling of other parts of `RunConfig.arm`."""


def arm_name(config: RunConfig, *, decay: bool = True) -> str:
    """Return the name of a configuration without its delay, "RFLO, optimal 10", with or without the `decay`."""
    trace, rule = config.trace_config, getattr(config, "rule", "")
    shown = trace if decay else replace(trace, options={**trace.options, "decay": None})
    words = {**WORDS, rule.replace(":", "-"): rule_name(rule), trace.label: shown.title}
    return ", ".join(words.get(part, part) for part in config.arm)


def rule_name(rule: str) -> str:
    """Return the usual spelling of a learning rule: RFLO, DNI(b)."""
    return RULES.get(rule, rule if ":" in rule else rule.upper())


def arm_identity(config: RunConfig) -> Identity:
    """Return what decides the look of an arm: its rule without delay, its agent without traces, or its trace."""
    rule, agent = getattr(config, "rule", ""), getattr(config, "agent", "cet")
    if rule and not config.delay:
        return Identity(rule)
    if agent != "cet" and config.trace is None:
        return Identity(agent)
    return trace_identity(config.trace_config)


def trace_identity(trace: TraceConfig) -> Identity:
    """Return what decides the look of a trace."""
    kind, built = trace.built
    return Identity(kind, getattr(built, "order", None))
