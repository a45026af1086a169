# What contributors run. Each target first installs what it needs into $(VENV); `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
SEEDS ?= 24
TASKS ?= 10000
# Processes that share the tests; WORKERS=0 runs them in one.
WORKERS ?= 4

# uv trusts the certificates that the system trusts, as pip does.
UV_NATIVE_TLS ?= 1
export UV_NATIVE_TLS

# Modules are compiled once, also where the shell says otherwise: each process of the tests would compile them again.
unexport PYTHONDONTWRITEBYTECODE

# Without uv on the PATH, pip installs uv, and uv the rest: pip alone takes five times as long. uv does not read pip's
# configuration: if that names an index, or uv fails, pip installs everything.
UV := $(shell command -v uv 2>/dev/null)
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
WITH_UV = pip install --quiet --compile-bytecode --python $(VENV)/bin/python $(1)
ifdef UV
CREATE_VENV = $(UV) venv --quiet --python "$$(command -v $(PYTHON))" $(VENV)
INSTALL = $(UV) $(WITH_UV)
else
CREATE_VENV = $(PYTHON) -m venv $(VENV)
INSTALL = { ! $(PIP) config list | grep '[.]index-url=' >/dev/null && $(PIP) install --quiet uv && $(VENV)/bin/uv $(WITH_UV); } \
	|| $(PIP) install --quiet $(1)
endif

.PHONY: help test test-all demo serve lint docs docs-serve chaos crashes sweep ticks protocols soak bench clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

test: $(VENV)/.installed-test ## Run the quick tests, in a few minutes; ARGS="-k retry -x" go to pytest
	TEST_QUICK=1 $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

test-all: $(VENV)/.installed-test-all ## Run all tests, on every database, with the faults
	$(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

demo: $(VENV)/.installed-demo ## See tasks go through a real queue to the real handler and into the database
	$(VENV)/bin/python example/demo.py

serve: $(VENV)/.installed-demo ## The same with a web page to press buttons on; Ctrl-C ends it
	$(VENV)/bin/python example/demo.py --serve

lint: $(VENV)/.installed-dev ## Check style, types, the direction of imports, prose, and that no migration is missing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m tests.prose
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	env -u DATABASE_URL -u MARIADB_URL $(VENV)/bin/python -m django makemigrations --check --dry-run --settings tests.settings

docs: $(VENV)/.installed-docs ## Build the documentation's site into build/site; any broken link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build $(ARGS)

docs-serve: $(VENV)/.installed-docs ## Show that site at http://127.0.0.1:8000/, and build it again when a page changes
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs serve $(ARGS)

chaos: $(VENV)/.installed-test ## Random worlds in which workers die; SEEDS=1000 for a long run; ARGS=--outbox=yes
	$(VENV)/bin/python -m tests.simulation chaos --seeds $(SEEDS) $(ARGS)

crashes: $(VENV)/.installed-test ## PostgreSQL crashes while workers are at every failpoint; ARGS="--durable-claims no"
	$(VENV)/bin/python -m tests.simulation crashes --seeds $(SEEDS) $(ARGS)

sweep: $(VENV)/.installed-test ## Every kind of task with every fault at every failpoint; ARGS=--outbox=yes
	$(VENV)/bin/python -m tests.simulation sweep $(ARGS)

ticks: $(VENV)/.installed-test ## Random worlds with periodic tasks, and every fault at each failpoint of schedules
	$(VENV)/bin/python -m tests.simulation ticks --seeds $(SEEDS) $(ARGS)

protocols: $(VENV)/.installed-test ## The protocol with one protection removed at a time: each must be detected
	$(VENV)/bin/python -m tests.simulation.protocols $(ARGS)

soak: $(VENV)/.installed-test ## Ten thousand tasks through real workers that are killed at random
	$(VENV)/bin/python -m tests.faults.soak --tasks $(TASKS) $(ARGS)

bench: $(VENV)/.installed-bench ## Measure everything and write docs/benchmarks.md, in half an hour; ARGS="execute" for a part
	$(VENV)/bin/python -m benchmarks $(ARGS)

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
	@$(call INSTALL,--editable '.[$*]')
	@touch $@
