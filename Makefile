# hpcbridge: `make demo` shows it, `make test` proves it. `make help` lists the rest.
#
# Needs Python 3.11+ (with venv), make and a package index. uv and one
# environment per host are bootstrapped under .env/, which git ignores.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Where it is set, every process of the tests compiles every module it loads: half of all their time.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
ENVS   := .env
UV     := $(ENVS)/uv/bin/uv
CORE   := $(ENVS)/core/bin
AIRFLOW := $(ENVS)/airflow/bin
AIIDA  := $(ENVS)/aiida/bin
JUPYTERHUB := $(ENVS)/jupyterhub/bin
REFRAME := $(ENVS)/reframe/bin
GITLAB := $(ENVS)/gitlab/bin
# One host each: the extras that its environment installs.
EXTRAS_core    := sandbox,test
EXTRAS_airflow := airflow,test-airflow,sandbox,test
EXTRAS_aiida   := aiida,test-aiida,sandbox,test
EXTRAS_jupyterhub := jupyterhub,test-jupyterhub,sandbox,test
EXTRAS_reframe := reframe,sandbox,test
EXTRAS_gitlab  := gitlab,sandbox,test
# ReFrame is also run by the sandbox's users, who cannot write into its environment.
BYTECODE_reframe := --compile-bytecode
ADAPTERS := airflow aiida jupyterhub reframe gitlab
HOSTS := core $(ADAPTERS)
PARTS := core staging sandbox $(ADAPTERS)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z%<>-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(UV):
	$(PYTHON) -m venv $(ENVS)/uv
	$(ENVS)/uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'

# The stamp is younger than the pins it was made from, or it is made again.
$(ENVS)/%/.ready: constraints/%.txt pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(ENVS)/$*
	$(UV) pip install --quiet $(BYTECODE_$*) --python $(ENVS)/$*/bin/python -c constraints/$*.txt -e '.[$(EXTRAS_$*)]'
	touch $@
.PRECIOUS: $(ENVS)/%/.ready

.PHONY: env $(HOSTS:%=env-%)
env: env-core ## make the environment of core, CLI and sandbox
$(HOSTS:%=env-%): env-%: $(ENVS)/%/.ready ## make one host's environment

# What the sandbox shows its jobs at /opt/software: relocatable, and on the system's Python, which the cluster sees.
SYSTEM_PYTHON ?= /usr/bin/python3
.PHONY: env-cluster
env-cluster: $(ENVS)/cluster/.ready ## make the cluster's software: JupyterLab, jupyterhub-singleuser, ipykernel, numpy
$(ENVS)/cluster/.ready: constraints/cluster.txt | $(UV)
	$(UV) venv --quiet --allow-existing --relocatable --python $(SYSTEM_PYTHON) $(ENVS)/cluster
	$(UV) pip install --quiet --compile-bytecode --python $(ENVS)/cluster/bin/python -r constraints/cluster.txt
	touch $@

# The oldest JupyterHub that is supported, beside the one that the adapter is developed on.
.PHONY: env-jupyterhub55
env-jupyterhub55: $(ENVS)/jupyterhub55/.ready ## make the environment of JupyterHub 5.5, for its smoke test
$(ENVS)/jupyterhub55/.ready: pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(ENVS)/jupyterhub55
	$(UV) pip install --quiet --python $(ENVS)/jupyterhub55/bin/python -c constraints/core.txt -e '.[jupyterhub]' 'jupyterhub==5.5.*'
	touch $@

# JupyterHub's proxy, a program of Node.js.
.PHONY: env-proxy
env-proxy: $(ENVS)/proxy/.ready ## install configurable-http-proxy
$(ENVS)/proxy/.ready:
	npm install --silent --no-fund --no-audit --prefix $(ENVS)/proxy configurable-http-proxy@5
	touch $@

.PHONY: demo
demo: env-airflow ## the sandbox, a real Airflow and one DAG, from nothing to a checked result
	$(AIRFLOW)/python examples/demo.py

.PHONY: demo-jupyterhub
demo-jupyterhub: env-jupyterhub env-cluster env-proxy ## the sandbox and a real JupyterHub before it, to log in to
	$(JUPYTERHUB)/python examples/local_jupyterhub.py

# Some workers, a file each at a time: most of the tests' time is waiting. Figures are measured alone.
TEST_WORKERS ?= 4
SIDE_BY_SIDE = -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --timeout=900
test-reframe test-gitlab: TEST_WORKERS = 4
.PHONY: test $(PARTS:%=test-%)
test: $(PARTS:%=test-%) ## the quick truth (short time constants)
test-core: env-core ## core alone
	$(CORE)/pytest $(SIDE_BY_SIDE) tests/core $(PYTEST_ARGS)
test-staging: env-core ## files and trees alone
	$(CORE)/pytest $(SIDE_BY_SIDE) tests/staging $(PYTEST_ARGS)
