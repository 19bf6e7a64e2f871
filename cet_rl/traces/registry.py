"""The kinds of trace by name, and a trace described before its delay is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cet_rl.runs.values import unknown
from cet_rl.traces.base import Normalization, Trace, check_order, check_whole
from cet_rl.traces.cascade import CET, Discretization, check_discretization
from cet_rl.traces.exponential import ET, LTPLTD
from cet_rl.traces.perfect import PerfectMemory
from cet_rl.traces.sharp import Legendre, SharpCET

DEFAULT_ORDER = 5


@dataclass(frozen=True)
class TraceKind:
    """One entry of the registry.

    Attributes:
        build: from a description and a delay in steps (at least 1) to a trace; None for no trace.
        summary: one line for `cet-rl list traces`.
        takes_order: whether the order means anything to it.
        takes_decay: whether the per-step decay does.
    """

    build: Callable[[TraceConfig, int], Trace | None]
    summary: str
    takes_order: bool = False
    takes_decay: bool = False


def _classical(config: TraceConfig, delay_steps: int) -> ET:
    if config.decay is None:
        return ET.from_delay(delay_steps, config.normalization)
    return ET(config.decay, config.normalization)


def _cascade(config: TraceConfig, delay_steps: int) -> Trace:
    if config.states == 1:  # a cascade of one stage is the classical trace
        return _classical(config, delay_steps)
    return CET(config.states, delay_steps, config.normalization, config.discretization)


TRACES: dict[str, TraceKind] = {
    "cet": TraceKind(
        _cascade, "cascade of n stages, read at the last; peaks at the delay (paper, Eqs. 4-8)", takes_order=True
    ),
    "sharp": TraceKind(
        lambda config, steps: SharpCET(config.states, steps, config.normalization),
        "the same cascade, read as the sharpest weighted sum of all its stages",
        takes_order=True,
    ),
    "legendre": TraceKind(
        lambda config, steps: Legendre(config.states, steps, config.normalization),
        "Legendre delay network of n states with the sharpest readout",
        takes_order=True,
    ),
    "et": TraceKind(
        _classical, "classical eligibility trace, one decaying state (paper, Eq. 2)", takes_decay=True
    ),
    "ltp-ltd": TraceKind(
        lambda config, steps: LTPLTD(steps, normalization=config.normalization),
        "difference of a slow and a fast trace (He et al. 2015, Huertas et al. 2016)",
    ),
    "perfect": TraceKind(
        lambda config, steps: PerfectMemory(steps, config.normalization),
        "recalls exactly what happened a delay ago: the upper bound",
    ),
    "none": TraceKind(lambda config, steps: None, "no synaptic trace: backpropagation without delay"),
}
"""Every kind of trace, by the name that `--trace` and `trace=` take."""


@dataclass(frozen=True)
class TraceConfig:
    """Which synaptic trace to use, whatever the delay of a layer turns out to be.

    Attributes:
        kind: a key of `TRACES`.
        order: number of states, for the kinds that have a choice; None for 5. A cascade of order 1 is the
            classical trace.
        decay: per-step decay β in (0, 1) of the classical trace; None for exp(-1/D) (paper, section 3).
        normalization: "area" or "peak", see `Trace`.
        discretization: of a cascade, "exact" or "official", see `CET`.

    Raises:
        ValueError: for a kind, order, decay or normalisation that cannot be, or an option of another kind.
    """

    kind: str = "cet"
    order: int | None = None
    decay: float | None = None
    normalization: Normalization = "peak"
    discretization: Discretization = "exact"

    def __post_init__(self) -> None:
        if self.kind not in TRACES:
            raise unknown("trace", self.kind, TRACES)
        kind = TRACES[self.kind]
        classical = self.kind == "et" or (self.kind == "cet" and self.order == 1)
        if self.order is not None:
            if self.order < 1:
                raise ValueError(f"order must be at least 1, got {self.order}")
            if not kind.takes_order and not (self.kind == "et" and self.order == 1):
                raise ValueError(f"order {self.order} has no meaning for trace {self.kind!r}; leave it out")
            if kind.takes_order and not classical:
                check_order(self.order, f"trace {self.kind!r}")
        if self.decay is not None:
            if not classical:
                raise ValueError(f"decay has no meaning for trace {self.kind!r}: only 'et' takes one")
            if not 0 < self.decay < 1:
                raise ValueError(f"decay must lie strictly between 0 and 1, got {self.decay:g}")
        if self.discretization != "exact" and (self.kind != "cet" or classical):
            raise ValueError(
                f"discretization {self.discretization!r} has no meaning for trace {self.kind!r}: only a cascade "
                "of order 2 or more has a choice"
            )
        check_discretization(self.discretization)
        if self.kind != "none":
            ET(0.5, self.normalization)  # refuses an unknown normalisation

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
    ) -> TraceConfig:
        """The trace of a run whose credit arrives `delay` seconds late: a cascade unless told otherwise.

        Raises:
            ValueError: also for options that have no meaning without a delay, or if "none" is to bridge one.
        """
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
        if order is not None:
            check_whole(order, "order")
        return cls(
            kind or ("cet" if delay else "none"),
            None if order is None else int(order),
            None if decay is None else float(decay),
            normalization,
            discretization,
        )

    @property
    def states(self) -> int:
        """The order, its default filled in."""
        return DEFAULT_ORDER if self.order is None else self.order

    def build(self, delay_steps: int) -> Trace | None:
        """The trace of a layer that waits `delay_steps` for credit: none where it does not wait at all."""
        return TRACES[self.kind].build(self, delay_steps) if delay_steps else None

    @property
    def label(self) -> str:
        """Short name for folders and legends: cet5, et, et0.99, perfect."""
        if self.kind == "et" or (self.kind == "cet" and self.order == 1):
            return "et" if self.decay is None else f"et{self.decay:g}"
        name = self.kind if self.discretization == "exact" else f"{self.discretization}-{self.kind}"
        return f"{name}{self.states}" if TRACES[self.kind].takes_order else name
