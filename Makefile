# Two commands matter: `make compare` runs a study and writes its report, `make test` runs the tests.
# Both first set up $(VENV) with the exact versions in constraints.txt, once.

PYTHON ?= python3
VENV ?= .venv
STUDY ?= quick
RESULTS ?= results
PYTEST_ARGS ?=
# Test files that run side by side; many wait for Ray more than they compute.
JOBS ?= 2

# One thread per process: a study runs many processes side by side.
export OMP_NUM_THREADS = 1
export RAY_USAGE_STATS_ENABLED = 0

BIN := $(VENV)/bin
# Written last, so that a half-finished installation is taken up again. Newer pyproject.toml or
# constraints.txt: installed again.
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup compare test cluster lint lock clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1 | /p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s%s\n", $$1, $$2}'
	@echo
	@echo "  Variables: PYTHON=$(PYTHON) VENV=$(VENV) STUDY=$(STUDY) RESULTS=$(RESULTS) PYTEST_ARGS=$(PYTEST_ARGS)"

setup: $(STAMP)  ## make the virtual environment and install the package in it (about 5 GB, mostly PyTorch)

compare: $(STAMP)  ## run experiments/studies/STUDY.yaml and write its report to RESULTS
	$(BIN)/python experiments/compare.py --study experiments/studies/$(STUDY).yaml --results $(RESULTS)

test: $(STAMP)  ## run the tests, all but those of the laboratory
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not cluster' $(PYTEST_ARGS)

# Hosts made of network namespaces, with ssh and Ray on each: minutes, alone on the machine, as root.
cluster: $(STAMP)  ## run the laboratory's tests: ray up, submit, lost machines, ray down (Debian: openssh-server rsync iproute2)
	$(BIN)/python -m pytest -m cluster tests/cluster $(PYTEST_ARGS)

lint: $(STAMP)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Resolves from nothing, for every Python that pyproject.toml allows, in an environment thrown away.
lock:  ## choose the newest allowed versions again and write constraints.txt
	@tool=$$(mktemp -d) && trap 'rm -rf "$$tool"' EXIT \
	&& $(PYTHON) -m venv "$$tool" \
	&& "$$tool/bin/python" -m pip install --quiet --disable-pip-version-check uv \
	&& "$$tool/bin/uv" pip compile --quiet --universal --upgrade --all-extras --no-annotate \
		--custom-compile-command "make lock" --output-file constraints.txt pyproject.toml
	@echo "constraints.txt: $$(grep -c == constraints.txt) versions"

clean:  ## remove .venv and caches; never results
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find autolr_ray experiments tests -type d -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "'$(PYTHON)' not found: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, $(PYTHON) is %d.%d: name one with make PYTHON=/path/to/python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@rm -f $@
	@echo "Installing into $(VENV): about 5 GB, mostly PyTorch with CUDA; some minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
