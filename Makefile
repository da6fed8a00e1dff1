.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
JOBS   ?= 3
FAST_TESTS := tests/cli tests/crews tests/db tests/runs tests/storage $(wildcard tests/test_*.py)

# Without it each process would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo serve test test-fast coverage check format docs pictures bench crewai-next faults fuzz image client audit lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# One stamp per lock file: a command installs only what it needs, and only when a lock changed.
$(VENV)/.runtime: requirements.lock pyproject.toml
	@echo "Installing the service into $(VENV): once, in a minute or two."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --use-pep517 --no-deps --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@echo "Installing the development packages into $(VENV): once, in a minute or two."
	$(PIP) install --use-pep517 --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

setup: $(VENV)/.dev ## make .venv with the locked runtime and development packages

demo: $(VENV)/.runtime ## run the main job once: no key, no server of yours, no network
	$(BIN)/crew-capture demo

serve: $(VENV)/.runtime ## start the service as .env and the environment say
	$(BIN)/crew-capture serve

test: $(VENV)/.dev ## run the tests, in JOBS processes (3); ARGS goes to pytest
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-fast: $(VENV)/.dev ## run the tests that need no server and no whole service, within a minute
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not servers" $(FAST_TESTS) $(ARGS)

coverage: $(VENV)/.dev ## run the tests and list the lines that none of them reaches
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --cov --cov-report term $(ARGS)

check: $(VENV)/.dev ## lint, types, import rules, words and sentences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.prose

format: $(VENV)/.dev ## format the code, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## measure speed against the bare limit (tests/load); ARGS=--quick for the short form
	$(BIN)/python -m tests.load.bench $(ARGS)

# In an environment of its own: the locked packages, then the newest CrewAI over them.
NEXT := .venv-next
crewai-next: ## compare the engine with the newest CrewAI, also a pre-release; list the pins that changed
	test -x $(NEXT)/bin/python || $(PYTHON) -m venv $(NEXT)
	$(NEXT)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r requirements-dev.lock
	$(NEXT)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade --pre crewai crewai-tools
	$(NEXT)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation -e .
	$(NEXT)/bin/python -m pip --disable-pip-version-check list | grep -i '^crewai'
	$(NEXT)/bin/python -m app.pins
	$(NEXT)/bin/python -m pytest tests/engine/test_conformance.py tests/engine/test_random_crews.py $(ARGS)

pictures: $(VENV)/.dev ## take the pictures of the pages in docs/pictures, with a Chromium
	$(BIN)/python -m tests.web.pictures

docs: $(VENV)/.dev ## build the docs site in docs/_build; a broken link is an error
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build
	@echo "See docs/_build/index.html"

faults: $(VENV)/.dev ## break everything on every database and backend, half an hour (tests/faults)
	$(BIN)/python -m tests.faults.suite $(ARGS)

fuzz: $(VENV)/.dev ## make 5,000 requests and more from the OpenAPI description, and check each response
	SCHEMA_REQUESTS=240 $(BIN)/python -m pytest -s tests/api/test_openapi.py $(ARGS)

image: $(VENV)/.dev ## build the image with buildah, and run a crew from its files; as root (tests/deploy)
	$(BIN)/python -m tests.deploy.image $(ARGS)

# The generator needs a typer older than CrewAI's, so it has an environment of its own.
client: $(VENV)/.dev ## generate a Python client from the OpenAPI description, and run a crew with it
	test -x $(VENV)/generator/bin/openapi-python-client || $(PYTHON) -m venv $(VENV)/generator
	$(VENV)/generator/bin/python -m pip install --quiet "openapi-python-client==0.29.1"
	OPENAPI_PYTHON_CLIENT=$(CURDIR)/$(VENV)/generator/bin/openapi-python-client $(BIN)/python -m pytest tests/api/test_generated_client.py $(ARGS)

audit: $(VENV)/.dev ## look for known vulnerabilities in what is locked (asks public services)
	$(BIN)/pip-audit --strict --disable-pip --requirement requirements.lock

lock: $(VENV)/.dev ## write both lock files anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --extra build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --constraint requirements.lock --extra build --extra dev pyproject.toml -o requirements-dev.lock

clean: ## remove what the commands made
	rm -rf $(VENV) demo bench docs/_build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
	find app storage tests -name __pycache__ -type d -prune -exec rm -rf {} +
