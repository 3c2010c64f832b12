# Each target sets up all it needs: a virtual environment in .venv with the package and its dependencies.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= out

.PHONY: train test lab lint readme setup clean

train: setup  ## the whole method on street scenes: pseudo-labels, a trained network, PQ
	mkdir -p $(RUN)
	$(BIN)/papermill nbs/train.ipynb $(RUN)/train.ipynb -p run_dir $(RUN)/train

test: setup lint  ## cups/ is what the notebooks export; every notebook's checks; the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --durations 10

lint: setup
	$(BIN)/ruff check cups nbs tests setup.py

lab: setup  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir nbs

readme: setup  ## README.md from nbs/index.ipynb
	$(BIN)/jupyter nbconvert --to markdown --output-dir . --output README nbs/index.ipynb
	sed -i 's|](images/|](nbs/images/|g' README.md

setup: .venv/ready

.venv/ready: settings.ini setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "cups needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf out build dist *.egg-info
