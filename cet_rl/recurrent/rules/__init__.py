"""Register learning rules by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.rules import built_in
from cet_rl.recurrent.rules.base import Rule
from cet_rl.runs.plugins import check_defined, check_name, first_sentence, import_attribute, load_plugins
from cet_rl.runs.values import named_values, unknown


@dataclass(frozen=True)
class RuleEntry:
    """Hold the class of a rule and a line about it."""

    kind: type[Rule]
    summary: str

    def options(self) -> dict[str, type]:
        """Return the options of its constructor by name, with their types, int or float."""
        found = {each.name: (str(each.annotation), type(each.default)) for each in _parameters(self.kind)}
        whole = (n for n, (hint, kind) in found.items() if "float" not in hint and (kind is int or "int" in hint))
        return dict.fromkeys(found, float) | dict.fromkeys(whole, int)

    def check_options(self, names: Iterable[str]) -> None:
        """Raise ValueError for a name that is none of its options."""
        known = self.options()
        for name in names:
            if name not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise ValueError(f"rule {self.kind.name} has no option {name!r}; {has}")


def _parameters(kind: type[Rule]) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(kind).parameters.values())[1:]
    return [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


RULES: dict[str, RuleEntry] = {}  # by the name that `--rule` takes


def register_rule(kind: type[Rule], summary: str) -> type[Rule]:
    """Add a rule, with a line about it, to those that `cet-rl train` and `cet-rl rules` know, and return it.

    The rule is a subclass of `Rule` with a `name`; its constructor takes an `RNNCell`, and options that are
    numbers with defaults. Raises ValueError for anything else, or if the name is taken. A package registers its
    own in the function that its entry point names (`cet_rl.runs.plugins`).
    """
    _check(kind)
    if kind.name in RULES:
        raise ValueError(f"there is a rule {kind.name!r} already")
    RULES[kind.name] = RuleEntry(kind, summary)
    return kind


def _check(kind: object) -> None:
    """Raise ValueError unless `kind` is a class of rules that can be built by name."""
    if not (isinstance(kind, type) and issubclass(kind, Rule)):
        raise ValueError(f"{kind!r} is no subclass of cet_rl.recurrent.Rule")
    check_defined(kind, kind.__name__)
    check_name(getattr(kind, "name", None), kind.__name__)
    for parameter in _parameters(kind):
        default = parameter.default
        if default is not None and (isinstance(default, bool) or not isinstance(default, (int, float))):
            raise ValueError(f"{kind.__name__} takes {parameter.name}, which is no number with a default")


_BUILT_IN: dict[type[Rule], str] = {
    built_in.FixedW: "only the output layer learns",
    built_in.BPTT: "backpropagation through time, over windows that do not overlap",
    built_in.FutureBPTT: "backpropagation through time, over a window that slides",
    built_in.RTRL: "real-time recurrent learning (Williams, Zipser 1989): exact, n²m numbers",
    built_in.UORO: "unbiased online recurrent optimisation (Tallec, Ollivier 2017): a random rank one",
    built_in.KFRTRL: "Kronecker-factored RTRL (Mujika, Meier, Steger 2018): a random Kronecker product",
    built_in.RKF: "reverse KF-RTRL (Marschall, Cho, Savin 2019): the other Kronecker product",
    built_in.KeRNL: "kernel RNN learning (Roth, Kanitscheider, Fiete 2019): sensitivities learned from noise",
    built_in.RFLO: "random feedback local online learning (Murray 2019): a leaky trace at each synapse",
    built_in.DNI: "decoupled neural interfaces (Jaderberg et al. 2017): credit that is guessed",
    built_in.DNIb: "DNI(b) (Marschall, Cho, Savin 2019): DNI with a learned Jacobian",
}
for _kind, _summary in _BUILT_IN.items():
    register_rule(_kind, _summary)


def rules() -> dict[str, RuleEntry]:
    """Return all rules by name, third parties' included."""
    load_plugins()
    return RULES


def find_rule(name: str) -> RuleEntry:
    """Return the entry of a name, or of a class written as module:Class; raise ValueError if it is no rule."""
    known = rules()
    if ":" in name:
        kind = import_attribute(name, f"rule {name}")
        _check(kind)
        return RuleEntry(kind, first_sentence(kind))
    if name not in known:
        raise unknown("rule", name, known)
    return known[name]


def parse_options(name: str, words: Sequence[str]) -> dict[str, float]:
    """Return a rule's options, written as `window=10`, by name; raise ValueError for others."""
    entry, found = find_rule(name), dict[str, float]()
    given = named_values(words, "--rule-options")
    entry.check_options(given)
    for option, text in given.items():
        kind = entry.options()[option]
        try:
            found[option] = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise ValueError(f"option {option} of rule {name} must be {wanted}, got {text!r}") from None
    return found


def build_rule(name: str, cell: RNNCell, options: Mapping[str, float] | None = None) -> Rule:
    """Build a rule for a network; raise ValueError for an unknown rule or option, or an impossible value."""
    entry, given = find_rule(name), dict[str, Any](options or {})
    entry.check_options(given)
    return entry.kind(cell, **given)
