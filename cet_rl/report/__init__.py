"""Reports: a folder of runs as one page of figures and tables.

reading.py      finds run folders and reads them
grouping.py     groups runs by task, arm, delay and seed
statistics.py   what runs are compared on, averages over seeds, bootstrap intervals
plots.py        learning curves and alignment, of reports and for a user's own figures
drawing.py      what all figures of a report share; the others are in scores.py and kernels.py
page.py         writes the page, whose text and looks are in template.html.j2
claims/         what the papers claim, and whether runs support it

`cet_rl.report.write_report(["runs/fig4"])` writes runs/fig4/report.html, and its figures beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cet_rl.runs.plugins import import_on_use

if TYPE_CHECKING:
    from cet_rl.report.page import Report, write_report

__all__ = ["Report", "write_report"]

__getattr__, __dir__ = import_on_use(__name__, __all__, ("page",))
