package main

import "kvstore/bench"

// Units of a row's figure.
const (
	unitRate = "ops/s"
	unitP50  = "µs"
)

// row is one line of the comparison: what is done, beside whom, and what is asked for.
type row struct {
	name string
	// peer is a key of openSides: etcd, redis, redis-benchmark or floor.
	peer string
	unit string
	load bench.Options
	// op is the operation whose P50 counts where unit is unitP50.
	op bench.Op
	// conns is the number of our client's connections.
	conns int
	// ratio is what is asked of ours over the peer's: at least that much of a rate, at most of a latency. cpuMax is the most
	// CPU time over the peer's. 0: nothing is asked.
	ratio, cpuMax float64
}

// Names of rows that allocations are judged by.
const (
	rowPut = "PUT, three nodes, durable, 256 callers"
	rowGet = "GET, linearizable, leader of three, 256 callers, hot keys"
)

// rows are in the order of the table. Where two peers stand beside the same load, only one may carry a target.
var rows = []row{
	{name: rowPut, peer: "etcd", unit: unitRate, load: bench.Options{Workload: "put", Concurrency: 256}, ratio: 12, cpuMax: 0.1},
	{name: rowGet, peer: "etcd", unit: unitRate, load: bench.Options{Workload: "get", Concurrency: 256, Distribution: "hot"}},
	{name: rowGet, peer: "redis", unit: unitRate, load: bench.Options{Workload: "get", Concurrency: 256, Distribution: "hot"}, ratio: 2.5, cpuMax: 0.6},
	{name: "GET, pipeline 128, 16 connections", peer: "redis-benchmark", unit: unitRate, load: bench.Options{Workload: "get", Concurrency: 16, Pipeline: 128}, conns: 16, ratio: 1},
	{name: "95 % GET 5 % PUT, three nodes, 256 callers", peer: "etcd", unit: unitRate, load: bench.Options{Workload: "mixed", Concurrency: 256}, ratio: 20},
	{name: "lone PUT, three nodes, p50", peer: "floor", unit: unitP50, load: bench.Options{Workload: "put", Concurrency: 1}, op: bench.OpPut, ratio: 1.4},
	{name: "lone PUT, three nodes, p50", peer: "etcd", unit: unitP50, load: bench.Options{Workload: "put", Concurrency: 1}, op: bench.OpPut},
	{name: "lone GET, p50", peer: "redis", unit: unitP50, load: bench.Options{Workload: "get", Concurrency: 1}, op: bench.OpGet, ratio: 1},
	{name: "TXN of 5 operations, 64 callers", peer: "etcd", unit: unitRate, load: bench.Options{Workload: "txn", Concurrency: 64}, ratio: 10},
}

// badgerPrefix begins the names of all functions of Badger and of the libraries that its authors made for it.
const badgerPrefix = "github.com/dgraph-io/"

// Targets without a peer.
const (
	// getAllocsMax stands for none: what the runtime does besides the operations is in the count.
	getAllocsMax = 0.01
	// putAllocsMax is what is allowed beyond Badger's own.
	putAllocsMax = 2
	// allocSamplesMin is how many samples Badger's share must be known by, in all turns together, to be judged by.
	allocSamplesMin = 100
	growthGetMin    = 0.9
	growthPutMin    = 0.45
	growthKeys      = 10_000_000
	growthRSSMax    = 700e6 // bytes
)
