# make demo   build the quickstart bundle from real weights and real text, and show its figures
# make test   run all tests, two at once
# make environments   make what optional backends and other clients need beside .venv, so that their tests run (2.5 GB)
# All set everything up in .venv first; Python 3.11, make and a package index are all they need.

PYTHON ?= python3.11
BIN := .venv/bin
DATA := artifacts/data/movie-reviews

.PHONY: demo test lint setup environments

demo: setup $(DATA)/train.csv
	$(BIN)/compress recipes/quickstart.yaml

test: setup
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist worksteal

environments: setup
	$(BIN)/python -c 'from benchmarks.peers.models import *; NEURAL_COMPRESSOR.make(); OPTIMUM.make()'

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: .venv/ready

$(DATA)/train.csv: recipes/movie_reviews.py | .venv/ready
	$(BIN)/python recipes/movie_reviews.py $(DATA)

# torch first and by its exact version, of which an index with CPU builds has one: a range would let another package drag in gigabytes of CUDA.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,nncf,openvino,demo,dev]'
	touch $@
