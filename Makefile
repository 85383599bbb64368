# Every target that needs the virtual environment depends on a stamp file in it. The environment is created
# automatically, and updated when the dependencies in setup.cfg change.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
COMPILED := $(VENV)/.compiled
# A virtual environment of its own for the programs that build releases.
TOOLS := $(VENV)/tools
TOOLS_STAMP := $(TOOLS)/.set-up
# More jobs than cores, because many tests wait for slow registries.
JOBS ?= 6
PYTEST_ARGS ?=
# The suite has no release tags; this is its last commit of 2026-08. The version of the specification is a setting.
CONFORMANCE := github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111
BENCH_ARGS ?=

# Variables of the user's shell must not affect the tests or the demonstration.
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED

.DEFAULT_GOAL := help
.PHONY: help docs demo test test-kill test-damage test-prune test-worlds test-long test-old test-gap test-regsync \
	test-migration test-terminal test-registries test-cosign test-conformance lint format check coverage bench \
	bench-verify bench-tools registries clean test-dist test-helm test-image test-service dist requirements \
	test-browser test-promtool

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## run the demonstration: three syncs between real registries, with checks of the results
	@$(BIN)/python -m demo

test: $(COMPILED) ## run all tests with real and scripted registries on loopback (under 4 minutes on 2 cores)
	@tools/need.sh docker-registry skopeo umoci htpasswd:apache2-utils
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-old: $(STAMP) ## test with a v1 registry of another vendor and a layer of 2 GiB (needs Node; about 2 minutes)
	@tools/need.sh docker-registry skopeo umoci node:nodejs npm
	@test -d $(VENV)/node/node_modules/docker-registry-server || npm install --prefix $(VENV)/node --ignore-scripts \
		--no-audit --no-fund --silent docker-registry-server@2.2.0
	$(BIN)/python -m pytest tests_real/test_node.py tests_real/test_big.py $(PYTEST_ARGS)

test-gap: $(STAMP) ## test 10 GiB across an air gap, 20,000 tags in a layout, and oras (about 5 minutes; 35 GiB in TMPDIR)
	@tools/need.sh docker-registry
	$(BIN)/python -m pytest -s tests_real/test_gap.py tests_real/test_oras.py $(PYTEST_ARGS)

test-regsync: $(STAMP) ## compare the selection of tags with regsync (run `make bench-tools` first)
	@tools/need.sh docker-registry
	$(BIN)/python -m pytest tests_real/test_regsync.py $(PYTEST_ARGS)

test-migration: $(STAMP) ## compare `mirror convert` with the tools themselves (needs Go; run `make bench-tools` first; about a minute)
	@tools/need.sh docker-registry skopeo
	@command -v go >/dev/null || { echo "test-migration needs Go: https://go.dev/doc/install" >&2; exit 1; }
	cd tests_real/versions && GOBIN=$(CURDIR)/.bench/bin go install .
	$(BIN)/python -m pytest tests_real/test_migration.py $(PYTEST_ARGS)

test-terminal: $(STAMP) ## test the live display in a real terminal (tmux; about 1 minute)
	@tools/need.sh tmux
	$(BIN)/python -m pytest tests_real/test_terminal.py $(PYTEST_ARGS)

test-registries: $(STAMP) ## test with registries of other vendors (about 2 minutes; run `make registries` first)
	@tools/need.sh docker-registry skopeo umoci htpasswd:apache2-utils
	$(BIN)/python -m pytest -n $(JOBS) tests_real/test_registries.py tests_real/test_registries_uploads.py \
		tests_real/test_attachments.py tests_real/test_registries_prune.py $(PYTEST_ARGS)

test-cosign: $(STAMP) ## test with signatures that cosign makes (needs Go; installs cosign, which takes several minutes)
	@tools/need.sh docker-registry
	@command -v go >/dev/null || { echo "test-cosign needs Go: https://go.dev/doc/install" >&2; exit 1; }
	GOBIN=$(CURDIR)/.registries/bin go install github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3
	$(BIN)/python -m pytest tests_real/test_cosign.py $(PYTEST_ARGS)

test-browser: $(STAMP) ## open the HTML report in headless Chromium (installs chromium with apt and selenium with pip; under a minute)
	@tools/need.sh chromium chromedriver:chromium-driver
	$(BIN)/pip install --quiet "selenium >=4.20,<5"
	$(BIN)/python -m pytest tests_real/test_browser.py $(PYTEST_ARGS)

