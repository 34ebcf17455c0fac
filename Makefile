# Everything sets itself up: a virtual environment in .venv with the pinned set of constraints.txt. What pip says is in
# .venv/set-up.log. Without an NVIDIA GPU torch is PyTorch's CPU build where its index answers: CPU_INDEX= asks none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: sample test slow check package machine mutants faults browser same-numbers bench bench-gpu static-cost site format \
	lint types clean

sample: $(STAMP)  ## Draw A to Z four times from the embedded model of letters into samples.png
	$(BIN)/fastdiff sample letters --label all -n 104 --steps 100 --out samples.png --overwrite

test: $(STAMP)-dev  ## Run the tests, in two processes of one thread
	$(BIN)/python -m pytest -n 2 --dist worksteal --benchmark-disable

slow: $(STAMP)-dev  ## Run the tests that `make test` leaves out: the same, at greater length
	$(BIN)/python -m pytest -n 2 --dist worksteal --benchmark-disable -m slow

check: lint types test  ## What every commit must pass

package: $(STAMP)-dev  ## Build the sdist and the wheel, install them in a clean environment, and use them
	$(BIN)/python tests/distribution/run.py

machine: $(STAMP)-dev  ## Execute the compiled kernels' PTX, without a GPU
	$(BIN)/python tests/machine/run.py

mutants: $(STAMP)-dev  ## Apply the faults of tests/mutants/ one by one; the tests must find each
	$(BIN)/python tests/mutants/run.py

faults: $(STAMP)-dev  ## Try every fault of tests/faults/ (about half an hour); write docs/faults.md
	$(BIN)/python tests/faults/run.py

browser: $(STAMP)  ## Try `fastdiff demo` in Debian's chromium; skipped where there is none
	@if command -v chromium > /dev/null; then $(PYTHON) tools/set_up.py $(VENV) --extras browser; fi
	$(BIN)/python tests/browser/run.py

same-numbers: $(STAMP)-dev  ## Compare the numbers of this checkout with those of the commit BASE (default: HEAD)
	$(BIN)/python benchmarks/same_numbers.py $(or $(BASE),HEAD)

lint: $(STAMP)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)-dev  ## Run the benchmarks
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

static-cost: $(STAMP)-dev  ## Compile every kernel for GPUs that need not be there, and print what it costs and executes
	$(BIN)/python benchmarks/static_cost.py --executed

bench-gpu:  ## On a GPU, installing nothing: check the kernels, time them, write results and README's tables. MINUTES=30
	PYTHONPATH=.:kernels $(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu_run.py --minutes $(or $(MINUTES),30) \
		--out build/gpu
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/readme.py

site: $(STAMP)-docs  ## Build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

format: $(STAMP)-dev  ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .benchmarks .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) tools/set_up.py $(VENV)
	@touch $@

$(STAMP)-dev: $(STAMP)
	@$(PYTHON) tools/set_up.py $(VENV) --extras test,dev,eval,interop,plot,mixture,log
	@touch $@

$(STAMP)-docs: $(STAMP)
	@$(PYTHON) tools/set_up.py $(VENV) --extras docs
	@touch $@
