# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
PYTHONS ?= 3.11 3.12 3.13
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEMO   := runs/CartPole-v1-cet5-8s-0

.PHONY: help demo test test-pythons lint docs docs-serve bench clean

help:
	@echo "make demo   set up, then learn CartPole across an eight-second credit delay"
	@echo "make test   set up, then run every test (make test ARGS='-m \"not slow\"' for the quick ones)"
	@echo "make test-pythons   the quick tests on each of Python $(PYTHONS) that is here, in .venv-VERSION"
	@echo "make lint   set up, then ruff and mypy"
	@echo "make docs   set up, then build the documentation site into build/site (make docs-serve shows it while you write)"
	@echo "make bench  set up, then the speed table of docs/benchmarks.md"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cet-rl needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo "setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/cet-rl train CartPole-v1 --delay 8 --order 5 --resume
	$(BIN)/cet-rl plot $(DEMO) --out $(DEMO)/curve.png
	@echo
	@echo "The learning curve is  $(DEMO)/curve.png"
	@echo "More of the run:       $(BIN)/cet-rl report $(DEMO)"
	@echo "Watch the agent:       $(BIN)/cet-rl eval $(DEMO) --video cartpole.gif"
	@echo "Another memory:        $(BIN)/cet-rl train CartPole-v1 --delay 8 --trace et"
	@echo "Read on:               docs/quickstart.md"

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

# Each version has an environment of its own; one that is not installed is skipped with a line.
test-pythons:
	@for version in $(PYTHONS); do \
	  if python$$version -c '' 2>/dev/null; then \
	    $(MAKE) --no-print-directory test PYTHON=python$$version VENV=.venv-$$version ARGS='-m "not slow" $(ARGS)' || exit 1; \
	  else echo "skipped: there is no python$$version here"; fi; \
	done

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: $(READY)
	$(BIN)/python benchmarks/rl_speed.py

clean:
	rm -rf $(VENV) .venv-3.* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
