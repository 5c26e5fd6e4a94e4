# The project's commands. `make` lists them. Works with GNU make 3.81 (macOS) and newer.

VENV    ?= .venv
PYTHON  ?=
EXTRAS  ?= dev,hf
WORKERS ?= 2
TESTS   ?=
PEERS   ?= .venv-peers
REPS    ?= 5
ONLY    ?=

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-heavy bench bench-peers check format clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  PYTHON=python3.12   interpreter for setup (default: the newest of 3.13, 3.12, 3.11)"
	@echo "  WORKERS=$(WORKERS)           test processes"
	@echo "  TESTS='tests/data'  what make test runs (default: everything)"
	@echo "  REPS=$(REPS) ONLY=w1,w2b   clean repetitions and workloads of bench-peers"

setup: $(STAMP) ## make .venv and install fedsim there with its tested versions

demo: $(STAMP) ## run the quickstart sweep: prints its table and writes its report
	$(BIN)/fedsim sweep experiments/quickstart.yaml

# Ray starts processes of its own: its tests run one after the other. Exit code 5: TESTS has none.
test: $(STAMP) ## run the tests, doctests included
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not ray and not heavy" $(TESTS) \
	  || test $$? -eq 5
	$(BIN)/python -m pytest -m ray $(TESTS) || test $$? -eq 5

test-fast: $(STAMP) ## run what every change needs: no Ray, no pages, nothing over some seconds
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not ray and not heavy and not slow" \
	  $(TESTS)

test-heavy: $(STAMP) ## run every method on RN50, ViT-B/32 and ViT-B/16 at their real size
	$(BIN)/python -m pytest -m heavy

bench: $(STAMP) ## time the hot paths: medians per layer
	$(BIN)/python -m pytest benchmarks/suite -o addopts= --benchmark-disable-gc -q \
	  --benchmark-group-by=group --benchmark-columns=median,iqr,rounds --benchmark-sort=name

bench-peers: $(STAMP) $(PEERS)/.installed ## fedsim beside Flower, pfl-research and a plain loop
	$(BIN)/python -m benchmarks.peers measure --peers "$(PEERS)" --reps $(REPS) --only "$(ONLY)"

check: $(STAMP) ## style, types, layers and docs; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q $(wildcard tests/test_style.py tests/test_docs.py)

format: $(STAMP) ## fix what can be fixed by itself: imports, layout
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## remove caches and build leftovers; keeps .venv and runs
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find fedsim tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Runs again only when the dependencies change. A candidate interpreter has to start, be of a
# supported version and bring `venv`; shims that only print an error are passed over.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	usable='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; \
	if [ ! -x "$(BIN)/python" ]; then \
	  found=; \
	  for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	    if "$$python" -c "$$usable" >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "setup: no usable Python among: $(or $(PYTHON),python3.13 python3.12 python3.11 python3)." >&2; \
	    echo "fedsim needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian and Ubuntu:" >&2; \
	    echo "the package python3-venv). Another interpreter: make setup PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$($$found --version) ($$found)"; \
	  "$$found" -m venv "$(VENV)"; \
	fi
	@echo "Installing fedsim and its dependencies. On Linux the first time takes 5 to 10 minutes and"
	@echo "6 GB: torch brings its CUDA libraries along."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

# The peers pin a Ray of their own; their torch is the very version that fedsim runs on.
$(PEERS)/.installed: benchmarks/peers/requirements.txt constraints.txt | $(STAMP)
	$(BIN)/python -m venv "$(PEERS)"
	@echo "Installing the peers with fedsim's torch: a few minutes and 6 GB."
	"$(PEERS)/bin/python" -m pip install --disable-pip-version-check -r benchmarks/peers/requirements.txt
	@touch $@
