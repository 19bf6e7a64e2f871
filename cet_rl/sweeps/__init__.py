"""Sweeps: many runs from one file, side by side, as often interrupted as need be.

spec.py         what a sweep's file asks for
build.py        its cells, built and checked before any of them starts
cells.py        one cell: a configuration, an arm, a name
folder.py       the sweep's folder: its cells, and what may not be mixed
states.py       what has become of each cell
locks.py        who runs a cell
worker.py       the process that runs one
launcher.py     where such processes run: on this machine
scheduler.py    which cell comes next, until none is left
display.py      the table of cells
results.py      results.csv

What a worker imports before it has its cell's lock is kept light: no torch, no scipy.
"""
