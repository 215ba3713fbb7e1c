# Everything is done by bootstrap.py, which needs Python 3.11 or newer and nothing else.
# make demo PIP_ARGS="--no-index --find-links DIR" works offline; make demo PYTHON=python3.12 chooses a Python.
PYTHON ?= python3

.PHONY: demo smoke test docs check
demo smoke test docs check:
	@$(PYTHON) bootstrap.py $@
