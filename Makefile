# make demo and make test do all the set-up themselves; run again, they skip what is done.
# Needs Python >= 3.10, make and a C++ compiler. Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

# PyTorch comes first and by an exact version: the build that pip finds for it (CPU or CUDA) then stays.
TORCH := torch==2.13.0
# The Triton of that PyTorch. Its CPU build does not ask for one, so pip would take the newest.
TRITON := "triton==3.7.1; sys_platform == 'linux'"

# A worker for each core; the tests of one file share its fixtures. tests/conftest.py puts the files in order.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

# What is compiled or declares the package: a change in it installs anew. Python files are used where they lie.
BUILD_INPUTS := pyproject.toml setup.py $(wildcard csrc/*)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs bench clean

help:
	@echo "make demo    set up, then train a small ELECTRA and look at it (minutes)"
	@echo "make test    set up, then check style and run the tests"
	@echo "make test-all  the slow forms of the tests too"
	@echo "make lint    check style only"
	@echo "make format  put the style right"
	@echo "make docs    build the manual into build/docs; open build/docs/index.html"
	@echo "make bench   measure jobs and operators, write docs/performance.md (20 minutes; a quiet machine)"
	@echo "make clean   remove what building and testing left, and .venv"

demo: $(VENV)/.installed
	$(BIN)/electra-fast demo

test: lint
	$(BIN)/python -m pytest tests $(PARALLEL)

# What runs before a release: also the slow forms of the tests.
test-all: lint
	ELECTRA_FAST_TEST_ALL=1 $(BIN)/python -m pytest tests $(PARALLEL)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The variable silences the theme's advertisement of its successor.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.installed-dev
	mkdir -p build
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-json=build/benchmark.json
	$(BIN)/python -m benchmarks.report --save build/benchmark.json
	$(BIN)/python -m benchmarks.measured

$(VENV)/.torch: Makefile
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 10) and f"electra-fast needs Python 3.10 or newer, and $(PYTHON) is {v}: make PYTHON=/path/to/python3.10 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version > /dev/null || { echo "$(VENV) has no pip: install python3-venv, then make clean" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@touch $@

# The editable install compiles the C++ kernels; without a compiler it succeeds and the operators run their references.
$(VENV)/.installed: $(VENV)/.torch $(BUILD_INPUTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . $(TORCH) $(TRITON)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch $(BUILD_INPUTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" $(TORCH) $(TRITON)
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .benchmarks electra_fast/_C*.so electra_fast/_C*.pyd
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
