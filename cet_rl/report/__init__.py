"""Reports: a folder of runs as one page of figures and tables.

reading.py      finds and reads run folders
grouping.py     groups runs by task, arm, delay and seed
statistics.py   the measures that runs are compared on, averages over seeds, bootstrap intervals, tests
drawing.py      parts that all figures share; the figures are in scores.py, improvement.py, plots.py and kernels.py
page.py         writes the page by template.html.j2; tables.py writes its tables as files
claims/         the papers' claims, and verdicts on them by runs

`cet_rl.report.write_report(["runs/fig4"])` writes runs/fig4/report.html, and its figures beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cet_rl.runs.plugins import import_on_use

if TYPE_CHECKING:
    from cet_rl.report.page import Report, write_report

__all__ = ["Report", "write_report"]

__getattr__, __dir__ = import_on_use(__name__, __all__, ("page",))
