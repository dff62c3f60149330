# make book    builds the site: sets up .venv, executes the chapters, writes _build/html
# make clean   removes what was built; .venv stays
#
# Every target does its own set-up (.ci/environment.py) and is quick when there is nothing to do.

PYTHON ?= python3
# Paths are relative, so that the project may live in a folder with a blank in its name.
BIN := .venv/bin

.PHONY: help book clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

environment = command -v "$(PYTHON)" >/dev/null || { \
	echo "No $(PYTHON) was found. Install Python 3.11 or newer, or say where it is: make PYTHON=/path/to/python3.12 $@" >&2; \
	exit 1; }; "$(PYTHON)" .ci/environment.py

# The keeper ends with make: whatever the build started ends then, too.
build = exec "$(BIN)/python" book/_ext/keeper.py $$PPID "$(BIN)/jupyter-book" build . -W -n --keep-going

book:
	@$(environment) book
	@$(build)
	@echo
	@echo "The site is here: $(CURDIR)/_build/html/index.html"

clean:
	rm -rf _build
