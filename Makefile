# Short verbs; each makes what it needs. `make test PYTHON=python3.13` picks another interpreter.
# On x86 Linux PyPI's torch brings CUDA along. For the CPU build alone:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make oracle
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(wildcard native/*)
SOURCES := $(shell find src -type f -not -name '*.pyc')

.DEFAULT_GOAL := test
.PHONY: demo test oracle check lint bench docs clean

demo: $(VENV)/plain.stamp
	$(BIN)/crumb demo

test: lint
	$(BIN)/python -m pytest -m "not oracle"

oracle: $(VENV)/oracle.stamp
	$(BIN)/python -m pytest -m oracle

check: lint
	$(BIN)/python -m pytest tests/house

lint: $(VENV)/editable.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/oracle.stamp
	$(BIN)/python benchmarks/quality_table.py --model src/crumb/embedded/novella-7m \
		--calibration excerpt-calibration --text excerpt-evaluation
	$(BIN)/python benchmarks/speed_quantize.py

docs: $(VENV)/editable.stamp
	$(BIN)/python docs/generate.py

clean:
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The plain and the editable install replace each other, so each takes away the other's stamps.
$(VENV)/plain.stamp: $(BUILD_INPUTS) $(SOURCES) | $(BIN)/python
	$(INSTALL) .
	rm -f $(VENV)/*.stamp
	touch $@

$(VENV)/editable.stamp: $(BUILD_INPUTS) | $(BIN)/python
	$(INSTALL) --editable '.[dev]'
	rm -f $(VENV)/*.stamp
	touch $@

$(VENV)/oracle.stamp: $(VENV)/editable.stamp
	$(INSTALL) --editable '.[dev,oracle]' torch==2.13.0
	-$(INSTALL) --no-deps --only-binary :all: auto-gptq
	touch $@
