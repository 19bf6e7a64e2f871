"""Name arms for figures and tables, and tell what their looks follow from."""

from __future__ import annotations

from dataclasses import replace

from cet_rl.report.palette import Identity
from cet_rl.runs.config import RunConfig
from cet_rl.traces.registry import TraceConfig

RULES = {"fixed-w": "fixed-W", "dni-b": "DNI(b)", "kernl": "KeRNL", "future-bptt": "future-facing BPTT"}
"""Names of learning rules as people write them; those of other built-in rules are in capitals."""

WORDS = {
    **{"sb3-a2c": "A2C (SB3)", "sb3-ppo": "PPO (SB3)", "fa": "feedback alignment", "dfa": "direct feedback"},
    **{"random-lam": "random λ", "conv": "convolutional", "salient": "salience", "soma": "soma trace"},
    **{"random-feedback": "random feedback"},
}
"""Other parts of `RunConfig.arm`, as people write them."""


def arm_name(config: RunConfig, *, decay: bool = True) -> str:
    """Return a configuration's name without its delay: "CET 10", "RFLO, optimal 10"; with the decay, if asked."""
    trace, rule = config.trace_config, getattr(config, "rule", "")
    shown = trace if decay else replace(trace, options={**trace.options, "decay": None})
    words = {**WORDS, rule: rule_name(rule), trace.label: shown.title}
    return ", ".join(words.get(part, part) for part in config.arm)


def rule_name(rule: str) -> str:
    """Return a learning rule's name as people write it: RFLO, DNI(b)."""
    return RULES.get(rule, rule if ":" in rule else rule.upper())


def identity(config: RunConfig) -> Identity:
    """Return what an arm's look follows from: its trace, if credit is delayed at synapses, or what else learns."""
    rule, agent = getattr(config, "rule", ""), getattr(config, "agent", "cet")
    if rule and not config.delay:
        return Identity(rule)
    if agent != "cet" and config.trace is None:
        return Identity(agent)
    return identity_of(config.trace_config)


def identity_of(trace: TraceConfig) -> Identity:
    """Return what a trace's look follows from."""
    kind, built = trace.built
    return Identity(kind, getattr(built, "order", None))
