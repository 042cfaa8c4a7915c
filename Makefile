# `make demo` trains on drawn shapes in three minutes; `make test` runs the tests; `make lint` checks style.
# Each sets up .venv by itself, from requirements.txt. Another Python: make test PYTHON=/path/to/python3.10

# The first Python for which the locked stack exists. Each is run, for a name on the PATH may be an empty shim.
SUPPORTED := import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 12))
PYTHON ?= $(shell for python in python3.11 python3.10 python3.9 python3; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)
usable = $(shell test -n "$(PYTHON)" && $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null && echo yes)
wanted := simclr_tf needs Python 3.9, 3.10 or 3.11 (TensorFlow 2.15 exists for no other)
way_out := Install one of them, or name it: make PYTHON=/path/to/python3.11

# What `make lock` resolves for, the oldest first.
LOCK_PYTHONS ?= python3.9 python3.10 python3.11

.PHONY: demo test test-slow lint bench wheel lock clean

demo: .venv/ready
	.venv/bin/python examples/demo.py

test: .venv/ready
	.venv/bin/python -m pytest -m "not slow" --numprocesses=2 --dist=loadfile --durations=10

test-slow: .venv/ready
	.venv/bin/python -m pytest -m slow --durations=10

lint: .venv/ready
	.venv/bin/ruff check
	.venv/bin/ruff format --check

bench: .venv/ready
	.venv/bin/python benchmarks/run.py

wheel: .venv/ready
	.venv/bin/python -m build --no-isolation

lock:
	python3 .ci/lock.py $(LOCK_PYTHONS) > requirements.txt.new
	mv requirements.txt.new requirements.txt

clean:
	rm -rf .venv build dist simclr_tf.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/locked: requirements.txt
	$(if $(usable),,$(error $(wanted); $(or $(PYTHON),python3) is not one. $(way_out)))
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 -r requirements.txt
	touch $@

.venv/ready: .venv/locked setup.cfg pyproject.toml
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
