# Two commands: `make demo` runs the main job, `make test` passes the tests. Each installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUT ?= runs

.PHONY: demo test test-slurm bench-slurm lint unit integration table clean

demo: $(INSTALLED)
	$(BIN)/segbench run +experiment=demo out=$(OUT)

# one worker a core, each with one thread: small products do not gain from more
test: $(INSTALLED) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist loadfile --durations 25

# brings up a real Slurm on loopback, as root on Debian, and takes it down again
test-slurm: $(INSTALLED)
	$(BIN)/python -m tests.slurm.cluster install
	SEGBENCH_SLURM=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slurm

# writes experiments/results/slurm_launcher.md
bench-slurm: $(INSTALLED)
	$(BIN)/python -m tests.slurm.cluster install
	eval "$$($(BIN)/python -m tests.slurm.cluster up /tmp/segbench-bench)"; \
	  $(BIN)/python -m slurm.benchmark; status=$$?; \
	  $(BIN)/python -m tests.slurm.cluster down /tmp/segbench-bench; exit $$status

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/python -m pytest tests/unit

integration: $(INSTALLED)
	$(BIN)/python -m pytest tests/integration

# the folder is made and filled in one go: a broken install is begun again
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; give one with make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(OUT) build
