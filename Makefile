# What a person runs, and what CI runs. Every target sets up what it needs; a second run finds it done.
#
#   make serve                        the demo model on http://127.0.0.1:8000
#   make serve ARGS="MODEL --port 9"  any other model
#   make test                         the tests

PYTHON ?= python3
ARGS ?=
SEEDS ?= 50000
CASES ?= 5000
# Where a CPU-only torch is found: on x86-64, PyPI's is a CUDA build of several GB. Tried for torch alone and without its
# dependencies, so that no package ever comes from an index it was not meant to; empty: go to the default index at once.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
XLA_VENV := .venv-xla
XLA_PIP := $(XLA_VENV)/bin/python -m pip --disable-pip-version-check --quiet
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CONSTRAINTS := requirements/constraints-cpu.txt
NATIVE := setup.py $(shell find csrc -path csrc/cpu/tests -prune -o -type f -print)

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help serve test test-fast test-plugins test-deploy test-images test-cross test-sanitize test-xla test-gpu-kernels compile-gpu compile-gpu-all fuzz-api simulate-faults lint api-lock docs site support-matrix build bench clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' Makefile | expand -t 22

serve: $(VENV)/.core $(VENV)/.demo  ## serve the demo model on 127.0.0.1:8000 (ARGS: what `core serve` takes)
	@$(BIN)/core serve $(ARGS)

test: $(VENV)/.core $(VENV)/.demo $(VENV)/.dev  ## run the tests, but for the suites below that want more of the machine (ARGS: what pytest takes)
	@$(BIN)/python -m pytest -m "not plugins and not deploy and not gpu_kernels and not xla" $(ARGS)

test-plugins: $(VENV)/.core $(VENV)/.demo $(VENV)/.dev $(VENV)/.plugins  ## test the packages in plugins/, each in a clean environment (redis-server is needed)
	@$(BIN)/python -m pytest tests/packaging/test_plugins.py -m plugins $(ARGS)

test-deploy: $(VENV)/.core $(VENV)/.dev $(VENV)/.deploy  ## test examples/online_serving, docker/ and the site with the real tools (nginx and prometheus are needed)
	@$(BIN)/python -m pytest tests/deploy -m deploy $(ARGS)

test-images: $(VENV)/.core $(VENV)/.demo $(VENV)/.dev  ## build the CPU images with buildah on a debootstrap tree, and run them (as root; 25 GB, some minutes)
	@$(BIN)/python tests/support/images.py $(ARGS)

test-fast: $(VENV)/.core $(VENV)/.dev  ## run the tests that take no model, server or build
	@$(BIN)/python -m pytest -m "not slow and not plugins and not deploy and not gpu_kernels and not xla" $(ARGS)

test-cross:  ## test the kernels for ARM and POWER under emulation (needs g++-aarch64-linux-gnu, g++-powerpc64le-linux-gnu, qemu-user)
	@$(PYTHON) csrc/cpu/tests/run.py aarch64 ppc64le

test-sanitize:  ## test the kernels of this machine under the address and undefined-behaviour sanitizers
	@$(PYTHON) csrc/cpu/tests/run.py native --sanitize

test-gpu-kernels: $(VENV)/.core $(VENV)/.dev $(VENV)/.triton  ## test the GPU kernels in Triton's interpreter, against the references
	@$(BIN)/python -m pytest -m gpu_kernels tests/triton $(ARGS)
	@PYTHONPATH=tests/triton/platform $(BIN)/core conformance triton-interpret --level ops

compile-gpu: $(VENV)/.core $(VENV)/.triton  ## compile the GPU kernels for NVIDIA's and AMD's targets, with no GPU, and check what they take
	@$(BIN)/python tests/triton/compile_kernels.py $(ARGS)

compile-gpu-all: $(VENV)/.core $(VENV)/.triton  ## the same in every element type, width and split (an hour)
	@$(BIN)/python tests/triton/compile_kernels.py --all $(ARGS)

test-xla: $(XLA_VENV)/.ready  ## test the TPU platform on XLA's own CPU device, in a venv of its own (7 GB)
	@PJRT_DEVICE=CPU $(XLA_VENV)/bin/python -m pytest tests/xla -m xla $(ARGS)

fuzz-api: $(VENV)/.core $(VENV)/.dev  ## requests made from the server's own OpenAPI document (CASES: how many)
	@$(BIN)/python tests/support/fuzz_api.py --cases $(CASES) $(ARGS)

simulate-faults: $(VENV)/.core $(VENV)/.dev  ## whole servers among seeded faults in virtual time (SEEDS: how many; SEED=1 VERBOSE=1: one, in full)
	@$(BIN)/python tests/simulation/simulate_faults.py $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(if $(VERBOSE),--verbose) $(ARGS)

