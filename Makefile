# `make demo` and `make test` need only Python >= 3.11, pip and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := -m pip --disable-pip-version-check install --quiet --no-compile
# pip would compile on one core, and every process that finds nothing compiled does so itself.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
# A thread that waits for others spins; when anything else runs, it takes the core from those it waits for.
export GOMP_SPINCOUNT ?= 10000
PYTEST   := -m pytest
PARALLEL := $(PYTEST) -n logical --maxprocesses 4 --dist worksteal

# Slow tests share the cores, too: one thread in each of two processes does more than two threads in one.
THREADS  := $$(( ($$(getconf _NPROCESSORS_ONLN) + 3) / 4 ))

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check lint types contracts site lowest newest soak fuzz bench clean

help:   ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 11

# A stamp per set of dependencies: nothing is installed twice until they change.
$(VENV)/stamp-%: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'conviction needs Python 3.11 or newer: make PYTHON=python3.12')"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing conviction ($*; once, in about a minute)" >&2
	@$(BIN)/python $(PIP) --constraint constraints.txt --editable '.$(patsubst %,[%],$(filter-out base,$*))'
	@$(COMPILE)
	@touch $@

# DPO and distillation at settings that a search found (docs/study.md): searching them again would take six minutes more.
DEMO := -o dpo.learning_rate=2.5e-4 -o dpo.beta=0.05 -o dpo.schedule=constant -o dpo.max_steps=14 -o distill.learning_rate=3e-4 -o distill.schedule=constant -o distill.max_steps=24

demo: $(VENV)/stamp-base  ## five questions, then a study of the embedded model on the topic `obesity`: about six minutes, one page
	@echo "Which side does the model prefer now? Five questions, one answer a side." >&2
	@$(BIN)/conviction probe obesity --quick
	@echo "Now three ways to move it: a context in the prompt, DPO at settings that a search found, and the context distilled into weights." >&2
	@run=runs/demo-$$(date +%Y-%m-%dT%H-%M-%S); \
	$(BIN)/conviction study obesity --interventions system_prompt,dpo,distill --tune off --benign-steps 0 --no-placebo --seeds 1 --budget 5 $(DEMO) --run $$run || test -s $$run/report.html
	@echo "What this shows: a preference is measured before it is trained away; a forecast is frozen before the first step; and a method is" >&2
	@echo "judged by what it moved and by what it lost. The page has every number, and the answers before and after." >&2

test: $(VENV)/stamp-dev  ## run the whole test suite
	@OMP_NUM_THREADS=1 $(BIN)/python $(PARALLEL) -m "not slow"
	@OMP_NUM_THREADS=$(THREADS) $(BIN)/python $(PYTEST) -n logical --maxprocesses 4 --dist loadfile -m slow

test-fast: $(VENV)/stamp-dev  ## the tests for daily work, in a minute: none that takes more than a second
	@OMP_NUM_THREADS=1 $(BIN)/python $(PARALLEL) -m "not slow and not long"

check: lint types contracts site  ## lint, types, import contracts, documentation

lint: $(VENV)/stamp-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/stamp-dev
	@$(BIN)/mypy

contracts: $(VENV)/stamp-dev
	@$(BIN)/lint-imports --no-cache

site: $(VENV)/stamp-dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What the pins do not show: the oldest releases that pyproject.toml allows, and the newest that there are. Both are
# environments of their own. TORCH=torch==2.13.0 takes this torch, where the oldest or the newest is a large download.
TORCH ?=
LOWEST := import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	groups = [project['dependencies'], *project['optional-dependencies'].values()]; \
	print(*sorted({line.replace('>=', '==') for group in groups for line in group if '>=' in line}), sep='\n')

lowest:  ## the fast tests and three commands with the lowest version of each dependency, which are then recorded
	@$(PYTHON) -m venv --clear $(VENV)-lowest
	@$(VENV)-lowest/bin/python -c "$(LOWEST)" | sed 's/^torch==.*/$(or $(TORCH),&)/' > $(VENV)-lowest/constraints.txt
	@$(VENV)-lowest/bin/python $(PIP) --constraint $(VENV)-lowest/constraints.txt --editable '.[dev,bench]'
	@OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python $(PARALLEL) -m "not slow and not long" -W default
	@$(call SMOKE,$(VENV)-lowest)
	@$(VENV)-lowest/bin/python -m pip list --exclude-editable --format json > benchmarks/results/lowest_versions.json

newest:  ## the same with the newest version of each; a warning is an error
	@$(PYTHON) -m venv --clear $(VENV)-newest
	@$(VENV)-newest/bin/python $(PIP) $(or $(TORCH),torch)
	@$(VENV)-newest/bin/python $(PIP) --editable '.[dev]'
	@OMP_NUM_THREADS=1 $(VENV)-newest/bin/python $(PARALLEL) -m "not slow and not long"
	@export PYTHONWARNINGS=error::FutureWarning; $(call SMOKE,$(VENV)-newest)

# Commands on the embedded model, as a first user gives them, in an empty folder and with an empty cache.
SMOKE = bin=$$PWD/$(1)/bin; empty=$$(mktemp -d); cd $$empty; export CONVICTION_CACHE=$$empty/cache; \
	$$bin/conviction probe obesity --quick && $$bin/conviction audit obesity && \
	$$bin/conviction apply dpo politeness -o max_steps=2 && $$bin/conviction apply rag obesity; \
	code=$$?; rm -rf $$empty; exit $$code

# KILLS=200 and INPUTS=5000 take about five minutes each; SEED=1 repeats what failed.
KILLS  ?= 200
INPUTS ?= 5000

soak: $(VENV)/stamp-dev  ## kill every verb at random moments, 200 times, and compare what it then ends with
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py $(KILLS) $(SEED)

fuzz: $(VENV)/stamp-dev  ## 5,000 hostile files and texts for the readers of files from outside
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fuzz.py $(INPUTS) $(SEED)

bench: $(VENV)/stamp-bench  ## measure speed and memory against the rivals (results in benchmarks/results)
	@$(BIN)/python -m benchmarks

clean:  ## remove the environments and caches of tools
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest .site .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
