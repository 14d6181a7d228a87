# Everything runs in .venv; PYTHON picks the interpreter that makes it.
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3 2>/dev/null))
BIN := .venv/bin

.PHONY: install quickstart test lint clean

install: .venv/installed

.venv/installed: requirements.txt
	@test -n "$(PYTHON)" || { echo "error: no Python found; install Python 3.11 or 3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else \
	  "error: Python %d.%d found, 3.11 or 3.12 needed; name one with: make PYTHON=python3.11 ..." % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# A tiny model from random weights, trained on synthetic names, then asked for a masked character. The folder is the
# quick start's own and made anew.
quickstart: install
	rm -rf runs/quickstart
	OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/accelerate launch --quiet --config_file accelerate_configs/cpu.yaml run_mlm_domains.py \
	  --model_size tiny --dataset sample --output_dir runs/quickstart \
	  --epochs 2 --batch_size 128 --learning_rate 2e-3 --warmup_steps 20
	$(BIN)/python -m domain_canine fill runs/quickstart 'free?hop.com' 'exam[MASK]le.net' 'c??sulting.de'

# Two at a time: in one process the suite leaves every core but one idle.
test: install lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv runs build *.egg-info
