"""What the configurations of all kinds of tasks share, and where their values come from.

Precedence: defaults of the dataclass < tuned defaults of the task < configuration file < command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro
import yaml

from cet_rl.runs.yaml_loader import LOADER
from cet_rl.traces.timing import CreditTiming
from cet_rl.traces.base import Normalization
from cet_rl.traces.registry import TRACES, TraceConfig

_NO_YAML = (yaml.YAMLError, RecursionError, ValueError, KeyError, IndexError, TypeError, AttributeError)
"""What PyYAML raises for text that is none, and for tags whose values are none."""

Task = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
"""A task's name, as the command line takes it."""


@dataclass(frozen=True)
class RunConfig(ABC):
    """What to learn, and how."""

    # Everything that is needed to repeat a run; ValueError for values that cannot be or do not fit together.
    task: Task
    """What to learn."""
    delay: float = 0.0
    """Seconds until credit reaches the synapses. 0: no delay."""
    order: int | None = None
    """States of a trace (cet, sharp, legendre). Default 5; 1 is the classical trace."""
    trace: str | None = None
    """A name that `cet-rl list traces` shows. Default cet, or none without a delay."""
    stacked: bool = False
    """Add up delays from the output layer down (retrograde signalling)."""
    step_ms: float = 200.0
    """Milliseconds that one step stands for."""
    normalization: Normalization = "peak"
    """Scale of the trace's kernel: largest value one, or area one."""
    decay: float | None = None
    """Decay of the classical trace per step, in (0, 1). Default exp(-1/D), D the delay in steps."""
    discretization: Literal["exact", "official"] = "exact"
    """Of a cascade: Eq. 8, or as in the authors' code, where a step's input enters the first state only."""
    lr: float = 5e-4
    """Learning rate of Adam."""
    total_steps: int = 1_000_000
    """How long to learn."""
    seed: int = 0
    """Of everything that is drawn at random."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int | None = None
    """CPU threads. Default OMP_NUM_THREADS, else 1; more rarely help and change the last digits."""
    alignment: bool = True
    """Log the cosine between each layer's update and the true gradient for the same data."""

    def __post_init__(self) -> None:
        self._check_types()
        self.check_counts("total_steps", "threads")
        check_seed(self.seed)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"--lr must be positive and finite, got {self.lr:g}")
        if self.threads is not None and self.threads > 1024:
            raise ValueError(f"--threads must be at most 1024, got {self.threads}")
        _ = self.trace_config, self.timing

    def _check_types(self) -> None:
        """Raise ValueError for a value that is not of its field's type."""
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if not _is_of(hint, value):
                raise ValueError(f"{flag(name)} must be {_in_words(hint)}, got {value!r}")

    def check_counts(self, *names: str) -> None:
        """Raise ValueError unless each of these fields is None or a number from one to a million million."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{flag(name)} must be at least 1, got {value}")
            if value is not None and value > 10**12:
                raise ValueError(f"{flag(name)} is too large")

    @property
    @abstractmethod
    def layers(self) -> int:
        """Number of layers that credit has to reach."""

    @property
    def step_duration(self) -> float:
        """Seconds one step stands for."""
        return self.step_ms / 1000

    @property
    def timing(self) -> CreditTiming:
        """When credit reaches each of the layers."""
        return CreditTiming(self.delay, self.step_duration, self.stacked, self.layers)

    @property
    def trace_config(self) -> TraceConfig:
        """Kind, order, decay and normalisation of the trace, the kind's default filled in."""
        return TraceConfig.for_delay(
            self.delay,
            self.trace,
            self.order,
            self.decay,
            self.normalization,
            stacked=self.stacked,
            discretization=self.discretization,
        )

    @property
    def arm(self) -> tuple[str, ...]:
        """What learns, in words for `label`: cet5."""
        return (self.trace_config.label,)

    @property
    def label(self) -> str:
        """Short name of the arm for folders and legends: cet5-8s, none, legendre10-120s-stacked."""
        return "-".join([*self.arm, *[f"{self.delay:g}s"] * bool(self.delay), *["stacked"] * self.stacked])

    def with_trace(self) -> Self:
        """The same with nothing left to choose of the trace: its kind and order by name."""
        trace = self.trace_config
        order = trace.states if TRACES[trace.kind].takes_order else self.order
        return dataclasses.replace(self, trace=trace.kind, order=order)

    @classmethod
    def unchecked(cls, values: Mapping[str, Any]) -> Self:
        """Values to start from that may not fit together yet; whatever is built from them is checked."""
        config = object.__new__(cls)
        for item in dataclasses.fields(cls):
            object.__setattr__(config, item.name, values.get(item.name, item.default))
        return config

    def as_data(self) -> dict[str, Any]:
        """Plain data, as written to config.yaml."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    def as_hyperparameters(self) -> dict[str, bool | int | float | str]:
        """What TensorBoard takes: what is neither a number nor text, as text."""
        plain = (int, float, str, bool)
        return {key: value if isinstance(value, plain) else str(value) for key, value in self.as_data().items()}


@dataclass(frozen=True)
class LayeredConfig(RunConfig):
    """What to learn with a network of layers, and how."""

    error_at: Literal["preactivation", "activation"] = "preactivation"
    """What hidden layers' errors are derivatives with respect to."""


