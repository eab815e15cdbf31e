# Everything sets itself up: `make demo` and `make test` work on a fresh clone (Python 3.10 or newer, pip, a network).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed

.PHONY: setup demo test test-all unit lint types mutants bench clean

setup: $(SETUP)

$(SETUP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(SETUP)

demo: setup  ## a made-up cohort of four sites, trained without privacy, with DP and with adaptive DP: about 10 minutes
	$(BIN)/adpfl demo adpfl_demo --overwrite

test: setup  ## all tests: < 15 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: test  ## and a thousand damaged files for every reader: half an hour more
	ADPFL_FUZZ=1000 $(BIN)/python -m pytest tests/fuzz

unit: setup  ## the quick ones, on two cores: two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

mutants: setup  ## planted faults in the privacy code, each of which a test must catch
	$(BIN)/python tests/mutants/run.py --report docs/mutants.md

bench: setup  ## cost of a private step against a plain one
	$(BIN)/python benchmarks/step_cost.py --json benchmarks/results/step_cost_cpu.json

clean:
	rm -rf $(VENV) adpfl_demo