test-promtool: $(STAMP) ## check the metrics and test the alert rules with promtool (installs prometheus with apt; seconds)
	@tools/need.sh promtool:prometheus
	$(BIN)/python -m pytest tests_real/test_promtool.py $(PYTEST_ARGS)

test-conformance: $(STAMP) ## run the conformance suite of the distribution-spec against `mirror serve --writable` (needs Go; under a minute)
	@command -v go >/dev/null || { echo "test-conformance needs Go: https://go.dev/doc/install" >&2; exit 1; }
	GOBIN=$(CURDIR)/.registries/bin go install $(CONFORMANCE)
	$(BIN)/python -m pytest tests_real/test_conformance.py $(PYTEST_ARGS)

test-dist: $(STAMP) dist ## build a release, install it into an empty environment, test completions and systemd units (about 2 minutes)
	@tools/need.sh docker-registry zsh fish man:man-db systemd-analyze:systemd
	$(BIN)/python -m pytest tests_real/test_distribution.py tests_real/test_completion.py \
		tests_real/test_service_files.py $(PYTEST_ARGS)

test-helm: $(STAMP) ## check the Helm chart with helm and the types of Kubernetes (needs Go; installs helm, which takes minutes)
	@command -v go >/dev/null || { echo "test-helm needs Go: https://go.dev/doc/install" >&2; exit 1; }
	GOBIN=$(CURDIR)/.registries/bin go install helm.sh/helm/v3/cmd/helm@v3.19.0
	cd tests_real/kubernetes && GOBIN=$(CURDIR)/.registries/bin go install .
	$(BIN)/python -m pytest tests_real/test_helm.py $(PYTEST_ARGS)

test-image: $(STAMP) ## build the image from packages of Debian, copy it, unpack it, and run it (needs root; about 5 minutes)
	@tools/need.sh docker-registry buildah mmdebstrap umoci skopeo
	@test -d .registries/bases || contrib/container/debian-bases.sh .registries/bases
	$(BIN)/python -m pytest tests_real/test_image.py $(PYTEST_ARGS)

test-kill: $(STAMP) ## kill a sync, an export and an import at 25 points each, and run them again (about 5 minutes)
	@tools/need.sh docker-registry skopeo htpasswd:apache2-utils
	MIRROR_TESTS_KILLS=25 $(BIN)/python -m pytest -n $(JOBS) tests/end_to_end/test_kill.py \
		tests/end_to_end/test_bundles.py tests/end_to_end/test_layouts.py -k killed $(PYTEST_ARGS)

test-damage: $(STAMP) ## damage targets in 500 random ways, verify and repair them (MIRROR_TESTS_SEED: first seed; about 5 minutes)
	@tools/need.sh docker-registry
	MIRROR_TESTS_DAMAGES=$${MIRROR_TESTS_DAMAGES:-500} $(BIN)/python -m pytest -n $(JOBS) \
		tests/end_to_end/test_damage.py $(PYTEST_ARGS)

test-prune: $(STAMP) ## delete images in 40 random worlds, while others write to the target (about a minute)
	$(BIN)/python -m pytest -n $(JOBS) tests_real/test_prune_worlds.py $(PYTEST_ARGS)

test-worlds: $(STAMP) ## run 1,000 random scenarios with faults, kills and rollbacks (MIRROR_TESTS_SEED: run one seed; about 15 minutes)
	MIRROR_TESTS_WORLDS=$${MIRROR_TESTS_WORLDS:-1000} $(BIN)/python -m pytest -n $(JOBS) \
		tests/end_to_end/test_worlds.py $(PYTEST_ARGS)

test-service: $(STAMP) ## run 50 cycles of `sync --every` with faults, reloads and signals (MIRROR_TESTS_SEED: the seed; about 2 minutes)
	$(BIN)/python -m pytest -s tests_real/test_scheduled_sync.py $(PYTEST_ARGS)

test-long: $(STAMP) ## run all long campaigns, some partly, and available other registries (at most 25 minutes)
	$(MAKE) docs
	$(MAKE) test-kill
	$(MAKE) test-damage
	$(MAKE) test-prune
	MIRROR_TESTS_WORLDS=400 $(MAKE) test-worlds
	MIRROR_TESTS_CYCLES=20 $(MAKE) test-service
	$(BIN)/python -m pytest tests_real/test_benchmarks.py tests_real/test_demo.py $(PYTEST_ARGS)
	@if command -v tmux >/dev/null; then $(MAKE) test-terminal; \
		else echo "test-terminal is skipped: tmux is not installed" >&2; fi
	@if (command -v zsh && command -v fish && command -v man && command -v systemd-analyze) >/dev/null; then $(MAKE) test-dist; \
		else echo "test-dist is skipped: zsh, fish, man or systemd-analyze is not installed" >&2; fi
	@if command -v node >/dev/null && command -v npm >/dev/null; then $(MAKE) test-old; \
		else echo "test-old is skipped: Node is not installed" >&2; fi
	@if command -v go >/dev/null; then $(MAKE) registries && $(MAKE) test-registries && $(MAKE) test-conformance; \
		else echo "test-registries and test-conformance are skipped: Go is not installed" >&2; fi

