# `make` lists the targets. Everything runs from .venv, which `make setup` fills with exactly what constraints.txt pins.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

setup: $(STAMP) ## create .venv and install qarat with its pinned dependencies (nothing to do when up to date)

# The stamp comes last, so an interrupted setup is taken up again: venv and pip both skip what is already there.
# torch goes first and by its pin; hatchling and editables are here, and build isolation is off, so that the
# build tools are the pinned ones too.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch and the build tools"
	@$(INSTALL) torch hatchling editables
	@echo "installing qarat and its dependencies"
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@$(PIP) check >/dev/null || { $(PIP) check; echo "$(VENV) is not sound: remove it and run make setup again"; exit 1; }
	@touch $@

demo: setup ## quantize the bundled model and write the report to demo-out/
	$(BIN)/qarat run -o demo-out --overwrite

test: setup ## run the tests
	$(BIN)/python -m pytest

# All four run even when one fails, so one call shows every offence.
lint: setup ## ruff, pyright and the import contracts
	@status=0; \
	for check in 'ruff check .' 'ruff format --check .' 'pyright' 'lint-imports'; do \
		echo "--- $$check"; \
		PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/$$check || status=1; \
	done; \
	exit $$status

format: setup ## let ruff fix and format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the other targets wrote, except .venv
	rm -rf demo-out dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests reference benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
