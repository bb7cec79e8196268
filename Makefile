# Everything that one does with Esker. `make` alone lists it.

# Where rustup puts cargo, for a shell that has not read its profile.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.DEFAULT_GOAL := help
.PHONY: help setup run demo test test-console check dist deb test-deb tarball bench bench-snapshots bench-follow bench-recovery bench-state bench-security bench-raft bench-overload bench-cluster soak soak-streams soak-memory soak-snapshots soak-follow soak-state soak-raft soak-cluster soak-partition soak-recovery moto follow-lite fuzz sdk-tests fmt cluster

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

setup: ## look for what a build needs, and compile RocksDB the first time
	@scripts/setup

run: setup ## build, tell the story on real records, then serve on 127.0.0.1:7070
	@cargo build --release --locked
	@cargo run --release --locked --quiet -- demo
	@cargo run --release --locked --quiet -- server --hints --config $(or $(ESKER_CONFIG),packaging/esker.toml)

demo: setup ## the story, end to end, in a scratch directory
	@cargo build --release --locked
	@cargo run --release --locked --quiet -- demo

cluster: setup ## three nodes on this machine, to try what a lost one costs; ARGS="--base-port 8071" chooses
	@cargo build --release --locked
	@cargo run --release --locked --quiet -- cluster try $(ARGS)

test: setup ## all tests, doc tests included; ARGS="-p esker-raft" chooses
	@scripts/test $(ARGS)

test-console: setup ## the console in a browser; installs Chromium and what drives it, once
	@scripts/test-console $(ARGS)

dist: setup ## the binary that is shipped: without symbols, its line tables beside it
	@scripts/dist

deb: setup ## the Debian package; compiles cargo-deb into the cache directory, once
	@scripts/deb $(ARGS)

test-deb: ## install, start, upgrade, remove and purge the package, below a systemd of its own; needs root
	@packaging/test-deb $(ARGS)

tarball: setup ## an archive for machines without dpkg: a statically linked program
	@scripts/tarball $(ARGS)

check: setup ## format, lints, layers, licences, spelling
	@scripts/check

bench: setup ## measure streams, side by side with peers
	@scripts/bench streams $(ARGS)

bench-snapshots: setup ## measure the snapshot repository, side by side with restic and cp
	@scripts/bench repository $(ARGS)

bench-follow: setup ## measure followers of streams that take snapshots
	@scripts/bench follow $(ARGS)

bench-recovery: setup ## measure what snapshots cost a working server, and how long it takes to come back
	@scripts/bench recovery $(ARGS)

bench-state: setup ## measure the state store, side by side with statehouse-daemon
	@scripts/bench state $(ARGS)

bench-security: setup ## measure what encryption of records, access tokens and TLS cost
	@scripts/bench security $(ARGS)

bench-raft: ## measure replication: transfers, stalls, commits side by side with etcd
	@scripts/bench-raft $(ARGS)

bench-overload: setup ## measure a polite client among 64 that flood, and 10,000 followers
	@scripts/bench overload $(ARGS)

bench-cluster: setup ## measure three nodes: beside one, beside etcd, while leaders are killed
	@scripts/bench cluster $(ARGS)

soak: soak-memory soak-streams soak-snapshots soak-follow soak-state soak-raft soak-cluster soak-partition soak-recovery ## all soaks, for a long time

soak-memory: setup ## an hour of mixed load, over which memory has to stay flat; ESKER_SOAK_SECONDS says how long
	@scripts/bench overload --part mixed $(ARGS)

soak-streams: setup ## kill a server under load, again and again, and look for a loss
	@scripts/bench soak $(ARGS)

soak-snapshots: setup ## search the snapshot protocol for a loss; ARGS="1000000" says how many seeds
	@scripts/soak-snapshots $(ARGS)

soak-follow: setup ## search the following of streams for a loss; ARGS="100000" says how many seeds
	@scripts/soak-follow $(ARGS)

soak-state: setup ## kill a server under transactions, and scan while they commit; ARGS="100" says how many kills
	@scripts/soak-state $(ARGS)

soak-raft: setup ## search the replication protocol for a loss; ARGS="100000" says how many seeds
	@scripts/soak-raft $(ARGS)

soak-cluster: setup ## kill, pause and cut off nodes of a cluster, fill disks, set clocks off, again and again; ARGS="600" says how many rounds
	@scripts/soak-cluster $(ARGS)

soak-partition: setup ## try partitions on random histories, beside models; ARGS="10000" says how many
	@scripts/soak-partition $(ARGS)

soak-recovery: setup ## kill a server and take its files away, again and again; ARGS="500" says how many rounds
	@scripts/soak-recovery $(ARGS)

follow-lite: setup ## follow streams of another server (s2 lite), for a second opinion
	@scripts/follow-lite $(ARGS)

moto: setup ## ask another S3 server (moto) for a second opinion on the snapshot repository
	@scripts/moto

sdk-tests: setup ## run the tests of official clients against an Esker: Rust; ARGS="--cli" or "--python DIR"
	@scripts/sdk-tests $(ARGS)

fuzz: setup ## feed broken input to everything that parses
	@scripts/fuzz $(ARGS)

fmt: ## format all Rust code
	@cargo fmt --all
