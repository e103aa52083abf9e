SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
JOBS ?= 2
TORCH ?= 2.13.0
FOR_TESTS := [dev,flower,graph,hf,nvflare,peft,pretrained,privacy,secure,text,vision]
FOR_DOCS := [docs]
FOR_CLAIMS := [graph,peft,privacy,secure,vision]
EVERYTHING := [dev,docs,text,pretrained,hf,vision,graph,peft,privacy,secure,flower,nvflare,console]
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/base.stamp
DEV := $(VENV)/dev.stamp
DOCS := $(VENV)/docs.stamp
CLAIMS := $(VENV)/claims.stamp
RECIPE := pyproject.toml constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq

# The editable package with these extras, at the pinned versions.
install = echo "Installing $(1) into $(VENV) (some minutes at most) ..."; \
	$(PIP) install --constraint constraints.txt --editable ".$(2)"; \
	echo "Installed in $$SECONDS s."

.PHONY: help demo test lint format claims report docs bench install versions clean pins

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(BASE) ## CreamFL with baselines and controls on real pictures and captions, and its report
	@$(BIN)/motet demo

test: $(DEV) ## all tests; PYTEST="-k name" for some, JOBS=8 for more processes
	@OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(JOBS) --dist worksteal $(PYTEST)

lint: $(DEV) ## style, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(DEV) ## mend what lint would say about style and format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

claims: $(CLAIMS) ## check the claim of every method and write docs/claims; CLAIM=name for one
	@$(BIN)/motet $(if $(CLAIM),claim $(CLAIM),claims) --write docs

report: $(BASE) ## the report of the newest run; RUN=folder for another
	@$(BIN)/motet report $(RUN)

docs: $(DOCS) ## build the documentation into site/
	@$(BIN)/motet docs
	@DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(DEV) ## Motet against other frameworks, side by side; WORK=mlp for one, QUICK=1 to try
	@$(BIN)/python -m benchmarks.run $(if $(WORK),--work $(WORK)) $(if $(QUICK),--quick,--out docs)

install: $(DEV) ## everything that the other targets need, without running them

versions: $(DEV) ## what is installed
	@$(BIN)/python --version
	@$(BIN)/python -m pip --disable-pip-version-check list --format freeze

clean: ## remove the environment, caches and built files; runs stay
	rm -rf $(VENV) .venv-bench build dist site docs/methods docs/data.md docs/models.md .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Every stamp stands for an environment that also has what the base needs.
$(BASE): $(RECIPE) | $(BIN)/python
	@$(call install,Motet)
	@touch $@

$(DEV): $(RECIPE) | $(BIN)/python
	@$(call install,Motet with its test tools and extras,$(FOR_TESTS))
	@touch $(BASE) $@

$(CLAIMS): $(RECIPE) | $(BIN)/python
	@$(call install,Motet with what the claims need,$(FOR_CLAIMS))
	@touch $(BASE) $@

$(DOCS): $(RECIPE) | $(BIN)/python
	@$(call install,Motet with its documentation tools,$(FOR_DOCS))
	@touch $(BASE) $@

$(BIN)/python:
	@python=$$(command -v "$(PYTHON)" || command -v python3 || true); \
	if ! "$${python:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "Motet needs Python 3.11 or later; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; \
		exit 1; \
	fi >&2; \
	if ! "$$python" -m venv $(VENV); then \
		rm -rf $(VENV); \
		echo "$$python cannot make environments; on Debian and Ubuntu: apt install python3-venv"; \
		exit 1; \
	fi >&2

# Everything together in a fresh environment, so that no two extras ask for different versions.
pins: ## write constraints.txt anew, from the newest versions that go together
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PYTHON) -m venv "$$fresh"; \
	"$$fresh/bin/python" -m pip install -qq torch==$(TORCH) ".$(EVERYTHING)"; \
	{ \
		grep '^#' constraints.txt; \
		echo torch==$(TORCH); \
		"$$fresh/bin/python" -m pip freeze --exclude motet --exclude torch; \
	} >"$$fresh/pins"; \
	mv "$$fresh/pins" constraints.txt
