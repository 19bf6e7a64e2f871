"""Register the kinds of trace by name, and configure one before the delay of a layer is known."""

from __future__ import annotations

import inspect
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from cet_rl.runs.plugins import check_defined, check_name, first_sentence, import_attribute, load_plugins, naming
from cet_rl.runs.values import checked, named_values, unknown
from cet_rl.traces.base import Normalization, Trace, check_whole
from cet_rl.traces.cascade import CET, Discretization
from cet_rl.traces.exponential import ET, LTPLTD
from cet_rl.traces.finite import PerfectMemory
from cet_rl.traces.legendre import Legendre
from cet_rl.traces.optimal import Optimal
from cet_rl.traces.sharp import SharpCET
from cet_rl.traces.timing import BEHAVIOURAL_STEP, RELATIVE_TOLERANCE, whole_steps

DEFAULT_ORDER = 5

_REQUIRED = inspect.Parameter.empty

_ANY_DELAY = 100
"""Delay in steps of the trace that is built to check options: constructors check them and compute nothing."""


Maker = Callable[..., Trace]
"""A class of traces, or a function that returns one; it is called with `delay_steps` and options by keyword."""


@dataclass(frozen=True)
class TraceKind:
    """Describe one kind of trace."""

    make: Maker | None  # its class, or a function that returns a trace; None for no trace
    summary: str  # one line for `cet-rl list traces`
    title: str = ""  # its name in figures and tables; "" for the name that options take

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the names and defaults of its options, the delay left out."""
        return {} if self.make is None else _options(self.make)

    def build(self, delay_steps: int, options: Mapping[str, Any]) -> Trace:
        """Return the trace for credit that arrives `delay_steps` late."""
        assert self.make is not None
        with naming(f"trace {_name(self.make)} cannot be built"):
            trace = _builder(self.make)(delay_steps=delay_steps, **options)
        if not isinstance(trace, Trace):
            raise ValueError(f"{_name(self.make)} must return a cet_rl.Trace, got {trace!r}")
        return trace


def _builder(make: Maker) -> Maker:
    """Return the function that builds traces: a class's own `from_delay`, if it has one, else `make`."""
    from_delay: Any = getattr(make, "from_delay", None)
    inherited = from_delay is None or from_delay.__func__ is Trace.from_delay.__func__  # type: ignore[attr-defined]
    return make if inherited else from_delay


def _name(make: Maker) -> str:
    return str(getattr(make, "__qualname__", make))


@cache
def _options(make: Maker) -> Mapping[str, Any]:
    parameters = inspect.signature(_builder(make)).parameters
    if "delay_steps" not in parameters:
        raise ValueError(f"{_name(make)} must take delay_steps, or define the class method from_delay")
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = {name: item.default for name, item in parameters.items() if item.kind in named}
    return {name: default for name, default in taken.items() if name != "delay_steps"}


TRACES: dict[str, TraceKind] = {
    "cet": TraceKind(CET, "cascade of n stages, read at the last; peaks at the delay (paper, Eqs. 4-8)", "CET"),
    "sharp": TraceKind(SharpCET, "the same cascade, read as the sharpest sum of all its stages", "SharpCET"),
    "legendre": TraceKind(Legendre, "Legendre delay network of n states with the sharpest readout", "Legendre"),
    "optimal": TraceKind(Optimal, "damped oscillators: the sharpest memory that n states can have"),
    "et": TraceKind(ET, "classical eligibility trace, one decaying state (paper, Eq. 2)", "ET"),
    "ltp-ltd": TraceKind(
        LTPLTD, "difference of a slow and a fast trace (He et al. 2015, Huertas et al. 2016)", "LTP/LTD"
    ),
    "perfect": TraceKind(PerfectMemory, "recalls exactly what happened a delay ago", "perfect memory"),
    "none": TraceKind(None, "no synaptic trace: backpropagation without delay", "no delay"),
}
"""Every kind of trace, by the name that `--trace` and `trace=` take."""

_GIVEN: dict[str, TraceKind] = {}
"""Kinds of traces that were given as objects and are not registered, by module:Name."""


