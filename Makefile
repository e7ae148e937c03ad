# make demo   train a teacher and distil students on scikit-learn's handwritten digits; report in demo/
# make test   run the tests, as many at a time as there are cores (8 at most)
# make test-exhaustive  run those that make test leaves out because they take long
# make docs   build the documentation as a site, in site/
# make bench  measure on this machine's CPU; results in benchmarks/results
# All set up .venv by themselves: Python >= 3.10 and a C++ compiler are enough. PYTHON names another interpreter:
#   make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
PYTEST := $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
BUILD := pyproject.toml setup.py constraints.txt $(wildcard build_backend/*.py) csrc/sources.txt \
         $(shell cat csrc/sources.txt) $(wildcard csrc/*.h csrc/*/*.h csrc/*/*/*.h kernels/*.h kernels/*/*)

.PHONY: demo test test-exhaustive docs bench clean

demo: $(VENV)/installed-demo
	$(VENV)/bin/lit-fast distill --run-dir demo

test: $(VENV)/installed-test
	$(PYTEST) -m "not exhaustive"

test-exhaustive: $(VENV)/installed-test
	$(PYTEST) -m exhaustive

docs: $(VENV)/installed-test
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

bench: $(VENV)/installed-test
	OMP_NUM_THREADS=2 $(VENV)/bin/python -m pytest benchmarks --device cpu --threads 2 --results benchmarks/results

clean:
	rm -rf $(VENV) build dist site lit_fast.egg-info lit_fast/_C*.so

# torch first: the extension is then built against it.
$(VENV)/installed-%: $(BUILD) | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --constraint constraints.txt torch
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[$*]'
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("lit_fast needs Python 3.10 or later, " \
	  "$(PYTHON) is " + sys.version.split()[0] + "; name another: make ... PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
