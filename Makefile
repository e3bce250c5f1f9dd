# Two commands: `make quickstart` and `make test`. Both make .venv first, and that does nothing when it is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: install quickstart test pytest unit lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[openvino,trackers,dev]'
	$(BIN)/python -m compileall -q cai
	@touch $(STAMP)

quickstart: install
	@$(BIN)/python -m cai

# The checks run beside the tests: these wait for jobs and servers now and then.
test: install
	@$(MAKE) --no-print-directory -j 2 lint pytest

pytest: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

unit: install
	$(BIN)/python -m pytest -m 'not long' -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info