def register_trace(name: str, trace: Maker, summary: str = "") -> Maker:
    """Add a kind of trace to those that `--trace` and `trace=` take by name, and return it.

    A package registers its own in the function that its entry point names (`cet_rl.runs.plugins`).

    Args:
        name: letters, digits, - and _.
        trace: a subclass of `Trace`, or a function that returns a trace. It, or the class's own `from_delay`, is
            called with `delay_steps`, and with `order`, `normalization` and other options that its signature has,
            all by keyword.
        summary: one line for `cet-rl list traces`; the first sentence of the docstring if empty.

    Raises:
        ValueError: if the name is taken or malformed, or the class is no trace, abstract, or takes no delay.
    """
    check_name(name, "a trace")
    if name in TRACES:
        raise ValueError(f"there is a trace {name!r} already")
    TRACES[name] = _entry(trace, summary)
    return trace


def _entry(make: Any, summary: str = "") -> TraceKind:
    """Return a registry entry; raise ValueError unless it can build traces."""
    if not (issubclass(make, Trace) if isinstance(make, type) else callable(make)):
        raise ValueError(f"{make!r} is no subclass of cet_rl.Trace, nor a function that returns one")
    check_defined(make, _name(make))
    if getattr(make, "__hash__", None) is None:
        raise ValueError(f"{_name(make)} must have a hash, as traces are compared: @dataclass(frozen=True)")
    _options(make)
    return TraceKind(make, summary or first_sentence(make))


def traces() -> dict[str, TraceKind]:
    """Return all kinds by name, those of plugins included."""
    load_plugins()
    return TRACES


def traces_with(option: str) -> list[str]:
    """Return the names of the traces that take an option."""
    return [name for name, kind in traces().items() if option in kind.options]


def find_trace(name: str) -> TraceKind:
    """Return the kind of this name, or the one that a class or function written as module:Name makes.

    Raises ValueError if there is no such kind, or the function makes no traces.
    """
    if name in _GIVEN:
        return _GIVEN[name]
    if ":" in name:
        return _entry(import_attribute(name, f"trace {name}"))
    kind = TRACES.get(name) or traces().get(name)
    if kind is None:
        raise unknown("trace", name, traces())
    return kind


def implied_delay(trace: object, step_duration: float) -> float:
    """Return the delay in seconds that a trace is made for; 0 for a name, or a trace that knows no delay."""
    return (trace.made_for or 0) * step_duration if isinstance(trace, Trace) else 0.0


def parse_trace_options(words: Sequence[str]) -> dict[str, Any]:
    """Return options written as NAME=VALUE, such as ratio=3, by name: numbers and true or false, else text.

    Raises ValueError for a word without =, or an option given twice.
    """
    found: dict[str, Any] = dict(named_values(words, "--trace-options"))
    for name, text in found.items():
        with suppress(ValueError):
            found[name] = json.loads(re.sub(r"^-?(?=\.\d)", r"\g<0>0", text))  # JSON has no .5
    return found


