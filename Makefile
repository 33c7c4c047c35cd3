# Everything a newcomer needs: `make demo` and `make test`. TORCH_INDEX_URL may name another wheel index for torch.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 7
METHOD ?= energy_boundary
DEMO ?= var/demo
PROCESSES ?= 2
RESULTS ?= var/benchmark
DEVICE ?= cpu
# Which tests `make test` takes: a folder, or --ignore with one; all when empty.
TESTS ?=
TORCH := torch==2.13.0
# Bytecode does not land beside the sources, and every process that tests start finds it.
export PYTHONPYCACHEPREFIX := $(CURDIR)/var/pycache
unexport PYTHONDONTWRITEBYTECODE

NOT_LOCKED := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc \
	cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)
LOCK = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --quiet \
	--no-emit-index-url --no-emit-find-links $(addprefix --no-emit-package ,$(NOT_LOCKED))

.PHONY: setup up demo check test test-slow lint types imports migrations openapi bench benchmark benchmark-full gpu lock clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/python -m demo --seed $(SEED) --method $(METHOD) --out $(DEMO)

up: setup
	$(BIN)/python -m demo.serve --out $(DEMO)

check: lint types imports migrations openapi

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml deletion_service workers ml demo benchmarks

# Checks that load the settings get a home and keys of their own.
CHECK_HOME := $(CURDIR)/var/check

$(CHECK_HOME)/secrets: $(VENV)/.installed
	LETHE_HOME=$(CHECK_HOME) $(BIN)/python manage.py create_keys

types: setup $(CHECK_HOME)/secrets
	LETHE_HOME=$(CHECK_HOME) $(BIN)/mypy

imports: setup
	$(BIN)/lint-imports --no-cache

migrations: setup $(CHECK_HOME)/secrets
	LETHE_HOME=$(CHECK_HOME) $(BIN)/python manage.py makemigrations --check --dry-run

openapi: setup $(CHECK_HOME)/secrets
	LETHE_HOME=$(CHECK_HOME) $(BIN)/python manage.py spectacular --validate --fail-on-warn --file var/check/openapi.json --format openapi-json
	cmp docs/openapi.json var/check/openapi.json

test: setup
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile -m "not slow and not gpu" $(TESTS)

# Beside the environment, not in it: wherever it is installed, peft imports it, and that takes seconds. One slow test
# needs it, and says so where this fails.
$(VENV)/quantised/.installed: requirements-quantised.lock | setup
	-$(BIN)/python -m pip install --quiet --require-hashes --no-deps --target $(VENV)/quantised -r $< && touch $@

test-slow: setup $(VENV)/quantised/.installed
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder -m "slow and not gpu"

bench: setup
	$(BIN)/python -m benchmarks

# Deletion methods beside gold: one seed and four methods, or everything (hours; continues where it was stopped).
benchmark: setup
	$(BIN)/python -m benchmarks.methods --work var/methods-small --out $(RESULTS) --processes $(PROCESSES)

benchmark-full: setup
	$(BIN)/python -m benchmarks.methods --work var/methods-$(if $(filter cpu,$(DEVICE)),full,large) --out $(RESULTS) --processes $(PROCESSES) --size $(if $(filter cpu,$(DEVICE)),full,large) --device $(DEVICE)
	$(BIN)/python -m benchmarks.methods --work var/methods-tofu-$(DEVICE) --out $(RESULTS) --processes $(PROCESSES) --size tofu --device $(DEVICE)

gpu: setup
	$(BIN)/python -m pytest -m gpu

# torch brings its own runtime libraries; which ones depends on the index it comes from.
lock:
	$(LOCK) --extra worker --extra benchmark --extra dev --output-file requirements.lock
	$(LOCK) --extra web --output-file requirements-web.lock
	$(LOCK) --extra quantised --no-deps --no-emit-package cryptography --output-file requirements-quantised.lock

clean:
	rm -rf var $(VENV)
