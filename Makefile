# Every target builds what it needs, from Python 3.11+ and the package index alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WHAT ?= run
ROWS ?=

.PHONY: help install demo test check format test-long acceptance bench bench-peers reproduce pages sanitize clean

help:
	@echo 'make demo        label a file with a real model (Gemma 3 270M); ROWS=40 for a short one'
	@echo 'make test        every promise at small sizes, under 8 minutes on 2 cores'
	@echo 'make check       ruff, mypy, import doors'
	@echo 'make test-long   the same tests at full sizes; WHAT=run, plan or speed picks a table'
	@echo 'make acceptance  the rows of one table, with figures; WHAT=run, plan or speed'
	@echo 'make reproduce   every experiment at small size, without a clock'
	@echo 'make pages       docs/policies.md and docs/systems/ renewed from the docstrings'
	@echo 'make bench       everything judged by a clock'
	@echo 'make bench-peers the five jobs against other engines; PEERS=, JOBS=, MODELS=, PAIRS= pick cells'
	@echo 'make sanitize    the tests of the compiled kernels under address and undefined-behaviour sanitizers'

$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard src/shoal/kernels/native/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,parquet,demo]'
	touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py $(if $(ROWS),--rows $(ROWS))

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadscope

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p shoal.core -p shoal.schedule -p shoal.memory -p shoal.reuse -p shoal.engine -p shoal.jobs
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-long: $(STAMP)
	$(BIN)/python tests/acceptance.py --tests --what $(WHAT)

acceptance: $(STAMP)
	$(BIN)/python tests/acceptance.py --what $(WHAT)

bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/shoal bench

bench-peers: $(STAMP)
	$(BIN)/python -m benchmarks.peers $(if $(PEERS),--peers $(PEERS)) $(if $(JOBS),--jobs $(JOBS)) \
	$(if $(MODELS),--models $(MODELS)) $(if $(PAIRS),--pairs $(PAIRS))

reproduce: $(STAMP)
	$(BIN)/shoal reproduce all --quick

pages: $(STAMP)
	$(BIN)/python -m shoal.experiments.pages docs

sanitize: $(STAMP)
	$(BIN)/python hatch_build.py -fsanitize=address,undefined -fno-sanitize-recover -g
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	$(BIN)/python -m pytest --timeout=3000 tests/kernels/test_native.py tests/engine/test_same_bits.py \
	tests/models/tensors; \
	status=$$?; $(BIN)/python hatch_build.py; exit $$status

clean:
	rm -rf $(VENV) build dist out
