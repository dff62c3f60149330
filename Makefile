# make book    builds the site: sets up .venv, executes the chapters, writes _build/html
# make test    proves it: style, types, a build, and every test; sets up Chromium and the rest
# make lab     opens the course in JupyterLab, each chapter as a notebook to run and change
# make slides  builds the talk, in _build/html/slides (make book does, too)
# make serve   shows the site on this computer only, and builds again what you change
# make audit   measures the built site with Lighthouse, beside the same site as its theme makes it
# make bench   measures the library beside peers, and prints ratios
# make recordings   makes the recordings anew that are replayed where a browser or a hub is missing
# make clean   removes what was built; .venv stays
#
# Each target does its own set-up (.ci/environment.py), and is quick when there is nothing to do.
# Another Python is chosen by PYTHON=/path/to/python3.12, a part of the tests by TESTS=tests/draw,
# options of JupyterLab by LAB=--no-browser.

PYTHON ?= python3
TESTS ?=
PORT ?= 8000
LAB ?=
# Paths are relative, so that the project may live in a folder with a blank in its name.
BIN := .venv/bin

.PHONY: help book test style lab slides serve audit bench recordings clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make [a-z]*\) *\(.*\)/\1@\2/p' Makefile | while IFS=@ read -r target does; do printf '%-17s%s\n' "$$target" "$$does"; done

environment = command -v "$(PYTHON)" >/dev/null || { \
	echo "No $(PYTHON) was found. Install Python 3.11 or newer, or say where it is: make PYTHON=/path/to/python3.12 $@" >&2; \
	exit 1; }; "$(PYTHON)" .ci/environment.py

# The keeper ends with make: whatever was started ends then, too. Node.js may be in .venv.
keep = PATH="$$PWD/$(BIN):$$PATH" exec "$(BIN)/python" book/_ext/keeper.py $$PPID
build = $(keep) "$(BIN)/jupyter-book" build . -W -n --keep-going
# The whole book as PDF and EPUB, from the built pages, if these have changed.
formats = $(keep) "$(BIN)/python" book/_ext/whole_book.py

book:
	@$(environment) book
	@$(build)
	@$(formats)
	@echo
	@echo "The site is here: $(CURDIR)/_build/html/index.html"

test:
	@$(environment) test
	@$(MAKE) --no-print-directory style
	@echo "Building the book, with every chapter that has changed …"
	@$(build)
	@$(formats)
	@echo "Running the tests …"
	@$(keep) "$(BIN)/python" -m pytest --numprocesses=2 --dist=loadfile $(TESTS)

style:
	@echo "Checking style and types …"
	@"$(BIN)/ruff" check --quiet .
	@"$(BIN)/ruff" format --quiet --check .
	@"$(BIN)/mypy" --strict underhood

# As root, for example in a container, Jupyter wants to be told that this is meant.
lab:
	@$(environment) lab
	@echo "Press Ctrl-C twice to stop."
	@PATH="$$PWD/$(BIN):$$PATH" exec jupyter lab --ip=127.0.0.1 $$([ "$$(id -u)" != 0 ] || echo --allow-root) \
		--LabApp.default_url=/lab/tree/book/index.md $(LAB)

slides:
	@$(environment) book
	@$(keep) "$(BIN)/python" book/_ext/slides.py
	@echo "The talk is here: $(CURDIR)/_build/html/slides/index.html"

serve: book
	@$(keep) "$(BIN)/python" .ci/serve.py $(PORT)

audit: book
	@$(keep) "$(BIN)/python" -m benchmarks.audit

bench:
	@$(environment) test
	@$(keep) "$(BIN)/python" -m benchmarks

recordings:
	@$(environment) test
	@$(keep) "$(BIN)/python" book/recordings/renew.py

clean:
	rm -rf _build
