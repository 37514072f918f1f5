# `make help` lists the goals. Needs Rust (with clippy and rustfmt, for `make check`) and Python 3.11 or later with pip.

CARGO ?= cargo
PYTHON ?= python3
VENV := .venv
BA_PYTHON ?= $(CURDIR)/$(VENV)/bin/python

DEMO := examples/demo
# Not in onnx/: that folder is where the commands look by default, and random weights must not lie there by accident.
DEMO_OUT := target/demo

# Tests and the demo share the release profile, so that dependencies are compiled once. It has overflow checks
# (Cargo.toml), but no debug assertions: for those, run `cargo test`.
PROFILE := --release

.DEFAULT_GOAL := help
.PHONY: help demo test check build ort venv bench clean-demo clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1: \2/p' Makefile

demo: ort build ## export a small model with random weights to int8, check it against fp32 and PyTorch, run it on a real brain
	@mkdir -p $(DEMO_OUT)
	$(CARGO) run $(PROFILE) --quiet --bin ba-export -- --quantize int8 --model $(DEMO)/checkpoint \
	  --calibration $(DEMO)/calibration --verify $(DEMO)/checkpoint/expected.safetensors --output $(DEMO_OUT)/bundle
	@echo
	$(CARGO) run $(PROFILE) --quiet --bin ba-infer -- $(DEMO)/mni152_t1.nii.gz --report $(DEMO)/report.txt \
	  --bundle $(DEMO_OUT)/bundle --save-preview $(DEMO_OUT)/preview.png
	@echo
	@echo 'This model has random weights, which stand in for trained ones: the label and the probabilities above mean'
	@echo 'nothing. What the demo shows is that the int8 graphs stay close to fp32 and to PyTorch (the tables above).'
	@echo 'What the model saw: $(DEMO_OUT)/preview.png'

test: ort venv ## every test (sets itself up: ONNX Runtime, a Python environment for the checks by other readers)
	BA_PYTHON='$(BA_PYTHON)' $(CARGO) test $(PROFILE)

check: ## everything that CI runs: format, lints, docs, licences, tests, demo
	.ci/run

build: ## the two programs, in target/release
	$(CARGO) build $(PROFILE) --bins

ort: ## ONNX Runtime's library into .ort/
	@$(PYTHON) -m pip --version >/dev/null 2>&1 \
	  || { echo '$(PYTHON) has no pip: install it (Debian, Ubuntu: apt install python3-pip) or name another with PYTHON=' >&2; exit 1; }
	@$(PYTHON) scripts/fetch_onnxruntime.py

# Another interpreter given as BA_PYTHON is used as it is.
venv: $(if $(filter $(CURDIR)/$(VENV)/%,$(BA_PYTHON)),$(VENV)/ready) ## the tests' Python environment into .venv/

$(VENV)/ready: scripts/test-requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'the tests need Python 3.11 or later; name one with PYTHON=' >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo '$(PYTHON) cannot make environments: install its venv (Debian, Ubuntu: apt install python3-venv)' >&2; exit 1; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/test-requirements.txt
	@touch $@

bench: ort ## the benchmarks
	$(CARGO) bench

clean-demo: ## remove what the demo made
	rm -rf $(DEMO_OUT)

clean: ## remove everything built or fetched
	rm -rf target .ort $(VENV)
