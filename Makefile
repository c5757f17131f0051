# Every entry point of the project; `make help` lists them.

# The first Python that is new enough and not too new. TORCH=cpu takes PyTorch's CPU build, where PyPI's would
# bring several gigabytes of CUDA: make setup TORCH=cpu
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
TORCH ?= default
PIP_TORCH = $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)

VENV = .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
NEWEST = .cache/newest-ray
SAMPLES = .cache/samples
IMAGES ?= $(CURDIR)/$(SAMPLES)/images
MODEL ?= $(CURDIR)/$(SAMPLES)/model
SOURCES = mkdocs.yml scripts/lean_labs.py $(shell find docs snippets deploy -not -name '*.pyc' -not -name __pycache__ 2>/dev/null)
PORT ?= 8000
PART ?=
PAGE ?=
TESTS = $(if $(PART),$(wildcard tests/unit/$(PART)),tests)
JOBS ?= 0
PAGES = $(if $(PART),docs/$(PART),docs)

export RAY_USAGE_STATS_ENABLED = 0  # no request leaves this machine
export ENGINE_FOLDER ?= $(CURDIR)/.cache/engines
export NO_MKDOCS_2_WARNING = 1
export PYTHONWARNINGS = ignore::FutureWarning

.DEFAULT_GOAL = help
.PHONY: help setup samples demo site build serve browser s3 prometheus test check proof reference labs bench picture lint newest-ray print-env

help: ## list the entry points
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | \
		awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv with everything pinned (TORCH=cpu: without CUDA)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed, and neither is on the PATH." >&2; exit 2; }
	@echo "Setting up $(VENV) with $(PYTHON): a few minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_TORCH) -c constraints.txt -e '.[dev]' 2>$(VENV)/pip.log || \
		{ cat $(VENV)/pip.log >&2; exit 1; }
	@touch $@

samples: $(READY) ## build the sample images and the sample model (redone only where something changed)
	@$(BIN)/python -m snippets.samples --root $(SAMPLES) --quiet

demo: samples ## run the naive and the optimized pipeline on 128 images and compare them
	@IMAGES=$(IMAGES) MODEL=$(MODEL) $(BIN)/python -m snippets.demo

site: demo build ## run the main example and build the site: the first command to type
	@echo
	@echo "The site is in site/. To read it: make serve, then open http://127.0.0.1:$(PORT)"

# The overview says what was proven of these sources, the tests among them: nothing, where they have changed since.
build: $(READY) ## build the site with MkDocs alone (strict)
	@$(BIN)/python -m tests.proof --render
	@$(MAKE) --no-print-directory site/.built

site/.built: $(SOURCES) $(READY)
	@$(BIN)/mkdocs build --strict
	@touch $@

serve: $(READY) ## serve the site at http://127.0.0.1:8000 (PORT=) and reload it as pages change
	@$(BIN)/mkdocs serve --dev-addr 127.0.0.1:$(PORT)

lint: $(READY) ## check style, types and spelling
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/codespell *.md deploy docs scripts snippets tests Makefile
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml >/dev/null
	@$(BIN)/zizmor --offline --quiet .github/workflows

# The tests of the site look at it in a browser, and check its HTML with a program in Java.
browser: $(READY)
	@scripts/install-browser
	@scripts/install-java

# The tests of S3 read from a server and write to it.
s3:
	@scripts/install-s3

# The tests of metrics and alerts run the rules in a server.
prometheus:
	@scripts/install-prometheus

# The tests run the pages once more, on other images and without a GPU. Much of a test is waiting for processes to
# start, so that JOBS=2 side by side take less time, even on two cores.
test: samples lint build $(if $(PART),,browser s3 prometheus) ## run everything that proves the site true (PART=fundamentals: that part)
	@rm -f .cache/tests.xml .cache/blocks.json
	$(BIN)/pytest $(TESTS) -n $(JOBS) --junitxml=.cache/tests.xml -o junit_family=xunit1
	$(BIN)/pytest --codeblocks $(PAGES) -n $(JOBS) --codeblocks-report=.cache/blocks.json
	$(if $(PART),,$(BIN)/python -m tests.claims .cache/tests.xml .cache/blocks.json)

