# KVStore. `make help` lists the targets. Needs Go, make and a C compiler; git is optional.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

GO           ?= go
TEST_TIMEOUT ?= 40m
FUZZTIME     ?= 10s
REF          ?= main

# Pinned: a new version of a tool is a change of its own.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
BUF         := github.com/bufbuild/buf/cmd/buf@v1.75.0
BENCHSTAT   := golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
# -buildvcs=false: Go's own stamp fails the build where git refuses to read the repository.
BUILD_FLAGS := -buildvcs=false -trimpath -ldflags '-X main.version=$(VERSION) -X main.commit=$(COMMIT)'

.PHONY: build build-failpoints proto run test cluster bench bench-peers bench-stages bench-latency profile pgo worst crashes test-faults check race fuzz bench-compare fmt clean help

build: ## build bin/kvstore, bin/kvctl and bin/kvbench
	@mkdir -p bin
	$(GO) build $(BUILD_FLAGS) -o bin/ ./cmd/kvstore ./cmd/kvctl ./cmd/kvbench

build-failpoints: ## the same into bin/failpoints, with named places where tests strike (internal/failpoint)
	@mkdir -p bin/failpoints
	$(GO) build $(BUILD_FLAGS) -tags failpoints -o bin/failpoints/ ./cmd/kvstore ./cmd/kvctl ./cmd/kvbench

proto: ## check api/kvstorev1/kvstore.proto and generate its Go; the first time builds the tools, which takes minutes
	cd api && $(GO) run $(BUF) lint && $(GO) run $(BUF) generate

run: build ## build, then run one durable node: data in ./kvstore-data, loopback only
	@exec bin/kvstore

test: ## the whole test suite, real parts included
	$(GO) vet ./...
	$(GO) test -timeout $(TEST_TIMEOUT) ./...

cluster: build ## build, then run three nodes on loopback until Ctrl-C: data and logs in ./kvstore-cluster
	@exec cmd/kvstore/cluster.sh

bench: build ## the benchmark report of this machine
	@perf/bench.sh

bench-peers: build ## beside etcd and Redis, by turns: the tables of docs/performance.md; needs the network once
	@perf/peers.sh

bench-stages: build ## where the time of one put and one get goes, by stage: latency and CPU; the tables of docs/performance.md
	@perf/stages.sh

bench-latency: build ## whether latencies hold their targets at half of the highest rate; the table of docs/performance.md
	@perf/latency.sh

profile: build ## profiles and flame graphs of three nodes under WORKLOAD (put, get, mixed, lone-put, lone-get, txn)
	@WORKLOAD='$(WORKLOAD)' perf/profile.sh

pgo: build ## makes cmd/kvstore/default.pgo anew, the profile by which the compiler optimizes the server
	@perf/pgo.sh

worst: build ## the figures of bad days: fail-over, transfer, a stopped follower, restart with a gigabyte, overload
	@perf/worst.sh

crashes: ## the durability campaign: 200 power cuts of all nodes, 200 kills, 50 crashes in an install; goes on where it was
	@test/crashes.sh

test-faults: ## the fault campaign, SEED=… DURATION=10m: run after run of all faults and workloads; goes on where it was
	@SEED='$(SEED)' DURATION='$(DURATION)' test/faults.sh

check: ## what must hold before a commit: format, vet, staticcheck, layers, short tests
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not formatted (make fmt):"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test ./internal/lint
	$(GO) test -short -timeout $(TEST_TIMEOUT) ./...

race: ## the whole test suite under the race detector
	$(GO) test -race -timeout $(TEST_TIMEOUT) ./...

fuzz: ## every fuzz target for FUZZTIME (10s) each
	@FUZZTIME='$(FUZZTIME)' .ci/fuzz

bench-compare: ## Go benchmarks of the work tree against REF (main), by benchstat; PKG, BENCH, COUNT narrow it
	@REF='$(REF)' BENCHSTAT='$(BENCHSTAT)' .ci/bench-compare

fmt: ## format all Go files
	gofmt -w .

clean: ## remove what was built; kvstore-data and kvstore-cluster stay
	rm -rf bin coverage*
	find . \( -name .git -o -name kvstore-data -o -name kvstore-cluster \) -prune -o -type f \( -name '*.test' -o -name '*.prof' \) -exec rm -f {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
