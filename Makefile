# Each target works alone in a fresh clone: what it needs is installed into .venv first, once for each state of pyproject.toml.

# The first of these that runs and is new enough; `make PYTHON=/path/to/python3.12 demo` chooses another.
CANDIDATES = python3 python3.11 python3.12 python3.13 python3.10
PYTHON ?= $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo $(p))))
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check
SOURCES = unclip pipelines train tests benchmarks

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint format typecheck wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed ## Make out/demo.png, a grid of pictures, and one of 1024 px; tells the time it takes
	.venv/bin/unclip demo --output out

test: .venv/.installed-dev ## Run the tests (no network, no accelerator)
	.venv/bin/python -m pytest

lint: .venv/.installed-dev ## Check style and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/.installed-dev ## Mend style and format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Checkers cannot see through the mapping pipelines/ -> unclip.pipelines, so an installed copy is checked.
typecheck: .venv/.installed-dev ## Check types
	@rm -rf build
	@$(PIP) --no-deps --no-build-isolation --no-compile --target build/typecheck .
	cd build/typecheck && ../../.venv/bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p unclip

# A build folder of an earlier state would put deleted files into the wheel.
wheel: .venv/.installed-dev ## Build dist/unclip-*.whl
	@rm -rf build dist
	.venv/bin/python -m build --wheel --no-isolation

clean: ## Remove what was built (not .venv, not what training wrote)
	rm -rf build dist out *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "unclip needs Python 3.10 or newer and found none of: $(CANDIDATES). Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

.venv/.installed: pyproject.toml | .venv/bin/python
	@echo "installing unclip and PyTorch into .venv (several minutes the first time)"
	@$(PIP) -e . || { echo "the installation failed; the lines above say why. Mend it, then run the same command again" >&2; exit 1; }
	@touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	@echo "installing unclip, PyTorch and the developers' tools into .venv (several minutes the first time)"
	@$(PIP) -e '.[dev]' || { echo "the installation failed; the lines above say why. Mend it, then run the same command again" >&2; exit 1; }
	@touch .venv/.installed $@
