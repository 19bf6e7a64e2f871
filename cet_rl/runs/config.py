"""The options that the configurations of all kinds of tasks share."""

from __future__ import annotations

import json
import math
import os
import typing
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Self

from cet_rl.runs.values import checked, flag
from cet_rl.traces.base import Normalization
from cet_rl.traces.cascade import Discretization
from cet_rl.traces.registry import TraceConfig, parse_trace_options
from cet_rl.traces.timing import CreditTiming


class Mark(Enum):
    """Mark what kind of option a field is, in its annotation: `device: Annotated[str, Mark.MACHINE]`."""

    MACHINE = "belongs to the machine: may differ between two sessions of one run, and changes no result"
    NEUTRAL = "changes what is logged, how fast or how exactly is evaluated, but not what is learned"
    TRACED = "means something only to agents with synaptic traces"
    BATCHABLE = "may differ between the runs of one batch"
    LABELLED = "is part of the names of arms"
    CHOSEN = "is chosen when a run begins if it is left open, by auto or none; a resumed run keeps the choice"


OPEN = ("auto", None)
"""Values of an option with the mark CHOSEN that leave the choice open."""


@cache
def marked(kind: type[RunConfig], mark: Mark) -> frozenset[str]:
    """Return the names of the fields with a mark; a field that a subclass overrides keeps its marks."""
    hints = [typing.get_type_hints(base, include_extras=True) for base in filter(is_dataclass, kind.__mro__)]
    return frozenset(
        name for found in hints for name, hint in found.items() if mark in getattr(hint, "__metadata__", ())
    )


@cache
def types_of(kind: type[Any]) -> dict[str, Any]:
    """Return the types of a configuration's fields by name, without annotations."""
    return typing.get_type_hints(kind)


