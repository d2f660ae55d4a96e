# Everything happens in .venv, made here from constraints.txt. `make help` lists what there is.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CSRC := $(shell find csrc -type f)
CXX_FILES := $(shell find csrc tests/kernels tests/ptx -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

# A file that is newer than the kernels where CUDA was switched on or off since they were built.
CHOICE := build/.cuda-$(if $(filter 0,$(FASTCAM_CUDA)),off,on)

space := $() $()
comma := ,
CMAKE = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
# $(call emulate,NAME,SANITIZERS): the kernels' tests on the CPU
emulate = $(CMAKE) -B build/cmake-$(1) -DFASTCAM_SANITIZE=$(2) > build/cmake.log && \
	$(BIN)/cmake --build build/cmake-$(1) && \
	$(BIN)/ctest --test-dir build/cmake-$(1) --output-on-failure --parallel 2

# The machine for PTX, and the kernels' tests on it
build_ptx = $(CMAKE) -B build/cmake-ptx -DFASTCAM_PTX=ON > build/cmake-ptx.log && \
	$(BIN)/cmake --build build/cmake-ptx && \
	$(BIN)/ctest --test-dir build/cmake-ptx --output-on-failure
# $(call with_nvcc,COMMANDS)
with_nvcc = if command -v nvcc > /dev/null; then $(1); \
	else echo "nvcc was not found: there is no PTX of the kernels"; fi

# What `make kernels` compiles for.
ARCHITECTURES ?= 80 90 120

# Older releases of other libraries that the drop-in serves too, and the tests that run with each.
PEERS := grad-cam@1.5.5 torchcam@0.4.1 captum@0.8.0
TESTS_OF_grad-cam := tests/test_dropin_matrix.py tests/test_dropin_scripts.py tests/test_dropin_changed.py \
	tests/test_dropin_beside_the_map.py tests/test_dropin_fuzz.py tests/test_compat_cams.py \
	tests/test_compat_metrics.py tests/test_compat_utils.py
TESTS_OF_torchcam := -k torchcam tests/test_dropin_torchcam.py tests/test_dropin_matrix.py \
	tests/test_dropin_changed.py tests/test_dropin_fuzz.py
TESTS_OF_captum := tests/test_dropin_captum.py tests/test_dropin_matrix.py tests/test_dropin_scripts.py

# How many random networks `make fuzz` runs, and the first one's seed: `make test` has those before.
N ?= 10000
SEED ?= 300

.PHONY: help demo test python-tests peers peer-suites fuzz lint kernels emulate ptx ptx-built ptx-mutants slots resources mutants \
	bench study build format clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: build  ## explain the shipped scene and clip: pictures and a video in out/demo
	$(BIN)/fastcam demo --out out/demo

test:  ## lint, types, the kernels on the CPU and the Python tests; prints the seconds of each step
	@mkdir -p build && rm -f build/seconds
	@for step in build lint emulate ptx-built resources python-tests; do \
		begun=$$(date +%s); \
		$(MAKE) --no-print-directory $$step || exit 1; \
		echo "$$step: $$(($$(date +%s) - begun)) s" >> build/seconds; \
	done
	@cat build/seconds

# One thread each, or two processes wait for each other's threads.
python-tests: build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

peers: $(PEERS:%=peer-%)  ## the drop-in's tests with the older releases that it serves

# The release lies in a folder of its own, before the newest one on the path.
peer-%: build
	@[ -d build/peers/$* ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --target build/peers/$* $(subst @,==,$*)
	PYTHONPATH=build/peers/$* $(BIN)/python -m pytest -q $(TESTS_OF_$(firstword $(subst @, ,$*)))

peer-suites: build  ## the tests of a library, from its checkout SRC, under the drop-in; AS=compat: as fastcam.compat
	$(BIN)/python tests/peer_suites.py $(SRC) $(if $(filter compat,$(AS)),--as-compat)

fuzz: build  ## N random networks from SEED on, explained and compared with whole-graph autograd
	$(BIN)/python -m tests.fuzz --cases $(N) --seed $(SEED)

lint: build  ## ruff, clang-format, mypy, the rules for imports and a search for duplicates
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/pylint fastcam benchmarks

kernels: build emulate  ## every kernel on the CPU, and what nvcc makes of it for ARCHITECTURES
	@if command -v nvcc > /dev/null; then \
		$(CMAKE) -B build/cmake-cuda -DFASTCAM_OPS=ON -DFASTCAM_CUDA=ON \
			-DCMAKE_CUDA_ARCHITECTURES="$(subst $(space),;,$(ARCHITECTURES:%=%-real))" \
			-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python > build/cmake.log && \
		$(BIN)/cmake --build build/cmake-cuda --target _ops_cuda && \
		$(BIN)/python tests/kernels/resources.py build/cmake-cuda/_ops_cuda.so; \
	else echo "nvcc was not found: no kernel is compiled for a GPU"; fi

emulate: build
	$(call emulate,plain)
	$(call emulate,thread,thread)
	$(call emulate,address,address$(comma)undefined)

ptx: build  ## what nvcc makes of every kernel, for sm_80 and sm_90, run on the CPU
	$(build_ptx)
	@$(call with_nvcc,$(BIN)/python tests/ptx/run.py compute_80 compute_90)

# The same with what is in the library already
ptx-built: build
	$(build_ptx)
	$(BIN)/python tests/ptx/run.py embedded

ptx-mutants: build  ## break what nvcc makes of the kernels in many ways and count what the tests miss
	$(build_ptx)
	@$(call with_nvcc,$(BIN)/python tests/ptx/run.py --mutants compute_90)

slots: build  ## what the kernels take of an H100 and an H200: instructions, bytes, time; into benchmarks/results/slots.md
	$(build_ptx)
	@$(call with_nvcc,$(BIN)/python tests/ptx/run.py --compile-only compute_90 && \
		FASTCAM_PTX=build/ptx/compute_90 build/cmake-ptx/tests/ptx/ptx_slots > build/slots.md && \
		mv build/slots.md benchmarks/results/slots.md)

# The library that was built has one architecture.
resources: build
	@if [ -e fastcam/_ops_cuda.so ]; then \
		$(BIN)/python tests/kernels/resources.py fastcam/_ops_cuda.so; \
	else echo "the CUDA kernels were not built: they take no registers"; fi

mutants: build  ## break the kernels in many ways and count what the tests miss; ONLY=enlarge: one header
	$(BIN)/python tests/kernels/mutants.py $(ONLY)

bench: build  ## time and memory: operators, an explanation, networks, clips, other libraries' scripts; figures in out/bench
	$(BIN)/python -m benchmarks ops --json out/bench/ops.jsonl
	$(BIN)/python -m benchmarks capture --json out/bench/capture.jsonl
	$(BIN)/python -m benchmarks endtoend --json out/bench/endtoend.jsonl
	$(BIN)/python -m benchmarks video --json out/bench/video.jsonl
	$(BIN)/python -m benchmarks dropin --json out/bench/dropin.jsonl

study: build  ## every method on scenes with several instances of a digit; writes docs/benchmark.md and its figures
	$(BIN)/python -m benchmarks digits

build: build/.kernels  ## .venv and the compiled kernels

format: build  ## bring all sources into form
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:  ## remove what was built; .venv stays
	rm -rf build out fastcam/*.so

.venv/.tools: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(PIP) torch torchvision setuptools ninja pybind11
	@touch $@

# Installs the project, editable, with all that its tests need, and so builds the kernels once. The
# other libraries of maps come without what they require: grad-cam and quantus would bring a second cv2.
.venv/.installed: .venv/.tools pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt \
		--no-build-isolation --verbose --editable '.[models,video,metrics,test]' > .venv/install.log 2>&1 \
		|| { tail -n 60 .venv/install.log; exit 1; }
	@grep -o 'fastcam: CUDA.*' .venv/install.log | sort -u
	$(PIP) --no-deps grad-cam ttach torchcam captum quantus
	@mkdir -p build
	@touch $@ build/.kernels

# The installation has just built them where nothing in csrc/ is newer.
build/.kernels: $(CHOICE) .venv/.installed $(CSRC) setup.py
	@[ -e $@ ] && [ -z "$$(find csrc setup.py $(CHOICE) -newer $@)" ] || \
		$(BIN)/python setup.py build_ext --inplace > build/kernels.log 2>&1 \
		|| { tail -n 60 build/kernels.log; exit 1; }
	@touch $@

$(CHOICE):
	@mkdir -p build
	@rm -f build/.cuda-*
	@touch $@
