# Two commands: `make demo` and `make test`. Both make the virtual environment they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check lint types wheel bench pair clean

demo: $(READY) ## record, train with PPO, distil, serve and compare on the shipped pair
	$(BIN)/python benchmarks/demo.py

test: $(READY) ## all tests
	$(BIN)/python -m pytest

check: lint types wheel ## what CI runs beside the tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	MYPYPATH=$(VENV)/typing $(BIN)/mypy -p specpilot

wheel: $(READY) ## build the wheel, then import it and load its pair from outside the checkout
	rm -rf build dist $(VENV)/wheel
	$(BIN)/python -m build --wheel --no-isolation
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/wheel dist/specpilot-*.whl
	cd $(VENV)/wheel && PYTHONPATH=. $(abspath $(BIN))/python -c "import specpilot.controllers, specpilot.engine as e; \
	    assert str(e.SHIPPED_PAIR).startswith('$(abspath $(VENV))/wheel'), e.SHIPPED_PAIR; e.load_pair(); print('wheel ok', specpilot.__version__)"

bench: $(READY) ## the engine benchmark, and the README's figures from it
	$(BIN)/python benchmarks/engine.py --config configs/benchmark/engine.yaml
	$(BIN)/python benchmarks/compiled_pass.py
	$(BIN)/python benchmarks/readme.py

pair: $(READY) ## train the shipped pair again
	$(BIN)/python train/pair.py --config configs/pair/pystdlib.yaml

clean:
	rm -rf $(VENV) build dist *.egg-info

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'specpilot needs Python 3.11 or newer; set PYTHON=...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	mkdir -p $(VENV)/typing && ln -sfn $(CURDIR) $(VENV)/typing/specpilot
	touch $(READY)
