"""Claims: what the papers say comes out, and what finished runs say about it.

claims.yaml     the claims; a new one is an entry of it
model.py        a claim, its arms and its checks, and what is measured on each run
judging.py      from runs to verdicts, and verdicts as text

    from cet_rl.report.claims import examine_folders

    for finding in examine_folders(["runs/fig4-cartpole"]):
        print(finding.claim.name, finding.verdict, finding.numbers)
"""

from __future__ import annotations

from cet_rl.report.claims.judging import Finding, examine, examine_folders
from cet_rl.report.claims.model import CLAIMS, PaperClaim

__all__ = ["CLAIMS", "Finding", "PaperClaim", "examine", "examine_folders"]
