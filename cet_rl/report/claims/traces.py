"""The claims of "Learning From the Past with Cascading Eligibility Traces".

The paper's words come first; margins that it does not give are ours and in the claim's words. Its accuracies and
returns are those of the rates in its Tables 1 to 7, which may differ between orders and delays.
"""

from __future__ import annotations

from typing import Any

from cet_rl.report.claims.checks import Check, at_least, better, falls, less_than_share, loses_less, rises
from cet_rl.report.claims.claim import RATES, Claim
from cet_rl.report.claims.measures import (
    ACCURACY,
    ALIGNED,
    ALIGNED_EARLY,
    ALIGNED_LAST,
    ALIGNED_LATE,
    DEPTH,
    RETURN,
    SOONER,
    Measure,
)
from cet_rl.report.claims.sides import Side, cascade, named, side

MNIST, CIFAR = "mnist", "cifar10"
CARTPOLE, LANDER, INVADERS = "CartPole-v1", "LunarLander-v3", "MinAtar/SpaceInvaders-v1"
OURS: dict[str, Any] = {"agent": "cet"}
"""The paper's agent: other agents' runs have no synaptic traces."""

IMAGES = (1, 2, 6, 10)
GAMES = (1, 2, 5, 8, 10)
RETROGRADE_GAMES = (1, 2, 5, 10)
"""Orders in the paper's figures."""

SHORT = (0.2, 0.6, 1.0, 2.0, 4.0, 10.0)
"""Delays of Fig. 3, in seconds."""

LONG = (2.0, 4.0, 8.0, 32.0, 64.0, 128.0)
"""Delays of CartPole and LunarLander in Fig. 4."""

FEW_POINTS = 5.0
"""Percentage points of accuracy less than without delay that still count as strong."""


def _claim(name: str, place: str, words: str, config: str, *checks: Check) -> Claim:
    return Claim(name, f"CET paper, {place}", words, config, checks, RATES)


def _of(task: str, order: int, delay: float, **options: Any) -> Side:
    """The paper's trace of some order in a task."""
    agent = {} if task in (MNIST, CIFAR) else OURS
    return cascade(task, order, delay, **agent, **options)


def _retrograde(task: str, order: int) -> Side:
    return _of(task, order, 120.0, stacked=True)


def _retrogrades(task: str, orders: tuple[int, ...]) -> list[Side]:
    return [_retrograde(task, order) for order in orders]


def _grows(task: str, orders: tuple[int, ...], delay: float, measure: Measure) -> Check:
    return rises([_of(task, order, delay) for order in orders], measure)


def _over_delays(task: str, order: int, delays: tuple[float, ...], measure: Measure) -> Check:
    return falls([_of(task, order, delay) for delay in delays], measure)


_undelayed_images = {task: side(task, "none") for task in (MNIST, CIFAR)}
_undelayed_invaders = side(INVADERS, "none", **OURS)

