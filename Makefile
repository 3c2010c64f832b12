# Each target sets up all it needs: a virtual environment in .venv with the package and its dependencies.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= out
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
EXTRAS ?= dev
comma := ,
INSTALL ?= $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq --yes --no-install-recommends

# PyTorch's threads sleep while they wait; spinning doubles the time beside a busy neighbour.
export OMP_WAIT_POLICY ?= PASSIVE
# Where this is set, each of the many processes of tests and jobs would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train test tests test-browser lab lint docs picture readme setup chromium clean

train: setup  ## the whole method on street scenes: pseudo-labels, a trained network, PQ
	mkdir -p $(RUN)
	$(BIN)/papermill nbs/train.ipynb $(RUN)/train.ipynb -p run_dir $(RUN)/train

test: lint docs tests  ## every check that needs no browser

# They give way to what runs beside them: some tests in the browser are timed.
tests: setup  ## cups/ is what the notebooks export; every notebook's checks; the tests
	OMP_NUM_THREADS=1 nice -n 5 $(BIN)/pytest --numprocesses 3 --dist loadscope --no-loadscope-reorder --durations 10

test-browser: .venv/browser chromium  ## the widgets in JupyterLab in Chromium; screenshots in build/browser
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/browser --numprocesses 2 --dist loadfile --durations 5

lint: setup  ## style, and the floor plan: every room imports downwards only
	$(BIN)/ruff check cups nbs tests setup.py
	$(BIN)/lint-imports --cache-dir build/import_linter
	$(BIN)/oxlint --deny-warnings cups

lab: setup  ## JupyterLab with a copy of the workbench in out/, so that running it leaves the checkout clean; LAB: more options
	mkdir -p $(RUN)
	[ -e $(RUN)/explore.ipynb ] || cp nbs/explore.ipynb $(RUN)/
	$(BIN)/jupyter lab --notebook-dir . --LabApp.default_url=/lab/tree/$(RUN)/explore.ipynb $(LAB) $(RUN)/explore.ipynb

docs: .venv/docs  ## the site, in _docs/index.html; every link of it is checked
	rm -rf _docs build/docs
	$(BIN)/python nbs/_docs_src/assemble.py . build/docs
	OMP_NUM_THREADS=1 $(BIN)/python nbs/_docs_src/gallery.py build/docs/gallery
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --jobs 2 -d build/doctrees -c nbs/_docs_src build/docs _docs
	$(BIN)/python nbs/_docs_src/links.py _docs

picture: .venv/browser chromium  ## the moving picture of the workbench in README and site, recorded in Chromium
	$(BIN)/python nbs/_docs_src/workbench_picture.py nbs/images/workbench.webp

readme: setup  ## README.md from nbs/index.ipynb
	$(BIN)/jupyter nbconvert --to markdown --output-dir . --output README nbs/index.ipynb
	sed -i 's#](\(images\|_docs_src\)/#](nbs/\1/#g' README.md

setup: .venv/dev  ## EXTRAS=dev,docs,browser: with what the other targets add

.venv/dev: settings.ini setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "cups needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	cd .venv && touch dev $(subst $(comma), ,$(EXTRAS))

.venv/docs .venv/browser: .venv/dev
	$(BIN)/pip install --quiet --editable '.[$(@F)]'
	touch $@

chromium:
	@(command -v chromium || command -v chromium-browser || command -v google-chrome) >/dev/null || { $(INSTALL) chromium; }

clean:
	rm -rf out build dist _docs *.egg-info
