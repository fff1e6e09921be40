# Two commands that do all their own set-up in .venv: make demo, make test.

VENV := .venv
BIN := $(VENV)/bin
# Newer than pyproject.toml when everything that it asks for is installed.
STAMP := $(VENV)/.installed
PYTHONS := python3.11 python3.12 python3.13 python3 python

# Flower: no telemetry, no update check, and no new installation of the dependencies by every run.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1

# Tests in several processes; what is left goes to whoever is done.
PARALLEL := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo deploy-demo test test-long test-deploy docs clean

help:
	@echo "make demo         FedMA, FedAvg and FedProx on handwritten digits; writes outputs/demo"
	@echo "make deploy-demo  FedMA on a SuperLink and SuperNodes with TLS and keys; writes outputs/deploy"
	@echo "make test         lint, format check, type check and all tests but the next two lines'"
	@echo "make test-long    tests that train the examples, run Flower with Ray, and 10,000 hostile replies (minutes)"
	@echo "make test-deploy  tests with real SuperNodes that are killed and come back (minutes)"
	@echo "make docs         the documentation, in site/; a warning is an error"
	@echo "make setup        install everything in $(VENV) (the other commands do it when needed)"
	@echo "make clean        remove $(VENV), outputs and caches"
	@echo
	@echo "make demo ARGS='--seed 1 --strategies fedma fedavg' passes options to the demo,"
	@echo "make demo ARGS=--help lists them, make PYTHONS=/path/to/python3 setup takes that Python."

setup: $(STAMP)

$(BIN)/python:
	@for python in $(PYTHONS); do \
	  if $$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$($$python --version)"; \
	    $$python -m venv $(VENV) || rm -rf $(VENV); \
	    exec test -x $@; \
	  fi; \
	done; \
	echo "fedma-flwr needs Python 3.11 or newer with its venv module; none of these is:" \
	  "$(PYTHONS) (on Debian or Ubuntu: apt install python3.11 python3.11-venv)" >&2; \
	exit 1

$(STAMP): pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): once, some minutes, 7 GB"
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m simulations.demo $(ARGS)

deploy-demo: $(STAMP)
	@$(BIN)/python -m deploy.demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" $(PARALLEL) $(ARGS)

test-long: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long $(PARALLEL) $(ARGS)

test-deploy: $(STAMP)
	$(BIN)/python -m pytest tests_deploy $(ARGS)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open site/index.html; with the search: $(BIN)/python -m http.server -b 127.0.0.1 -d site"

clean:
	rm -rf $(VENV) outputs site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