test-sandbox: env-core ## the sandbox alone
	$(CORE)/pytest $(SIDE_BY_SIDE) tests/sandbox $(PYTEST_ARGS)
test-airflow: env-airflow ## the Airflow provider alone
	$(AIRFLOW)/pytest tests/airflow --timeout=600 --maxfail=5 $(PYTEST_ARGS)
test-aiida: env-aiida ## the AiiDA plugin alone
	$(AIIDA)/pytest -n 2 --dist loadfile tests/aiida --timeout=900 $(PYTEST_ARGS)
test-jupyterhub: env-jupyterhub env-cluster env-proxy ## the JupyterHub spawner alone
	$(JUPYTERHUB)/pytest -n 3 --dist loadfile --no-loadscope-reorder tests/jupyterhub $(PYTEST_ARGS)
test-reframe: env-reframe ## the ReFrame backend alone
	$(REFRAME)/pytest $(SIDE_BY_SIDE) tests/reframe $(PYTEST_ARGS)
test-gitlab: env-gitlab ## the GitLab executor alone
	$(GITLAB)/pytest $(SIDE_BY_SIDE) tests/gitlab $(PYTEST_ARGS)

# The full figures: real time constants, full N. Takes its time.
.PHONY: $(PARTS:%=prove-%)
prove-core: env-core ## core with its full figures
	HPCBRIDGE_PROVE=1 $(CORE)/pytest tests/core --timeout=3000 $(PYTEST_ARGS)
prove-staging: env-core ## files and trees with their full figures
	HPCBRIDGE_PROVE=1 $(CORE)/pytest tests/staging --timeout=3000 $(PYTEST_ARGS)
prove-sandbox: env-core ## the sandbox with its full figures
	HPCBRIDGE_PROVE=1 $(CORE)/pytest tests/sandbox --timeout=3000 $(PYTEST_ARGS)
prove-airflow: env-airflow ## the Airflow provider with its full figures
	HPCBRIDGE_PROVE=1 $(AIRFLOW)/pytest tests/airflow --timeout=3000 $(PYTEST_ARGS)
prove-aiida: env-aiida ## the AiiDA plugin with its full figures
	HPCBRIDGE_PROVE=1 $(AIIDA)/pytest tests/aiida --timeout=3000 $(PYTEST_ARGS)
prove-jupyterhub: env-jupyterhub env-cluster env-proxy env-jupyterhub55 ## the JupyterHub spawner with its full figures
	HPCBRIDGE_PROVE=1 $(JUPYTERHUB)/pytest tests/jupyterhub --timeout=3000 $(PYTEST_ARGS)
prove-reframe: env-reframe ## the ReFrame backend with its full figures
	HPCBRIDGE_PROVE=1 $(REFRAME)/pytest tests/reframe --timeout=3000 $(PYTEST_ARGS)
prove-gitlab: env-gitlab ## the GitLab executor with its full figures
	HPCBRIDGE_PROVE=1 $(GITLAB)/pytest tests/gitlab --timeout=3000 $(PYTEST_ARGS)

.PHONY: bench
bench: env-core ## hpcbridge beside pyfirecrest, in one run, as ratios
	$(CORE)/python -m benchmarks $(BENCH_ARGS)

.PHONY: lint format
lint: $(HOSTS:%=env-%) ## ruff, mypy --strict, who may import whom
	$(CORE)/ruff check .
	$(CORE)/ruff format --check .
	$(CORE)/mypy
	printf '%s\n' $(ADAPTERS) | \
	  xargs -P 2 -I {} env $(ENVS)/{}/bin/mypy --config-file pyproject.toml --cache-dir .mypy_cache/{} -p hpcbridge_{}
	$(CORE)/lint-imports
format: env-core ## let ruff rewrite what it can
	$(CORE)/ruff check --fix .
	$(CORE)/ruff format .

# A week old: what every mirror of the index has by now.
SETTLED = $$(date -u -d '7 days ago' +%Y-%m-%dT00:00:00Z)
.PHONY: constraints
constraints: $(UV) ## resolve the pins anew (no index address in them)
	for host in $(HOSTS); do \
	  extras=$$(make -s extras-$$host); \
	  $(UV) pip compile --quiet --upgrade --python-version 3.11 --exclude-newer "$(SETTLED)" \
	    --no-emit-index-url --no-header pyproject.toml \
	    $$(printf -- '--extra %s ' $${extras//,/ }) -o constraints/$$host.txt; \
	done
	printf '%s\n' 'jupyterhub>=6.1,<7' 'jupyterlab>=4,<5' ipykernel numpy | \
	  $(UV) pip compile --quiet --upgrade --python-version 3.11 --exclude-newer "$(SETTLED)" \
	    --no-emit-index-url --no-header - -o constraints/cluster.txt
.PHONY: $(HOSTS:%=extras-%)
$(HOSTS:%=extras-%): extras-%:
	@echo $(EXTRAS_$*)

.PHONY: clean
clean: ## remove environments, caches and artefacts
	rm -rf $(ENVS) artefacts build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
