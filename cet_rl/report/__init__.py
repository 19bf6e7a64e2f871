"""Reports: a folder of runs as one page of figures and tables.

from cet_rl.report import write_report

write_report(["runs/fig4"])  # runs/fig4/report.html, and its figures beside it
"""

from __future__ import annotations

from cet_rl.report.build import Report, write_report

__all__ = ["Report", "write_report"]
