# make run | test | test-dstack | check | bench | e2e | image | lock | clean. Needs make and Python >= 3.11 only;
# everything else goes into .venv, in the versions of requirements.lock.
# ARGS="..." is handed to what a target starts: make test ARGS="tests/core -x"

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PIP_INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock
IMAGE ?= gatewayd

.PHONY: help run test test-dstack check format bench e2e image lock clean

help:
	@head -n 4 Makefile | sed 's/^# *//'

run: .venv/installed
	.venv/bin/gatewayd demo $(ARGS)

test: .venv/installed-dev
	.venv/bin/python -m pytest $(ARGS)

check: .venv/installed-dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest tests/test_import_rules.py

format: .venv/installed-dev
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: .venv/installed-dev
	.venv/bin/python benchmarks/run.py $(ARGS)

e2e: .venv/installed-dev
	@test -n "$$GATEWAYD_SGLANG_DIR" || { \
		echo "make e2e needs real SGLang workers: install them as docs/real-sglang.md says, then" >&2; \
		echo "    make e2e GATEWAYD_SGLANG_DIR=/path/of/that/installation" >&2; exit 2; }
	.venv/bin/python -m pytest -m e2e $(ARGS)

# Against the client of a real dstack server, of whichever release: make test-dstack DSTACK=0.21.2
DSTACK ?= 0.22.5
test-dstack: .venv/installed-dev .venv-dstack/$(DSTACK)/bin/installed
	GATEWAYD_DSTACK_PYTHON=$(CURDIR)/.venv-dstack/$(DSTACK)/bin/python .venv/bin/python -m pytest -m dstack tests/whole $(ARGS)

.venv-dstack/%/bin/installed:
	$(PYTHON) -m venv --clear .venv-dstack/$*
	.venv-dstack/$*/bin/python -m pip install --quiet --disable-pip-version-check 'dstack[gateway,server]==$*'
	@touch $@

image:
	scripts/image.sh $(IMAGE)

# The interpreter is a link: when what it points at went away, make sees no file and starts afresh.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv --clear .venv || { echo "on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }

.venv/installed: pyproject.toml requirements.lock | .venv/bin/python
	$(PIP_INSTALL) --editable .
	@touch $@

.venv/installed-dev: pyproject.toml requirements.lock | .venv/bin/python
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ .venv/installed

# Newest versions that pyproject.toml admits, tried from nothing.
lock:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	$(PYTHON) -m venv "$$scratch" && \
	"$$scratch/bin/python" -m pip install --quiet --disable-pip-version-check '.[dev]' && \
	{ echo "# Exact versions of everything, used as constraints. Made by: make lock"; \
		"$$scratch/bin/python" -m pip freeze --exclude gatewayd; } > "$$scratch/lock" && \
	cp "$$scratch/lock" requirements.lock

clean:
	rm -rf .venv .venv-dstack build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
