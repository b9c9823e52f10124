# `make demo` and `make test` are all that is needed; both set themselves up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Processes that share the tests; Paddle keeps each to one core. Files stay whole.
JOBS ?= 2
# After so many no further row of the matrix begins in test-smallest.
MINUTES ?= 3
SHARED := --numprocesses $(JOBS) --dist loadfile

COMPAT := tests/hosts/test_contract.py tests/hosts/test_events.py tests/hosts/test_savers.py tests/session/test_resume.py tests/session/test_parallel.py tests/session/test_tensor_parallel.py tests/zoo

.PHONY: demo demo-zh test test-compat test-matrix test-smallest wheel zoo zoo-docs bench ablation fuzz kill kill-lora fleet-check lint docs readme-assets clean

demo: $(READY)
	$(BIN)/python examples/finetune_sentiment.py

# Real Chinese reviews; three fine-tunings side by side.
demo-zh: $(READY)
	$(BIN)/python examples/finetune_reviews_zh.py

test: $(READY) lint
	$(BIN)/python -m pytest $(SHARED) --cov --cov-report=term:skip-covered --cov-fail-under=95

# The contract, resume and data-parallel tests under the two further Trainers.
test-compat: .venv-nlp3/.ready .venv-formers/.ready
	.venv-nlp3/bin/python -m pytest $(SHARED) $(COMPAT)
	.venv-formers/bin/python -m pytest $(SHARED) $(COMPAT)

# The tests under every release of Paddle, Trainer and Python that we claim; resumed where it stopped.
test-matrix:
	$(PYTHON) tests/matrix.py

# A few of them under each Paddle, in minutes; what cannot be built here is skipped, and named.
test-smallest: $(READY)
	$(BIN)/python tests/matrix.py --smallest --minutes $(MINUTES)

# dist/*.whl and dist/*.tar.gz, checked; by the newest setuptools, which names them as the index wants.
wheel: $(READY)
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# What "auto" finds in every network of the zoo; zoo-docs writes the listings and docs/zoo*.md anew.
zoo: $(READY)
	$(BIN)/python tests/zoo/zoo.py

zoo-docs: $(READY) .venv-nlp3/.ready .venv-formers/.ready
	$(BIN)/python tests/zoo/zoo.py --write
	.venv-nlp3/bin/python tests/zoo/zoo.py --write library
	.venv-formers/bin/python tests/zoo/zoo.py --write library
	$(BIN)/python tests/zoo/zoo.py --docs

.venv-nlp3/.ready: setup.cfg pyproject.toml
	test -x .venv-nlp3/bin/python || $(PYTHON) -m venv .venv-nlp3
	.venv-nlp3/bin/python tests/install.py cpu,nlp3,test
	touch $@

.venv-formers/.ready: setup.cfg pyproject.toml
	test -x .venv-formers/bin/python || $(PYTHON) -m venv .venv-formers
	.venv-formers/bin/python tests/install.py cpu,formers,test
	touch $@

# What it costs and saves, with Lightning and finetuning-scheduler beside it; about 20 minutes.
# One question alone: .venv/bin/python benchmarks/bench.py QUESTION.
bench: $(READY) .venv-peers/.ready
	$(BIN)/python benchmarks/bench.py

.venv-peers/.ready: benchmarks/peers.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers.txt
	touch $@

# Which schedule helps: about 1,300 trainings, some hours of all cores; run it again to go on.
# Parts of it: .venv/bin/python benchmarks/ablation.py --task noise --schedule LISA full.
ablation: $(READY)
	$(BIN)/python benchmarks/ablation.py

# 10,000 generated networks, in parts: run it again to go on. Delete .cache to begin anew.
fuzz: $(READY)
	$(BIN)/python tests/generated.py

# A Trainer run killed at each of 50 steps and resumed.
kill: $(READY)
	$(BIN)/python tests/programs/kill.py

# The same with LoRA and unified checkpoints, at each of 20 steps.
kill-lora: $(READY)
	$(BIN)/python tests/programs/kill.py 20 lora

# Several processes: what this machine allows, and what it does not, by name.
fleet-check: $(READY)
	$(BIN)/python -m pytest tests/session/test_parallel.py tests/session/test_tensor_parallel.py
	$(BIN)/python tests/programs/on_gpus.py

# The site, English and Chinese, into docs/_build/html; a warning is an error.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# The documents' pictures, outputs and tables of options, as they are today.
readme-assets: $(READY)
	$(BIN)/python docs/readme_assets.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python tests/install.py cpu,nlp,plot,test
	touch $@

clean:
	rm -rf docs/_build dist .matrix $(VENV) .venv-nlp3 .venv-formers .venv-peers .cache build *.egg-info .pytest_cache .mypy_cache .ruff_cache
