# Two commands to know: `make run` and `make test`. The rest is for working on the code.
VENV := .venv
BIN  := $(VENV)/bin
# The constraints pin every package, torch included: without a pin pip may fetch gigabytes of CUDA.
PIP  := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help run ui test check format playground-model clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 20

run: $(VENV)/.installed  ## install, then evolve the playground by two rounds
	$(BIN)/evoselect run

ui: $(VENV)/.installed  ## install, then start the Dagster and MLflow UIs on loopback
	$(BIN)/evoselect ui

test: $(VENV)/.installed-dev  ## install, then run all tests
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed-dev  ## format check, lint, types, Dagster definitions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/dg check yaml
	$(BIN)/dg check defs

format: $(VENV)/.installed-dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

playground-model: $(VENV)/.installed  ## train the playground's base model again
	$(BIN)/python -m evoselect_pipeline.playground.recipe --out evoselect_pipeline/playground/base_model

clean:  ## remove the virtual environment (never the home)
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes a few minutes."
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@
