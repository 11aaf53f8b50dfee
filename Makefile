# Copyright (c) 2026, The nemo_vtb authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

# Every target makes its own set-up (tools/bootstrap.sh); nothing but Python and make is needed beforehand.
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all torture bench docs lint format gpu-pack demo-long clean

PY := .venv/bin/python
# tests and benchmarks start several processes; more than one thread each would only compete for cores
test test-all torture bench: export OMP_NUM_THREADS ?= 1

QUICK_ASSETS := minimind2-small whisper-tiny.en minimind2-small.whisper-tiny.en demo-corpus open-dialogues
TEST_ASSETS := minimind2-small whisper-tiny.en demo-corpus
LONG_ASSETS := smollm2-135m-instruct whisper-tiny.en demo-corpus-smollm2

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' \
	  | while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

quickstart: ## install, train on all four kinds of data, evaluate, answer, export (about 25 minutes after the installation)
	@sh tools/bootstrap.sh assets $(QUICK_ASSETS)
	@sh tools/quickstart.sh

test: ## install, then run the tests (about 5 minutes after the installation)
	@sh tools/bootstrap.sh assets $(TEST_ASSETS)
	@sh tools/bootstrap.sh browser
	@$(PY) -m pytest

test-all: ## install, then run all tests, slow ones included
	@sh tools/bootstrap.sh assets $(QUICK_ASSETS) $(LONG_ASSETS)
	@sh tools/bootstrap.sh browser
	@$(PY) -m pytest -m "not gpu"

torture: ## do every fault of the matrix to real runs and files, write docs/reliability.md (1 to 2 hours on 2 cores; goes on where it was ended)
	@sh tools/bootstrap.sh assets $(TEST_ASSETS)
	@$(PY) benchmarks/torture/run.py $(TORTURE)

bench: ## run every benchmark with --quick; the last line of each is one JSON object
	@sh tools/bootstrap.sh assets $(TEST_ASSETS)
	@set -e; for script in benchmarks/*.py; do echo "==> $$script --quick"; $(PY) "$$script" --quick; done

docs: ## build the site of the documentation into build/site; a broken link is an error
	@sh tools/bootstrap.sh venv
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "open build/site/index.html, or with search: $(PY) -m http.server --directory build/site"

lint: ## check with ruff, formatter, mypy, style rules and shellcheck
	@sh tools/bootstrap.sh venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) tools/check_style.py
	.venv/bin/shellcheck tools/*.sh benchmarks/gpu/*.sh examples/slurm/*.sbatch .ci/run

format: ## apply ruff's fixes and formatter
	@sh tools/bootstrap.sh venv
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

gpu-pack: ## collect in .gpu what a GPU machine without a network lacks (TE=te.tar.xz adds Transformer Engine); benchmarks/gpu/README.md
	@sh tools/bootstrap.sh venv
	@$(PY) benchmarks/gpu/pack.py $(if $(TE),--te $(TE))

demo-long: ## the larger demonstration (about an hour on 2 cores, 12 GB of memory); interrupted with Ctrl-C, it resumes from its last checkpoint
	@sh tools/bootstrap.sh assets $(LONG_ASSETS)
	@$(PY) examples/speechllm_joint_sft.py --config-name demo_long

clean: ## remove .venv, caches and builds (not runs/, not the cache of assets)
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
