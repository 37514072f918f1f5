# `make help` lists the goals. Needs Rust (with clippy and rustfmt, for `make check`) and Python 3.11 or later with pip.

CARGO ?= cargo
PYTHON ?= python3
VENV := .venv
BA_PYTHON ?= $(CURDIR)/$(VENV)/bin/python
# Microsoft's training runtime has the module name of the other one: an environment of its own.
ORT119_VENV := .venv-ort119
# TensorRT for RTX and its Python package, 100 MB to fetch.
TRT_VENV := .venv-trt
# The benchmarks' peers (PyTorch, llama.cpp and others) are gigabytes: an environment of their own.
BENCH_VENV := .venv-bench
BENCH_PYTHON ?= $(CURDIR)/$(BENCH_VENV)/bin/python
# Groups and options, such as BENCH='text vision --rounds 5'; all groups by default.
BENCH ?=
# Options of benches/gpu.sh, such as GPU='--layers 4' or GPU=--dry-run.
GPU ?=

DEMO := examples/demo
# Not in onnx/: that folder is where the commands look by default, and random weights must not lie there by accident.
DEMO_OUT := target/demo

# A simulated cohort (1200 subjects, seed 1), the trainings of docs/ablation.md and their table.
ABLATION_OUT := target/ablation
# Such as ABLATION='--seeds 1,2,3,4,5': instead of what the document has. Numbers depend on threads in their last bits.
ABLATION ?= --seeds 1,2,3 --epochs 12 --lr 3e-3 --batch 16 --embed 1,4,8,12 --jobs 2 --threads 1

# What is installed must have the hash that the requirement files pin, with everything that it needs (scripts/pin.py).
PIP_PINNED := --quiet --disable-pip-version-check --require-hashes --only-binary=:all:

# How long each fuzz target runs, and which, such as TARGETS='nifti onnx'; all by default.
SECONDS ?= 60
TARGETS ?=

# Tests and the demo share the release profile, so that dependencies are compiled once. It has overflow checks
# (Cargo.toml), but no debug assertions: for those, run `cargo test`.
PROFILE := --release

.DEFAULT_GOAL := help
.PHONY: help demo ablation test fuzz check build ort gpu venv ort119 trt bench bench-gpu bench-venv clean-ablation clean-demo clean

help: ## list these goals
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

demo: ort build ## export a small model with random weights to int8, compare it with fp32 and PyTorch, run it on a real brain
	@mkdir -p $(DEMO_OUT)
	$(CARGO) run $(PROFILE) --quiet --bin ba-export -- --quantize int8 --model $(DEMO)/checkpoint \
	  --calibration $(DEMO)/calibration --verify $(DEMO)/checkpoint/expected.safetensors --output $(DEMO_OUT)/bundle
	@echo
	$(CARGO) run $(PROFILE) --quiet --bin ba-infer -- $(DEMO)/mni152_t1.nii.gz --report $(DEMO)/report.txt \
	  --bundle $(DEMO_OUT)/bundle --save-preview $(DEMO_OUT)/preview.png
	@echo
	@echo 'The weights are random: label and probabilities are meaningless, only the error tables above are real.'
	@echo 'What the model saw:   $(DEMO_OUT)/preview.png'
	@echo 'Error of each layer:  $(DEMO_OUT)/bundle/errors.svg'

ablation: ort ## train the demo model in three modes on a simulated cohort and compare them (docs/ablation.md); resumable
	@test -e $(ABLATION_OUT)/cohort/cohort.csv \
	  || { rm -rf $(ABLATION_OUT)/cohort && $(CARGO) run $(PROFILE) --quiet --example simulate_cohort -- \
	    --brain $(DEMO)/mni152_t1.nii.gz -o $(ABLATION_OUT)/cohort --subjects 1200 --seed 1 --split 0.4,0.1,0.5; }
	$(CARGO) run $(PROFILE) --quiet --example ablation -- --cohort $(ABLATION_OUT)/cohort/cohort.csv \
	  --model $(DEMO)/checkpoint -o $(ABLATION_OUT)/runs $(ABLATION)

test: ort venv ort119 trt ## every test, and at the end a list of those that were skipped (sets itself up: ONNX Runtime, Python environments)
	@BA_PYTHON='$(BA_PYTHON)' scripts/test.sh $(CARGO) test $(PROFILE) --no-fail-fast

fuzz: ## every fuzz target for SECONDS seconds (docs/testing.md); needs a C++ compiler, no nightly toolchain
	@scripts/fuzz.sh $(SECONDS) $(TARGETS)

check: ## everything that CI runs: format, lints, docs, licences, tests, demo
	.ci/run

build: ## the programs, in target/release
	$(CARGO) build $(PROFILE) --bins

ort: ## ONNX Runtime's library into .ort/
	@$(PYTHON) -m pip --version >/dev/null 2>&1 \
	  || { echo '$(PYTHON) has no pip: install it (Debian, Ubuntu: apt install python3-pip) or name another with PYTHON=' >&2; exit 1; }
	@$(PYTHON) scripts/fetch_onnxruntime.py

