# The project's commands; `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Nothing of the user's is touched: Prefect's database and settings of these commands live here.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 180

.PHONY: help demo check test bench facility clean

help:  ## List the commands
	@grep -hE '^[a-z.-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml requirements/pinned.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements/pinned.txt -e '.[dev,tomography]'
	touch $@

demo: $(VENV)/.installed  ## Reconstruct a phantom on this machine: pictures and the error figure
	PREFECT_HOME=$(CURDIR)/.cache/prefect PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python flows/tomography.py

check: $(VENV)/.installed  ## Format, lint, types, layers, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell prefect_psik flows blocks tests docs README.md CHANGELOG.md CONTRIBUTING.md

test: $(VENV)/.installed  ## All tests that this machine can run; the others say why not
	PREFECT_HOME=$(CURDIR)/.cache/prefect-test PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

bench: $(VENV)/.installed  ## Print the figures of speed and memory, beside those of peers
	PREFECT_HOME=$(CURDIR)/.cache/prefect-bench PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.bench

facility: $(VENV)/.installed  ## Bring up a facility on this machine (Debian, root), until Ctrl-C
	$(BIN)/python -m tests.testbed run

clean:  ## Remove what these commands made
	rm -rf $(VENV) .cache demo-output
