# Everything that a developer runs. `make help` lists the targets.

PYTHON ?= python3
UV_VERSION = 0.13.9

VENV := .venv
PRESIDIO := .venv-presidio
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OPS := $(VENV)/.ops-installed
LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input

.DEFAULT_GOAL := install
.DELETE_ON_ERROR:
.PHONY: install help demo test test-presidio test-ops check lint types format bench bench-check scaling \
	endurance simulate faults soak mutants lock dashboards metrics-doc schemas chart golden \
	redaction-report screenshots vendor clean

install: $(STAMP) ## Make .venv with consentgate in it; this is what `make` alone does

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## See the main job done on a real, embedded Kafka
	$(BIN)/consentgate demo

test: $(STAMP) ## Run all tests, two files at a time, those on the embedded Kafka too
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-presidio: $(PRESIDIO)/.installed ## Run the tests of names, with presidio in an environment of its own
	$(PRESIDIO)/bin/python -m pytest tests/presidio

test-ops: $(OPS) ## Run the tests that need what tests/ops/install.sh installs
	$(BIN)/python -m pytest tests/ops

check: lint types test ## Run all that must pass before a commit: lint, types and test

lint: $(STAMP) ## Check the style and the formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP) ## Check the types
	$(BIN)/mypy

format: $(STAMP) ## Put imports and formatting right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP) ## Compare with Kafka Streams and others, half an hour; ARGS=--quick for a look
	$(BIN)/python benchmarks/run.py $(ARGS)

bench-check: $(STAMP) ## Fail where the throughput beside a plain loop has fallen by a quarter
	$(BIN)/python benchmarks/check.py $(ARGS)

scaling: $(STAMP) ## Measure how cost grows, ten minutes; ARGS=--quick for a look
	$(BIN)/python benchmarks/scaling.py $(ARGS)

endurance: $(STAMP) ## Load a worker for MINUTES (30) and beyond measure; fail where memory grows
	PYTHONPATH=tests/faults $(BIN)/python benchmarks/endurance.py \
		--minutes $(or $(MINUTES),30) $(ARGS)

simulate: $(STAMP) ## Run 10,000 seeds of the simulation, or as many as SEEDS says
	SIMULATION_SEEDS=$(or $(SEEDS),10000) $(BIN)/python -m pytest tests/simulation

FAULTS = PYTHONPATH=tests/kafka $(BIN)/python tests/faults/run.py
faults: $(STAMP) ## Bring all faults about and write docs/faults.md; or those that ARGS names
	$(FAULTS) $(or $(ARGS),--write)

soak: $(STAMP) ## Mix faults at random for MINUTES (60); SEED repeats the choice
	$(FAULTS) --soak-minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: $(STAMP) $(PRESIDIO)/.installed ## Take each safeguard away, or those of NAMES; some test must fail each time
	$(BIN)/python tests/mutants.py $(addprefix --only=,$(NAMES))

dashboards: $(STAMP) ## Make the Grafana dashboards anew from the code
	$(BIN)/python deploy/grafana/dashboards.py

metrics-doc: $(STAMP) ## Make docs/metrics.md anew from the code
	$(BIN)/python -m consentgate.service.metricsdoc > $(VENV)/metrics.md
	mv $(VENV)/metrics.md docs/metrics.md

schemas: $(STAMP) ## Make the JSON Schemas and the table of all settings anew from the code
	$(BIN)/python -m consentgate.schemas.make docs/configuration.md
	$(BIN)/python -m consentgate.schemas.settings docs/configuration.md > $(VENV)/settings.md
	mv $(VENV)/settings.md docs/settings.md

chart: $(STAMP) ## Make anew what the Helm chart has from elsewhere: rules, dashboards, schema, table
	$(BIN)/python deploy/helm/chart.py

golden: $(STAMP) ## Write anew what broken policies are told, after a change of messages
	REWRITE_GOLDEN=1 $(BIN)/python -m pytest tests/unit/test_broken_policies.py

redaction-report: $(STAMP) ## Measure the redaction on its corpus; ARGS="--format json" for programs
	$(BIN)/python tests/redaction/redaction_report.py $(ARGS)

