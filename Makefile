# Everything a fresh machine needs is set up by the targets themselves, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
ARGS ?=

.PHONY: help demo test quick sweep docs lint typecheck format clean

help:
	@echo "make demo       install, then plain and plugged generation side by side (offline)"
	@echo "make test       install what tests need, run them (ARGS='-k acceptance' to choose)"
	@echo "make quick      one case of each test that is not slow: what to run while editing"
	@echo "make sweep      every text model of transformers, plain against attached (ARGS='--only llama gemma3')"
	@echo "make docs       build the documentation into site/, warnings are errors"
	@echo "make lint       ruff, formatting included"
	@echo "make typecheck  mypy"
	@echo "make format     apply the formatting"
	@echo "make clean      remove the environment and caches"

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "hf-specplug needs Python 3.10 or newer; choose one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The stamps: one per set of extras, renewed when the requirements change.
$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/specplug demo $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

quick: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist worksteal --quick -q $(ARGS)

sweep: $(VENV)/.installed-test
	$(BIN)/python -m tests.sweep $(ARGS)

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
