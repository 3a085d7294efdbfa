# Each verb makes the virtual environment that it needs, so a fresh clone takes one command.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# Who names a Python means that one, also where another one has made the environment.
ifeq ($(origin PYTHON) $(wildcard $(READY)),command line $(READY))
ifneq ($(shell $(PYTHON) -c 'import sys; print(sys.version)' 2>&1),$(shell $(BIN)/python -c 'import sys; print(sys.version)'))
ifneq ($(MAKECMDGOALS),clean)
$(error $(VENV) was made with $(shell $(BIN)/python --version), and $(PYTHON) is $(or $(shell $(PYTHON) --version),not there): `make clean` removes it)
endif
endif
endif

.DEFAULT_GOAL := help
.PHONY: help serve test crash chaos attack soak fuzz lint audit bench dist clean

help: ## list the verbs
	@awk -F ': .*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(READY) ## run the server; ARGS="--port 8080" hands it flags
	@$(BIN)/pere serve $(ARGS)

# Many tests wait for a process, a disk or a deadline, so two cores are kept busy by four at once.
test: $(READY)-test ## run the tests; ARGS="-k receipt" hands pytest flags
	@$(BIN)/python -m pytest --numprocesses 4 --dist worksteal $(ARGS)

crash: $(READY)-test ## kill a server under load, fifty times, and look for losses; ARGS="--kills 500 --seed 7" hands flags
	@$(BIN)/python -m tests.crash $(ARGS)

chaos: $(READY)-test ## kill nodes and Redis under load, stop it, fill it, cut its links, and look for losses; ARGS="--minutes 10 --seed 7" hands flags
	@$(BIN)/python -m tests.chaos $(ARGS)

attack: $(READY)-test ## let strangers do what they like to a server, and see what the honest notice; ARGS="--minutes 20 --keys" hands flags
	@$(BIN)/python -m tests.attack $(ARGS)

soak: $(READY)-test ## do everything at random to a server and to a model of it, and compare; ARGS="--minutes 60 --seed 7" hands flags
	@$(BIN)/python -m tests.soak $(ARGS)

fuzz: $(READY)-fuzz ## say hostile bytes to all that reads them (Linux); ARGS="--minutes 60 --seed 7 --target http" hands flags
	@$(BIN)/python -m tests.fuzz $(ARGS)

lint: $(READY)-audit ## look for slips of the pen, and in pere/ for wrong types and what is dangerous
	@$(BIN)/ruff check --quiet --config .ci/ruff.toml pere tests bench
	@$(BIN)/mypy --no-error-summary pere
	@$(BIN)/bandit --quiet --recursive pere --skip B101,B311 2>/dev/null  # where it only tells of each `nosec` that it met

audit: lint ## the same, and ask PyPI which of the installed packages are known to be dangerous
	@$(BIN)/pip freeze --exclude-editable | $(BIN)/pip-audit --strict --disable-pip --no-deps --requirement /dev/stdin --progress-spinner off

bench: $(READY)-bench ## a tour of all benchmarks, ten to fifteen minutes; ARGS="fanout mission" only these
	@$(BIN)/python -m bench $(ARGS)

dist: $(READY) ## build the wheel and the source archive into dist/
	@$(BIN)/pip install --quiet build
	@$(BIN)/python -m build

clean: ## remove all that was made here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .fuzz .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are as old as the newest installation: editing the requirements installs again, else a verb starts at once.
$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "PERE needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1 || true);" \
	         "name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "installing what PERE needs into $(VENV), which takes less than a minute, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[redis]'
	@touch $@

$(READY)-test: $(READY)
	@echo "installing what the tests need too, which takes a minute or two, once"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

# Of the others that PERE is measured beside, those that come by pip and npm; who is not here is left out, and said so.
$(READY)-bench: $(READY) bench/peers/requirements.txt bench/peers/better_sse/package.json
	$(BIN)/pip install --quiet --editable '.[bench]' --requirement bench/peers/requirements.txt
	@! command -v npm >/dev/null || npm install --prefix bench/peers/better_sse --no-package-lock --no-audit --no-fund --loglevel error || true
	@touch $@

$(READY)-audit: $(READY)-test
	$(BIN)/pip install --quiet --editable '.[audit]'
	@touch $@

$(READY)-fuzz: $(READY)-test
	$(BIN)/pip install --quiet --editable '.[fuzz]'
	@touch $@
