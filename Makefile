# Everything runs in .venv, made on first use with the versions in constraints.txt and made anew when an
# earlier attempt did not finish. A changed pyproject.toml or constraints.txt updates it.

PYTHON ?= python3
VENV := .venv
PYTEST_ARGS ?= -n auto --dist worksteal # a worker takes one half of the tests: it shares what a file prepares
STAMP := $(VENV)/.complete
DOCS_STAMP := $(VENV)/.docs
UNCOMPILED := --no-compile # Python compiles what is imported, a tenth of what is there: half of the time of the set-up
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input --quiet

# For the isolated build of stable-bptt itself, older versions of pip obey the first and newer ones the second.
$(STAMP) $(DOCS_STAMP): export PIP_CONSTRAINT := constraints.txt
$(STAMP) $(DOCS_STAMP): export PIP_BUILD_CONSTRAINT := constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test smoke docs lint format release clean

help: ## say what there is
	@echo "make TARGET [PYTHON=python3.12] [PYTEST_ARGS=\"-k rules\"]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## train controllers by BPTT and by PPO, compare them: tables, curves and animations in runs/demo
	@$(VENV)/bin/bptt demo --out runs/demo

test: $(STAMP) ## run the tests
	@$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

smoke: $(STAMP) ## run every experiment of docs/results.md for one short epoch
	@rm -rf runs/smoke
	@$(VENV)/bin/bptt reproduce --tier smoke --out runs/smoke

docs: $(DOCS_STAMP) ## build the documentation as a site, run its tutorials: build/docs/index.html
	@$(VENV)/bin/python -m sphinx -W --keep-going -q -j auto -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

lint: $(STAMP) ## check style, formatting and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(STAMP) ## format the code and fix what ruff can fix
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

release: $(STAMP) ## build wheel and sdist into dist/, check them, try the wheel in an empty environment; uploads nothing
	@rm -rf dist build/release && mkdir -p build/release
	@$(PIP) install -c constraints.txt build twine
	@PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(VENV)/bin/python -m build --outdir dist
	@$(VENV)/bin/python -m twine check --strict dist/*
	@$(PYTHON) -m venv build/release/venv
	@build/release/venv/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt \
	    "$$(ls dist/*.whl)[models,render,tune]"
	@cd build/release && ../../scripts/try_wheel.sh venv/bin
	@echo "dist/ is ready; nothing was uploaded. To upload it: $(VENV)/bin/python -m twine upload dist/*"

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
	find envs trainers tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "stable-bptt needs Python 3.10 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@if [ -e $@ ]; then echo "updating $(VENV) ..."; else \
	    echo "setting up $(VENV) with $$($(PYTHON) --version): about a minute, and the download of PyTorch ..."; \
	    $(PYTHON) -m venv --clear $(VENV); fi
	@rm -f $@
	@$(PIP) install $(UNCOMPILED) -e ".[dev]"
	@touch $@
	@echo "$(VENV) is ready"

$(DOCS_STAMP): $(STAMP)
	@echo "adding what builds the documentation to $(VENV) ..."
	@$(PIP) install $(UNCOMPILED) -e ".[dev,docs]"
	@touch $@
