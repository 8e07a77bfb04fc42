# make run: the quickstart study; make test: everything checked. Both set up .venv by themselves.
# On Windows, or without make, see CONTRIBUTING.md for the same steps by hand.

PYTHON ?= python3
# Further options of pip, for example an index that holds a smaller build of torch:
# make setup PIP_OPTIONS="--extra-index-url=…"
PIP_OPTIONS ?=
# pytest workers; each uses one torch thread
JOBS ?= auto

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup run test check format docs clean

help:
	@echo "make run      the quickstart study, into results/quickstart (a few minutes)"
	@echo "make test     formatting, lint, types, tests and doctests"
	@echo "make check    formatting, lint and types alone"
	@echo "make format   format the code and mend what lint can"
	@echo "make docs     draw docs/surrogates.png again"
	@echo "make setup    the environment alone, in .venv"
	@echo "make clean    remove .venv and the caches; results stay"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) was not found: install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gradlab needs Python 3.11 or newer, and $(PYTHON) is older: name another, e.g. make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(PIP_OPTIONS) -e '.[test,dask]'
	@touch $(READY)

run: $(READY)
	$(BIN)/gradlab run quickstart

test: check
	$(BIN)/python -m pytest --quiet -n $(JOBS) --dist worksteal

check: $(READY)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --no-error-summary

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python docs/plot_surrogates.py

clean:
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
