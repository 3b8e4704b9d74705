# make run           the demonstration, from nothing: environment, forward pass, a short training
# make test          the whole test suite, from nothing
# make test-matrix   what must hold on the newer Pythons, with the newer JAX that they get
# make docs          the site, build/docs/html/index.html; its tutorials are run
# make gpu           on a machine with a GPU: parity to the bit on it, then its figures
# make adoption      real packages with liftax in flax's place, against flax

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2
PYTEST_ARGS ?=

# Every process that a test starts, and every worker, would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := run
.PHONY: run test kills test-matrix environments adoption docs bench gpu types lint format chromium clean

run: $(VENV)/.run
	$(BIN)/liftax forward
	$(BIN)/liftax train --epochs 10 --out runs/stack

test: $(VENV)/.dev chromium
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

# Twenty processes of a training are killed, where make test kills two.
kills: $(VENV)/.dev
	LIFTAX_KILLS=20 $(BIN)/python -m pytest tests/test_lm.py -k killed

# The other pairs of jax and flax in constraints.txt, each on the Python that its marker names and in
# an environment of its own. make PYTHON_3.13=/path/to/python3.13 says where one is.
MATRIX := 3.12 3.13
TESTS_ON_3.12 := tests/parity tests/probes
TESTS_ON_3.13 := tests/parity tests/laws tests/core tests/design tests/stack tests/checkpoint \
  tests/layout tests/layers tests/faults tests/probes tests/practice tests/test_traces.py

# Installing waits for the network, so all at once; the tests keep the cores busy, so in turn.
test-matrix:
	$(MAKE) --jobs --keep-going $(MATRIX:%=install-on-%)
	$(MAKE) --jobs=1 --keep-going $(MATRIX:%=test-on-%)

# All that the tests run in, for whoever has more than one job: make --jobs=2 environments
environments: $(VENV)/.dev $(MATRIX:%=install-on-%)

install-on-%:
	@+$(call on,$*,.venv-$*/.dev)

# The newest with programs as users compile them; the tests take less pains otherwise.
test-on-3.13: export XLA_FLAGS := --xla_backend_optimization_level=3 $(XLA_FLAGS)
test-on-%:
	@+$(call on,$*,test PYTEST_ARGS='$(TESTS_ON_$*) $(PYTEST_ARGS)')

# A target in the environment of one Python. Without that Python it is left out, but not in CI.
# The + in front of it hands on the jobs that make was given.
on = python="$(or $(PYTHON_$1),$$(.ci/find-python $1))"; \
  if [ -n "$$python" ]; then \
    $(MAKE) --no-print-directory VENV=.venv-$1 PYTHON="$$python" $2; \
  else \
    echo "no Python $1 on PATH or in ~/.pyenv/versions, so its pair of jax and flax is not tested;" \
      "make test-matrix PYTHON_$1=/path/to/python$1" >&2; [ -z "$$CI" ]; \
  fi

# Real packages on flax and on liftax, in an environment of their own: make adoption PACKAGES='clu e3x'
# takes two of them. The table in docs/guides/linen.md is what this prints, with ADOPTION_ARGS='--tests --docs'.
PACKAGES ?=
ADOPTION_ARGS ?=
adoption:
	@$(MAKE) --no-print-directory VENV=.venv-adoption .venv-adoption/bin/python
	.venv-adoption/bin/python tools/adoption.py --install $(ADOPTION_ARGS) $(PACKAGES)

# The site, with Sphinx in an environment of its own; what its tutorials printed is kept in build/docs.
docs:
	@$(MAKE) --no-print-directory VENV=.venv-docs .venv-docs/.docs
	.venv-docs/bin/python docs/make.py

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

# Lifts, layers, scan and vmap beside flax.linen on the GPU, and what a model costs there: each row of
# figures is printed as it is taken. make gpu GPU_TESTS= leaves the tests out.
GPU_TESTS ?= tests/parity/test_lifts_table.py tests/parity/test_layers.py tests/parity/test_scan.py \
  tests/parity/test_vmap.py
gpu: $(VENV)/.dev
	$(PIP) 'jax[cuda12]'
	[ -z "$(GPU_TESTS)" ] || JAX_PLATFORMS=cuda,cpu $(BIN)/python -m pytest -q $(GPU_TESTS)
	$(BIN)/python -m benchmarks gpu

types: $(VENV)/.dev
	$(BIN)/python -m mypy

lint: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

format: $(VENV)/.dev
	$(BIN)/python tools/stubs.py
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# Debian ships venv without its pip unless python3-venv is there.
$(BIN)/python:
	@if ! $(PYTHON) -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; \
	  else \
	    echo "liftax needs Python 3.11 or newer with venv: apt-get install python3-venv," \
	      "or say which: make PYTHON=python3.12" >&2; exit 1; \
	  fi; \
	fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev,bench]'
	@touch $@ $(VENV)/.run $(VENV)/.bench

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[bench]'
	@touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[docs]'
	@touch $@

# The pages of layouts and of the practice are tested in a real browser. Without one those tests are skipped and say so;
# as root on Debian it is installed, and in CI it must be.
chromium:
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
	    || command -v google-chrome >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "no Chromium: the tests of pages will be skipped"; exit 0; fi; \
	echo "installing Chromium for the tests of pages"; \
	for attempt in 1 2 3; do \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends chromium >/dev/null && exit 0; \
	  sleep 5; \
	done; \
	echo "could not install Chromium" >&2; [ -z "$$CI" ]

clean:
	rm -rf $(VENV) $(MATRIX:%=.venv-%) .venv-adoption .venv-docs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
