"""Search for hyper-parameters with Optuna: settings tried one after another, the bad ones stopped early.

space.py     one option that is searched, and where
spec.py      what a search's file asks for, checked before anything starts
trial.py     one trial: a run for each seed, one after another, compared with earlier trials on the way
search.py    trials side by side, until there are enough
study.py     Optuna's side: storage, sampler, pruner
outcome.py   the table of trials, importances, best.yaml

Nothing here imports Optuna before it is needed: it is an extra of the package.
"""
