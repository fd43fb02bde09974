# Two commands set everything up: `make demo` and `make test`. Nothing else is needed but Python >= 3.11, venv and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint config/constraints.txt

.PHONY: demo test check chaos breaks fuzz clean
.DEFAULT_GOAL := test

$(VENV)/.installed: pyproject.toml config/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say make PYTHON=python3.11"; exit 2; }
	@echo "Setting up $(VENV) (once, until pyproject.toml or the constraints change) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.installed
	@$(PIP) --editable '.[test,lint]'
	@touch $@

demo: $(VENV)/.installed      ## sell one photograph from end to end; IMAGE=path, FAIL=upscale, KEEP=1
	@$(BIN)/smi demo $(if $(IMAGE),--image '$(IMAGE)') $(if $(FAIL),--fail '$(FAIL)') $(if $(KEEP),--keep)

test: $(VENV)/.installed      ## the tests that need nothing installed; JOBS=1 one at a time, ARGS for pytest
	@$(BIN)/python -m pytest -n $(or $(JOBS),auto) --dist loadfile $(ARGS)

check: $(VENV)/.lint          ## lint, types, floors
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/bandit -q -c pyproject.toml -r smi_workflow workers

chaos: $(VENV)/.installed     ## sell under fire, then judge; MINUTES=2, SALES=1000, SEED=any
	@$(BIN)/python -m tests.chaos.run --minutes $(or $(MINUTES),2) --sales $(or $(SALES),1000) $(if $(SEED),--seed $(SEED))

breaks: $(VENV)/.installed    ## make one line of each law wrong, and see who notices
	@$(BIN)/python -m tests.breaks $(ARGS)

fuzz: $(VENV)/.lint           ## coverage-guided fuzzing of one parser; T=target S=seconds
	@$(PIP) --editable '.[test,fuzz]'
	@$(BIN)/python -m tests.fuzz.atheris_targets $(T) -max_total_time=$(or $(S),60)

clean:
	rm -rf $(VENV) var build *.egg-info
