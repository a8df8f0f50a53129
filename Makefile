# Two commands do all: `make train` and `make test`. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A notebook's, which need not be installed here: matplotlib would stop at it.
unexport MPLBACKEND

.PHONY: train test quick lint format docs linkcheck clean

train: $(VENV)/installed
	$(BIN)/python training/run.py

# Three workers: on two cores the third works while the others wait for processes they started.
test: $(VENV)/installed lint
	$(BIN)/python -m pytest -n 3 --dist worksteal

# The whole library once, in under a minute: while you work.
quick: $(VENV)/installed
	$(BIN)/python -m pytest -q -m quick tests/test_smoke.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/installed: setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# Warnings are errors: a link inside the pages that leads nowhere, too. The tour is executed.
docs: $(VENV)/documented
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "docs: docs/_build/html/index.html"

# Links to the web; needs a network.
linkcheck: $(VENV)/documented
	$(BIN)/sphinx-build -q -b linkcheck docs docs/_build/linkcheck

$(VENV)/documented: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) docs/_build docs/executed build dist *.egg-info