# A lock names every package with its version and its hashes, for every platform. The runtime lock,
# for the image, and the build lock are parts of the development lock, with the same versions.
COMPILE = "$$tools/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate
lock: ## Make the lock files anew, with the latest versions that pyproject.toml allows
	@set -e; tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	$(PYTHON) -m venv "$$tools"; \
	"$$tools/bin/pip" install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
	note() { printf '# %s\n# Made by `make lock` from pyproject.toml; do not edit.\n' "$$1"; }; \
	$(COMPILE) --extra broker --extra redact --extra report --group dev --output-file "$$tools/dev" pyproject.toml; \
	$(COMPILE) --group ops --constraint "$$tools/dev" --output-file "$$tools/ops"; \
	$(COMPILE) --extra redact --constraint "$$tools/dev" --output-file "$$tools/runtime" \
		pyproject.toml; \
	echo hatchling | $(COMPILE) --constraint "$$tools/dev" --output-file "$$tools/build" -; \
	{ note 'Everything for development: the runtime, all extras but presidio, the tools.'; cat "$$tools/dev"; } \
		> requirements/dev.lock; \
	{ note 'What the tests in tests/ops need beside.'; cat "$$tools/ops"; } > requirements/ops.lock; \
	{ note 'What consentgate needs to run and to redact, for the image.'; cat "$$tools/runtime"; } \
		> requirements/runtime.lock; \
	{ note 'What it takes to build the wheel, for the image.'; cat "$$tools/build"; } \
		> requirements/build.lock
	@wc -l requirements/*.lock

screenshots: $(OPS) ## Take the pictures of the web pages in docs anew
	PYTHONPATH=tests/kafka $(BIN)/python tests/ops/screenshots.py

STATIC := src/consentgate/pages/static
UPLOT := tests/ops/node_modules/uplot
vendor: ## Fetch the library of the charts anew, as tests/ops/package-lock.json pins it
	npm --prefix tests/ops ci
	cp $(UPLOT)/dist/uPlot.iife.min.js $(UPLOT)/dist/uPlot.min.css $(STATIC)
	cp $(UPLOT)/LICENSE $(STATIC)/uPlot.LICENSE.txt

clean: ## Remove .venv and everything else that the other targets made
	rm -rf $(VENV) $(PRESIDIO) .ops build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		benchmarks/results benchmarks/.venvs benchmarks/peers/java/target tests/ops/node_modules
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements/dev.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: there is no $(PYTHON): install Python 3.11 or later, or name one with" \
			"make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), but 3.11 is the least: name a" \
			"later one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: $(PYTHON) lacks its venv module: install it (on Debian and Ubuntu:" \
			"apt install python3-venv), then run make again" >&2; exit 1; }
	@echo "Installing consentgate and its tools into $(VENV), as requirements/dev.lock says ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@{ $(PIP) --require-hashes -r requirements/dev.lock && \
		$(PIP) --no-deps --no-build-isolation -e . && \
		$(BIN)/python -m pip check; } > $(LOG) 2>&1 || { \
		what=$$(sed -n 's/^ERROR: No matching distribution found for \([^ ]*\).*/\1/p' $(LOG)); \
		if [ -n "$$what" ]; then \
			echo "error: could not get $$what: the packages are fetched once, so run make again" \
				"with network access, or name a mirror in PIP_INDEX_URL (details: $(LOG))" >&2; \
		else \
			echo "error: could not install the packages: $$(tail -n 1 $(LOG))" \
				"(details: $(LOG))" >&2; \
		fi; exit 1; }
	@touch $@

$(OPS): $(STAMP) requirements/ops.lock
	@$(PIP) --quiet --require-hashes -r requirements/ops.lock
	@touch $@

$(PRESIDIO)/.installed: pyproject.toml
	@echo "Installing presidio and what its tests need into $(PRESIDIO) ..."
	@$(PYTHON) -m venv --clear $(PRESIDIO)
	@$(PRESIDIO)/bin/python -m pip install --disable-pip-version-check --no-input --quiet \
		-e ".[presidio]" hypothesis pytest pytest-asyncio
	@touch $@
