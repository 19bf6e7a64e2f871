"""The kinds of trace by name, and the choice of one before the delay of a layer is known."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cet_rl.runs.plugins import import_named, load_plugins
from cet_rl.runs.values import unknown
from cet_rl.traces.base import Normalization, Trace, check_whole
from cet_rl.traces.cascade import CET, Discretization, check_discretization
from cet_rl.traces.exponential import ET, LTPLTD
from cet_rl.traces.legendre import Legendre
from cet_rl.traces.perfect import PerfectMemory
from cet_rl.traces.sharp import SharpCET

DEFAULT_ORDER = 5

_ANY_DELAY = 100
"""Delay in steps of the trace that is built to check options: constructors check them and compute nothing."""


@dataclass(frozen=True)
class TraceKind:
    """Describe one kind of trace.

    Attributes:
        trace: its class; None for no trace.
        summary: one line for `cet-rl list traces`.
    """

    trace: type[Trace] | None
    summary: str

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the names and defaults of what `Trace.from_delay` takes of this class beside the delay."""
        return {} if self.trace is None else _options(self.trace)

    @property
    def takes_order(self) -> bool:
        """Tell whether its number of states can be chosen."""
        return "order" in self.options


@cache
def _options(trace: type[Trace]) -> Mapping[str, Any]:
    own = trace.from_delay.__func__ is not Trace.from_delay.__func__  # type: ignore[attr-defined]
    parameters = inspect.signature(trace.from_delay if own else trace).parameters
    if "delay_steps" not in parameters:
        raise ValueError(f"{trace.__name__} must take delay_steps, or define the class method from_delay")
    return {name: parameter.default for name, parameter in parameters.items() if name != "delay_steps"}


TRACES: dict[str, TraceKind] = {
    "cet": TraceKind(CET, "cascade of n stages, read at the last; peaks at the delay (paper, Eqs. 4-8)"),
    "sharp": TraceKind(SharpCET, "the same cascade, read as the sharpest weighted sum of all its stages"),
    "legendre": TraceKind(Legendre, "Legendre delay network of n states with the sharpest readout"),
    "et": TraceKind(ET, "classical eligibility trace, one decaying state (paper, Eq. 2)"),
    "ltp-ltd": TraceKind(LTPLTD, "difference of a slow and a fast trace (He et al. 2015, Huertas et al. 2016)"),
    "perfect": TraceKind(PerfectMemory, "recalls exactly what happened a delay ago: the upper bound"),
    "none": TraceKind(None, "no synaptic trace: backpropagation without delay"),
}
"""Every kind of trace, by the name that `--trace` and `trace=` take."""


def register_trace(name: str, trace: type[Trace], summary: str = "") -> type[Trace]:
    """Add a kind of trace to those that `--trace` and `trace=` take by name, and return its class.

    A package registers its own in the function that its entry point names (`cet_rl.runs.plugins`).

    Args:
        name: letters, digits, - and _.
        trace: a subclass of `Trace`. `delay_steps`, `order`, `normalization` and its own options are passed by
            keyword to `from_delay` where it takes them, which the constructor's are unless the class overrides it.
        summary: one line for `cet-rl list traces`; the first sentence of the class's docstring if empty.

    Raises:
        ValueError: if the name is taken or malformed, or the class is no trace, abstract, or takes no delay.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"a trace needs a name of letters, digits, - and _, got {name!r}")
    if name in TRACES:
        raise ValueError(f"there is a trace {name!r} already")
    TRACES[name] = _entry(trace, summary)
    return trace


def _entry(trace: object, summary: str = "") -> TraceKind:
    """Return a registry entry; raise ValueError unless it is a class of traces that can be built."""
    if not (isinstance(trace, type) and issubclass(trace, Trace)):
        raise ValueError(f"{trace!r} is no subclass of cet_rl.Trace")
    if missing := sorted(trace.__abstractmethods__):
        raise ValueError(f"{trace.__name__} does not define {', '.join(missing)}")
    _options(trace)
    return TraceKind(trace, summary or " ".join((trace.__doc__ or trace.__name__).split(".")[0].split()))


def traces() -> dict[str, TraceKind]:
    """Return all kinds by name, those of plugins included."""
    load_plugins()
    return TRACES


def find_trace(name: str) -> TraceKind:
    """Return the kind of a name, or of a class written as module:Class.

    Raises:
        ValueError: if there is none, or the class is no trace.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        found = getattr(import_named(module, f"trace {name}"), attribute, None)
        if found is None:
            raise ValueError(f"trace {name}: {module} has nothing named {attribute!r}")
        return _entry(found)
    kind = TRACES.get(name) or traces().get(name)
    if kind is None:
        raise unknown("trace", name, traces())
    return kind