dist: $(TOOLS_STAMP) ## build a release into dist/: packages, requirements with hashes, SBOM, licenses, SHA256SUMS
	@tools/dist.sh $(TOOLS)

# PIP_COMPILE_ARGS="--upgrade" selects the newest versions.
requirements: $(TOOLS_STAMP) ## update requirements.txt (all dependencies, with hashes) and tools/constraints.txt (the tests' versions)
	CUSTOM_COMPILE_COMMAND="make requirements" $(TOOLS)/bin/pip-compile --quiet --generate-hashes --strip-extras \
		--extra aws --extra ed25519 --extra socks --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		--output-file requirements.txt $(PIP_COMPILE_ARGS) setup.cfg
	CUSTOM_COMPILE_COMMAND="make requirements" $(TOOLS)/bin/pip-compile --quiet --strip-extras --no-annotate \
		--extra test --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		--constraint requirements.txt --output-file tools/constraints.txt $(PIP_COMPILE_ARGS) setup.cfg

lint: $(STAMP) ## run the linter, the format check and the type checker; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## format the code and apply automatic fixes of the linter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test ## run lint and test

docs: $(STAMP) ## build the documentation as a site in .docs/; a broken link is an error
	@$(BIN)/python -c 'import mkdocs' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'mkdocs >=1.6,<2'
	$(BIN)/python -m mkdocs build --strict

coverage: $(STAMP) ## measure the statement coverage of the transfer package: at least 95 %
	$(BIN)/python -m pytest tests/transfer --cov=mirror.transfer --cov-report=term-missing --cov-fail-under=95 $(PYTEST_ARGS)

bench: $(STAMP) ## compare with other tools; over an hour on an idle machine (BENCH_ARGS="--scenario cold")
	@tools/need.sh docker-registry skopeo
	$(BIN)/python -m benchmarks --into .bench --docs docs $(BENCH_ARGS)

bench-verify: $(STAMP) ## compare `mirror bundle verify` with sha256sum (about a minute)
	$(BIN)/python -m benchmarks.verify $(BENCH_ARGS)

bench-tools: ## install tools and a fast registry for `make bench` with Go into .bench/bin
	@command -v go >/dev/null || { echo "bench-tools needs Go: https://go.dev/doc/install" >&2; exit 1; }
	GOBIN=$(CURDIR)/.bench/bin go install github.com/regclient/regclient/cmd/regsync@latest
	GOBIN=$(CURDIR)/.bench/bin go install github.com/google/go-containerregistry/cmd/crane@latest
	GOBIN=$(CURDIR)/.bench/bin go install oras.land/oras/cmd/oras@latest
	cd benchmarks/fastregistry && GOBIN=$(CURDIR)/.bench/bin go install .

registries: ## install the registries for test-registries with Go into .registries/bin
	@command -v go >/dev/null || { echo "registries needs Go: https://go.dev/doc/install" >&2; exit 1; }
	GOBIN=$(CURDIR)/.registries/bin go install github.com/distribution/distribution/v3/cmd/registry@latest
	GOBIN=$(CURDIR)/.registries/bin go install github.com/google/go-containerregistry/cmd/crane@latest
	cd tests_real/ociregistry && GOBIN=$(CURDIR)/.registries/bin go install .

clean: ## remove all generated files and the virtual environment
	rm -rf $(VENV) .demo .docs .bench .registries build dist *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find mirror tests tests_real demo benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.cfg pyproject.toml tools/setup.sh tools/constraints.txt
	@tools/setup.sh $(VENV)
	@touch $@

# pytest compiles the tests once. Otherwise, all jobs of the first `make test` would compile all tests.
$(COMPILED): $(STAMP)
	@output=$$($(BIN)/python -m pytest --collect-only -qq 2>&1) || { printf '%s\n' "$$output"; exit 1; }
	@touch $@

$(TOOLS_STAMP): $(STAMP)
	$(BIN)/python -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check \
		'build>=1.2,<2' 'pip-tools>=7.4,<8' 'cyclonedx-bom>=7,<8' 'pip-licenses>=5,<6'
	@touch $@
