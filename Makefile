# Each target sets up .venv first if it is missing or pyproject.toml has changed.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/default.yaml
ARGS ?=
RUN ?=
FORMAT ?=
DECODER ?= bilinear
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests wait for processes more than they compute: three at a time also on two cores.
SIDE_BY_SIDE := -n 3 --dist loadfile --no-loadscope-reorder

# make takes key=value for a variable of its own, and would run the default without a word.
KNOWN := PYTHON VENV CONFIG ARGS RUN FORMAT DECODER A B NAME
STRAY := $(filter-out $(KNOWN),$(foreach v,$(.VARIABLES),$(if $(filter command%,$(origin $v)),$v)))
$(if $(STRAY),$(error make does not know $(STRAY). It takes $(KNOWN); what is for segbench goes into ARGS, as in \
    make $(or $(firstword $(MAKECMDGOALS)),sweep) ARGS="$(foreach v,$(STRAY),$v=$($v))"))

.DEFAULT_GOAL := help
.PHONY: help setup sweep plan status table report compare list show check data-check data-get export evaluate test test-fast chaos lint types format bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## install segbench and what it needs into .venv

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("segbench needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

sweep: $(READY) ## run CONFIG=configs/default.yaml with ARGS="key=value ..." and print its table
	@$(BIN)/segbench sweep $(CONFIG) $(ARGS)

plan: $(READY) ## what CONFIG will do and take: runs, checks, time, memory and disk from a short trial
	@$(BIN)/segbench plan $(CONFIG) $(ARGS)

status: $(READY) ## where the newest sweep, or RUN=runs/name, stands; from another terminal too
	@$(BIN)/segbench status $(RUN) $(ARGS)

table: $(READY) ## the newest sweep's table again, or RUN=name; FORMAT=terminal|md|csv|tex|json
	@$(BIN)/segbench table $(RUN) $(if $(FORMAT),--format $(FORMAT)) $(ARGS)

report: $(READY) ## one HTML file of the newest sweep, or RUN=runs/name: verdict, table, plots, gallery
	@$(BIN)/segbench report $(RUN) $(ARGS)

compare: $(READY) ## what changed from sweep A=runs/a to B=runs/b, in config and in numbers
	@$(BIN)/segbench compare $(A) $(B) $(ARGS)

list: $(READY) ## upsamplers, decoders, encoders, data sets, and plug-ins that do not import
	@$(BIN)/segbench list $(ARGS)

show: $(READY) ## all about NAME="carafe folder": definition, parameters; of an upsampler also cost and kernel
	@$(BIN)/segbench show $(NAME) $(ARGS)

check: $(READY) ## does DECODER=path/to/file.py:Class, an upsampler or decoder, keep the contract?
	@$(BIN)/segbench check $(DECODER) $(ARGS)

data-check: $(READY) ## read every image of CONFIG's data before training; ARGS="key=value --picture FILE.png"
	@$(BIN)/segbench data check $(CONFIG) $(ARGS)

data-get: $(READY) ## download NAME=voc|sbd|camvid, or say how to come by cityscapes and ade20k
	@$(BIN)/segbench data get $(NAME) $(ARGS)

export: $(READY) ## predictions of RUN=runs/sweep/run as its data set's owner takes them
	@$(BIN)/segbench export $(RUN) $(ARGS)

evaluate: $(READY) ## RUN=runs/sweep/run, or a sweep, predicted again under several evaluations; ARGS="--vary label_size=[448,224]"
	@$(BIN)/segbench evaluate $(RUN) $(ARGS)

test: $(READY) ## all tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-fast: $(READY) ## the tests that take no more than a few seconds each
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow" $(ARGS)

chaos: $(READY) ## kill a sweep at 40 moments: each time the table is that of an undisturbed one
	$(BIN)/python -m pytest tests/test_chaos.py -s --moments 40 $(ARGS)

lint: $(READY) ## style and common mistakes (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## types (mypy)
	$(BIN)/mypy

format: $(READY) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## speed: one cohort of six decoders against six cohorts of one
	$(BIN)/python benchmarks/lockstep.py $(ARGS)

clean: ## remove .venv and caches; keeps runs/
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
