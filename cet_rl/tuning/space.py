"""One option of the space that is searched: from where to where, or which choices."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import check_values

if TYPE_CHECKING:
    from optuna import Trial

_RANGE = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Dimension:
    """One option that is searched.

    Attributes:
        option: its name.
        low: least value; None for choices.
        high: largest value, of the same type as `low`.
        log: whether its logarithm is spread evenly, instead of itself.
        step: between two values; None for all that there are.
        choices: values to choose from; empty for a range.
    """

    option: str
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: tuple[Any, ...] = ()

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values to try before a search starts: both ends, or all choices."""
        return self.choices or tuple(dict.fromkeys((self.low, self.high)))

    def suggest(self, trial: Trial) -> Any:
        """The value that a trial of Optuna has, drawn if it has none yet."""
        if self.choices:
            return self.value(trial.suggest_categorical(self.option, [_label(choice) for choice in self.choices]))
        assert self.low is not None
        assert self.high is not None
        if isinstance(self.low, int):
            return trial.suggest_int(self.option, self.low, int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.option, self.low, self.high, step=self.step, log=self.log)

    def value(self, found: Any) -> Any:
        """The option's value, from what Optuna has stored."""
        return next((c for c in self.choices if _label(c) == found and type(_label(c)) is type(found)), found)

    def as_data(self) -> dict[str, Any]:
        """Plain data, to tell whether a search is the same."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}


def read_dimension(option: str, entry: object, where: str, kind: type[RunConfig]) -> Dimension:
    """An entry of `space`: {low, high}, with log or step, or {choices}.

    Args:
        option: its name, one of the fields of `kind`.
        entry: what the file has.
        where: it has it, for messages.
        kind: of the task's configuration.

    Raises:
        ValueError: if it cannot be searched like that.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be {{low: …, high: …}} or {{choices: […]}}, got {entry!r}")
    unknown = [key for key in entry if key not in (*_RANGE, "choices")]
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; there are {', '.join(_RANGE)} and choices")
    if "choices" in entry:
        if len(entry) > 1:
            raise ValueError(f"{where}: choices go without low, high, log and step")
        return Dimension(option, choices=_choices(option, entry["choices"], where, kind))
    number = _number_type(option, kind)
    if number is None:
        raise ValueError(f"{where} is no number: give choices")
    if "low" not in entry or "high" not in entry:
        raise ValueError(f"{where} needs low and high, or choices")
    low, high = (check_values({option: entry[end]}, where, kind)[option] for end in ("low", "high"))
    log = entry.get("log", False)
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{where}: low must be less than high, and both finite, got {low!r} and {high!r}")
    if not isinstance(log, bool):
        raise ValueError(f"{where}: log must be true or false, got {log!r}")
    if log and low <= 0:
        raise ValueError(f"{where}: low must be positive for log: true, got {low!r}")
    step = entry.get("step")
    if step is not None:
        step = _step(option, step, high - low, where, kind)
        if log:
            raise ValueError(f"{where}: log and step exclude each other")
    return Dimension(option, low, high, log, step)


def _choices(option: str, values: object, where: str, kind: type[RunConfig]) -> tuple[Any, ...]:
    if not (isinstance(values, list) and values):
        raise ValueError(f"{where}: choices must be a list of values, got {values!r}")
    found = [check_values({option: value}, where, kind)[option] for value in values]
    plain = [list(value) if isinstance(value, tuple) else value for value in found]
    for place, value in enumerate(plain):
        if value in plain[:place]:
            raise ValueError(f"{where}: the choice {value!r} is given twice")
    return tuple(plain)


def _step(option: str, step: object, span: float, where: str, kind: type[RunConfig]) -> float | int:
    found: float | int = check_values({option: step}, f"{where}, step", kind)[option]
    if not (math.isfinite(found) and 0 < found <= span):
        raise ValueError(f"{where}: step must be positive and not larger than high - low, got {step!r}")
    return found


def _number_type(option: str, kind: type[RunConfig]) -> type | None:
    """int or float for an option that is a number, or none; None for others."""
    hint = typing.get_type_hints(kind)[option]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    return hint if hint in (int, float) else None


def _label(choice: Any) -> Any:
    """A choice as Optuna can store it: lists as JSON."""
    return json.dumps(choice) if isinstance(choice, list) else choice
