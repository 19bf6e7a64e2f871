"""Search for hyper-parameters with Optuna: settings tried one after another, the bad ones stopped early.

file.py      what a search's file asks for, checked before anything starts
study.py     Optuna's side: folder, storage, sampler, pruner; table of trials, importances, best.yaml
search.py    trials side by side, each a run for each seed, until there are enough

Nothing here imports Optuna before it is needed: it is an extra of the package.
"""
