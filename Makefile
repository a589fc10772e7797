# Every target is a command a person can run; CI runs the same ones.
# An activated environment, else .venv, else whatever python is.
PYTHON ?= $(if $(VIRTUAL_ENV),python,$(firstword $(wildcard .venv/bin/python .venv/Scripts/python.exe) python))
# For programs that are not modules.
SCRIPTS = PATH="$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$$PATH"
WORKERS ?= 2
# CPU=1 installs torch's builds for the CPU.
CPU ?=
INSTALL = $(PYTHON) tools/install.py $(if $(CPU),--cpu)
QUICK = not slow and not gpu and not browser and not store

.PHONY: install check lint-workflows resolve test test-core test-all test-browser test-store test-next docs demo study study-tune \
	study-full study-convergence study-page gpu build publish lowest audit sbom

install:
	$(INSTALL)

check: lint-workflows
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright
	$(PYTHON) -m pyright --verifytypes promptreid --ignoreexternal
	$(PYTHON) -m codespell_lib
	$(SCRIPTS) lint-imports

# actionlint has no package that installs by itself; where it is on the PATH, it looks too.
lint-workflows:
	$(PYTHON) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(PYTHON) -m check_jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(PYTHON) -m check_jsonschema --builtin-schema vendor.readthedocs .readthedocs.yaml
	$(SCRIPTS) zizmor --offline --quiet .github
	if command -v actionlint; then actionlint; fi

# The systems: linux, windows, macos.
SYSTEMS ?= linux
resolve:
	$(PYTHON) tools/resolve.py $(SYSTEMS)

test:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) -m "$(QUICK)"

# What macOS and Windows are tested with; on Windows without the tests marked `posix`.
CORE = tests/test_package.py tests/test_files.py tests/losses tests/prompts tests/model tests/evaluation \
	tests/data tests/retrieval tests/hub/test_kept.py
test-core:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) -m "$(QUICK)" $(CORE)

# The development version of open_clip, which pyproject.toml does not allow yet.
test-next:
	$(PYTHON) -m pip install --quiet "open_clip_torch @ git+https://github.com/mlfoundations/open_clip"
	$(MAKE) test

# New cases of the property tests each time; `make test` draws the same ones.
test-all: export HYPOTHESIS_PROFILE = new_cases
test-all:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) -m "not gpu and not browser and not timing and not store"
	$(MAKE) test-store STORE_TESTS=
	$(PYTHON) -m pytest -m timing

# The demo in a real browser. PICTURES=docs/pictures takes the screenshots of the documentation again.
PICTURES ?=
AS_ROOT = $(shell [ "$$(id -u)" = 0 ] || echo sudo)

test-browser:
	command -v chromium || { $(AS_ROOT) apt-get update -q && \
		$(AS_ROOT) apt-get install -qy --no-install-recommends chromium fonts-dejavu-core; }
	$(INSTALL) --extras train,viz,hf,parquet,onnx,demo,store --groups dev,browser
	OMP_NUM_THREADS=1 PICTURES="$(PICTURES)" $(PYTHON) -m pytest tests/demo tests/docs/test_site.py tests/examples/test_service.py

# Stores in folders and on a real S3 cluster (SeaweedFS on loopback); test-all runs the long form.
STORE_TESTS ?= not slow
test-store:
	$(INSTALL) --extras train,viz,hf,parquet,onnx,store --groups dev,store
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "$(STORE_TESTS)" tests/store $(wildcard tests/retrieval/test_lance_*.py) \
		tests/retrieval/test_stored_gallery.py tests/cli/test_store_command.py

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

# Hours; what is done is kept, run by run. JOBS runs go side by side; DEVICE=cuda JOBS=6 on a GPU.
DEVICE ?= cpu
JOBS ?= 2
study-convergence:
	$(PYTHON) benchmarks/study/convergence.py all --device $(DEVICE) --jobs $(JOBS)

study-page:
	$(PYTHON) benchmarks/study/page.py
	$(PYTHON) benchmarks/study/convergence_page.py

# At most nine minutes on one GPU, with the installation of what is missing.
gpu:
	started=$$(date +%s) && \
	{ $(PYTHON) -c "import accelerate, open_clip, pytest" 2>/dev/null || $(INSTALL) --extras train; } && \
	$(PYTHON) benchmarks/gpu.py --spent $$(( $$(date +%s) - started ))

build:
	rm -rf dist
	$(PYTHON) -m build
	$(PYTHON) -m twine check --strict dist/*

# From a release's workflow, which the index trusts; nobody needs a password.
publish:
	$(PYTHON) tools/check_release.py
	$(PYTHON) -m uv publish dist/*

lowest:
	$(PYTHON) tools/lowest_versions.py -n $(WORKERS) -m "$(QUICK)"

# Known vulnerabilities of what is installed here; asks a database on the network.
audit:
	$(INSTALL) --groups audit
	$(PYTHON) -m pip_audit --skip-editable --progress-spinner off

# A software bill of materials of what is installed here, for the release. Its tool does not know dynamic versions.
sbom:
	$(INSTALL) --groups audit
	mkdir -p build
	sed "s/^dynamic = .*/version = \"$$($(PYTHON) -c 'import promptreid; print(promptreid.__version__)')\"/" pyproject.toml \
		> build/pyproject.toml
	$(PYTHON) -m cyclonedx_py environment --pyproject build/pyproject.toml --output-file build/promptreid.cdx.json