@cache
def _hints(kind: type[RunConfig]) -> dict[str, Any]:
    """Types of the fields, without the annotations that are tyro's."""
    return typing.get_type_hints(kind)


_WORDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
    type(None): (type(None), "none"),
}
"""What a field of some type takes, and how to say so."""


def _is_of(hint: Any, value: object) -> bool:
    """Whether a value is what a field of this type takes; numpy's numbers are numbers."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return value in arguments
    if typing.get_origin(hint) is tuple:
        row = list(value) if isinstance(value, tuple | list) else None
        as_long = row is not None and (... in arguments or len(row) == len(arguments))
        return as_long and all(_is_of(arguments[0], each) for each in row or ())
    if arguments:
        return any(_is_of(each, value) for each in arguments)
    return isinstance(value, _WORDS[hint][0]) and (hint is bool or not isinstance(value, bool))


def _in_words(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if typing.get_origin(hint) is tuple:
        number = "" if ... in arguments else f"{len(arguments)} "
        return f"a tuple of {number}{_WORDS[arguments[0]][1].removeprefix('a ')}s"
    return " or ".join(map(_in_words, arguments)) if arguments else _WORDS[hint][1]


def check_seed(seed: int) -> None:
    """Raise ValueError unless numpy, torch and Gymnasium can all be seeded with it."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must lie in [0, 2^32), got {seed}")


def flag(name: str) -> str:
    """A field's name as an option of the command line."""
    return "--" + name.replace("_", "-")


def package_configs() -> dict[str, Traversable]:
    """The configuration files that come with the package, by name."""
    folder = resources.files("cet_rl") / "configs"
    return {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}


def tuned_defaults(task: str, kind: type[RunConfig]) -> dict[str, Any]:
    """The tuned defaults of a task, or of its namespace (MinAtar/…); empty if there are none."""
    folder = resources.files("cet_rl") / "configs" / "tuned"
    for name in (task.replace("/", "-"), task.split("/")[0]):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return parse_config(_read_text(path, path.name), path.name, kind)
    return {}


def read_config(source: str, kind: type[RunConfig]) -> dict[str, Any]:
    """A configuration file, by path or by the name of one that comes with the package.

    Args:
        source: path or name.
        kind: whose fields it may name.

    Raises:
        ValueError: if there is none, or it is no YAML mapping with keys of `kind`.
    """
    return check_values(read_mapping(source), source, kind)


def read_mapping(source: str) -> Mapping[str, Any]:
    """What a configuration file holds, by path or by name; only its task has been looked at.

    For those who have to know the task before they can tell which keys there may be.

    Raises:
        ValueError: if there is none, it is no YAML mapping, or its task is no text.
    """
    known = package_configs()
    path: Traversable = Path(source)
    if not path.is_file():
        if source not in known:
            near = difflib.get_close_matches(source, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known names: {', '.join(sorted(known))}"
            raise ValueError(f"there is no configuration file {source!r} and none of that name; {hint}")
        path = known[source]
    mapping = _parse_mapping(_read_text(path, source), source)
    if "task" in mapping:
        _coerce(mapping["task"], str, f"{source}: task")
    return mapping


def _read_text(path: Traversable, source: str) -> str:
    """The text of a file; ValueError that names it if it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{source} is no UTF-8 text") from None


def parse_config(text: str, source: str, kind: type[RunConfig]) -> dict[str, Any]:
    """YAML text to values of `kind`, checked for type.

    Raises:
        ValueError: naming the file and the key.
    """
    return check_values(_parse_mapping(text, source), source, kind)


def _parse_mapping(text: str, source: str) -> Mapping[str, Any]:
    try:
        data = yaml.load(text, Loader=LOADER)
    except _NO_YAML as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}" if place else ""
        raise ValueError(f"{source} is no valid YAML{where}") from None
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ValueError(f"{source} must hold a mapping of keys to values")
    return data


def check_values(mapping: Mapping[str, Any], source: str, kind: type[RunConfig]) -> dict[str, Any]:
    """What a file holds as values of `kind`.

    Raises:
        ValueError: for a key that `kind` does not have, or a value of another type, naming the file.
    """
    hints = _hints(kind)
    values = {}
    for key, value in mapping.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{source}: unknown key {key!r}{hint}")
        values[key] = _coerce(value, hints[key], f"{source}: {key}")
    return values


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, if it is one in all but notation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _coerce(value, next(a for a in arguments if a is not type(None)), where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}")
    if origin is tuple:
        endless = arguments[-1] is Ellipsis
        if isinstance(value, list) and (endless or len(value) == len(arguments)):
            return tuple(_coerce(item, arguments[0], where) for item in value)
        raise ValueError(f"{where} must be a list{'' if endless else f' of {len(arguments)}'}, got {value!r}")
    if (
        hint is float and isinstance(value, (str, int)) and not isinstance(value, bool)
    ):  # YAML 1.1 reads 5e-4 as a string
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{where} must be of type float, got {str(value)[:40]!r}") from None
    fits = isinstance(value, (int, float) if hint is float else hint)
    if not fits or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value
