# The commands of this project. `make` alone lists them.
#
#   PYTHON   the interpreter to build environments with, 3.11 to 3.13
#   SEED     the dice of make chaos and make soak; FAULTS and CALLS  how many
#   SEEDS    several of them, one soak after the other, as in: make soak SEEDS="1 2 3"
#   ARGS     more arguments for what runs, as in: make test ARGS="-k identity"
#   WORKERS  how many processes run the tests, each with a facility of its own; 0 is none beside make's

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
WORKERS ?= 3
BIN := .venv/bin

# Whatever Prefect the user of this machine has is neither asked nor touched.
unexport PREFECT_API_URL PREFECT_API_KEY PREFECT_PROFILE PREFECT_PROFILES_PATH
unexport PREFECT_API_DATABASE_CONNECTION_URL PREFECT_SERVER_DATABASE_CONNECTION_URL
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
# The first start of a Prefect server makes its database, slowly on a busy machine.
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 180

# Run $(1) with a Prefect home that is thrown away afterwards, whatever happens.
with_prefect_home = home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && PREFECT_HOME=$$home $(1)
# What a test or flow starts by name comes from the same environment.
with_path = PATH="$(CURDIR)/$(1)/bin:$$PATH" $(1)/bin/python

# Make an environment at $(1) from the names and versions in $(2); its stamp is the target.
define environment
	$(1)/bin/python -m uv --version >/dev/null 2>&1 || { $(PYTHON) -m venv --clear $(1) && $(1)/bin/python -m pip install --quiet uv; }
	$(1)/bin/python -m uv pip install --quiet --compile-bytecode --python $(1)/bin/python -r $(2) -e '.[dev,tomography]'
	@touch $@
endef

.PHONY: help
help:  ## List these commands
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: .venv
.venv: .venv/.complete  ## Make the environment of development, with the pinned versions

.venv/.complete: requirements/pinned.txt pyproject.toml
	$(call environment,.venv,requirements/pinned.txt)

.PHONY: demo
demo: .venv  ## Reconstruct a phantom as batch jobs of this machine; prints the error, leaves pictures
	@mkdir -p .cache/prefect  # Prefect makes the last directory only
	PREFECT_HOME=$(CURDIR)/.cache/prefect $(call with_path,.venv) flows/tomography.py

.PHONY: check
check: .venv  ## Check format, lint, types, layers and spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

.PHONY: test
test: .venv  ## Run the tests
	@$(call with_prefect_home,$(call with_path,.venv) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS))

# The last of them needs a facility: there the versions of the Globus SDKs show.
LOWEST_TESTS := tests/unit $(patsubst %,tests/integration/test_%.py,blocks local_jobs slurm_jobs)

.PHONY: test-lowest
test-lowest: .venv-lowest/.complete  ## Run tests with the lowest versions that pyproject.toml allows
	@$(call with_prefect_home,$(call with_path,.venv-lowest) -m pytest $(or $(ARGS),$(LOWEST_TESTS)))

.venv-lowest/.complete: requirements/lowest.txt pyproject.toml
	$(call environment,.venv-lowest,requirements/lowest.txt)

.PHONY: bench
bench: .venv  ## Measure speed and memory; the limits are printed with the figures
	@$(call with_prefect_home,$(call with_path,.venv) -m tests.bench $(ARGS))

.PHONY: mutants
mutants: .venv  ## Change the source in one small place at a time; what the fast tests notice, and what they do not
	@$(call with_prefect_home,$(call with_path,.venv) -m tests.mutants $(ARGS))

.PHONY: outcomes
outcomes: .venv  ## Provoke every way a job can end on real Slurms (Debian, as root; at most 10 min), print the table
	@$(call with_prefect_home,$(call with_path,.venv) -m tests.outcomes $(ARGS))

SEED ?= 1
FAULTS ?= 20

.PHONY: chaos
chaos: .venv  ## Inject FAULTS faults, drawn from SEED, into running flows (Debian, as root); what must be zero
	@$(call with_prefect_home,$(call with_path,.venv) -m tests.chaos --seed $(SEED) --faults $(FAULTS) $(ARGS))

.PHONY: conformance
conformance: .venv  ## Both transports, client Pythons 3.11 to 3.13, three engines (Debian, as root): a table
	@$(call with_prefect_home,$(call with_path,.venv) -m tests.conformance $(ARGS))

CALLS ?= 1000
SEEDS ?= $(SEED)

.PHONY: soak
soak: .venv  ## Call through Globus Compute while everything misbehaves at random (Debian, as root; 5 min a seed)
	@$(BIN)/python -m tests.soak --seeds $(SEEDS) --calls $(CALLS)

.PHONY: facility
facility: .venv  ## Run a facility on this machine (Debian, as root) until Ctrl-C: Slurm, broker, endpoint
	$(BIN)/python -m tests.testbed run

LOCK := $(BIN)/python -m uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--all-extras --constraints requirements/constraints.txt --no-header --no-annotate --upgrade

.PHONY: lock
lock: .venv  ## Resolve both sets of versions anew
	$(LOCK) --output-file requirements/pinned.txt
	$(LOCK) --resolution lowest-direct --output-file requirements/lowest.txt

.PHONY: clean
clean:  ## Remove environments, caches and the demo's output
	rm -rf .venv .venv-lowest .cache demo-output dist build
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