gpu: ## ONNX Runtime for NVIDIA GPUs and the libraries it needs except the driver, into .ort/gpu/ (Linux, x86-64)
	@$(PYTHON) -m pip --version >/dev/null 2>&1 \
	  || { echo '$(PYTHON) has no pip: install it (Debian, Ubuntu: apt install python3-pip) or name another with PYTHON=' >&2; exit 1; }
	@$(PYTHON) scripts/fetch_gpu.py

# Another interpreter given as BA_PYTHON is used as it is.
venv: $(if $(filter $(CURDIR)/$(VENV)/%,$(BA_PYTHON)),$(VENV)/ready) ## the tests' Python environment into .venv/

$(VENV)/ready: scripts/test-requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'the tests need Python 3.11 or later; name one with PYTHON=' >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo '$(PYTHON) cannot make environments: install its venv (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }
	$(VENV)/bin/python -m pip install $(PIP_PINNED) -r scripts/test-requirements.txt
	@touch $@

# Not for every Python and platform: where it cannot be installed, scripts/test.sh skips the tests that need it and lists them.
ort119: $(if $(BA_ORT119_PYTHON),,$(ORT119_VENV)/ready) ## Microsoft's training runtime into .venv-ort119/, where it can be installed

$(ORT119_VENV)/ready: scripts/ort119-requirements.txt
	@rm -rf $(ORT119_VENV)
	@$(PYTHON) -m venv $(ORT119_VENV) \
	  && $(ORT119_VENV)/bin/python -m pip install $(PIP_PINNED) -r $< && touch $@ \
	  || { rm -rf $(ORT119_VENV); echo 'onnxruntime-training-cpu cannot be installed here (wheels are pinned for Python 3.11 and 3.12 on x86-64 Linux): the comparisons with it are skipped' >&2; }

# The compiler alone, which runs without a GPU. Not for every platform: tests say where it is missing and go on.
trt: $(if $(BA_TRT_PYTHON),,$(TRT_VENV)/ready) ## TensorRT for RTX into .venv-trt/, where it can be installed: the tests build engines with it, without a GPU

$(TRT_VENV)/ready: scripts/trt-requirements.txt
	@rm -rf $(TRT_VENV)
	@$(PYTHON) -m venv $(TRT_VENV) \
	  && $(TRT_VENV)/bin/python -m pip install $(PIP_PINNED) -r $< && touch $@ \
	  || { rm -rf $(TRT_VENV); echo 'TensorRT for RTX cannot be installed here (wheels are pinned for x86-64 Linux): the tests that build engines are skipped' >&2; }

bench: ort bench-venv ## benchmarks next to PyTorch, llama.cpp and others, into docs/benchmarks.md (BENCH='text scan': some groups)
	BA_BENCH_PYTHON='$(BENCH_PYTHON)' $(CARGO) bench --bench suite -- $(BENCH)

bench-gpu: $(if $(findstring --dry-run,$(GPU)),ort,gpu) bench-venv ## benchmarks on an NVIDIA GPU next to PyTorch, into docs/gpu.md (GPU=--dry-run: every step without a GPU)
	$(CARGO) build $(PROFILE) --bins --example synthesize_checkpoint
	BENCH_PYTHON='$(BENCH_PYTHON)' benches/gpu.sh $(GPU)

# Another interpreter given as BENCH_PYTHON is used as it is.
bench-venv: $(if $(filter $(CURDIR)/$(BENCH_VENV)/%,$(BENCH_PYTHON)),$(BENCH_VENV)/ready) ## the benchmarks' Python environment into .venv-bench/

# What can't be installed (llama.cpp wants a C++ compiler, wheels are pinned for x86-64 Linux) leaves the others.
$(BENCH_VENV)/ready: scripts/bench-requirements.txt scripts/bench-source-requirements.txt
	@rm -rf $(BENCH_VENV)
	@$(PYTHON) -m venv $(BENCH_VENV) \
	  || { rm -rf $(BENCH_VENV); echo '$(PYTHON) cannot make environments: install its venv (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }
	$(BENCH_VENV)/bin/python -m pip install $(PIP_PINNED) -r $< \
	  || echo 'not installed: the packages of $<; their rows will say so' >&2
	$(BENCH_VENV)/bin/python -m pip install $(PIP_PINNED) --no-binary=llama-cpp-python --no-deps -r scripts/bench-source-requirements.txt \
	  || echo 'not installed: llama.cpp; its rows will say so' >&2
	@touch $@

clean-ablation: ## remove the output of make ablation
	rm -rf $(ABLATION_OUT)

clean-demo: ## remove the output of make demo
	rm -rf $(DEMO_OUT)

clean: ## remove everything that was built or fetched
	rm -rf target .ort $(VENV) $(ORT119_VENV) $(TRT_VENV) $(BENCH_VENV)
