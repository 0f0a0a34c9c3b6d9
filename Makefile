# `make demo` and `make test` do everything on a fresh machine with Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := .venv-lowest
# Processes that tests run in; those of one file share a process. (pytest-xdist's groups have no effect since pytest 9.2,
# which computes the name of a test that pytest-xdist 3.8 writes the group into.) pytest-xdist would hand out the files
# with the fewest tests last, which are the long ones; tests/conftest.py puts those first.
JOBS ?= 2
PYTEST := -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
NUMERIC := tests/was tests/image tests/optimize tests/reference tests/export tests/backbone
FAST := not slow and not triton and not alone and not gpu
# Of the client's own environment: make test-client PYTHON=python3.12 NUMPY=2
NUMPY ?= 1
CLIENT := build/client-$(notdir $(PYTHON))-numpy$(NUMPY)
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-fast test-processors test-lowest test-client test-client-numpy2 test-integrations test-cvat test-fiftyone test-napari test-label-studio lint types wheel results speed performance serve clean

demo: $(INSTALLED)
	$(BIN)/python demo.py

# Tests that measure time or take every core run afterwards, beside no other.
test: $(INSTALLED)
	$(BIN)/python $(PYTEST) -m "not alone"
	$(BIN)/python -m pytest -m alone

# What needs no server and less than five seconds of a core a test.
test-fast: $(INSTALLED)
	$(BIN)/python $(PYTEST) -m "$(FAST)"

# What compares numbers, with the instruction sets of other processors: PyTorch's kernels and oneDNN's follow these names.
test-processors: $(INSTALLED)
	for isa in default:SSE41 avx2:AVX2; do \
	    echo "instructions $$isa"; \
	    ATEN_CPU_CAPABILITY=$${isa%:*} ONEDNN_MAX_CPU_ISA=$${isa#*:} \
	        $(BIN)/python $(PYTEST) -m "not triton and not alone and not gpu" $(NUMERIC) || exit 1; \
	done

# The fast tests with the lowest versions that pyproject.toml declares, whose own warnings about each other are no errors.
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python $(PYTEST) -W default -m "$(FAST)"

# The client alone, installed as its users install it, without torch or a server.
test-client:
	$(PYTHON) -m venv $(CLIENT)
	$(CLIENT)/bin/pip install --quiet 'numpy==$(NUMPY).*' '.[formats,video,test]'
	$(CLIENT)/bin/python -m pytest tests/client

test-client-numpy2:
	$(MAKE) test-client NUMPY=2

# The client inside other people's tools, each in an environment of its own: these want numpy 2, Triton's wheel numpy 1.
test-integrations: test-cvat test-fiftyone test-napari test-label-studio
test-cvat test-fiftyone test-napari: test-%:
	$(PYTHON) -m venv build/with-$*
	build/with-$*/bin/pip install --quiet '.[$*,test]'
	QT_QPA_PLATFORM=offscreen build/with-$*/bin/python -m pytest tests/integrations/test_integrations_$*.py -W default

# The studio as Label Studio's model: Label Studio in its environment, the studio, Triton and the browser in ours.
test-label-studio: $(INSTALLED)
	$(PYTHON) -m venv build/with-label-studio
	build/with-label-studio/bin/pip install --quiet 'label-studio>=1.23'
	LABEL_STUDIO=build/with-label-studio/bin/label-studio \
	    $(BIN)/python -m pytest tests/integrations/test_integrations_label_studio.py

lint: $(INSTALLED) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The served models and backends are programs of their own, all called model.py: one call each.
types: $(INSTALLED)
	$(BIN)/mypy
	for model in model_repository/*/1/model.py serve/backends/*/model.py; do $(BIN)/mypy $$model || exit 1; done

# dist/slime_serve-*.whl, with everything that `slime demo` needs.
wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel --no-isolation

results: $(INSTALLED)
	$(BIN)/python -m benchmarks.quality.one_shot --json docs/one-shot.json
	$(BIN)/python -m benchmarks.quality.results --jobs 2
	$(BIN)/python -m benchmarks.quality.video --json docs/video-consistency.json --page docs/video-consistency.md

speed: $(INSTALLED)
	$(BIN)/python -m benchmarks.pipeline.optimize --shape embedded --json docs/optimise-speed.json
	$(BIN)/python -m benchmarks.pipeline.optimize --shape sd21 --json docs/optimise-speed.json --page docs/optimise-speed.md

performance: $(INSTALLED)
	$(BIN)/python -m benchmarks.pipeline --shape embedded --growth --triton --sessions --json docs/performance.json
	$(BIN)/python -m benchmarks.quality.accuracy --json docs/performance.json
	$(BIN)/python -m benchmarks.pipeline --shape sd21 --triton --json docs/performance.json --page docs/performance.md

serve: $(INSTALLED)
	$(BIN)/python demo.py --stop-after export
	$(BIN)/slime serve --repository build/demo/repository

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --constraint constraints-lowest.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
