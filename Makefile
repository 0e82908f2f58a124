# Two commands do everything: `make demo` and `make test`. Each sets itself up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.spotd-installed

.PHONY: all demo test test-quick test-vm lint clean venv
all: test

venv: $(STAMP)

# torch is pinned: other versions pull gigabytes of CUDA that no test here needs.
$(STAMP): pyproject.toml packaging/bootstrap.sh
	PYTHON=$(PYTHON) sh packaging/bootstrap.sh $(VENV)
	touch $@

demo: $(STAMP)
	$(BIN)/spotd demo

# A worker a core; with `loadgroup` each takes one test after the other, in the order of
# tests/conftest.py (the other ways hand out a quarter of the suite at once).
test: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder \
		$(PYTEST_ARGS)

# The tests that need neither torch nor a container: seconds, for the edit loop.
test-quick: $(STAMP)
	$(BIN)/python -m pytest tests/core tests/shell tests/contract $(PYTEST_ARGS)

# The instance as a virtual machine (QEMU, software emulation): minutes. SPOTD_VM_CUTS=20 for more.
test-vm: $(STAMP)
	$(BIN)/python -m pytest -s tests/systemd/vm.py $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
