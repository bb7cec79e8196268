# Everything that one does with Esker. `make` alone lists it.

# Where rustup puts cargo, for a shell that has not read its profile.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.DEFAULT_GOAL := help
.PHONY: help setup run demo test check bench soak fuzz fmt

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## look for what a build needs, and compile RocksDB the first time
	@scripts/setup

run: setup ## build, tell the story on real records, then serve on 127.0.0.1:7070
	@cargo build --release --locked
	@cargo run --release --locked --quiet -- demo
	@cargo run --release --locked --quiet -- server --hints

demo: setup ## the story, end to end, in a scratch directory
	@cargo build --release --locked
	@cargo run --release --locked --quiet -- demo

test: setup ## all tests, doc tests included; ARGS="-p esker-raft" chooses
	@scripts/test $(ARGS)

check: setup ## format, lints, dependency rules, licences
	@scripts/check

bench: setup ## measure streams, side by side with peers
	@scripts/bench streams $(ARGS)

soak: setup ## run for a long time under load, and look for growth
	@scripts/bench soak $(ARGS)

fuzz: setup ## feed broken input to everything that parses
	@scripts/fuzz $(ARGS)

fmt: ## format all Rust code
	@cargo fmt --all
