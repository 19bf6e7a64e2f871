"""Search for hyper-parameters with Optuna, and stop bad trials early.

file.py      reads and checks the file of a search
study.py     Optuna's study: folder, storage, sampler, pruner; table of trials, importances, best.yaml
search.py    runs trials side by side, each once for every seed, until there are enough

Optuna, an extra of the package, is imported on first use.
"""
