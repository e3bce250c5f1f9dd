# Two commands: `make quickstart` and `make test`. Both make .venv first, and that does nothing when it is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
# The locked versions need Python 3.11; an older one gets the newest that run there.
LOCK = $$($(BIN)/python -c 'import sys; print("--constraint constraints.txt" * (sys.version_info >= (3, 11)))')

.PHONY: install quickstart test pytest unit fuzz lint nemo-lab servers-lab clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LOCK) --editable '.[embedded,openvino,trackers,dev]'
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

# Before a release: CAI_TESTS=all make test tries every fault of NeMo's commands, not one of each kind; and make fuzz
# every odd value in every field, half an hour. CAI_FUZZ_SEED draws other ones.
fuzz: install
	CAI_FUZZ=all $(BIN)/python -m pytest tests/fuzz -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/words.py

# NeMo's own classes against the shipped experiments' commands: CAI_UPSTREAM names a folder with upstream's configs.
# Writes tests/lab/validated.json when all of it passes. LAB=--check only looks, and skips where it cannot run.
nemo-lab: install
	$(BIN)/python -m tests.lab $(LAB)

# Real servers on this machine's CPU: the table of dialects measured again, stages through them, kill -9 in the midst.
# Installs each once (vLLM: 3.4 GB); then some twenty minutes. LAB='--only llamacpp', LAB=--check: see docs/servers.md.
servers-lab: install
	$(BIN)/python -m tests.servers_lab $(LAB)

clean:
	rm -rf $(VENV) build dist *.egg-info
