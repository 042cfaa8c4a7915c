# `make demo` trains on drawn shapes in a minute or two; `make test` runs the tests; `make lint` checks style.
# Every target creates a virtual environment if it is missing. There are two stacks, each with a lock of exact versions:
#   keras2: TensorFlow 2.15 and Keras 2, on Python 3.9 to 3.11 (requirements.txt)
#   keras3: TensorFlow 2.21 and Keras 3, on Python 3.10 to 3.13 (requirements-keras3.txt)
# The default is keras2 where one of its Pythons is found, else keras3. To choose:
#   make test STACK=keras3
#   make test PYTHON=/path/to/python3.12
# Some test files alone: make test TESTS="tests/test_losses.py tests/test_views.py"

PYTHONS_keras2 := python3.11 python3.10 python3.9 python3
PYTHONS_keras3 := python3.13 python3.12 python3.11 python3.10 python3
SUPPORTED_keras2 := import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 12))
SUPPORTED_keras3 := import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))
LOCK_keras2 := requirements.txt
LOCK_keras3 := requirements-keras3.txt
TITLE_keras2 := TensorFlow 2.15 and Keras 2
TITLE_keras3 := TensorFlow 2.21 and Keras 3

# Each Python is run, since a name on the PATH may be an empty shim.
find_python = $(shell for python in $(or $(PYTHON),$(PYTHONS_$(1))); do \
	$$python -c '$(SUPPORTED_$(1))' 2>/dev/null && echo $$python && break; done)
DEFAULT_STACK := $(if $(call find_python,keras2),keras2,keras3)
STACK ?= $(DEFAULT_STACK)
$(if $(filter keras2 keras3,$(STACK)),,$(error STACK must be keras2 or keras3; got $(STACK)))
VENV := $(if $(filter $(DEFAULT_STACK),$(STACK)),.venv,.venv-$(STACK))
FOUND := $(call find_python,$(STACK))
says = $(TITLE_$(STACK)) ($(FOUND)), in $(VENV) from $(LOCK_$(STACK))
wanted := $(if $(filter keras2,$(STACK)),3.9 to 3.11,3.10 to 3.13)
required := simclr_tf needs Python 3.9 to 3.13; $(TITLE_$(STACK)) need $(wanted)
advice := Install one of them, or pass its path: make PYTHON=/path/to/python3.12

# The Pythons that `make lock` resolves for, oldest first.
LOCK_PYTHONS_keras2 ?= python3.9 python3.10 python3.11
LOCK_PYTHONS_keras3 ?= python3.10 python3.11 python3.12 python3.13

.PHONY: demo test test-unit test-end-to-end test-files test-slow lint bench wheel lock clean

demo: $(VENV)/ready
	@echo "$(says)"
	$(VENV)/bin/python examples/demo.py

# Two commands, so that each prints its own time. TESTS may hold files with tests of one kind only.
test: $(if $(TESTS),test-files,test-unit test-end-to-end)

run_tests = $(VENV)/bin/python -m pytest $(TESTS) -m "$(1)" --numprocesses=2 --dist=loadfile --durations=10

test-files: $(VENV)/ready
	@echo "$(says)"
	$(call run_tests,not slow)

test-unit: $(VENV)/ready
	@echo "$(says)"
	$(call run_tests,not slow and not end_to_end)

test-end-to-end: $(VENV)/ready
	@echo "$(says)"
	$(call run_tests,not slow and end_to_end)

test-slow: $(VENV)/ready
	$(VENV)/bin/python -m pytest -m slow --durations=10

lint: $(VENV)/ready
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

bench: $(VENV)/ready
	$(VENV)/bin/python benchmarks/run.py

wheel: $(VENV)/ready
	$(VENV)/bin/python -m build --no-isolation

lock:
	python3 .ci/lock.py --extra=keras2 $(LOCK_PYTHONS_keras2) > requirements.txt.new
	mv requirements.txt.new requirements.txt
	python3 .ci/lock.py $(LOCK_PYTHONS_keras3) > requirements-keras3.txt.new
	mv requirements-keras3.txt.new requirements-keras3.txt

clean:
	rm -rf .venv .venv-keras2 .venv-keras3 build dist simclr_tf.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/locked-$(STACK): $(LOCK_$(STACK))
	$(if $(FOUND),,$(error $(required); got $(or $(PYTHON),python3). $(advice)))
	@echo "$(says)"
	$(FOUND) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 -r $(LOCK_$(STACK))
	touch $@

$(VENV)/ready: $(VENV)/locked-$(STACK) setup.cfg pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
