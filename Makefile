# The two commands of a fresh machine: `make demo` and `make test`. Both install first, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= configs/demo.yaml

.PHONY: demo test test-fast check docs audit format install clean

demo: install
	$(BIN)/sp2dpo run $(CONFIG)

test: install
	$(BIN)/python -m pytest

# no Ray, nothing slow: about three minutes on two cores
test-fast: install
	$(BIN)/python -m pytest -m "not ray and not browser and not slow"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/detect-secrets-hook --exclude-lines 'api_key_env|sourceImage' $$(git ls-files)

# the documentation as pages, in build/site; warnings are errors
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# known weaknesses of the pinned packages; needs an advisory service, and says which it could not ask about
audit: install
	$(BIN)/pip-audit --requirement constraints-cpu.txt --no-deps --disable-pip --strict

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed

# torch first and alone: with it present, no other package pulls another build of it
$(VENV)/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "Python 3.11 to 3.13 is needed; name one: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints-cpu.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints-cpu.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