CLAIMS = (
    _claim(
        "mnist-orders",
        "Fig. 3",
        "MNIST, 10 s late: accuracy grows with the number of states (1, 2, 6, 10).",
        "fig3-mnist",
        _grows(MNIST, IMAGES, 10.0, ACCURACY),
    ),
    _claim(
        "mnist-short",
        "Fig. 3",
        "MNIST, 0.2 s late: beyond six states more of them gain less than half a point.",
        "fig3-mnist",
        loses_less(_of(MNIST, 6, 0.2), _of(MNIST, 10, 0.2), ACCURACY, 0.5),
    ),
    _claim(
        "mnist-et-holds",
        "section 4.1",
        f"MNIST: the classical trace stays strong up to 2 s, less than {FEW_POINTS:g} points below learning "
        "without delay.",
        "fig3-mnist",
        *(
            loses_less(_of(MNIST, 1, delay), _undelayed_images[MNIST], ACCURACY, FEW_POINTS)
            for delay in SHORT
            if delay <= 2
        ),
    ),
    _claim(
        "mnist-et-fails",
        "section 4.1",
        f"MNIST: the classical trace breaks down at 4 s and more: more than {FEW_POINTS:g} points below learning "
        "without delay.",
        "fig3-mnist",
        *(
            better(_undelayed_images[MNIST], _of(MNIST, 1, delay), ACCURACY, FEW_POINTS)
            for delay in SHORT
            if delay >= 4
        ),
    ),
    _claim(
        "mnist-cet-keeps",
        "section 4.1",
        f"MNIST: ten states keep the accuracy high up to 10 s, less than {FEW_POINTS:g} points below learning "
        "without delay.",
        "fig3-mnist",
        loses_less(_of(MNIST, 10, 10.0), _undelayed_images[MNIST], ACCURACY, FEW_POINTS),
    ),
    _claim(
        "mnist-perfect",
        "section 4.1",
        "MNIST: a perfect memory preserves the accuracy at 10 s, to half a point.",
        "fig3-mnist",
        loses_less(side(MNIST, "perfect", delay=10.0), _undelayed_images[MNIST], ACCURACY, 0.5),
    ),
    _claim(
        "cifar10-et-fails",
        "section 4.1",
        "CIFAR-10: the classical trace is worse than learning without delay at every delay from 0.2 to 10 s.",
        "fig3-cifar10",
        *(better(_undelayed_images[CIFAR], _of(CIFAR, 1, delay), ACCURACY) for delay in SHORT),
    ),
    _claim(
        "cifar10-orders",
        "Fig. 3",
        "CIFAR-10, 4 s late: accuracy grows with the number of states (1, 2, 6, 10).",
        "fig3-cifar10",
        _grows(CIFAR, IMAGES, 4.0, ACCURACY),
    ),
    _claim(
        "cifar10-delays",
        "Fig. 3",
        "CIFAR-10: with ten states, accuracy falls as the delay grows (0.2 to 10 s).",
        "fig3-cifar10",
        _over_delays(CIFAR, 10, SHORT, ACCURACY),
    ),
    _claim(
        "cifar10-alignment-orders",
        "Fig. 5",
        "CIFAR-10, 1 and 2 s late: alignment with the true gradient grows with the number of states, early and "
        "late in training.",
        "fig3-cifar10",
        *(_grows(CIFAR, IMAGES, delay, part) for delay in (1.0, 2.0) for part in (ALIGNED_EARLY, ALIGNED_LATE)),
    ),
    _claim(
        "cifar10-alignment-delays",
        "Fig. 5",
        "CIFAR-10: with ten states, alignment falls as the delay grows (1, 2, 4 s).",
        "fig3-cifar10",
        _over_delays(CIFAR, 10, (1.0, 2.0, 4.0), ALIGNED),
    ),
    _claim(
        "cartpole-orders",
        "Fig. 4",
        "CartPole, 32 s late: the return grows with the number of states (1, 2, 5, 8, 10).",
        "fig4-cartpole",
        _grows(CARTPOLE, GAMES, 32.0, RETURN),
    ),
    _claim(
        "cartpole-solvable",
        "section 4.1",
        "CartPole stays solvable with long delays and few states: two states reach a return of 475 at 32 s.",
        "fig4-cartpole",
        at_least(_of(CARTPOLE, 2, 32.0), RETURN, 475.0),
    ),
    _claim(
        "lunarlander-solvable",
        "section 4.1",
        "LunarLander stays solvable with long delays and few states: two states reach a return of 200 at 32 s.",
        "fig4-lunarlander",
        at_least(_of(LANDER, 2, 32.0), RETURN, 200.0),
    ),
    _claim(
        "lunarlander-orders",
        "Fig. 4",
        "LunarLander, 32 s late: the return grows with the number of states (1, 2, 5, 8, 10).",
        "fig4-lunarlander",
        _grows(LANDER, GAMES, 32.0, RETURN),
    ),
    _claim(
        "cartpole-delays",
        "section 4.1",
        "CartPole: with two states, the return falls as the delay grows (2 to 128 s).",
        "fig4-cartpole",
        _over_delays(CARTPOLE, 2, LONG, RETURN),
    ),
    _claim(
        "lunarlander-delays",
        "section 4.1",
        "LunarLander: with two states, the return falls as the delay grows (2 to 128 s).",
        "fig4-lunarlander",
        _over_delays(LANDER, 2, LONG, RETURN),
    ),
    _claim(
        "spaceinvaders-orders",
        "Fig. 4",
        "SpaceInvaders, 1.2 s late: the return grows with the number of states (1, 2, 5, 8, 10).",
        "fig4-spaceinvaders",
        _grows(INVADERS, GAMES, 1.2, RETURN),
    ),
    _claim(
        "spaceinvaders-half",
        "section 4.1",
        "SpaceInvaders: even 1.2 s late, no cascade reaches more than about half (0.6) of the return without "
        "delay.",
        "fig4-spaceinvaders",
        *(
            less_than_share(_of(INVADERS, order, 1.2), _undelayed_invaders, RETURN, 0.6)
            for order in GAMES
            if order > 1
        ),
    ),
    _claim(
        "spaceinvaders-delays",
        "Fig. 4",
        "SpaceInvaders: with ten states, the return falls as the delay grows (1.2, 2, 4, 8 s).",
        "fig4-spaceinvaders",
        _over_delays(INVADERS, 10, (1.2, 2.0, 4.0, 8.0), RETURN),
    ),
    _claim(
        "random-lambda",
        "Appendix C",
        "SpaceInvaders: a random λ for every weight does better than one λ for all of them (0.55, 0.8, 0.95).",
        "lambda-spaceinvaders",
        *(
            better(
                named("a random λ for each weight", _of(INVADERS, 10, 2.0, random_lam=(0.1, 0.99))),
                named(f"one λ of {lam:g}", _of(INVADERS, 10, 2.0, random_lam=None, lam=lam)),
                RETURN,
            )
            for lam in (0.55, 0.8, 0.95)
        ),
    ),
    _claim(
        "cartpole-alignment",
        "Fig. 10",
        "CartPole, 128 s late: alignment with the true gradient grows with the number of states (1, 2, 5, 8, 10).",
        "fig4-cartpole",
        _grows(CARTPOLE, GAMES, 128.0, ALIGNED),
    ),
    _claim(
        "retrograde-mnist-sooner",
        "Fig. 7A",
        "MNIST with retrograde signals: networks with more states (1, 2, 6, 10) learn faster: mean accuracy over "
        "training.",
        "fig7-mnist",
        rises(_retrogrades(MNIST, IMAGES), SOONER),
    ),
    _claim(
        "retrograde-mnist-alignment",
        "Figs. 7C and 11",
        "MNIST with retrograde signals: alignment grows with the number of states (1, 2, 6, 10).",
        "fig7-mnist",
        rises(_retrogrades(MNIST, IMAGES), ALIGNED),
    ),
    _claim(
        "retrograde-depth",
        "Fig. 7C",
        "MNIST with retrograde signals: alignment is worse in the earlier layer, with 2, 6 and 10 states.",
        "fig7-mnist",
        *(at_least(_retrograde(MNIST, order), DEPTH, 0.0) for order in IMAGES if order > 1),
    ),
    _claim(
        "retrograde-cifar10-sooner",
        "Fig. 7B",
        "CIFAR-10 with retrograde signals: networks with more states (1, 2, 6, 10) learn faster: mean accuracy "
        "over training.",
        "fig7-cifar10",
        rises(_retrogrades(CIFAR, IMAGES), SOONER),
    ),
    _claim(
        "retrograde-cifar10-alignment",
        "Figs. 7D and 12",
        "CIFAR-10 with retrograde signals: alignment grows with the number of states (1, 2, 6, 10).",
        "fig7-cifar10",
        rises(_retrogrades(CIFAR, IMAGES), ALIGNED),
    ),
    _claim(
        "retrograde-cifar10-depth",
        "Fig. 7D",
        "CIFAR-10 with retrograde signals: alignment is worse in earlier layers, with 2, 6 and 10 states.",
        "fig7-cifar10",
        *(at_least(_retrograde(CIFAR, order), DEPTH, 0.0) for order in IMAGES if order > 1),
    ),
    _claim(
        "retrograde-cartpole-orders",
        "Fig. 8A",
        "CartPole with retrograde signals: the return grows with the number of states (1, 2, 5, 10).",
        "fig8-cartpole",
        rises(_retrogrades(CARTPOLE, RETROGRADE_GAMES), RETURN),
    ),
    _claim(
        "retrograde-lunarlander-orders",
        "Fig. 8B",
        "LunarLander with retrograde signals: the return grows with the number of states (1, 2, 5, 10).",
        "fig8-lunarlander",
        rises(_retrogrades(LANDER, RETROGRADE_GAMES), RETURN),
    ),
    _claim(
        "retrograde-cartpole-alignment",
        "Fig. 8C",
        "CartPole with retrograde signals: in the second layer, alignment grows with the number of states.",
        "fig8-cartpole",
        rises(_retrogrades(CARTPOLE, RETROGRADE_GAMES), ALIGNED_LAST),
    ),
    _claim(
        "retrograde-lunarlander-alignment",
        "Fig. 8D",
        "LunarLander with retrograde signals: in the second layer, alignment grows with the number of states.",
        "fig8-lunarlander",
        rises(_retrogrades(LANDER, RETROGRADE_GAMES), ALIGNED_LAST),
    ),
)
"""In the order of the paper."""
