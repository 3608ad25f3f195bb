# make train    set up .venv and run the built-in recipe into runs/demo-cpu
# make test     set up .venv and run the tests, in two processes that share them
# make docs     set up .venv and build the pages as a site into build/site
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: train test test-slow test-gpu lint format docs setup clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

train: $(READY)
	$(BIN)/python jobs/train.py --config jobs/recipes/demo-cpu.yaml --set storage=$(CURDIR)/runs

test: $(READY)
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/pytest -m 'slow and not gpu'

test-gpu: $(READY)
	$(BIN)/pytest -m gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site is made of the pages as they lie in the repository, so that their links hold in both.
docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	rm -rf build/pages build/site
	mkdir -p build/pages/jobs
	cp -r *.md docs cluster build/pages
	cp -r jobs/results jobs/recipes build/pages/jobs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
