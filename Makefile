# A thin wrapper: `make help` lists the targets. Needs Python 3.11 and the package index, no git.
# Every path is relative, so the folder may have a space in its name.

PYTHON_VERSION := 3.11
PROFILE ?= quick

# Tried, not only looked up: a version manager's shim may be on PATH with no Python behind it.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell python$(PYTHON_VERSION) -c '' 2>/dev/null && echo python$(PYTHON_VERSION) || echo python3)
endif

RUN := .venv/bin/python -m
PIP := $(RUN) pip install --disable-pip-version-check --no-deps
STAMP := .venv/.complete

# Stages call `python`, which must be this environment's; building it must not use what it replaces.
CALLERS_PATH := $(PATH)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
$(STAMP): export PATH := $(CALLERS_PATH)
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help env repro status report lab cells test bench soak lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

env: $(STAMP) ## build .venv from requirements.lock; nothing to do when it is up to date

# A working environment is brought up to date by its own Python: `venv` run over it by another one
# would break it.
$(STAMP): requirements.lock pyproject.toml
	@.venv/bin/python -c 'import sys, pip; sys.exit("$(PYTHON_VERSION)" != "%d.%d" % sys.version_info[:2])' 2>/dev/null || { \
	  found=$$("$(PYTHON)" --version 2>&1); case "$$found" in "Python $(PYTHON_VERSION)."*) ;; *) \
	    echo "make env needs Python $(PYTHON_VERSION), but $(PYTHON) is: $$found" >&2; \
	    echo "Install it, or name it: make env PYTHON=/path/to/python$(PYTHON_VERSION)" >&2; \
	    exit 1;; esac; \
	  echo "$(PYTHON) -m venv --clear .venv"; "$(PYTHON)" -m venv --clear .venv; }
	$(PIP) --progress-bar off -r requirements.lock
	$(PIP) --no-build-isolation -e .
	@touch $(STAMP)

repro: $(STAMP) ## run the study (PROFILE=quick, standard or paper) and build its report
	$(RUN) unlearnlib.pipeline $(PROFILE)

status: $(STAMP) ## say which stages are out of date
	$(RUN) dvc status

report: $(STAMP) ## build the HTML pages of PROFILE from its executed notebooks
	$(RUN) unlearnlib.report --profile $(PROFILE)

lab: $(STAMP) ## open the notebooks in Jupyter
	$(RUN) jupyter lab

cells: $(STAMP) ## write the parameter cells of the notebooks from the quick profile
	$(RUN) unlearnlib.pipeline.cells

test: $(STAMP) ## run every test, the quick profile from end to end included
	$(RUN) unlearnlib.pipeline quick
	PYTHONHASHSEED=0 $(RUN) pytest -n 2 --dist loadfile

bench: $(STAMP) ## time the library against straightforward loops, into benchmarks/results.json
	$(RUN) benchmarks

soak: $(STAMP) ## run a part of the study elsewhere and kill it on the way, into benchmarks/soak.json
	$(RUN) benchmarks.soak

lint: $(STAMP) ## check style and format of code and notebooks
	$(RUN) ruff check .
	$(RUN) ruff format --check .

clean: ## delete builds and caches; .venv, data, runs and reports stay
	rm -rf build .pytest_cache .ruff_cache *.egg-info
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