check: samples ## run the blocks of one page: make check PAGE=docs/setup.md
	@test -f "$(PAGE)" || { echo "make check needs a page, as in: make check PAGE=docs/setup.md" >&2; exit 2; }
	$(BIN)/pytest --codeblocks $(PAGE)

proof: $(READY) ## write how many blocks and claims pass, from the last make test, for the overview
	@$(BIN)/python -m tests.proof

reference: $(READY) ## write the reference from the installed Ray and the modules, and the pages' reading times
	@$(BIN)/python -m snippets.reference.parameters
	@$(BIN)/python -m snippets.reference.api
	@$(BIN)/python -m snippets.architecture.calculator_files
	@$(BIN)/python -m snippets.reference.fusion
	@$(BIN)/python -m snippets.reference.predictions
	@$(BIN)/python -m snippets.reference.reading

labs: samples ## make the notebooks from the pages, with outputs of a real kernel (docs/labs)
	@IMAGES=$(IMAGES) MODEL=$(MODEL) RAY_AUTH_MODE=disabled PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m tests.labs

bench: samples ## measure everything that the pages state, write docs/assets/results and render it
	@IMAGES=$(IMAGES) MODEL=$(MODEL) $(BIN)/python -m snippets.benchmark
	@IMAGES=$(IMAGES) MODEL=$(MODEL) $(BIN)/python -m snippets.benchmark.timeline
	@IMAGES=$(IMAGES) MODEL=$(MODEL) $(BIN)/python -m snippets.benchmark.stepwise
	@IMAGES=$(IMAGES) MODEL=$(MODEL) $(BIN)/python -m snippets.benchmark.ladder --long
	@$(BIN)/python -m snippets.benchmark.streaming
	@IMAGES=$(IMAGES) MODEL=$(MODEL) $(BIN)/python -m snippets.benchmark.predictions
	@IMAGES=$(IMAGES) MODEL=$(MODEL) $(BIN)/python -m snippets.benchmark.tuning
	@IMAGES=$(IMAGES) MODEL=$(MODEL) $(BIN)/python -m snippets.benchmark.ensemble
	@IMAGES=$(IMAGES) MODEL=$(MODEL) $(BIN)/python -m snippets.benchmark.preflight
	@$(BIN)/python -m snippets.benchmark.scaling
	@$(BIN)/python -m snippets.benchmark.queues
	@IMAGES=$(IMAGES) MODEL=$(MODEL) $(BIN)/python -m snippets.benchmark.blocks
	@$(BIN)/python -m snippets.benchmark.render >/dev/null

# After a change of Ray's version, or of what the page watches.
picture: samples browser
	@IMAGES=$(IMAGES) MODEL=$(MODEL) RAY_AUTH_MODE=disabled $(BIN)/python -m tests.dashboard_picture

# In an environment of its own. What fails there is what the report says, and no reason to stop. The tests of the
# console lines call make, which would go back to the pinned version.
newest-ray: samples s3 prometheus ## run everything with the newest Ray and report what it changes, in .cache/newest-ray
	@mkdir -p $(NEWEST)
	@$(MAKE) --no-print-directory setup VENV=$(NEWEST)/venv
	@$(NEWEST)/venv/bin/pip install --quiet --disable-pip-version-check --upgrade 'ray[data,default]' 2>$(NEWEST)/pip.log
	-$(NEWEST)/venv/bin/pytest tests --ignore=tests/contract/test_console_lines.py --ignore=tests/site --junitxml=$(NEWEST)/tests.xml -o junit_family=xunit1
	-$(NEWEST)/venv/bin/pytest --codeblocks docs --codeblocks-report=$(NEWEST)/blocks.json
	@$(NEWEST)/venv/bin/python -m tests.changes $(NEWEST)/tests.xml $(NEWEST)/blocks.json > $(NEWEST)/changes.md
	@cat $(NEWEST)/changes.md

print-env: ## print IMAGES and MODEL of the samples, as `export $(make -s print-env)` takes them
	@echo IMAGES=$(IMAGES)
	@echo MODEL=$(MODEL)
