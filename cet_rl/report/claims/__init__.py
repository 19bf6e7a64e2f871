"""Claims: what the papers say came out, and what finished runs say of it.

measures.py     one number of one run: return, accuracy, loss, alignment
sides.py        which runs are compared: a task with a trace, a delay, a rule
checks.py       a statistic of several sides, and the values for which it speaks for a claim
claim.py        one claim: its words, where it is made, the sweep that tests it, its checks
judging.py      from runs to a verdict
traces.py       the claims of the paper on cascading eligibility traces
rules.py        the claims of the paper on learning rules of recurrent networks
own.py          what we say of our own traces
catalogue.py    all of them
writing.py      verdicts as text

    from cet_rl.report.claims import examine_folders

    for finding in examine_folders(["runs/fig4-cartpole"]):
        print(finding.claim.name, finding.verdict, finding.numbers)
"""

from __future__ import annotations

from cet_rl.report.claims.catalogue import CLAIMS
from cet_rl.report.claims.claim import Claim
from cet_rl.report.claims.judging import Finding, examine, examine_folders

__all__ = ["CLAIMS", "Claim", "Finding", "examine", "examine_folders"]
