# All that a newcomer must know: make demo, make test. The rest is in docs/development.md.
#
# Build results lie outside the checkout, so that a clean clone on the same machine is quick.

CACHE ?= $(if $(filter 0,$(shell id -u)),/var/cache/weir,$(HOME)/.cache/weir)
export CARGO_TARGET_DIR ?= $(CACHE)/target
export CACHE
export CARGO_TERM_PROGRESS_WHEN ?= never

ROOT := $(filter 0,$(shell id -u))
BIN := $(CARGO_TARGET_DIR)/debug
PRODUCTS := -p weir-cli -p weir-control -p weir-webhook -p weir-proxy -p weir-cni -p weir-init

# Checkouts share the build results of everything that is not ours. Cargo tells what is out of date by the files' times, and not
# which checkout a result was made from: what another checkout made last is made anew here.
OWNER := $(CARGO_TARGET_DIR)/checkout

.PHONY: help setup own build images demo test test-cluster cluster cluster-down cluster-tools conformance lint fmt generate fuzz bench measure clean

help:
	@echo "make demo   the whole mesh on this machine, shown and taken down (KEEP=1 leaves it running)"
	@echo "make test   everything that is tested"
	@echo "make cluster   a real Kubernetes on this machine, until make cluster-down; NODES=3 DUAL_STACK=1"
	@echo "make conformance   Gateway API's conformance suite for meshes, into docs/conformance; ONLY=MeshPorts, KEEP=1"
	@echo "make images   Weir's images, as archives in target/images; TAG=, REPOSITORY="
	@echo "make fuzz   every parser on mutated input; TARGET=one of them, SECONDS=60 for each"
	@echo "make generate   the types of Gateway API anew"
	@echo "make test-cluster lint fmt build bench measure setup clean"

setup:
	@tools/setup

own:
	@mkdir -p "$(CARGO_TARGET_DIR)"
	@[ "$$(cat "$(OWNER)" 2>/dev/null)" = "$(CURDIR)" ] || \
		{ find . -name .git -prune -o -type f -exec touch -c {} + && echo "$(CURDIR)" >"$(OWNER)"; }

build: setup own
	@echo "building; the first time takes some minutes"
	cargo build --locked $(PRODUCTS)

# The images of the chart, from static programs in a release build.
images: own
	@tools/setup images
	@tools/images $(if $(TAG),--tag $(TAG)) $(if $(REPOSITORY),--repository $(REPOSITORY))

demo: build
	@$(BIN)/weir sandbox demo examples/canary $(if $(KEEP),--keep)

# The Kubernetes of the cluster tests takes its time once, and is built beside everything else; the tests wait for it, and say what is
# wrong with it. So are other people's clients. Who is not root has no use for either: those tests are skipped.
test:
	@tools/setup $(if $(ROOT),cluster test)
	@$(if $(ROOT),{ tools/go-tools clients; tools/python-packages; tools/cluster-tools; tools/go-tools rollouts; } >/dev/null &) $(MAKE) --no-print-directory build
	cargo test --locked --workspace --no-fail-fast

# The tests on a real Kubernetes alone.
test-cluster: cluster-tools build
	cargo test --locked -p weir-cluster --no-fail-fast

# A Kubernetes for a person: prints how to reach and how to end it.
cluster: cluster-tools own
	cargo build --locked -p weir-cluster
	@$(BIN)/weir-cluster up $(if $(NODES),--nodes $(NODES)) $(if $(DUAL_STACK),--dual-stack)

cluster-down:
	@if [ -x $(BIN)/weir-cluster ]; then $(BIN)/weir-cluster down; else echo "no cluster was ever started here"; fi

cluster-tools:
	@tools/setup cluster
	@tools/cluster-tools >/dev/null

# Gateway API's own suite, built once from its Go module, against Weir on such a Kubernetes: writes docs/conformance.
conformance: cluster-tools own
	@tools/go-tools conformance >/dev/null
	cargo build --locked -p weir-cluster
	@$(BIN)/weir-cluster conformance $(if $(ONLY),--only $(ONLY)) $(if $(KEEP),--keep)

# Measurements with a bar, in release builds on a quiet machine: CNI ADD, a review of the webhook, the control plane under load.
measure: setup own
	cargo test --locked --release -p weir-cni -p weir-webhook -p weir-control -p weir-proxy -- --ignored --nocapture --test-threads=1

lint: setup own
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

fmt:
	cargo fmt --all

# Types of Gateway API, from the definitions in its Go module (tests/cluster/gateway-api/go.mod has the version).
generate: own
	cargo run --locked -p weir-config-generate

# What fails is saved in fuzz/corpus, and so fails in make test until it is mended.
fuzz: setup own
	cargo run --locked -p weir-fuzz -- $(if $(TARGET),--target $(TARGET)) --seconds $(or $(SECONDS),60)

# All parts take a quarter of an hour; ONLY=grpc one of them, see docs/benchmarks.md.
bench: own
	@tools/setup bench
	cargo build --locked --release -p weir-proxy -p weir-control -p weir-init -p weir-bench
	$(CARGO_TARGET_DIR)/release/weir-bench --out target/bench/$(or $(ONLY),data-plane).json $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf target "$(CARGO_TARGET_DIR)"
