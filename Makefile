# Two goals for a stranger: train, test. Each sets up its own environment.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint compare clean

train: .venv/.installed
	$(BIN)/tppo train toy-language

test: lint
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compare: .venv/.installed
	$(BIN)/python -m paper_repro.compare

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv
