# `make test` and `make bench` set up everything that they need in .venv; nothing has to be active or installed before,
# but Python >= 3.10 with venv, a C++ compiler and make. `make help` lists the targets.

PYTHON ?= python3
# Another build of torch: make test TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0
# Without what it depends on: torchvision would bring another build of torch. The rest comes with adapters.
TIMM := timm==1.0.31
# More arguments for the command of a target: make test ARGS="-k module -x"
ARGS ?=
BIN := .venv/bin
# A developer wants to hear that the kernels did not build. AIM_FAST_BUILD=none works everywhere, and tests eager.
export AIM_FAST_BUILD ?= require
# Another environment that happens to be active is none of ours.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Whose results `make results` measures: a name for the machine, as in RESULTS=epyc_zen4.
RESULTS ?= cpu
MEASURED := benchmarks/results/$(RESULTS)
CPP := $(shell find csrc tests/emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu')
# One thread a worker: two workers fill two cores, and the tests about threads set their own number.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -p no:benchmark

SANITIZED := functional mixed nonfinite numerics prepack threads

.PHONY: help build test bench gpu-check lint format sanitize mutate example results clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python >= 3.10 is needed; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make environments; apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

# First and pinned: left to a dependency, a newer and larger build of torch would come.
.venv/torch: .venv/made
	$(BIN)/pip install -q $(TORCH)
	@touch $@

.venv/installed: .venv/torch pyproject.toml
	$(BIN)/pip install -q "setuptools>=77" ninja
	@# torch's CUDA builds bring the Triton that they need; no other one then.
	extras=dev$$($(BIN)/python -c 'import triton' 2>/dev/null || echo ,test-triton); \
	AIM_FAST_BUILD=none $(BIN)/pip install -q --no-build-isolation -e ".[$$extras]"
	@# That takes away the library, which whatever needs no build would then leave missing.
	if [ -d build/native ]; then $(BIN)/python setup.py -q build_ext --inplace; fi
	$(BIN)/pip install -q --no-deps $(TIMM)
	@touch $@

build: .venv/installed ## set up .venv and compile what changed
	@$(BIN)/python setup.py -q build_ext --inplace

test: build ## run the whole suite
	$(PYTEST) $(ARGS)

bench: build ## run the quick benchmark, within two minutes
	$(BIN)/python benchmarks/bench_adapter.py --quick $(ARGS)

# Installs nothing and needs no .venv: a machine with a GPU may be one where nothing can be downloaded.
# Its torch may be on PYTHONPATH.
gpu-check: export PYTHONPATH := $(PYTHONPATH)
gpu-check: export AIM_FAST_BUILD = auto
gpu-check: ## check and measure on this machine's NVIDIA GPU, with the python3 that has torch, within nine minutes
	$(PYTHON) benchmarks/gpu_check.py $(ARGS)

# Threads that wait keep their cores: on a shared host one that sleeps comes back late, to any of the rivals.
results: export OMP_WAIT_POLICY = active
results: build ## run the whole benchmark, with one thread and with all, and write the README's tables
	@mkdir -p $(dir $(MEASURED))
	$(BIN)/python benchmarks/bench_adapter.py --threads 1 --json $(MEASURED)_1.json --plot $(MEASURED)_1.png $(ARGS)
	$(BIN)/python benchmarks/bench_adapter.py --json $(MEASURED)_all.json --plot $(MEASURED)_all.png $(ARGS)
	$(BIN)/python benchmarks/report.py $$(ls benchmarks/results/*_1.json benchmarks/results/*_all.json) --into README.md

example: build ## fine-tune adapters on real video with both adapters, and compare
	$(BIN)/python examples/finetune_video.py --compare --plot build/finetune_video.png $(ARGS)

lint: .venv/installed ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(if $(CPP),$(BIN)/clang-format --dry-run -Werror $(CPP))

format: .venv/installed ## format the code in place
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(if $(CPP),$(BIN)/clang-format -i $(CPP))

# Leaks are left out: Python itself never frees much of what it holds at exit. The fill is what the tests' own poison does.
ASAN := detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=127
sanitize: build ## run the numeric tests under AddressSanitizer and UBSan
	AIM_FAST_SANITIZE=address,undefined $(BIN)/python setup.py -q build_ext --inplace
	AIM_FAST_LIBRARY="$(CURDIR)/build/sanitize/libaim_fast.so" ASAN_OPTIONS=$(ASAN) OMP_NUM_THREADS=1 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	$(BIN)/python -m pytest -p no:benchmark -p no:faulthandler --capture=sys $(SANITIZED:%=tests/test_%.py) $(ARGS)

mutate: build ## plant faults one by one: the suite must catch each
	$(BIN)/python tests/mutate.py $(ARGS)

clean: ## remove what the targets made
	rm -rf .venv build dist *.egg-info aim_fast/libaim_fast.so aim_fast/_build_info.json
	rm -rf .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +
