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
WORKERS ?= 5
BIN := .venv/bin

# Whatever Prefect the user of this machine has is neither asked nor touched.
unexport PREFECT_API_URL PREFECT_API_KEY PREFECT_PROFILE PREFECT_PROFILES_PATH
unexport PREFECT_API_DATABASE_CONNECTION_URL PREFECT_SERVER_DATABASE_CONNECTION_URL
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
# Tests start some hundred Python processes: none shall compile the package again.
unexport PYTHONDONTWRITEBYTECODE
# The first start of a Prefect server makes its database, slowly on a busy machine.
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 180

# What a test or flow starts by name comes from the same environment $(1).
with_path = PATH="$(CURDIR)/$(1)/bin:$$PATH" $(1)/bin/python
# The same with a Prefect home that is thrown away; no process outlives it, whatever ends it.
alone = $(call with_path,$(1)) -m tests.alone $(1)/bin/python

# Make an environment at $(1) that has uv, if there is none.
define environment_with_uv
	$(1)/bin/python -m uv --version >/dev/null 2>&1 || { $(PYTHON) -m venv --clear $(1) && $(1)/bin/python -m pip install --quiet uv; }
endef

# Make an environment at $(1) from the names and versions in $(2); its stamp is the target.
define environment
	$(call environment_with_uv,$(1))
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
	@rm -f .cache/reruns.txt
	@$(call alone,.venv) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=40 $(ARGS)

MEASURED = $(call alone,.venv) -m tests.coverage -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: coverage
coverage: .venv  ## Show which lines and branches the tests execute that need no facility
	@$(MEASURED) $(ARGS)

.PHONY: coverage-all
coverage-all: .venv  ## The same for all tests (Debian, as root)
	@$(MEASURED) --all $(ARGS)

# The last of them needs a facility: there the versions of the Globus SDKs show.
LOWEST_TESTS := tests/unit $(patsubst %,tests/integration/test_%.py,blocks local_jobs slurm_jobs)
# In a minute and without a facility: the public names, what people type, and a job in a flow.
QUICK_LOWEST_TESTS := $(patsubst %,tests/unit/test_%.py,models_exceptions jobspec credentials psik_json transfer) \
	tests/integration/test_flows.py::test_hello_job_on_a_named_backend

.PHONY: test-lowest
test-lowest: .venv-lowest/.complete  ## Run tests with the lowest versions that pyproject.toml allows; QUICK=1: some
	@$(call alone,.venv-lowest) -m pytest $(or $(ARGS),$(if $(QUICK),$(QUICK_LOWEST_TESTS),$(LOWEST_TESTS)))

.venv-lowest/.complete: requirements/lowest.txt pyproject.toml
	$(call environment,.venv-lowest,requirements/lowest.txt)

.PHONY: package
package: .venv  ## Build the wheel and the sdist in dist/, and check them
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/pyroma --min 10 --skip-tests AuthorEmail,Url dist/*.tar.gz  # there is neither yet
	@# The sdist holds what git has, and no more.
	@[ ! -e .git ] || diff <(git -c safe.directory='*' ls-files | sort) \
		<(tar -tzf dist/*.tar.gz | cut -d/ -f2- | grep -vx PKG-INFO | sort)

.PHONY: test-newest
test-newest: package  ## Install the wheel without pins, and try it as a user does; QUICK=1: in a minute
	@$(call alone,.venv) -m tests.newest $(if $(QUICK),--quick) $(ARGS)

.PHONY: bench
bench: .venv  ## Measure speed and memory; the limits are printed with the figures
	@$(call alone,.venv) -m tests.bench $(ARGS)

.PHONY: outcomes
outcomes: .venv  ## Provoke every way a job can end on real Slurms (Debian, as root; at most 10 min), print the table
	@$(call alone,.venv) -m tests.outcomes $(ARGS)

SEED ?= 1
FAULTS ?= 20

.PHONY: chaos
chaos: .venv  ## Inject FAULTS faults, drawn from SEED, into running flows (Debian, as root); what must be zero
	@$(call alone,.venv) -m tests.chaos --seed $(SEED) --faults $(FAULTS) $(ARGS)

.PHONY: conformance
conformance: .venv  ## Both transports, client Pythons 3.11 to 3.13, three engines (Debian, as root): a table
	@$(call alone,.venv) -m tests.conformance $(ARGS)

CALLS ?= 1000
SEEDS ?= $(SEED)

.PHONY: soak
soak: .venv  ## Call through Globus Compute while everything misbehaves at random (Debian, as root; 5 min a seed)
	@$(call alone,.venv) -m tests.soak --seeds $(SEEDS) --calls $(CALLS)

.PHONY: mutants
mutants: .venv  ## Change 500 small places of the code, or --all, and count what the fast tests notice
	@$(call alone,.venv) -m tests.mutants $(ARGS)

.PHONY: facility
facility: .venv  ## Run a facility on this machine (Debian, as root) until Ctrl-C: Slurm, broker, endpoint
	$(BIN)/python -m tests.testbed run

LOCK := $(BIN)/python -m uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--all-extras --no-header --no-annotate --upgrade

.PHONY: lock
lock:  ## Resolve both sets of versions again
	$(call environment_with_uv,.venv)
	$(LOCK) --output-file requirements/pinned.txt
	$(LOCK) --resolution lowest-direct --output-file requirements/lowest.txt

.PHONY: clean
clean:  ## Remove environments, caches and the demo's output
	rm -rf .venv .venv-lowest .cache demo-output dist build
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
