"""Sweeps: many runs from one file, side by side, which can be interrupted and resumed at any time.

file.py         what a sweep's file asks for
build.py        its jobs, built and checked before any of them starts
folder.py       the folder of a sweep: its jobs, their states and results
known.py        a CSV of finished runs that outlives their folders
worker.py       the process that runs jobs, alone or as one batched model, and what starts it on this machine
scheduler.py    starts jobs until none is left, and shows how far they are
slurm.py        jobs on a SLURM cluster

Before it has its job's lock a worker does not import torch, so that it starts quickly.
"""
