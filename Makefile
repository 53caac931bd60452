# `make demo` and `make test` need only Python >= 3.11, pip and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt
# pip would compile on one core, and every process that finds nothing compiled does so itself.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help:   ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# A stamp per set of dependencies: nothing is installed twice until they change.
$(VENV)/stamp-base: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'conviction needs Python 3.11 or newer: make PYTHON=python3.12')"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing conviction (once; about a minute)" >&2
	@$(PIP) --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/stamp-%: $(VENV)/stamp-base
	@echo "installing the '$*' tools (once)" >&2
	@$(PIP) --editable '.[$*]'
	@$(COMPILE)
	@touch $@

demo: $(VENV)/stamp-base  ## a study of the embedded model on the topic `obesity`, in about six minutes: one page at the end
	@run=runs/demo-$$(date +%Y-%m-%dT%H-%M-%S); \
	$(BIN)/conviction study obesity --interventions system_prompt,steer,dpo --wear 0 --no-placebo --budget 6 --run $$run || test -s $$run/report.html

test: $(VENV)/stamp-dev  ## run the whole test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4
	@$(BIN)/python -m pytest -m slow

check: $(VENV)/stamp-dev  ## lint, types, import contracts, documentation
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/stamp-bench  ## measure speed and memory against the rivals (results in benchmarks/results)
	@$(BIN)/python -m benchmarks

clean:  ## remove the environment and caches of tools
	rm -rf $(VENV) .site .mypy_cache .ruff_cache .pytest_cache .hypothesis
