"""Claims: what the papers say came out, and what finished runs say about it.

model.py        which runs are compared, and what is measured on each
checks.py       a claim, its checks, and the values for which they pass
cet_paper.py    the claims of the paper on cascading eligibility traces
others.py       the claims of the paper on learning rules of recurrent networks, and this project's own
judging.py      from runs to verdicts, and verdicts as text

    from cet_rl.report.claims import examine_folders

    for finding in examine_folders(["runs/fig4-cartpole"]):
        print(finding.claim.name, finding.verdict, finding.numbers)
"""

from __future__ import annotations

from cet_rl.report.claims.checks import PaperClaim
from cet_rl.report.claims.judging import CLAIMS, Finding, examine, examine_folders

__all__ = ["CLAIMS", "Finding", "PaperClaim", "examine", "examine_folders"]
