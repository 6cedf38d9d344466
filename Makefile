# Everything runs in .venv; `make PYTHON=python3.13 install` picks another Python (>= 3.11).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo sim test check bench soak fuzz lock wheel clean

help:
	@echo "make install   all dependencies, pinned, into .venv"
	@echo "make demo      train a model on a fleet of eight nodes on this machine"
	@echo "make sim       compare strategies on a simulated fleet of a hundred nodes"
	@echo "make test      run the tests"
	@echo "make check     formatter, linter, types, layers"
	@echo "make bench     measure speed and memory"
	@echo "make soak      hours of faults: a thousand seeds, every fault, forty processes for SOAK_S seconds"
	@echo "make fuzz      every reader of foreign bytes, guided by coverage, for FUZZ_S seconds each"
	@echo "make lock      renew the lock files"
	@echo "make wheel     build the wheel into dist/"
	@echo "make clean     delete what the other targets made"

install: $(STAMP)

# tinygrad needs clang: where there is none, the clang of the ziglang wheel (100 MB) is installed.
$(STAMP): pyproject.toml requirements.lock requirements-compiler.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than 3.11 or missing; try: make PYTHON=python3.12 $(or $(MAKECMDGOALS),install)"; \
	  exit 1; }
	@# Some systems ship Python without ensurepip; their pip can still install into a venv.
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --without-pip $(VENV)
	@set -e; \
	if [ -x $(BIN)/pip ]; then pip="$(BIN)/python -m pip"; \
	else pip="$(PYTHON) -m pip --python $(BIN)/python"; fi; \
	set -x; \
	$$pip install --disable-pip-version-check -r requirements.lock; \
	command -v clang >/dev/null || \
	  $$pip install --disable-pip-version-check -r requirements-compiler.lock; \
	$$pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/hedgerow up configs/demo.toml --dir runs/demo --fresh

# A second `make sim` only runs what is not done; after a change of the code: make sim SIM_OPTIONS=--fresh
sim: $(STAMP)
	$(BIN)/hedgerow sim configs/sims/stragglers_100.toml --strategy fedavg fedbuff ftte --dir runs/sim $(SIM_OPTIONS)

# Fleets of real processes need the machine for themselves; everything else runs side by side.
QUICK_TESTS := $(wildcard tests/unit tests/protocol tests/contract tests/simulation tests/fuzz)
test: $(STAMP)
	$(BIN)/python -m pytest --cov --cov-report= -n 2 $(QUICK_TESTS)
	$(BIN)/python -m pytest --cov --cov-report=term --cov-append $(addprefix --ignore=,$(QUICK_TESTS))

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(STAMP)
	$(BIN)/python -m bench

# All of it runs, whatever fails first; a failure prints how to replay it.
SOAK_S ?= 1800
soak: $(STAMP)
	@failed=0; \
	$(BIN)/python -m tests.simulation.seeds --seeds 1000 || failed=1; \
	$(BIN)/python -m tests.faults.table || failed=1; \
	$(BIN)/python -m bench.broker_kills || failed=1; \
	$(BIN)/python -m bench.soak --seconds $(SOAK_S) || failed=1; \
	exit $$failed

# atheris has wheels for some Pythons only, so it is in no lock file.
FUZZ_S ?= 60
fuzz: $(STAMP)
	$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/uv pip install --python $(BIN)/python 'atheris>=2.3'
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_S)

# Pins hold for CPython >= 3.11 on every platform; --upgrade takes the newest.
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --upgrade \
	--no-emit-index-url --no-emit-find-links --no-annotate --quiet --custom-compile-command "make lock"
lock: $(STAMP)
	$(COMPILE) --extra demo --extra test --extra dev -o requirements.lock
	$(COMPILE) --extra compiler --constraints requirements.lock -o requirements-compiler.lock

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) build dist runs *.egg-info .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