@dataclass(frozen=True)
class TraceConfig:
    """Configure a synaptic trace before the delay of a layer is known.

    A cascade of order 1 is the classical trace. `options` are further options of the kind: `decay` of "et",
    `ratio` of "ltp-ltd", `tolerance` of "optimal", `discretization` of "cet"; those that are None or have their
    default value are left out. Raises ValueError for an unknown kind or option, or a value that it refuses.
    """

    kind: str = "cet"  # a key of `TRACES`, or module:Name of a class or function
    order: int | None = None  # number of states, where there is a choice; None for the default of the kind, or 5
    normalization: Normalization = "peak"  # see `Trace`
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    delay_ratio: float = 1.0  # the delay that the trace is made for, over that of its layer

    def __post_init__(self) -> None:
        known = find_trace(self.kind).options
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.options.items()}
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in given.items():
            if name in ("order", "normalization"):
                raise ValueError(f"{name} has an argument of its own: leave it out of the trace's options")
            if name not in known:
                takers = [repr(kind) for kind in traces_with(name)]
                hint = f"only {', '.join(takers)} take{'s' * (len(takers) == 1)} one" if takers else "leave it out"
                raise ValueError(f"{name} {value!r} has no meaning for trace {self.kind!r}: {hint}")
        object.__setattr__(self, "options", {name: v for name, v in given.items() if v != known[name]})
        named = {"order", "normalization", *given}
        if missing := [name for name, default in known.items() if default is _REQUIRED and name not in named]:
            raise ValueError(f"trace {self.kind!r} needs {', '.join(missing)}: --trace-options {missing[0]}=VALUE")
        if self.order is not None:
            check_whole(self.order, "order", at_least=1)
            object.__setattr__(self, "order", int(self.order))
        trace = self._make(_ANY_DELAY)  # which refuses options that cannot be
        if self.order is not None and "order" not in known and self.order != getattr(trace, "states", None):
            raise ValueError(f"order {self.order} has no meaning for trace {self.kind!r}; leave it out")
        if self.delay_ratio != 1 and (
            trace is None or isinstance(trace, PerfectMemory) or trace == self._make(2 * _ANY_DELAY)
        ):
            raise ValueError(f"trace {self.label!r} cannot be made for another delay: leave trace_delay out")

    @classmethod
    def for_delay(
        cls,
        delay: float,
        trace: str | Trace | TraceConfig | None = None,
        order: int | None = None,
        decay: float | None = None,
        normalization: Normalization = "peak",
        *,
        stacked: bool = False,
        discretization: Discretization = "exact",
        trace_delay: float | None = None,
        step_duration: float = BEHAVIOURAL_STEP,
        options: Mapping[str, Any] | None = None,
    ) -> TraceConfig:
        """Return the configuration for a run whose credit arrives `delay` seconds late.

        Args:
            delay: T, in seconds.
            trace: a name; or a `Trace`, which may be made for another delay; or a configuration. None for a
                cascade, or no trace without a delay. All arguments but the delay, `stacked` and `step_duration`
                have an effect for a name only.
            order, normalization, options: see `TraceConfig`.
            decay: the option of the classical trace.
            stacked: whether delays add up over layers.
            discretization: the option of cascades.
            trace_delay: seconds that the trace is made for, if not for `delay`.
            step_duration: seconds a step stands for.

        Raises:
            ValueError: as `TraceConfig`, and for options that have no meaning without a delay, an option given
                twice, "none" with a delay, or a trace that cannot be built again from a delay and its fields.
        """
        checked(discretization, Discretization, "discretization")
        if not isinstance(trace, str | Trace | TraceConfig | None):
            raise ValueError(f"trace must be one of `cet-rl list traces`, a trace or a TraceConfig, got {trace!r}")
        kind = trace.kind if isinstance(trace, TraceConfig) else trace
        if not delay:
            if kind not in (None, "none"):
                raise ValueError(f"trace {kind!r} bridges a delay, and there is none: give one, or leave it out")
            given = {"order": order, "decay": decay, "stacked": stacked or None, "trace_delay": trace_delay}
            if names := [name for name, value in given.items() if value is not None]:
                belong = "belong" if names[1:] else "belongs"
                raise ValueError(f"{' and '.join(names)} {belong} to a delay, and there is none: give a delay")
        elif kind == "none":
            raise ValueError("trace 'none' is backpropagation without delay: leave delay out, or choose a trace")
        if isinstance(kind, Trace):
            return cls._of(kind, whole_steps(delay, step_duration), stacked=stacked)
        if isinstance(trace, TraceConfig):
            return trace
        named = {"decay": decay, "discretization": None if discretization == "exact" else discretization}
        ratio = 1.0 if trace_delay is None else trace_delay / delay
        if not 0 < ratio < math.inf:
            raise ValueError(f"trace_delay must be a positive number of seconds, got {trace_delay}")
        if not isinstance(options, Mapping | None):
            raise ValueError(f"options of a trace must be a dict of values by name, got {options!r}")
        if twice := [name for name in options or () if named.get(name) is not None]:
            raise ValueError(f"{twice[0]} is given twice, by itself and among the trace's options")
        return cls(kind or ("cet" if delay else "none"), order, normalization, named | dict(options or {}), ratio)

    @classmethod
    def _of(cls, trace: Trace, delay_steps: int, *, stacked: bool) -> TraceConfig:
        """Return the configuration that builds a given trace for a layer that waits `delay_steps`."""
        made_for, make = trace.made_for, type(trace)
        if not hasattr(make, "__dataclass_fields__"):
            raise ValueError(f"the class of {trace} must be a dataclass, so that its fields can be saved")
        if stacked and made_for is not None:
            raise ValueError(f"stacked delays differ by layer, and {trace} is made for one of them: give its name")
        kind = next((name for name, known in traces().items() if known.make is make), None)
        if kind is None:
            kind = f"{make.__module__}:{make.__qualname__}"
            _GIVEN[kind] = _entry(make)
        options = {item.name: getattr(trace, item.name) for item in fields(trace)}  # type: ignore[arg-type]
        options.pop("delay_steps", None)
        order, normalization = options.pop("order", None), options.pop("normalization", trace.normalization)
        chosen = cls(kind, order, normalization, options, 1.0 if made_for is None else made_for / delay_steps)
        if made_for is not None and chosen.build(delay_steps) != trace:
            raise ValueError(f"{trace} cannot be built again from its fields: give a TraceConfig")
        return chosen

    def as_keywords(self, delay: float) -> dict[str, Any]:
        """Return the keywords of an agent with this trace, each of which can be changed on loading the agent."""
        if "." in self.kind.rpartition(":")[2]:
            raise ValueError(f"trace {self.kind} could not be loaded by its name: define the class in a module")
        rest = self.defaults | dict(self.options)
        named = {"decay": rest.pop("decay", None), "discretization": rest.pop("discretization", "exact")}
        common = {"trace": self.kind, "order": self.saved_order, "normalization": self.normalization}
        trace_delay = None if self.delay_ratio == 1 else self.delay_ratio * delay
        return {**common, **named, "trace_delay": trace_delay, "trace_options": rest}

    @property
    def order_or_default(self) -> int:
        """Return the order; where it is None, the default that the kind itself has, or else 5."""
        default = find_trace(self.kind).options.get("order")
        return self.order or (default if isinstance(default, int) else DEFAULT_ORDER)

    @property
    def saved_order(self) -> int | None:
        """Return the order to save: None only where there is no choice."""
        return self.order_or_default if "order" in find_trace(self.kind).options else self.order

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the default options of a third party's trace, to save, as its author may change them later."""
        kind = find_trace(self.kind)
        theirs = kind.make is not None and not kind.make.__module__.startswith("cet_rl.")
        found = {n: v for n, v in kind.options.items() if theirs and n not in ("order", "normalization")}
        return {name: value for name, value in found.items() if _is_plain(value)}

    def build(self, delay_steps: int) -> Trace | None:
        """Return the trace of a layer that waits `delay_steps` for credit; None where it does not wait at all.

        Raises ValueError if `delay_ratio` times the delay is no whole number of steps.
        """
        exact = delay_steps * self.delay_ratio
        if abs(exact - round(exact)) > RELATIVE_TOLERANCE * exact:
            raise ValueError(
                f"trace_delay is {self.delay_ratio:g} times the delay, which for a layer that waits {delay_steps} "
                f"steps would be {exact:g} steps: choose one that makes it a whole number"
            )
        return self._make(round(exact)) if delay_steps else None

    def _make(self, delay_steps: int) -> Trace | None:
        kind = find_trace(self.kind)
        if kind.make is None:
            return None
        common = {"order": self.order_or_default, "normalization": self.normalization}
        taken = {name: value for name, value in common.items() if name in kind.options}
        return kind.build(delay_steps, {**taken, **self.options})

    @property
    def built(self) -> tuple[str, Trace | None]:
        """Return the name of the kind built, "et" for a cascade of order 1, and a trace of it for some delay."""
        trace = self._make(_ANY_DELAY)
        # A function may return a trace of another kind, which does not make it that kind.
        made = type(trace) if isinstance(make := find_trace(self.kind).make, type) else make
        return next((name for name, kind in TRACES.items() if kind.make is made), self.kind), trace

    @property
    def label(self) -> str:
        """Return a short name for folders: cet5, et, et0.99, perfect, ltp-ltd-ratio3."""
        label, trace = self.built
        label = "none" if trace is None else re.sub(r"[^\w.-]+", "-", label) + str(getattr(trace, "order", ""))
        for name, value in self.options.items():
            if isinstance(value, str):
                label = re.sub(r"[^\w.-]+", "-", f"{value}-{label}")
            else:
                label += _shown(value) if name == "decay" else f"-{name}{_shown(value)}"
        return label if self.delay_ratio == 1 else f"{label}-for{self.delay_ratio:g}"

    @property
    def title(self) -> str:
        """Return the name in figures and tables: CET 5, ET (decay 0.99), optimal 10 (delay ×0.9)."""
        kind, trace = self.built
        name = f"{find_trace(kind).title or kind} {getattr(trace, 'order', '')}".strip()
        details = [v if isinstance(v, str) else f"{key} {_shown(v)}" for key, v in self.options.items()]
        details += [f"delay ×{self.delay_ratio:g}"] * (self.delay_ratio != 1)
        return f"{name} ({', '.join(details)})" if details else name


def _is_plain(value: object) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    return all(isinstance(item, int | float | str) for item in items)


def _shown(value: object) -> str:
    """Return an option's value as it stands in names; for a sequence, eight digits of its checksum."""
    if isinstance(value, tuple | list):
        return f"{zlib.crc32(repr(tuple(value)).encode()):08x}"
    return f"{value:g}" if isinstance(value, float) else str(value)
