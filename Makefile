# Needs Python 3.11 or newer, pip and make. PYTHON names another interpreter, VENV another folder.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin

.PHONY: quickstart test test-slow bench install install-dev install-slow clean

quickstart: install
	$(RUN)/vlp quickstart quickstart

test: install-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright --pythonpath $(RUN)/python
	$(RUN)/pytest -m "not slow" -n 2

test-slow: install-slow
	$(RUN)/pytest -m "slow or extra"

bench: install-dev
	for script in tests/benchmarks/*.py; do $(RUN)/python $$script || exit 1; done

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

install-slow: $(VENV)/.installed-slow

$(VENV)/.installed: pyproject.toml
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --editable ".[serve]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN)/pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/.installed-slow: $(VENV)/.installed-dev
	$(RUN)/pip install --quiet --editable ".[dev,filters,ray,serve,slow]"
	touch $@

clean:
	rm -rf $(VENV) quickstart .bench
