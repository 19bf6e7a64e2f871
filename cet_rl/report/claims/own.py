"""What we say of our own traces, and of errors that come late in recurrent networks.

All sides of a claim have the same rates.
"""

from __future__ import annotations

from cet_rl.report.claims.checks import at_least, better, lower, more_than_share, rises
from cet_rl.report.claims.claim import Claim
from cet_rl.report.claims.measures import ACCURACY, ALIGNED, ALIGNED_MORE, LOSS, RETURN
from cet_rl.report.claims.sides import side
from cet_rl.report.claims.traces import CARTPOLE, INVADERS, MNIST, OURS

LATE = "late-add"
_rflo = {"rule": "rflo"}

CLAIMS = (
    Claim(
        "own-mnist",
        "Ours",
        "MNIST, 10 s late: with ten states, Legendre and SharpCET reach a higher accuracy than CET, by a point at "
        "least.",
        "traces-mnist",
        tuple(
            better(side(MNIST, own, 10, 10.0), side(MNIST, "cet", 10, 10.0), ACCURACY, 1.0)
            for own in ("legendre", "sharp")
        ),
    ),
    Claim(
        "own-cartpole",
        "Ours",
        "CartPole, 32 s late: with ten states, Legendre and SharpCET reach a higher return than CET.",
        "traces-cartpole",
        tuple(
            better(side(CARTPOLE, own, 10, 32.0, **OURS), side(CARTPOLE, "cet", 10, 32.0, **OURS), RETURN)
            for own in ("legendre", "sharp")
        ),
    ),
    Claim(
        "own-spaceinvaders",
        "Ours",
        "SpaceInvaders, 2 s late: with ten states, Legendre reaches a higher return than CET, and more than 0.8 "
        "of what a perfect memory does.",
        "traces-spaceinvaders",
        (
            better(side(INVADERS, "legendre", 10, 2.0, **OURS), side(INVADERS, "cet", 10, 2.0, **OURS), RETURN),
            more_than_share(
                side(INVADERS, "legendre", 10, 2.0, **OURS),
                side(INVADERS, "perfect", delay=2.0, **OURS),
                RETURN,
                0.8,
            ),
        ),
    ),
    Claim(
        "own-alignment",
        "Ours",
        "CartPole, 32 s late: with ten states, alignment with the true gradient grows from CET to SharpCET to "
        "Legendre.",
        "traces-cartpole",
        (rises([side(CARTPOLE, own, 10, 32.0, **OURS) for own in ("cet", "sharp", "legendre")], ALIGNED),),
    ),
    Claim(
        "alignment-grows",
        "Ours",
        "CartPole, 32 s late: the alignment of ten states is better in the last third of training than in the "
        "first, when episodes are shorter than the delay.",
        "traces-cartpole",
        (at_least(side(CARTPOLE, "cet", 10, 32.0, **OURS), ALIGNED_MORE, 0.0),),
    ),
    Claim(
        "late-add-orders",
        "Ours",
        "Add with the error 20 steps late: RFLO with ten states ends with a lower loss than with the classical "
        "trace, and with Legendre's ten with a lower one than with a cascade's.",
        "late-add",
        (
            lower(side(LATE, "cet", 10, 4.0, **_rflo), side(LATE, "et", None, 4.0, **_rflo), LOSS),
            lower(side(LATE, "legendre", 10, 4.0, **_rflo), side(LATE, "cet", 10, 4.0, **_rflo), LOSS),
        ),
        ("rule_options",),
        paired=True,
    ),
)
"""Task by task."""
