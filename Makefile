# `make help` explains every target. A second run skips what is installed already.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-exchange lint types format docs clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## virtual environment in .venv with tfx in it
demo: $(VENV)/.installed ## train, distill, prune and quantize the default model on the embedded data (about 8 minutes)
	$(BIN)/tfx train '+technique=[distill,prune,quantize]' experiment=demo
test: $(VENV)/.installed-dev ## the test suite (minutes; no network once installed)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"
test-slow: $(VENV)/.installed-dev ## checks that train for minutes, or need real data in $$TFX_TEST_DATA
	$(BIN)/python -m pytest -m slow
test-exchange: $(VENV)-exchange/.installed ## checks of import and export with the libraries themselves (their own environment)
	OMP_NUM_THREADS=1 $(VENV)-exchange/bin/python -m pytest -n 2 --dist loadfile -m "not slow" tests/exchange
lint: $(VENV)/.installed-dev ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
types: $(VENV)/.installed-dev ## mypy on src/
	$(BIN)/mypy
format: $(VENV)/.installed-dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
docs: $(VENV)/.installed-docs ## the documentation as a site, in build/site
	$(BIN)/properdocs build --strict
clean: ## remove the virtual environment and caches, never outputs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/tfx.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "tfx needs Python 3.11 to 3.13: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[test,lint]'
	@touch $@
$(VENV)-exchange/.installed: pyproject.toml constraints.txt constraints-exchange.txt
	$(PYTHON) -m venv $(VENV)-exchange
	$(VENV)-exchange/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-exchange.txt -e '.[test,transformers,ctranslate2]'
	@touch $@
$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	@touch $@
