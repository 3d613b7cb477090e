# All that a newcomer must know: make demo, make test. The rest is in docs/development.md.
#
# Build results lie outside the checkout, so that a clean clone on the same machine is quick.

CACHE ?= $(if $(filter 0,$(shell id -u)),/var/cache/weir,$(HOME)/.cache/weir)
export CARGO_TARGET_DIR ?= $(CACHE)/target
export CARGO_TERM_PROGRESS_WHEN ?= never

BIN := $(CARGO_TARGET_DIR)/debug
PRODUCTS := -p weir-cli -p weir-control -p weir-webhook -p weir-proxy -p weir-cni -p weir-init

.PHONY: help setup build demo test lint fmt bench measure clean

help:
	@echo "make demo   the whole mesh on this machine, shown and taken down (KEEP=1 leaves it running)"
	@echo "make test   everything that is tested"
	@echo "make lint fmt build bench measure setup clean"

setup:
	@tools/setup

build: setup
	@echo "building; the first time takes some minutes"
	cargo build --locked $(PRODUCTS)

demo: build
	@$(BIN)/weir sandbox demo examples/canary $(if $(KEEP),--keep)

test: build
	cargo test --locked --workspace

# Measurements with a bar, in release builds on a quiet machine: CNI ADD, a review of the webhook, the control plane under load.
measure: setup
	cargo test --locked --release -p weir-cni -p weir-webhook -p weir-control -p weir-proxy -- --ignored --nocapture --test-threads=1

lint: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

fmt:
	cargo fmt --all

bench:
	@tools/setup bench
	cargo build --locked --release -p weir-proxy -p weir-control -p weir-init -p weir-bench
	$(CARGO_TARGET_DIR)/release/weir-bench --out target/bench/data-plane.json

clean:
	rm -rf target "$(CARGO_TARGET_DIR)"
