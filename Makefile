# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint results speed performance serve clean

demo: $(INSTALLED)
	$(BIN)/python demo.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: $(INSTALLED)
	$(BIN)/python -m benchmarks.quality.one_shot --json docs/one-shot.json
	$(BIN)/python -m benchmarks.quality.results --jobs 2

speed: $(INSTALLED)
	$(BIN)/python -m benchmarks.pipeline.optimize --shape embedded --json docs/optimise-speed.json
	$(BIN)/python -m benchmarks.pipeline.optimize --shape sd21 --json docs/optimise-speed.json --page docs/optimise-speed.md

performance: $(INSTALLED)
	$(BIN)/python -m benchmarks.pipeline --shape embedded --growth --triton --sessions --json docs/performance.json
	$(BIN)/python -m benchmarks.quality.accuracy --json docs/performance.json
	$(BIN)/python -m benchmarks.pipeline --shape sd21 --triton --json docs/performance.json --page docs/performance.md

serve: $(INSTALLED)
	$(BIN)/python demo.py --stop-after export
	$(BIN)/python serve/launch.py --repository build/demo/repository

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
