"""The built-in rules' kernels by class, and what the arrays of each hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cet_rl.recurrent.compiled import exact, local, stochastic, synthetic
from cet_rl.recurrent.compiled.jit import Arrays, Frame
from cet_rl.recurrent.compiled.layout import Slot
from cet_rl.recurrent.rules.base import Rule
from cet_rl.recurrent.rules.exact import BPTT, RTRL, FutureBPTT
from cet_rl.recurrent.rules.local import RFLO, FixedW, KeRNL
from cet_rl.recurrent.rules.stochastic import KFRTRL, RKF, UORO
from cet_rl.recurrent.rules.synthetic import DNI, DNIb

Run = Callable[[Frame, Arrays, int, int], None]


@dataclass(frozen=True)
class Kernel:
    """A rule's kernel.

    Attributes:
        run: what `jit.build` compiles.
        slots: the rule's states, in the order of the kernel's tuple.
        work: axes of the matrices it scribbles on, in the letters of `layout`.
        noise: axes of a step's noise after that of sequences; empty for none.
        constants: of a rule, in the kernel's array after 1/B, 1 - α and α.
        whole: first of the kernel's whole numbers.
        late: the kernel for signals that come late; None for a rule that does not separate.
    """

    run: Run
    slots: tuple[Slot, ...] = ()
    work: tuple[str, ...] = ()
    noise: str = ""
    constants: Callable[[Any], tuple[float, ...]] = lambda rule: ()
    whole: Callable[[Any], int] = lambda rule: 0
    late: Run | None = None


_SYNAPSES = Slot("B", "bnm", "b m n")
_WINDOW = (Slot("inputs", "btm", "t b m"), Slot("slope", "btn", "t b n"), Slot("credit", "btn", "t b n"))
_GUESS = (
    Slot("A", "nq", "q n"),
    Slot("A_copy", "nq", "q n"),
    Slot("known", "bq", "b q"),
    Slot("credit", "bn", "b n"),
)
_GUESSING = ("bn", "bq", "bn", "bn", "bn", "mn")

KERNELS: dict[type[Rule], Kernel] = {
    FixedW: Kernel(local.fixed_w),
    RFLO: Kernel(local.rflo, (_SYNAPSES,), ("1n",), late=local.late_rflo),
    KeRNL: Kernel(
        local.kernl,
        (
            Slot("A", "nu", "n u"),
            Slot("timescale", "n", "n"),
            _SYNAPSES,
            Slot("perturbed", "bn", "b n"),
            Slot("Omega", "bn", "b n"),
            Slot("Gamma", "bn", "b n"),
        ),
        ("bm", "bn", "bn", "bn", "bn", "1n"),
        "n",
        lambda rule: (rule.rate, rule.sigma),
        lambda rule: rule.cell.activation == "tanh",
        local.late_kernl,
    ),
    BPTT: Kernel(exact.bptt, _WINDOW, ("bn", "bn", "bn")),
    FutureBPTT: Kernel(exact.future_bptt, _WINDOW, ("bn", "bn", "bn")),
    RTRL: Kernel(exact.rtrl, (Slot("M", "bnmu", "b mn u"),), ("nu", "nu", "1n")),
    UORO: Kernel(stochastic.uoro, (Slot("A", "bn", "b n"), _SYNAPSES), ("bn", "1n"), "n"),
    KFRTRL: Kernel(
        stochastic.kf_rtrl, (Slot("A", "bm", "b m"), Slot("B", "bnu", "b n u")), ("nu", "nu", "bn"), "c"
    ),
    RKF: Kernel(
        stochastic.r_kf, (Slot("A", "bn", "b n"), Slot("B", "bmn", "b m n")), ("nu", "mn", "bm", "bn"), "n"
    ),
    DNI: Kernel(
        synthetic.dni,
        _GUESS,
        _GUESSING,
        constants=lambda rule: (rule.rate,),
        whole=lambda rule: rule.renewal,
        late=synthetic.late_dni,
    ),
    DNIb: Kernel(
        synthetic.dni_b,
        (*_GUESS, Slot("jacobian", "nu", "n u")),
        _GUESSING,
        constants=lambda rule: (rule.rate, rule.jacobian_rate),
        whole=lambda rule: rule.renewal,
        late=synthetic.late_dni_b,
    ),
}
"""By exact type: a subclass may do something else."""
