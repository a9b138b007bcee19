# `make help` lists what there is. Two commands do everything on a fresh machine: `make dev` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := .venv
PYTHON ?= python3
RUN := $(VENV)/bin/
# Languages of stubs/ that test, generate and conformance are restricted to, e.g. LANGS="go rust"; empty: all.
LANGS ?=
export LANGS
SETUP := $(VENV)/.complete

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(SETUP): requirements/runtime.txt requirements/dev.txt pyproject.toml stubs/python/pyproject.toml
	@echo "setting up $(VENV) (once; needs Python 3.11 or newer)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say PYTHON=python3.12 for another one")'
	@test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	@$(RUN)python -m pip --disable-pip-version-check -q install uv==0.13.8
	@$(RUN)uv pip install --python $(RUN)python -q --require-hashes -r requirements/runtime.txt -r requirements/dev.txt
	@$(RUN)uv pip install --python $(RUN)python -q --no-deps -e stubs/python -e .
	@touch $@

.PHONY: setup
setup: $(SETUP) ## install everything into .venv

.PHONY: dev
dev: $(SETUP) ## start broker and emulator, show a header accepted, say what to try next
	@$(RUN)credential-broker dev $(ARGS)

.PHONY: test
test: $(SETUP) ## everything that must be green; prints the seconds of each part (PARTS, LANGS="go rust")
	@$(RUN)python -m tests.run $(PARTS)

.PHONY: check
check: $(SETUP) ## the quick part: format, lint, types, layers, unit, contract
	@$(RUN)python -m tests.run format lint types layers unit contract

.PHONY: format
format: $(SETUP) ## write the formatting
	@$(RUN)ruff format -q . && $(RUN)ruff check -q --fix .
	@$(RUN)buf format -w protos

.PHONY: generate
generate: $(SETUP) ## make the stubs and the generated pages from their sources (LANGS)
	@$(RUN)python protos/generate.py $(if $(LANGS),--languages $(LANGS))
	@$(RUN)python docs/build_cli.py
	@$(RUN)python docs/build_configuration.py

.PHONY: conformance
conformance: $(SETUP) ## build the clients of all languages and prove that they do the same (LANGS; ARGS="--cases 'watch-*'")
	@$(RUN)python -m tests.polyglot $(ARGS)

.PHONY: mutations
mutations: $(SETUP) ## put defects into the clients, each of which must turn its cases red (LANGS)
	@$(RUN)python -m tests.polyglot --mutations $(ARGS)

.PHONY: bench-clients
bench-clients: $(SETUP) ## measure in each language what a call from memory costs beside the RPC (LANGS)
	@$(RUN)python -m tests.polyglot.suite.builds build
	@$(RUN)python -m tests.polyglot.suite.benchmarks

.PHONY: clients-restart
clients-restart: $(SETUP) ## restart a broker 100 times under the traffic of all clients (LANGS, ARGS="--runs 10")
	@$(RUN)python -m tests.polyglot.suite.builds build
	@$(RUN)python -m tests.polyglot.suite.restarts $(ARGS)

.PHONY: bench
bench: $(SETUP) ## measure the warm path against a bare echo, calls in flight, start-up (about five minutes)
	@$(RUN)python -m tests.bench all $(ARGS)

.PHONY: chaos
chaos: $(SETUP) ## kill -9 the broker 200 times under traffic, 10,000 refresh races, all orders of operations (half an hour; ARGS, RACES="--resume", ORDERS)
	@$(RUN)python -m tests.chaos.kill --runs 200 $(ARGS)
	@$(RUN)python -m tests.chaos.refresh --races 10000 $(RACES)
	@$(RUN)python -m tests.interleavings $(ORDERS)

.PHONY: clean
clean: ## remove what was installed and built
	rm -rf $(VENV) .build .cache dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