def parse_trace_options(words: Sequence[str]) -> dict[str, Any]:
    """Return options written as NAME=VALUE, such as ratio=3, by name: numbers and true or false, else text.

    Raises:
        ValueError: for a word without =, or an option given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not (sign and name):
            raise ValueError(f"--trace-options takes name=value, got {word!r}")
        if name in found:
            raise ValueError(f"--trace-options gives {name} twice")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


@dataclass(frozen=True)
class TraceConfig:
    """Choose a synaptic trace, whatever the delay of a layer turns out to be.

    Attributes:
        kind: a key of `TRACES`, or module:Class.
        order: number of states, for the kinds that have a choice; None for 5. A cascade of order 1 is the
            classical trace.
        normalization: "area" or "peak", see `Trace`.
        options: what else the kind's `from_delay` takes, by name: `decay` of "et", `ratio` of "ltp-ltd",
            `discretization` of "cet". What is None or its default is left out.

    Raises:
        ValueError: for an unknown kind, a value that it refuses, or an option that it does not have.
    """

    kind: str = "cet"
    order: int | None = None
    normalization: Normalization = "peak"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        known = find_trace(self.kind).options
        given = {name: value for name, value in self.options.items() if value is not None}
        for name, value in given.items():
            if name not in known or name in ("order", "normalization"):
                takers = [repr(kind) for kind, entry in traces().items() if name in entry.options]
                hint = f"only {', '.join(takers)} take{'s' * (len(takers) == 1)} one" if takers else "leave it out"
                raise ValueError(f"{name} {value!r} has no meaning for trace {self.kind!r}: {hint}")
        object.__setattr__(self, "options", {name: v for name, v in given.items() if v != known[name]})
        if self.order is not None:
            check_whole(self.order, "order")
            object.__setattr__(self, "order", int(self.order))
            if self.order < 1:
                raise ValueError(f"order must be at least 1, got {self.order}")
        trace = self.build(_ANY_DELAY)  # which refuses options that cannot be
        if self.order not in (None, getattr(trace, "states", None)):
            raise ValueError(f"order {self.order} has no meaning for trace {self.kind!r}; leave it out")

    @classmethod
    def for_delay(
        cls,
        delay: float,
        kind: str | None = None,
        order: int | None = None,
        decay: float | None = None,
        normalization: Normalization = "peak",
        *,
        stacked: bool = False,
        discretization: Discretization = "exact",
        options: Mapping[str, Any] | None = None,
    ) -> TraceConfig:
        """Return the choice for a run whose credit arrives `delay` seconds late: a cascade unless told otherwise.

        Raises:
            ValueError: also for options that have no meaning without a delay, and for "none" with one.
        """
        check_discretization(discretization)
        if not delay:
            if kind not in (None, "none"):
                raise ValueError(
                    f"trace {kind!r} bridges a delay, and there is none: give a delay, or leave it out"
                )
            if order is not None or decay is not None or stacked:
                raise ValueError("order, decay and stacked belong to a delay, and there is none: give a delay")
        elif kind == "none":
            raise ValueError(
                "trace 'none' is backpropagation without delay: leave the delay out, or choose a trace"
            )
        named = {"decay": decay, "discretization": None if discretization == "exact" else discretization}
        return cls(kind or ("cet" if delay else "none"), order, normalization, named | dict(options or {}))

    def as_keywords(self) -> dict[str, Any]:
        """Return it as keywords of an agent, so that each of them can be changed when the agent is loaded."""
        rest = dict(self.options)
        named = {"decay": rest.pop("decay", None), "discretization": rest.pop("discretization", "exact")}
        common = {"trace": self.kind, "order": self.order, "normalization": self.normalization}
        return {**common, **named, "trace_options": rest}

    @property
    def states(self) -> int:
        """Return the order, its default filled in."""
        return DEFAULT_ORDER if self.order is None else self.order

    def build(self, delay_steps: int) -> Trace | None:
        """Return the trace of a layer that waits `delay_steps` for credit; None where it does not wait at all."""
        kind = find_trace(self.kind)
        if kind.trace is None or not delay_steps:
            return None
        common = {"order": self.states, "normalization": self.normalization}
        taken = {name: value for name, value in common.items() if name in kind.options}
        return kind.trace.from_delay(delay_steps, **taken, **self.options)

    @property
    def label(self) -> str:
        """Short name for folders and legends: cet5, et, et0.99, perfect, ltp-ltd-ratio3."""
        trace = self.build(_ANY_DELAY)  # a cascade of order 1 is named for what it is
        label = next((name for name, kind in TRACES.items() if kind.trace is type(trace)), self.kind)
        label = "none" if trace is None else re.sub(r"[^\w.-]+", "-", label) + str(getattr(trace, "order", ""))
        for name, value in self.options.items():
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            if isinstance(value, str):
                label = f"{shown}-{label}"
            else:
                label += shown if name == "decay" else f"-{name}{shown}"
        return label