lint: $(VENV)/.core $(VENV)/.dev $(VENV)/.native-warnings  ## style, types, and compiler warnings as errors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

api-lock: $(VENV)/.python  ## renew tests/api.lock after API_VERSION was raised
	@$(BIN)/python tests/support/api_lock.py

docs: $(VENV)/.core $(VENV)/.dev  ## write the pages that are made from the source and from docs/reports
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/reference.py
	@$(BIN)/python tests/conformance/documented.py
	@$(BIN)/python docs/support.py

site: $(VENV)/.core $(VENV)/.dev $(VENV)/.deploy  ## build the documentation's site into build/site; any warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

support-matrix: $(VENV)/.core $(VENV)/.dev $(VENV)/.plugins  ## run the conformance of every platform at hand, keep the reports, write docs/support.md
	@$(BIN)/python docs/support.py --run

build: $(VENV)/.dev  ## make dist/*.tar.gz and dist/*.whl
	$(BIN)/python -m build

bench: $(VENV)/.core $(VENV)/.demo $(VENV)/.dev  ## run every benchmark
	@set -e; for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark; done

clean:  ## remove what was built, but not the virtual environment
	rm -rf build dist *.egg-info platforms/_shared/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.core $(VENV)/.native-warnings $(XLA_VENV)/.ready

# --- set-up: each file marks a step that is done -------------------------------------------------------------

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on PATH: install Python 3.11 or newer, or name one, like \`make PYTHON=python3.12\`." >&2; exit 1; }
	@$(PYTHON) requirements/check_machine.py
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@touch $@

$(VENV)/.torch: $(VENV)/.python requirements/cpu.txt $(CONSTRAINTS)
	@if [ -z "$(TORCH_INDEX)" ]; then \
		echo "Installing torch from the default index (TORCH_INDEX is empty)"; \
	elif timeout 5 $(BIN)/python -c "from urllib.request import urlopen; urlopen('$(TORCH_INDEX)/torch/', timeout=4)" 2>/dev/null; then \
		echo "Installing torch from $(TORCH_INDEX)"; \
		$(PIP) install --no-deps --index-url $(TORCH_INDEX) -c $(CONSTRAINTS) torch; \
	else \
		echo "$(TORCH_INDEX) does not answer: installing torch from the default index, whose build may be larger"; \
	fi
	@$(PIP) install -c $(CONSTRAINTS) -r requirements/cpu.txt
	@touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml $(wildcard requirements/*.txt) $(NATIVE)
	@echo "Installing core and building its native module"
	@$(PIP) install -c $(CONSTRAINTS) --editable '.[cpu]'
	@touch $@

$(VENV)/.demo: $(VENV)/.python requirements/demo.txt
	@$(PIP) install --no-deps -r requirements/demo.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.python requirements/dev.txt $(CONSTRAINTS)
	@$(PIP) install -c $(CONSTRAINTS) -r requirements/dev.txt
	@touch $@

$(VENV)/.triton: $(VENV)/.python requirements/triton.txt
	@$(PIP) install --no-deps -r requirements/triton.txt
	@touch $@

$(VENV)/.plugins: $(VENV)/.python requirements/plugins.txt
	@$(PIP) install --no-deps -r requirements/plugins.txt
	@touch $@

$(VENV)/.deploy: $(VENV)/.python requirements/deploy.txt
	@$(PIP) install --no-deps -r requirements/deploy.txt
	@touch $@

# torch_xla goes with one version of torch, which need not be the one of $(VENV).
$(XLA_VENV)/.ready: $(VENV)/.python pyproject.toml requirements/tpu.txt requirements/xla-tests.txt requirements/common.txt requirements/demo.txt $(NATIVE)
	@free=$$(df --output=avail -B1G . | tail -1); if [ "$$free" -lt 10 ]; then \
		echo "test-xla needs 10 GB for torch_xla and what it brings, and $$free GB are free" >&2; exit 1; fi
	@test -x $(XLA_VENV)/bin/python || $(PYTHON) -m venv $(XLA_VENV)
	@echo "Installing torch and torch_xla of requirements/tpu.txt"
	@$(XLA_PIP) install -r requirements/tpu.txt -r requirements/xla-tests.txt
	@$(XLA_PIP) install --no-deps -r requirements/demo.txt
	@$(XLA_PIP) install --editable '.[tpu]'
	@touch $@

$(VENV)/.native-warnings: $(VENV)/.dev $(NATIVE)
	CORE_CXX_WERROR=1 $(BIN)/python setup.py --quiet build_ext --build-temp build/warnings --build-lib build/warnings
	@touch $@
