# Every target is a command a person can run; CI runs the same ones.
PYTHON ?= python
WORKERS ?= 2

.PHONY: install check test test-all test-browser docs demo study study-tune study-full study-page build lowest

install:
	$(PYTHON) -m pip install --quiet --editable ".[dev]"

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright
	$(PYTHON) -m pyright --verifytypes promptreid --ignoreexternal
	codespell
	lint-imports

test:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) -m "not slow and not gpu and not browser"

test-all:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) -m "not gpu and not browser and not timing"
	$(PYTHON) -m pytest -m timing

# The demo in a real browser. PICTURES=docs/pictures takes the screenshots of the documentation anew.
PICTURES ?=
AS_ROOT = $(shell [ "$$(id -u)" = 0 ] || echo sudo)

test-browser:
	command -v chromium || { $(AS_ROOT) apt-get update -q && \
		$(AS_ROOT) apt-get install -qy --no-install-recommends chromium fonts-dejavu-core; }
	$(PYTHON) -m pip install --quiet --editable ".[dev,demo]" "playwright>=1.49"
	OMP_NUM_THREADS=1 PICTURES="$(PICTURES)" $(PYTHON) -m pytest tests/demo

docs:
	rm -rf docs/_build docs/api docs/drawn
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(PYTHON) tools/check_links.py docs/_build/html

demo:
	$(PYTHON) examples/train_cuhk.py

# The rates of the study's arms; committed, so this is only for a new version of data or base.
study-tune:
	OMP_NUM_THREADS=2 $(PYTHON) benchmarks/study/tune.py

study:
	OMP_NUM_THREADS=2 $(PYTHON) benchmarks/study/small.py

study-full:
	OMP_NUM_THREADS=2 $(PYTHON) benchmarks/study/full.py

study-page:
	$(PYTHON) benchmarks/study/page.py

build:
	$(PYTHON) -m build

lowest:
	$(PYTHON) tools/lowest_versions.py
