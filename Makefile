# Everything from nothing but Python 3.11 and make.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
SETUP := .venv/.ready
PYTEST := OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup repro test test-end-to-end test-slow check format bench sample clean

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

repro: $(SETUP)  ## run whatever is missing of the quick road; the report is data/report/index.html
	dvc repro
	@echo "report: $(CURDIR)/data/report/index.html"

test: $(SETUP)  ## the default suite, under 5 minutes on two cores
	$(PYTEST)

test-end-to-end: $(SETUP)  ## whole roads over several stages, from teachers to reports
	$(PYTEST) -m 'end_to_end and not slow'

test-slow: $(SETUP)  ## what neither runs
	OMP_NUM_THREADS=1 pytest -m slow

check: $(SETUP)  ## format, lint and types
	ruff format --check .
	ruff check .
	mypy

format: $(SETUP)
	ruff format .
	ruff check --fix .

bench: $(SETUP)  ## ratios against bounds and peers, each measured in one run; with DATASET=data/datasets/Pong of a large one too
	python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	python -m benchmarks.teacher
	python -m benchmarks.collect
	python -m benchmarks.sizes $(DATASET)
	python -m benchmarks.remote $(DATASET)
	test -z "$(DATASET)" || python -m benchmarks.loader $(DATASET)
	python -m benchmarks.distill
	python -m benchmarks.online
	python -m benchmarks.networks

sample: $(SETUP)  ## the small real dataset in git, from the committed teacher
	rm -rf data/samples/Pong
	pd-pipeline collect --game Pong --episodes 4 --seed 99 --license apache-2.0 --out data/samples/Pong

clean:  ## forget resumable work, keep data and environment
	rm -rf .work experiments/*/.work
