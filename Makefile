# Every target sets up what it needs: a virtual environment in .venv, with learnkit and its libraries in it.
# Python 3.11 or later and make are all that has to be there. `make` alone lists the targets.
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)

# The first Python that is new enough and can make environments; name another with `make test PYTHON=/path/to/python`.
ifndef PYTHON
PYTHON := $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
endif

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo test faults nb check docs readme base dev clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo                   learn to tell cats from dogs on drawn pictures'
	@echo 'make demo DATA=X OUT=DIR    the same on a data set or a folder of class folders, results into DIR (ARGS=... for more)'
	@echo 'make test                   run every notebook and every test'
	@echo 'make faults                 break all that can break, and print what was survived'
	@echo 'make nb NB=01_core          clean, export, run and style-check one notebook (NB=01 is enough)'
	@echo 'make check                  all that has to hold before a commit is shared (.ci/run)'
	@echo 'make docs                   HTML pages from the notebooks, in _docs'
	@echo 'make readme                 README.md from nbs/index.ipynb'
	@echo 'make base, make dev         only set up .venv, for using learnkit or for working on it'
	@echo 'make clean                  remove .venv and everything built'

no_python = No Python 3.11 or later that can make environments was found. Install one (https://www.python.org/downloads, or your \
system's packages python3 and python3-venv), or name one: make $@ PYTHON=/path/to/python
base dev:
	$(if $(PYTHON),,$(error $(no_python)))
	@'$(PYTHON)' tools/install.py $@

demo: base
	$(BIN)/learnkit demo $(if $(DATA),--data '$(DATA)') $(if $(OUT),--out '$(OUT)') $(ARGS)

# One thread for each notebook: nbdev-test runs as many notebooks at a time as there are cores.
test: export OMP_NUM_THREADS = 1
test: dev
	$(BIN)/nbdev-test
	$(BIN)/python -m pytest

# All cases with a mark, the slow ones too, in one table.
faults: export OMP_NUM_THREADS = 1
faults: dev
	$(BIN)/python tests/faults.py

nb: F = $(firstword $(wildcard nbs/$(NB:nbs/%=%) nbs/$(NB).ipynb nbs/$(NB)_*.ipynb))
nb: dev
	$(if $(NB),$(if $(F),,$(error There is no notebook nbs/$(NB).ipynb)),$(error Which notebook? For example: make nb NB=01_core))
	$(BIN)/nbdev-clean --fname '$(F)'
	$(BIN)/nbdev-export
	$(BIN)/nbdev-test --save '$(F)'
	$(BIN)/nbdev-clean --fname '$(F)'
	$(BIN)/chkstyle --show-rule '$(F)'

check:
	bash .ci/run

docs: dev
	$(BIN)/python tools/docs.py

readme: dev
	$(BIN)/python tools/docs.py --readme

clean:
	rm -rf .venv _docs _proc build dist *.egg-info .pytest_cache
