"""Everything about any run: configurations, kinds of tasks, run folders, checkpoints and the session that drives it."""
