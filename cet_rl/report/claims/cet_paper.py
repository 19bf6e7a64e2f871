"""The claims of "Learning From the Past with Cascading Eligibility Traces".

The paper's words come first; margins that it does not give are ours and are named in the claim. Its accuracies and
returns are those of the rates in its Tables 1 to 7, which may differ between orders and delays.
"""

from __future__ import annotations

from typing import Any

from cet_rl.report.claims.checks import (
    RATES,
    Check,
    PaperClaim,
    at_least,
    falls,
    higher,
    less_than_share,
    loses_less,
    rises,
)
from cet_rl.report.claims.model import (
    ALIGNED,
    ALIGNED_EARLY,
    ALIGNED_LAST,
    ALIGNED_LATE,
    DEPTH_LOSS,
    MEAN_ACCURACY,
    TEST_ACCURACY,
    TRAINING_RETURN,
    RunFilter,
    with_cascade,
    with_trace,
)
from cet_rl.report.statistics import Measure

MNIST, CIFAR = "mnist", "cifar10"
CARTPOLE, LANDER, INVADERS = "CartPole-v1", "LunarLander-v3", "MinAtar/SpaceInvaders-v1"
TITLES = {
    **{MNIST: "MNIST", CIFAR: "CIFAR-10"},
    **{CARTPOLE: "CartPole", LANDER: "LunarLander", INVADERS: "SpaceInvaders"},
}
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
"""Percentage points of accuracy below learning without delay that still count as strong."""


def _claim(name: str, place: str, words: str, config: str, *checks: Check) -> PaperClaim:
    return PaperClaim(name, f"CET paper, {place}", words, config, checks, RATES)


def _of(task: str, order: int, delay: float, **options: Any) -> RunFilter:
    """Select the runs of a task with the paper's trace of some order."""
    agent = {} if task in (MNIST, CIFAR) else OURS
    return with_cascade(task, order, delay, **agent, **options)


def _retrograde(task: str, order: int) -> RunFilter:
    return _of(task, order, 120.0, stacked=True)


def _grows(task: str, orders: tuple[int, ...], delay: float, measure: Measure) -> Check:
    return rises([_of(task, order, delay) for order in orders], measure)


def _falls_over(task: str, order: int, delays: tuple[float, ...], measure: Measure) -> Check:
    return falls([_of(task, order, delay) for delay in delays], measure)


def _in_words(values: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, values))})"


_mnist_undelayed, _cifar_undelayed = (with_trace(task, "none") for task in (MNIST, CIFAR))
_invaders_undelayed = with_trace(INVADERS, "none", **OURS)

