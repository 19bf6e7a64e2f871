"""Claims of the papers and of this project, and verdicts on them by finished runs.

claims.yaml     the claims; add an entry for a new one
model.py        measures, arms, checks and claims
exact.py        claims that are computed from the code, without runs
judging.py      verdicts by runs, and verdicts as text

    from cet_rl.report.claims import examine_folders

    for finding in examine_folders(["runs/fig4-cartpole"]):
        print(finding.claim.name, finding.verdict, finding.numbers)
"""

from __future__ import annotations

from cet_rl.report.claims.judging import Finding, examine, examine_folders
from cet_rl.report.claims.model import CLAIMS, PaperClaim

__all__ = ["CLAIMS", "Finding", "PaperClaim", "examine", "examine_folders"]
