# `make demo` trains on drawn shapes in three to nine minutes; `make test` runs the tests; `make lint` checks style.
# Every target creates .venv from requirements.txt if it is missing. To use another Python:
# make test PYTHON=/path/to/python3.10

# The first Python that the locked stack supports. Each one is run, since a name on the PATH may be an empty shim.
SUPPORTED := import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 12))
PYTHON ?= $(shell for python in python3.11 python3.10 python3.9 python3; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)
usable = $(shell test -n "$(PYTHON)" && $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null && echo yes)
required := simclr_tf needs Python 3.9, 3.10 or 3.11, the versions that TensorFlow 2.15 supports
advice := Install one of them, or pass its path: make PYTHON=/path/to/python3.11

# The Pythons that `make lock` resolves for, oldest first.
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
	$(if $(usable),,$(error $(required); got $(or $(PYTHON),python3). $(advice)))
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 -r requirements.txt
	touch $@

.venv/ready: .venv/locked setup.cfg pyproject.toml
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
