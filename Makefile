# What contributors run. Each target first installs what it needs into $(VENV); `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# uv trusts the certificates that the system trusts, as pip does.
UV_NATIVE_TLS ?= 1
export UV_NATIVE_TLS

UV := $(shell command -v uv 2>/dev/null)
ifdef UV
CREATE_VENV = $(UV) venv --quiet --python "$$(command -v $(PYTHON))" $(VENV)
INSTALL = $(UV) pip install --quiet --compile-bytecode --python $(VENV)/bin/python
else
CREATE_VENV = $(PYTHON) -m venv $(VENV)
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: help test demo serve lint clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-6s %s\n", $$1, $$2}' Makefile

test: $(VENV)/.installed-test ## Run the tests; ARGS="-k retry -x" go to pytest
	$(VENV)/bin/python -m pytest $(ARGS)

demo: $(VENV)/.installed-demo ## See tasks go through a real queue to the real handler and into the database
	$(VENV)/bin/python example/demo.py

serve: $(VENV)/.installed-demo ## The same with a web page to press buttons on; Ctrl-C ends it
	$(VENV)/bin/python example/demo.py --serve

lint: $(VENV)/.installed-dev ## Check style, types, the direction of imports, and that no migration is missing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python -m django makemigrations --check --dry-run --settings tests.settings

clean: ## Remove the environments and everything that was built
	rm -rf $(VENV) .nox build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		found=$$($(PYTHON) --version 2>/dev/null || echo "not there"); \
		echo "Python 3.10 or newer is needed, and $(PYTHON) is $$found."; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	$(CREATE_VENV)

# One extra of pyproject.toml, in editable mode; again when pyproject.toml has changed.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the packages of the extra '$*' into $(VENV): a minute or so, the first time."
	$(INSTALL) --editable '.[$*]'
	@touch $@