def check_seed(seed: int) -> None:
    """Raise ValueError unless numpy, torch and Gymnasium can all be seeded with it."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must lie in [0, 2^32), got {seed}")


@dataclass(frozen=True)
class RunConfig(ABC):
    """Choose what to learn, and how."""

    # The docstring above heads the options in `cet-rl train --help`. A configuration holds all that repeats a run;
    # it raises ValueError for values that are impossible or do not fit together.
    task: str
    """Task to learn."""
    delay: Annotated[float, Mark.BATCHABLE] = 0.0
    """Seconds until credit reaches the synapses. 0: no delay."""
    order: Annotated[int | None, Mark.TRACED, Mark.BATCHABLE, Mark.LABELLED] = None
    """States of a trace (cet, sharp, legendre, optimal). Default 5; 1 of cet is the classical trace."""
    trace: Annotated[str | None, Mark.TRACED, Mark.BATCHABLE, Mark.LABELLED] = None
    """A name that `cet-rl list traces` shows, or module:Class. Default cet, or none without a delay."""
    stacked: Annotated[bool, Mark.TRACED, Mark.BATCHABLE] = False
    """The output layer waits 0, the layer before it the delay, the next twice as long (retrograde signalling)."""
    step_ms: Annotated[float, Mark.BATCHABLE] = 200.0
    """Milliseconds that one step stands for."""
    normalization: Annotated[Normalization, Mark.TRACED, Mark.BATCHABLE] = "peak"
    """Scale of the trace's kernel g. peak: its largest value is one; area: the absolute values sum to one."""
    decay: Annotated[float | None, Mark.TRACED, Mark.BATCHABLE] = None
    """Decay of the classical trace per step, in (0, 1). Default exp(-1/D), D the delay in steps."""
    discretization: Annotated[Literal["exact", "official"], Mark.TRACED, Mark.BATCHABLE] = "exact"
    """Cascade by Eq. 8, or as in the authors' code, which has one kernel for agents and one for images."""
    trace_delay: Annotated[float | None, Mark.TRACED, Mark.BATCHABLE] = None
    """Seconds that the trace is made for. Default the delay; to see what happens if that is not known exactly."""
    trace_options: Annotated[tuple[str, ...], Mark.TRACED, Mark.BATCHABLE] = ()
    """NAME=VALUE ...: other options of the trace, or each by itself: --tolerance 0.1; see `cet-rl list traces`."""
    lr: Annotated[float, Mark.BATCHABLE] = 5e-4
    """Learning rate of Adam."""
    total_steps: int = 1_000_000
    """Steps to learn for."""
    seed: Annotated[int, Mark.BATCHABLE] = 0
    """Seed of everything that is drawn at random."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Mark.MACHINE] = "auto"
    """No run of ours has tried cuda. auto: cuda where there is one."""
    threads: Annotated[int | None, Mark.MACHINE] = None
    """CPU threads. Default OMP_NUM_THREADS, else 1; more rarely help and change the last digits."""
    alignment: Annotated[bool, Mark.NEUTRAL, Mark.TRACED, Mark.BATCHABLE] = True
    """Log the cosine between each layer's update and the true gradient for the same data."""

    def __new__(cls, *positional: Any, **named: Any) -> Self:
        """Note which values are given: the tuned defaults of the task take the place of the others."""
        config = super().__new__(cls)
        names = [item.name for item in fields(cls)]
        object.__setattr__(config, "_given", {*names[: len(positional)], *named})
        return config

    def __post_init__(self) -> None:
        from cet_rl.runs.config_files import tuned_defaults  # which checks files against this class

        for name, value in tuned_defaults(str(self.task), type(self)).items():
            if name not in self.__dict__["_given"]:
                object.__setattr__(self, name, value)
        for name, hint in types_of(type(self)).items():
            object.__setattr__(self, name, checked(getattr(self, name), hint, flag(name)))
        self.check_counts("total_steps", "threads")
        check_seed(self.seed)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"--lr must be positive and finite, got {self.lr:g}")
        if self.threads is not None and self.threads > 1024:
            raise ValueError(f"--threads must be at most 1024, got {self.threads}")
        for steps in self.timing.layer_delays:
            self.trace_config.build(steps)

    def check_counts(self, *names: str) -> None:
        """Raise ValueError unless each of these fields is None or a number from 1 to 10^12."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{flag(name)} must be at least 1, got {value}")
            if value is not None and value > 10**12:
                raise ValueError(f"{flag(name)} is too large")

    @property
    @abstractmethod
    def layers(self) -> int:
        """Return the number of layers that credit has to reach."""

    @property
    def step_duration(self) -> float:
        """Return the seconds one step stands for."""
        return self.step_ms / 1000

    @cached_property
    def timing(self) -> CreditTiming:
        """Return when credit reaches each of the layers."""
        return CreditTiming(self.delay, self.step_duration, self.stacked, self.layers)

    @property
    def trace_discretization(self) -> Discretization:
        """Return the discretization of a cascade."""
        return self.discretization

    @cached_property
    def trace_config(self) -> TraceConfig:
        """Return the configuration of the trace, with the default kind filled in."""
        return TraceConfig.for_delay(
            self.delay,
            self.trace,
            self.order,
            self.decay,
            self.normalization,
            stacked=self.stacked,
            discretization=self.trace_discretization,
            trace_delay=self.trace_delay,
            step_duration=self.step_duration,
            options=parse_trace_options(self.trace_options),
        )

    @property
    def arm(self) -> tuple[str, ...]:
        """Return the words of `label` that name what learns: cet5."""
        return (self.trace_config.label,)

    @property
    def label(self) -> str:
        """Return the arm's short name for folders and legends: cet5-8s, none, legendre10-120s-stacked."""
        return "-".join([*self.arm, *[f"{self.delay:g}s"] * bool(self.delay), *["stacked"] * self.stacked])

    def resolved(self) -> Self:
        """Return the same configuration with the defaults that depend on other options filled in."""
        trace = self.trace_config
        given = {*trace.options, *parse_trace_options(self.trace_options)}
        words = [f"{name}={json.dumps(value)}" for name, value in trace.defaults.items() if name not in given]
        return replace(
            self, trace=trace.kind, order=trace.saved_order, trace_options=(*words, *self.trace_options)
        )

    def on_this_machine(self) -> Self:
        """Return the configuration with this machine's device and threads; ValueError without such a device."""
        import torch  # takes a second

        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu")
        device = ("cuda" if available else "cpu") if self.device == "auto" else self.device
        named = (os.environ.get("OMP_NUM_THREADS") or "1") if self.threads is None else str(self.threads)
        if not named.isdigit() or int(named) < 1:
            raise ValueError(f"OMP_NUM_THREADS must be a positive number, got {named!r}; or use --threads")
        return replace(self, device=device, threads=int(named))

    def check_batchable(self) -> None:
        """Raise ValueError unless the run can learn in one batch with others that are alike."""
        raise ValueError(f"--launcher batch is for images and the agent cet, not for {self.task}: leave it out")

    def shared(self) -> dict[str, Any]:
        """Return the values that all runs of a batch must have in common."""
        names = [item.name for item in fields(self)]
        return {name: getattr(self, name) for name in names if name not in marked(type(self), Mark.BATCHABLE)}

    def as_data(self) -> dict[str, Any]:
        """Return the values as plain data, as they stand in config.yaml."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def check_batch(configs: Sequence[RunConfig]) -> None:
    """Raise ValueError unless these runs can be batched together."""
    if not configs:
        raise ValueError("there are no runs to train")
    first = configs[0].shared()
    for config in configs:
        config.check_batchable()
        other = config.shared()
        for name in first:
            if other[name] != first[name]:
                raise ValueError(
                    f"runs of one batch must not differ in {name}: {first[name]!r} and {other[name]!r}; "
                    f"they may in {', '.join(sorted(marked(type(config), Mark.BATCHABLE)))}"
                )


@dataclass(frozen=True)
class LayeredConfig(RunConfig):
    """Choose what to learn with a network of layers, and how."""

    error_at: Annotated[Literal["preactivation", "activation"], Mark.TRACED] = "preactivation"
    """The quantity that hidden layers' errors are derivatives with respect to."""
    executors: Annotated[tuple[str, ...] | None, Mark.TRACED, Mark.BATCHABLE, Mark.CHOSEN] = None
    """The executor of each layer's late credit, input side first, in an agent or a network that streams. Default:
    chosen by a cost model, see `cet-rl bench`, and written to config.yaml."""
