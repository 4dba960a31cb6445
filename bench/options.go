package bench

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Options describes one run. The zero value of each field means its default.
type Options struct {
	// Workload is one of Workloads. Default mixed.
	Workload string
	// Reads is the share of reads in the mixed workload, 0 to 1. Default 0.95. Use ReadsSet for 0.
	Reads float64
	// ReadsSet makes Reads count even when it is 0.
	ReadsSet bool
	// Keys is how many keys are loaded and drawn from. Default 100,000.
	Keys int
	// ValueBytes is the length of each value. Default 128; 1000 for YCSB, whose records have ten fields of
	// 100 bytes.
	ValueBytes int
	// Concurrency is the number of worker goroutines. Default 16.
	Concurrency int
	// Pipeline is how many asynchronous operations each worker keeps in flight. Default 1: one synchronous
	// operation.
	Pipeline int
	// Rate makes the loop open: operations due per second, over all workers. Default 0: closed loop.
	Rate float64
	// Backlog bounds the operations that are due and not yet sent (open loop). Default ten seconds' worth,
	// between 1024 and 1,048,576. What does not fit is dropped and reported as not_sent.
	Backlog int
	// Duration is the measured time, Warmup the time before it that is not measured. Defaults 10s and 1s;
	// a negative Warmup means none.
	Duration, Warmup time.Duration
	// Seed makes keys, values and the order of operations repeatable. Default 1.
	Seed uint64
	// KeyPrefix keeps the keys of the benchmark apart from others'. Default "kvbench/".
	KeyPrefix string
	// Distribution of keys for all workloads but YCSB's, which have their own: uniform (default), zipfian, or hot: uniform
	// over the first HotKeys keys, whose names lie scattered among all.
	Distribution string
	// Batch is the number of items of the batch workloads and of operations in txn. Defaults 10 and 5.
	Batch int
	// SkipLoad trusts that an earlier run has loaded the same keys.
	SkipLoad bool
	// ServerPIDs are the server's processes on this machine, whose CPU times are added up. Default none: not
	// measured.
	ServerPIDs []int
	// ServerMetrics are HOST:PORT of the metrics ports of all nodes, whose /debug/pprof tells how much they have
	// allocated. Default none: not measured.
	ServerMetrics []string
	// Progress, when set, hears of the load phase from several goroutines, in order.
	Progress func(done, total int)

	// sleep waits; tests put time.Sleep here, which follows the clock of a synctest bubble.
	sleep func(time.Duration)
}

// Bounds of Options: beyond them a run says nothing useful, or takes the memory of the machine.
const (
	keysMax        = 1 << 30
	valueBytesMax  = 16 << 20
	concurrencyMax = 1 << 16
	inflightMax    = 1 << 20
	rateMax        = 10_000_000
	batchMax       = 10_000
	backlogMin     = 1 << 10
	backlogMax     = 1 << 20
)

// Validate returns all faults of o at once, or nil.
func (o Options) Validate() error {
	_, err := o.withDefaults()
	return err
}

// withDefaults fills in the defaults and returns all faults of the result at once.
func (o Options) withDefaults() (Options, error) {
	if o.Workload == "" {
		o.Workload = "mixed"
	}
	ycsb := strings.HasPrefix(o.Workload, "ycsb-")
	if o.Reads == 0 && !o.ReadsSet {
		o.Reads = 0.95
	}
	setDefault(&o.Keys, 100_000)
	if ycsb {
		setDefault(&o.ValueBytes, 1000)
	}
	setDefault(&o.ValueBytes, 128)
	setDefault(&o.Concurrency, 16)
	setDefault(&o.Pipeline, 1)
	setDefault(&o.Duration, 10*time.Second)
	setDefault(&o.Warmup, time.Second)
	setDefault(&o.Seed, 1)
	setDefault(&o.KeyPrefix, "kvbench/")
	setDefault(&o.Distribution, "uniform")
	if o.Workload == "txn" {
		setDefault(&o.Batch, 5)
	}
	setDefault(&o.Batch, 10)
	if o.Backlog == 0 {
		o.Backlog = int(min(max(o.Rate*10, backlogMin), backlogMax))
	}
	o.Warmup = max(o.Warmup, 0)

	var faults []error
	bound := func(name string, v, lo, hi float64) {
		if v < lo || v > hi || v != v {
			faults = append(faults, fmt.Errorf("%s is %v; it must be between %v and %v", name, v, lo, hi))
		}
	}
	w, known := workloads[o.Workload]
	if !known {
		faults = append(faults, fmt.Errorf("unknown workload %q; known: %s", o.Workload, strings.Join(Workloads(), ", ")))
	}
	bound("reads", o.Reads, 0, 1)
	bound("keys", float64(o.Keys), 1, keysMax)
	bound("value size", float64(o.ValueBytes), 1, valueBytesMax)
	bound("concurrency", float64(o.Concurrency), 1, concurrencyMax)
	bound("pipeline", float64(o.Pipeline), 1, inflightMax)
	if o.Concurrency > 0 && o.Pipeline > 0 && o.Pipeline <= inflightMax {
		bound("concurrency × pipeline", float64(o.Concurrency)*float64(o.Pipeline), 1, inflightMax)
	}
	bound("rate", o.Rate, 0, rateMax)
	bound("duration in seconds", o.Duration.Seconds(), 0.001, 7*24*3600)
	bound("warm-up in seconds", o.Warmup.Seconds(), 0, 24*3600)
	bound("batch", float64(o.Batch), 1, batchMax)
	bound("backlog", float64(o.Backlog), 1, backlogMax)
	if !slices.Contains(Distributions(), o.Distribution) {
		faults = append(faults, fmt.Errorf("unknown distribution %q; known: %s", o.Distribution, strings.Join(Distributions(), ", ")))
	}
	if len(o.KeyPrefix) > 512 {
		faults = append(faults, fmt.Errorf("key prefix of %d bytes; at most 512", len(o.KeyPrefix)))
	}
	if known && o.Pipeline > 1 && !w.async() {
		faults = append(faults, fmt.Errorf("workload %s has no asynchronous form: use concurrency instead of pipeline", o.Workload))
	}
	if o.sleep == nil {
		o.sleep = sleepPrecisely
	}
	return o, errors.Join(faults...)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
