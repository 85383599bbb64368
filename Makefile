# Set-up happens by itself: every target that needs the virtual environment depends on a stamp file in it, which is
# made again when the dependencies in setup.cfg change.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
# More than there are cores: many tests wait for a registry that answers late.
JOBS ?= 4
PYTEST_ARGS ?=
# The last commit of 2026-08 to the suite: it has no tags, and takes the version of the specification as a setting.
CONFORMANCE := github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111
BENCH_ARGS ?=

# What a person's shell happens to hold must change neither the tests nor the demo.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED

.DEFAULT_GOAL := help
.PHONY: help demo test test-kill test-damage test-worlds test-long test-old test-gap test-registries test-conformance lint format \
	check coverage bench bench-verify \
	bench-tools registries clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## the main job for real: registries, multi-architecture images, three syncs, every claim checked
	@$(BIN)/python -m demo

test: $(STAMP) ## all tests, against real and scripted registries on loopback (about 5 minutes on 2 cores)
	@tools/need.sh docker-registry skopeo htpasswd:apache2-utils
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-old: $(STAMP) ## a v1 registry of another maker as source, and a layer of 2 GiB (needs Node; about 2 minutes)
	@tools/need.sh docker-registry skopeo umoci node:nodejs npm
	@test -d $(VENV)/node/node_modules/docker-registry-server || npm install --prefix $(VENV)/node --ignore-scripts \
		--no-audit --no-fund --silent docker-registry-server@2.2.0
	$(BIN)/python -m pytest tests_real/test_node.py tests_real/test_big.py $(PYTEST_ARGS)

test-gap: $(STAMP) ## 10 GiB across an air gap, 20,000 tags in a layout (about 5 minutes and 35 GiB of disk in TMPDIR), and oras
	@tools/need.sh docker-registry
	$(BIN)/python -m pytest -s tests_real/test_gap.py tests_real/test_oras.py $(PYTEST_ARGS)

test-registries: $(STAMP) ## registries of other makers as sources and targets (about 2 minutes; after `make registries`)
	@tools/need.sh docker-registry skopeo htpasswd:apache2-utils
	$(BIN)/python -m pytest -n $(JOBS) tests_real/test_registries.py tests_real/test_registries_uploads.py $(PYTEST_ARGS)

test-conformance: $(STAMP) ## the conformance suite of the distribution-spec against `mirror serve --writable` (needs Go; under a minute)
	@command -v go >/dev/null || { echo "test-conformance needs Go: https://go.dev/doc/install" >&2; exit 1; }
	GOBIN=$(CURDIR)/.registries/bin go install $(CONFORMANCE)
	$(BIN)/python -m pytest tests_real/test_conformance.py $(PYTEST_ARGS)

test-kill: $(STAMP) ## a sync, an export, an import, each killed at 25 moments and run again (about 5 minutes)
	@tools/need.sh docker-registry skopeo htpasswd:apache2-utils
	MIRROR_TESTS_KILLS=25 $(BIN)/python -m pytest -n $(JOBS) tests/end_to_end/test_kill.py \
		tests/end_to_end/test_bundles.py tests/end_to_end/test_layouts.py -k killed $(PYTEST_ARGS)

test-damage: $(STAMP) ## 500 random damages of targets: what verify says, and what repairs them (MIRROR_TESTS_SEED: the first seed; about 5 minutes)
	@tools/need.sh docker-registry
	MIRROR_TESTS_DAMAGES=$${MIRROR_TESTS_DAMAGES:-500} $(BIN)/python -m pytest -n $(JOBS) \
		tests/end_to_end/test_damage.py $(PYTEST_ARGS)

test-worlds: $(STAMP) ## 1,000 random worlds: stores of every kind, faults, kills, rollbacks (MIRROR_TESTS_SEED: one alone; about 15 minutes)
	MIRROR_TESTS_WORLDS=$${MIRROR_TESTS_WORLDS:-1000} $(BIN)/python -m pytest -n $(JOBS) \
		tests/end_to_end/test_worlds.py $(PYTEST_ARGS)

test-long: $(STAMP) ## every campaign, some in part, and other registries where they can be had (at most 25 minutes)
	$(MAKE) test-kill
	$(MAKE) test-damage
	MIRROR_TESTS_WORLDS=400 $(MAKE) test-worlds
	$(BIN)/python -m pytest tests_real/test_benchmarks.py tests_real/test_demo.py $(PYTEST_ARGS)
	@if command -v node >/dev/null && command -v npm >/dev/null; then $(MAKE) test-old; \
		else echo "test-old is left out: there is no Node on this machine" >&2; fi
	@if command -v go >/dev/null; then $(MAKE) registries && $(MAKE) test-registries && $(MAKE) test-conformance; \
		else echo "test-registries and test-conformance are left out: there is no Go on this machine" >&2; fi

lint: $(STAMP) ## linter, formatter and strict type checker; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## format the code and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test ## lint and test

coverage: $(STAMP) ## the transfer package by its own tests: at least 95 % of its statements
	$(BIN)/python -m pytest tests/transfer --cov=mirror.transfer --cov-report=term-missing --cov-fail-under=95 $(PYTEST_ARGS)

bench: $(STAMP) ## side by side with other tools; over an hour on a quiet machine (BENCH_ARGS="--scenario cold")
	@tools/need.sh docker-registry skopeo
	$(BIN)/python -m benchmarks --into .bench --docs docs $(BENCH_ARGS)

bench-verify: $(STAMP) ## is `mirror bundle verify` as fast as sha256sum? (about a minute)
	$(BIN)/python -m benchmarks.verify $(BENCH_ARGS)

bench-tools: ## what to compare with: the tools that Go can install, into .bench/bin
	@command -v go >/dev/null || { echo "bench-tools needs Go: https://go.dev/doc/install" >&2; exit 1; }
	GOBIN=$(CURDIR)/.bench/bin go install github.com/regclient/regclient/cmd/regsync@latest
	GOBIN=$(CURDIR)/.bench/bin go install github.com/google/go-containerregistry/cmd/crane@latest
	GOBIN=$(CURDIR)/.bench/bin go install oras.land/oras/cmd/oras@latest

registries: ## what test-registries runs against: the registries that Go can install, into .registries/bin
	@command -v go >/dev/null || { echo "registries needs Go: https://go.dev/doc/install" >&2; exit 1; }
	GOBIN=$(CURDIR)/.registries/bin go install github.com/distribution/distribution/v3/cmd/registry@latest
	GOBIN=$(CURDIR)/.registries/bin go install github.com/google/go-containerregistry/cmd/crane@latest
	cd tests_real/ociregistry && GOBIN=$(CURDIR)/.registries/bin go install .

clean: ## remove everything that these targets made, the virtual environment too
	rm -rf $(VENV) .demo .bench .registries build dist *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find mirror tests tests_real demo benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.cfg pyproject.toml tools/setup.sh
	@tools/setup.sh $(VENV)
	@touch $@
