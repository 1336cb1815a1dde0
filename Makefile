# `make help` explains every target. A second run skips what is installed already.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests that need the libraries of these extras, in an environment of their own.
EXTRAS := test,wandb,mlflow,trackio,transformers,ctranslate2,onnx,gguf,sentencepiece
EXTRA_TESTS := tests/run/test_tracking.py tests/exchange
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo search-demo test test-slow test-extras lint types format docs clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## virtual environment in .venv with tfx in it
demo: $(VENV)/.installed ## train, distill, prune and quantize the default model on the embedded data (5 to 20 minutes)
	$(BIN)/tfx train '+technique=[distill,prune,quantize]' experiment=demo
search-demo: $(VENV)/.installed-search ## find the best model below 200 kB on the embedded data (about 9 minutes on two cores)
	$(BIN)/tfx search max_bytes=200_000 budget.seconds=360 trainer.budget.seconds=40 dataset.batch_tokens=1024 \
		candidates=6 rungs=2 seeds=1 final=true final_seeds=2 evaluation=greedy dataset.limit.valid=300
test: $(VENV)/.installed-dev ## the test suite (minutes; no network once installed)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"
test-slow: $(VENV)/.installed-dev ## checks that train for minutes, or need real data in $$TFX_TEST_DATA
	$(BIN)/python -m pytest -m slow
test-extras: $(VENV)-extras/.installed ## what other libraries do with runs and models: trackers, import, export
	OMP_NUM_THREADS=1 $(VENV)-extras/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(EXTRA_TESTS)
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
	rm -rf $(VENV) $(VENV)-extras .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/tfx.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "tfx needs Python 3.11 to 3.13: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@
$(VENV)/.installed-search: $(VENV)/.installed
	$(PIP) -e '.[search]'
	@touch $@
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[test,lint]'
	@touch $@
$(VENV)-extras/.installed: pyproject.toml constraints.txt constraints-extras.txt
	$(PYTHON) -m venv $(VENV)-extras
	$(VENV)-extras/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -c constraints-extras.txt -e '.[$(EXTRAS)]'
	@touch $@
$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	@touch $@
