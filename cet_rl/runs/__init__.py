"""Runs of any kind: configurations, kinds of tasks, folders, checkpoints and the session that drives a run."""