_MNIST = (
    _claim(
        "mnist-orders",
        "Fig. 3",
        "MNIST, 10 s delay: accuracy grows with the number of states (1, 2, 6, 10).",
        "fig3-mnist",
        _grows(MNIST, IMAGES, 10.0, TEST_ACCURACY),
    ),
    _claim(
        "mnist-short",
        "Fig. 3",
        "MNIST, 0.2 s delay: more than six states gain less than half a point.",
        "fig3-mnist",
        loses_less(_of(MNIST, 6, 0.2), _of(MNIST, 10, 0.2), TEST_ACCURACY, 0.5),
    ),
    _claim(
        "mnist-et-holds",
        "section 4.1",
        f"MNIST: the classical trace stays strong up to 2 s, less than {FEW_POINTS:g} points below learning "
        "without delay.",
        "fig3-mnist",
        *(
            loses_less(_of(MNIST, 1, delay), _mnist_undelayed, TEST_ACCURACY, FEW_POINTS)
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
            higher(_mnist_undelayed, _of(MNIST, 1, delay), TEST_ACCURACY, FEW_POINTS)
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
        loses_less(_of(MNIST, 10, 10.0), _mnist_undelayed, TEST_ACCURACY, FEW_POINTS),
    ),
    _claim(
        "mnist-perfect",
        "section 4.1",
        "MNIST: a perfect memory preserves the accuracy at 10 s, to half a point.",
        "fig3-mnist",
        loses_less(with_trace(MNIST, "perfect", delay=10.0), _mnist_undelayed, TEST_ACCURACY, 0.5),
    ),
)

_CIFAR = (
    _claim(
        "cifar10-et-fails",
        "section 4.1",
        "CIFAR-10: the classical trace is worse than learning without delay at every delay from 0.2 to 10 s.",
        "fig3-cifar10",
        *(higher(_cifar_undelayed, _of(CIFAR, 1, delay), TEST_ACCURACY) for delay in SHORT),
    ),
    _claim(
        "cifar10-orders",
        "Fig. 3",
        "CIFAR-10, 4 s delay: accuracy grows with the number of states (1, 2, 6, 10).",
        "fig3-cifar10",
        _grows(CIFAR, IMAGES, 4.0, TEST_ACCURACY),
    ),
    _claim(
        "cifar10-delays",
        "Fig. 3",
        "CIFAR-10: with ten states, accuracy falls as the delay grows (0.2 to 10 s).",
        "fig3-cifar10",
        _falls_over(CIFAR, 10, SHORT, TEST_ACCURACY),
    ),
    _claim(
        "cifar10-alignment-orders",
        "Fig. 5",
        "CIFAR-10, 1 and 2 s delay: alignment with the true gradient grows with the number of states, early and "
        "late in training.",
        "fig3-cifar10",
        *(_grows(CIFAR, IMAGES, delay, part) for delay in (1.0, 2.0) for part in (ALIGNED_EARLY, ALIGNED_LATE)),
    ),
    _claim(
        "cifar10-alignment-delays",
        "Fig. 5",
        "CIFAR-10: with ten states, alignment falls as the delay grows (1, 2, 4 s).",
        "fig3-cifar10",
        _falls_over(CIFAR, 10, (1.0, 2.0, 4.0), ALIGNED),
    ),
)

_GAMES = (
    *(
        _claim(
            f"{TITLES[task].lower()}-orders",
            "Fig. 4",
            f"{TITLES[task]}, {delay:g} s delay: the return grows with the number of states {_in_words(GAMES)}.",
            f"fig4-{TITLES[task].lower()}",
            _grows(task, GAMES, delay, TRAINING_RETURN),
        )
        for task, delay in ((CARTPOLE, 32.0), (LANDER, 32.0), (INVADERS, 1.2))
    ),
    *(
        _claim(
            f"{TITLES[task].lower()}-solvable",
            "section 4.1",
            f"{TITLES[task]} stays solvable with long delays and few states: two states reach a return of "
            f"{solved:g} at 32 s.",
            f"fig4-{TITLES[task].lower()}",
            at_least(_of(task, 2, 32.0), TRAINING_RETURN, solved),
        )
        for task, solved in ((CARTPOLE, 475.0), (LANDER, 200.0))
    ),
    *(
        _claim(
            f"{TITLES[task].lower()}-delays",
            "section 4.1",
            f"{TITLES[task]}: with two states, the return falls as the delay grows (2 to 128 s).",
            f"fig4-{TITLES[task].lower()}",
            _falls_over(task, 2, LONG, TRAINING_RETURN),
        )
        for task in (CARTPOLE, LANDER)
    ),
    _claim(
        "spaceinvaders-half",
        "section 4.1",
        "SpaceInvaders: even at 1.2 s delay, no cascade reaches more than about half (0.6) of the return without "
        "delay.",
        "fig4-spaceinvaders",
        *(
            less_than_share(_of(INVADERS, order, 1.2), _invaders_undelayed, TRAINING_RETURN, 0.6)
            for order in GAMES
            if order > 1
        ),
    ),
    _claim(
        "spaceinvaders-delays",
        "Fig. 4",
        "SpaceInvaders: with ten states, the return falls as the delay grows (1.2, 2, 4, 8 s).",
        "fig4-spaceinvaders",
        _falls_over(INVADERS, 10, (1.2, 2.0, 4.0, 8.0), TRAINING_RETURN),
    ),
    _claim(
        "random-lambda",
        "Appendix C",
        "SpaceInvaders: a random λ for every weight does better than one λ for all of them (0.55, 0.8, 0.95).",
        "lambda-spaceinvaders",
        *(
            higher(
                _of(INVADERS, 10, 2.0, name="a random λ for each weight", random_lam=(0.1, 0.99)),
                _of(INVADERS, 10, 2.0, name=f"one λ of {lam:g}", random_lam=None, lam=lam),
                TRAINING_RETURN,
            )
            for lam in (0.55, 0.8, 0.95)
        ),
    ),
    _claim(
        "cartpole-alignment",
        "Fig. 10",
        "CartPole, 128 s delay: alignment with the true gradient grows with the number of states "
        f"{_in_words(GAMES)}.",
        "fig4-cartpole",
        _grows(CARTPOLE, GAMES, 128.0, ALIGNED),
    ),
)


def _retrograde_images(task: str, panels: tuple[str, str], names: tuple[str, str, str]) -> tuple[PaperClaim, ...]:
    """Return the claims on retrograde signals of a data set.

    Args:
        task: the data set.
        panels: places of what is said about learning and about alignment.
        names: names of the claims on learning, alignment and depth.
    """
    title, config = TITLES[task], f"fig7-{task}"
    learning, aligned = panels
    arms = [_retrograde(task, order) for order in IMAGES]
    return (
        _claim(
            names[0],
            learning,
            f"{title} with retrograde signals: networks with more states {_in_words(IMAGES)} learn faster: mean "
            "accuracy over training.",
            config,
            rises(arms, MEAN_ACCURACY),
        ),
        _claim(
            names[1],
            aligned,
            f"{title} with retrograde signals: alignment grows with the number of states {_in_words(IMAGES)}.",
            config,
            rises(arms, ALIGNED),
        ),
        _claim(
            names[2],
            aligned.split(" and ")[0].replace("Figs.", "Fig."),
            f"{title} with retrograde signals: alignment is worse in earlier layers, with 2, 6 and 10 states.",
            config,
            *(at_least(arm, DEPTH_LOSS, 0.0) for arm in arms[1:]),
        ),
    )


def _retrograde_games(task: str, learning: str, aligned: str) -> tuple[PaperClaim, ...]:
    """Return the claims on retrograde signals of a game; `learning` and `aligned` are panels of Fig. 8."""
    title = TITLES[task]
    arms = [_retrograde(task, order) for order in RETROGRADE_GAMES]
    return (
        _claim(
            f"retrograde-{title.lower()}-orders",
            f"Fig. 8{learning}",
            f"{title} with retrograde signals: the return grows with the number of states "
            f"{_in_words(RETROGRADE_GAMES)}.",
            f"fig8-{title.lower()}",
            rises(arms, TRAINING_RETURN),
        ),
        _claim(
            f"retrograde-{title.lower()}-alignment",
            f"Fig. 8{aligned}",
            f"{title} with retrograde signals: in the second layer, alignment grows with the number of states.",
            f"fig8-{title.lower()}",
            rises(arms, ALIGNED_LAST),
        ),
    )


CLAIMS = (
    *_MNIST,
    *_CIFAR,
    *_GAMES,
    *_retrograde_images(
        MNIST,
        ("Fig. 7A", "Figs. 7C and 11"),
        ("retrograde-mnist-sooner", "retrograde-mnist-alignment", "retrograde-depth"),
    ),
    *_retrograde_images(
        CIFAR,
        ("Fig. 7B", "Figs. 7D and 12"),
        ("retrograde-cifar10-sooner", "retrograde-cifar10-alignment", "retrograde-cifar10-depth"),
    ),
    *_retrograde_games(CARTPOLE, "A", "C"),
    *_retrograde_games(LANDER, "B", "D"),
)
"""All claims, in about the order of the paper."""
