"""The claims of "Evaluating biological plausibility of learning algorithms the lazy way".

Losses are those of frozen weights on fresh sequences; the paper shows training losses. Rules are compared seed by
seed: on Mimic the seed draws the network that is to be imitated, and with it the loss that can be reached.
"""

from __future__ import annotations

from cet_rl.report.claims.checks import Check, at_least, at_most, lower
from cet_rl.report.claims.claim import Claim
from cet_rl.report.claims.measures import LOSS, PLAUSIBLE
from cet_rl.report.claims.sides import with_rule

TASKS = {"add": ("Add", "Fig. 1a", "rules-fig1-add"), "mimic": ("Mimic", "Fig. 1b", "rules-fig1-mimic")}
EXACT = ("bptt", "rtrl")
FREE = ("rule_options",)
"""A rule's options are its own."""


def _lower(task: str, *pairs: tuple[str, str]) -> tuple[Check, ...]:
    return tuple(lower(with_rule(task, first), with_rule(task, second), LOSS) for first, second in pairs)


def _of_task(task: str) -> tuple[Claim, ...]:
    title, figure, config = TASKS[task]
    place = f"Audit paper, {figure}"

    def claim(name: str, words: str, *pairs: tuple[str, str]) -> Claim:
        return Claim(f"{task}-{name}", place, f"{title}: {words}", config, _lower(task, *pairs), FREE, paired=True)

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


_add = TASKS["add"][2]

CLAIMS = (
    *_of_task("add"),
    *_of_task("mimic"),
    Claim(
        "plausible-rules",
        "Audit paper, Table 1",
        "Of the rules that learn recurrent weights in Fig. 1, RFLO and DNI(b) need nothing that a brain could not "
        "do, and DNI, BPTT and RTRL do: by the audit of what they compute.",
        _add,
        (
            *(at_least(with_rule("add", rule), PLAUSIBLE, 0.5) for rule in ("rflo", "dni-b")),
            *(at_most(with_rule("add", rule), PLAUSIBLE, 0.5) for rule in ("dni", *EXACT)),
        ),
        FREE,
    ),
)
"""Task by task."""
