"""The claims of "Evaluating biological plausibility of learning algorithms the lazy way", and this project's own.

The audit paper shows training losses; here losses are those of frozen weights on fresh sequences. Its rules are
compared seed by seed: on Mimic the seed draws the network that is to be imitated, and with it the loss that can be
reached. All arms of our own claims have the same rates.
"""

from __future__ import annotations

from cet_rl.report.claims.cet_paper import CARTPOLE, INVADERS, MNIST, OURS
from cet_rl.report.claims.checks import PaperClaim, at_least, at_most, higher, lower, more_than_share, rises
from cet_rl.report.claims.model import (
    ALIGNED,
    ALIGNED_MORE,
    PLAUSIBLE,
    TEST_ACCURACY,
    TEST_LOSS,
    TRAINING_RETURN,
    with_rule,
    with_trace,
)

# -------------------- the paper on learning rules

EXACT = ("bptt", "rtrl")
FREE = ("rule_options",)
"""Each rule has options of its own."""


def _of_task(task: str, title: str, figure: str) -> tuple[PaperClaim, ...]:
    config = f"rules-fig1-{task}"

    def claim(name: str, words: str, *pairs: tuple[str, str]) -> PaperClaim:
        checks = tuple(
            lower(with_rule(task, first), with_rule(task, second), TEST_LOSS) for first, second in pairs
        )
        place = f"Audit paper, {figure}"
        return PaperClaim(f"{task}-{name}", place, f"{title}: {words}", config, checks, FREE, paired=True)

    return (
        claim(
            "beat-fixed-w",
            "RFLO and DNI end with a lower loss than fixed-W, which trains the output layer only.",
            *((rule, "fixed-w") for rule in ("rflo", "dni")),
        ),
        claim(
            "exact-are-best",
            "BPTT and RTRL end with a lower loss than RFLO, DNI and DNI(b).",
            *((exact, rule) for exact in EXACT for rule in ("rflo", "dni", "dni-b")),
        ),
        claim(
            "dni-b",
            "DNI(b), with its learned Jacobian, ends worse than DNI and better than fixed-W.",
            ("dni", "dni-b"),
            ("dni-b", "fixed-w"),
        ),
    )


AUDIT_PAPER = (
    *_of_task("add", "Add", "Fig. 1a"),
    *_of_task("mimic", "Mimic", "Fig. 1b"),
    PaperClaim(
        "plausible-rules",
        "Audit paper, Table 1",
        "Of the rules in Fig. 1 that learn recurrent weights, RFLO and DNI(b) are biologically plausible; DNI, "
        "BPTT and RTRL are not: by the audit of what they compute.",
        "rules-fig1-add",
        (
            *(at_least(with_rule("add", rule), PLAUSIBLE, 0.5) for rule in ("rflo", "dni-b")),
            *(at_most(with_rule("add", rule), PLAUSIBLE, 0.5) for rule in ("dni", *EXACT)),
        ),
        FREE,
    ),
)

# -------------------- our own

_cartpole = {kind: with_trace(CARTPOLE, kind, 10, 32.0, **OURS) for kind in ("cet", "sharp", "legendre")}
_invaders = {kind: with_trace(INVADERS, kind, 10, 2.0, **OURS) for kind in ("cet", "legendre")}
_late_add = {
    kind: with_trace("late-add", kind, None if kind == "et" else 10, 4.0, rule="rflo")
    for kind in ("et", "cet", "legendre")
}

OWN = (
    PaperClaim(
        "own-mnist",
        "Ours",
        "MNIST, 10 s delay: with ten states, Legendre and SharpCET reach a higher accuracy than CET, by at least "
        "a point.",
        "traces-mnist",
        tuple(
            higher(with_trace(MNIST, own, 10, 10.0), with_trace(MNIST, "cet", 10, 10.0), TEST_ACCURACY, 1.0)
            for own in ("legendre", "sharp")
        ),
    ),
    PaperClaim(
        "own-cartpole",
        "Ours",
        "CartPole, 32 s delay: with ten states, Legendre and SharpCET reach a higher return than CET.",
        "traces-cartpole",
        tuple(higher(_cartpole[own], _cartpole["cet"], TRAINING_RETURN) for own in ("legendre", "sharp")),
    ),
    PaperClaim(
        "own-spaceinvaders",
        "Ours",
        "SpaceInvaders, 2 s delay: with ten states, Legendre reaches a higher return than CET, and more than 0.8 "
        "of what a perfect memory does.",
        "traces-spaceinvaders",
        (
            higher(_invaders["legendre"], _invaders["cet"], TRAINING_RETURN),
            more_than_share(
                _invaders["legendre"],
                with_trace(INVADERS, "perfect", delay=2.0, **OURS),
                TRAINING_RETURN,
                0.8,
            ),
        ),
    ),
    PaperClaim(
        "own-alignment",
        "Ours",
        "CartPole, 32 s delay: with ten states, alignment with the true gradient grows from CET to SharpCET to "
        "Legendre.",
        "traces-cartpole",
        (rises(list(_cartpole.values()), ALIGNED),),
    ),
    PaperClaim(
        "alignment-grows",
        "Ours",
        "CartPole, 32 s delay: the alignment of ten states is better in the last third of training than in the "
        "first, when episodes are shorter than the delay.",
        "traces-cartpole",
        (at_least(_cartpole["cet"], ALIGNED_MORE, 0.0),),
    ),
    PaperClaim(
        "late-add-orders",
        "Ours",
        "Add with the error 20 steps late: RFLO with ten states ends with a lower loss than with the classical "
        "trace, and with Legendre's ten with a lower one than with a cascade's.",
        "late-add",
        (
            lower(_late_add["cet"], _late_add["et"], TEST_LOSS),
            lower(_late_add["legendre"], _late_add["cet"], TEST_LOSS),
        ),
        FREE,
        paired=True,
    ),
)

CLAIMS = (*AUDIT_PAPER, *OWN)
"""The audit paper's claims, then our own."""
