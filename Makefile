# The commands a person types; CI types the same ones.
#   make run [VIDEO=file.mp4]   set up and run the bundle that ships
#   make dev                    an environment in which every import is this checkout
#   make test [STRICT=1]        every test, on all cores; STRICT=1 fails on any that was skipped
#   make test-quick             in two minutes, between commits: nothing drawn, no large network exported
#   make isas                   the tests of the CPU kernels with the processor's other instruction sets
#   make pythons [NEWEST=1]     install into every Python found, newest and oldest packages, and run
#   make check                  format, lint, types
#   make lock                   the hashes of what CI installs, after a change of constraints.txt
#   make bench                  memory and latency table, selective-scan bars
#   make weights                the bundle that ships, from the weights in export/weights
#   make neon                   the aarch64 kernels under an emulator
#   make plugin [TENSORRT_ROOT=folder] [CUDA_ARCHS=87]   the GPU libraries, into build/plugin
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUNDLE ?= build/bundles/cpu
OUT ?= out
VIDEO ?= runtime/data/sample.mp4
VS ?= vitpose-b
PLUGIN ?= build/plugin
PYTEST_ARGS ?=
JOBS ?= $(shell nproc)

# What an environment is made of: Python files are those of the checkout, always.
SOURCES := pyproject.toml constraints.txt tests/develop.py plugins/CMakeLists.txt \
	$(shell find plugins/csrc plugins/cmake -type f -not -path '*/__pycache__/*')

# When the weights last changed: the date in the bundle that ships.
EPOCH = $(shell git log -1 --format=%ct -- export/weights 2>/dev/null)

# What tests import: typed as the parts are.
HELPERS = $(patsubst %.py,-m %,$(subst /,.,$(shell find tests -name '*.py' -not -name 'test_*')))

.PHONY: run dev test test-quick isas pythons check lock bench weights neon plugin clean

run: $(VENV)/.run
	$(BIN)/mp-run "$(VIDEO)" --out "$(OUT)" --overlay --overwrite

weights: $(VENV)/.export
	$(if $(EPOCH),SOURCE_DATE_EPOCH=$(EPOCH)) $(BIN)/python -m mambapose.export.default_bundle \
		--out runtime/data/cpu

# All four stages, as they are measured; flow and depth have no weights that may ship.
$(BUNDLE)/bundle.json: $(VENV)/.export
	$(BIN)/mp-export --target cpu --untrained --out $(BUNDLE) --overwrite

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# An ordinary install, then the checkout in its place.
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt '.[$(EXTRAS)]' \
	&& $(BIN)/python tests/develop.py

$(VENV)/.run: EXTRAS := cpu
$(VENV)/.run: $(BIN)/python $(SOURCES)
	$(INSTALL)
	touch $@

$(VENV)/.export: EXTRAS := cpu,export
$(VENV)/.export: $(BIN)/python $(SOURCES)
	$(INSTALL)
	touch $@

# What tests and CI run in is locked: each file of each package by its SHA-256, but for torch (see
# the head of the lock). Where there is a CMake, the build takes the locked packages too; without
# one pip fetches one for the build. The parser of tensorrt-rtx is optional: where it does not
# install, its tests say so and skip.
LOCKED = $(BIN)/python -m pip install --quiet --require-hashes --requirement
LOCKS := requirements-ci.lock requirements-ci-tensorrt.lock
$(VENV)/.test: $(BIN)/python $(SOURCES) $(LOCKS)
	$(LOCKED) requirements-ci.lock
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt \
		$(if $(shell command -v cmake),--no-build-isolation) .
	$(BIN)/python tests/develop.py
	-$(LOCKED) requirements-ci-tensorrt.lock
	touch $@ $(VENV)/.run $(VENV)/.export

dev: $(VENV)/.test

# One worker on each core; one that is done takes tests from the others.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test: $(VENV)/.test
	$(PYTEST) $(if $(STRICT),--strict-skips) $(PYTEST_ARGS)

test-quick: $(VENV)/.test
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

isas: $(VENV)/.test
	for isa in $$($(BIN)/python -c 'from mambapose.plugins import native_scan as s; print(*s.instruction_sets()[1:])'); do \
		MAMBAPOSE_ISA=$$isa $(PYTEST) -q -m kernels tests/plugins || exit 1; done

pythons: $(VENV)/.test
	$(BIN)/python tests/pythons.py $(if $(NEWEST),--newest)

lock: $(VENV)/.test
	$(BIN)/python tests/lock.py

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd build/dev && MYPYPATH=$(CURDIR) $(abspath $(BIN))/mypy --config-file ../../pyproject.toml \
		$(foreach part,runtime plugins export train benchmarks,-p mambapose.$(part)) $(HELPERS)

bench: $(VENV)/.test $(BUNDLE)/bundle.json
	$(BIN)/mp-bench scan
	$(BIN)/mp-bench --engine $(BUNDLE) --vs $(VS) --json benchmarks/results/latest.jsonl \
		--plot build/bench.png

neon: $(VENV)/.test
	$(BIN)/python -m pytest -q -s tests/plugins/test_scan_selftest.py -k neon

plugin: export TENSORRT_ROOT := $(TENSORRT_ROOT)
plugin: export CUDA_ARCHS := $(CUDA_ARCHS)
plugin:
	@sh plugins/cmake/build_plugin.sh $(PLUGIN)

clean:
	rm -rf build dist $(OUT) .pytest_cache .mypy_cache .ruff_cache
