# Everything a person runs. `make demo` and `make test` work on a fresh clone.

.PHONY: all setup build demo test sim model fuzz faults bench fmt lint clean

all: build

# What the machine lacks, as far as we may install it; says exactly what else is needed.
setup:
	@tools/setup

# .cache/env names libclang 14 where it is not in a place that everybody finds.
ENV = set -a; [ ! -r .cache/env ] || . ./.cache/env; set +a;

build: setup
	@$(ENV) cargo build --release --workspace

demo: build
	@target/release/dwcp demo

test: setup
	@$(ENV) tools/test

sim:
	@$(ENV) cargo run --release -p dwcp-sim -- --seeds 100000

fuzz:
	@$(ENV) tools/fuzz/run $${SECONDS_EACH:-60}

model:
	@$(ENV) cargo run --release -p dwcp-sim --bin dwcp-model

faults: build
	@target/release/dwcp bench faults --points 200

bench: build
	@target/release/dwcp bench peers

fmt:
	@cargo fmt --all

lint:
	@$(ENV) cargo clippy --workspace --all-targets -- -D warnings

clean:
	@cargo clean
	@rm -rf .cache/guests
