"""One claim."""

from __future__ import annotations

from dataclasses import dataclass

from cet_rl.report.claims.checks import Check
from cet_rl.runs.config import Mark
from cet_rl.runs.task_kinds import options_marked

RATES = tuple(sorted(options_marked(Mark.TABULATED)))
"""Options that the paper's tables have for each order and delay, and that may therefore differ between sides."""


@dataclass(frozen=True)
class Claim:
    """What somebody says comes out.

    Attributes:
        name: short and unique.
        place: where it is said: "CET paper, Fig. 3".
        words: what is said, with the margins by which it is judged.
        config: the sweep that tests it.
        checks: all of which have to pass.
        free: options, beside those that its sides name, in which runs of different sides may differ. In all
            others they have to agree.
        paired: compare seed by seed, because the seed draws the task as well as the network.
    """

    name: str
    place: str
    words: str
    config: str
    checks: tuple[Check, ...]
    free: tuple[str, ...] = ()
    paired: bool = False
