"""Sweeps: many runs from one file, side by side, as often interrupted as need be.

file.py         what a sweep's file asks for
build.py        its jobs, built and checked before any of them starts
folder.py       the jobs, their states and results, the folder that keeps them, and what may not be mixed
worker.py       the process that runs jobs, alone or as one batched model, and what starts it on this machine
scheduler.py    which job comes next, until none is left; and the table of jobs
slurm.py        jobs on a SLURM cluster

What a worker imports before it has its job's lock is kept light: no torch, no scipy.
"""
