package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"kvstore/bench"
)

// Bounds and defaults of a comparison.
const (
	pairsDefault = 5
	pairsMax     = 1000
	// warmup runs before each turn and does not count: connections and buffers are then as they stay.
	warmup = 500 * time.Millisecond
	keys   = 100_000
	// valueBytes is the length of all values.
	valueBytes = 128
	// waitServers is how long a peer may take until it can be used.
	waitServers = 30 * time.Second
	timeoutOp   = 10 * time.Second
)

// comparison is the result of compare; its JSON form is one line.
type comparison struct {
	Date    string        `json:"date"`
	Commit  string        `json:"commit"`
	Machine bench.Machine `json:"machine"`
	// Fdatasync and Replicated are P50 in microseconds: of a lone flush, and of the floor of three processes that flush at
	// once, when the comparison began.
	Fdatasync  float64 `json:"fdatasync_us"`
	Replicated float64 `json:"replicated_floor_us"`
	Seconds    float64 `json:"seconds"`
	// IdleAllocs is what all nodes of ours together allocate in a second without any load; 0 when not measured.
	IdleAllocs float64 `json:"idle_allocs_per_second,omitempty"`
	// Left says which peers took no part, and why.
	Left []string `json:"left_out,omitempty"`
	Rows []result `json:"peers"`
}

// result is one row, measured.
type result struct {
	Row  string `json:"row"`
	Peer string `json:"peer"`
	// Unit of Own, Other and the turns: "ops/s" or "µs", the latter the P50 of a lone operation.
	Unit  string  `json:"unit"`
	Pairs []pair  `json:"pairs"`
	Own   float64 `json:"own"`
	Other float64 `json:"other"`
	// OwnCPU and OtherCPU are microseconds of user and system time of all server processes of one side for one operation;
	// 0 where there are none.
	OwnCPU   float64 `json:"own_server_cpu_us,omitempty"`
	OtherCPU float64 `json:"other_server_cpu_us,omitempty"`
	// Ratio and CPURatio are ours over the peer's in one pair.
	Ratio    spread `json:"ratio"`
	CPURatio spread `json:"cpu_ratio"`
	// OwnClientAllocs and OwnServerAllocs are medians per operation of our side.
	OwnClientAllocs *float64 `json:"own_client_allocs,omitempty"`
	OwnServerAllocs *float64 `json:"own_server_allocs,omitempty"`
	// Failed counts operations that failed and reads that found nothing, on both sides.
	Failed uint64 `json:"failed"`
	Why    string `json:"failed_sample,omitempty"`
}

// pair is a turn of ours and one of the peer's, one right after the other.
type pair struct {
	Own   turn `json:"own"`
	Other turn `json:"other"`
}

// turn is what one of them measured.
type turn struct {
	Figure float64 `json:"figure"`
	CPU    float64 `json:"server_cpu_us,omitempty"`
	// Allocations per operation; only of ours.
	ClientAllocs *float64 `json:"client_allocs,omitempty"`
	ServerAllocs *float64 `json:"server_allocs,omitempty"`
	// BadgerShare is the part of Badger in what the servers allocated, by AllocSamples samples; only of ours in rowPut.
	BadgerShare  *float64 `json:"badger_share,omitempty"`
	AllocSamples float64  `json:"alloc_samples,omitempty"`

	failed uint64
	why    string
}

// spread is the median of several ratios with the range of all.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// compareOptions are the flags of compare.
type compareOptions struct {
	own, etcd, redis             []string
	ownPIDs, etcdPIDs, redisPIDs []int
	metrics                      []string
	pairs                        int
	duration                     time.Duration
	dir, redisBenchmark          string
}

func compareCommand(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("peers compare", flag.ContinueOnError)
	var o compareOptions
	var lists [7]string
	for i, l := range []struct{ name, usage string }{
		{"kvstore", "binary ports of all nodes of KVStore, HOST:PORT,…"}, {"kvstore-pid", "their processes"},
		{"metrics", "their metrics ports, to count allocations"},
		{"etcd", "all nodes of etcd; none: left out"}, {"etcd-pid", "their processes"},
		{"redis", "the Redis server; none: left out"}, {"redis-pid", "its process"},
	} {
		f.StringVar(&lists[i], l.name, "", l.usage)
	}
	f.IntVar(&o.pairs, "pairs", pairsDefault, "turns of each side for each row")
	f.DurationVar(&o.duration, "duration", 2*time.Second, "measured time of each turn")
	f.StringVar(&o.dir, "dir", ".", "a directory on the disk that the servers use")
	f.StringVar(&o.redisBenchmark, "redis-benchmark", "", "the program of that name; none: its row is left out")
	commit := f.String("commit", "unknown", "the commit of ours that is measured")
	if err := f.Parse(args); err != nil {
		return err
	}
	o.own, o.metrics, o.etcd, o.redis = list(lists[0]), list(lists[2]), list(lists[3]), list(lists[5])
	var errs [3]error
	o.ownPIDs, errs[0] = processes(lists[1])
	o.etcdPIDs, errs[1] = processes(lists[4])
	o.redisPIDs, errs[2] = processes(lists[6])
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if len(o.own) == 0 || len(o.ownPIDs) == 0 {
		return errors.New("-kvstore and -kvstore-pid are needed")
	}
	if o.pairs < 1 || o.pairs > pairsMax || o.duration < 100*time.Millisecond {
		return fmt.Errorf("-pairs is %d and -duration %v: 1 to %d pairs of at least 100ms", o.pairs, o.duration, pairsMax)
	}
	c, err := compare(ctx, o)
	if err != nil {
		return err
	}
	c.Commit = *commit
	return json.NewEncoder(os.Stdout).Encode(c)
}

// compare measures all rows whose peers are there.
func compare(ctx context.Context, o compareOptions) (_ *comparison, err error) {
	c := &comparison{Date: time.Now().UTC().Format(time.DateOnly), Machine: bench.ReadMachine(o.dir), Seconds: o.duration.Seconds()}
	if c.Fdatasync, err = floorP50(ctx, o.dir, bench.FloorFdatasync); err != nil {
		return nil, err
	}
	if c.Replicated, err = floorP50(ctx, o.dir, bench.FloorReplicatedOverlapped); err != nil {
		return nil, err
	}
	sides, left, err := openSides(ctx, o)
	for _, s := range sides {
		defer func() { err = errors.Join(err, s.close()) }()
	}
	if err != nil {
		return nil, err
	}
	c.Left = left
	if c.IdleAllocs, err = idleAllocs(ctx, o.metrics); err != nil {
		return nil, err
	}
	for _, s := range sides {
		if s.load == nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "loading %d keys into %s\n", keys, s.name)
		if err := s.load(ctx); err != nil {
			return nil, fmt.Errorf("cannot load %s: %w", s.name, err)
		}
	}
	for _, row := range rows {
		own, other := sides["kvstore"], sides[row.peer]
		if other == nil {
			continue
		}
		res := result{Row: row.name, Peer: other.name, Unit: row.unit}
		for i := range o.pairs {
			fmt.Fprintf(os.Stderr, "%s, beside %s: pair %d of %d\n", row.name, other.name, i+1, o.pairs)
			var p pair
			turns := []func() error{
				func() (err error) { p.Own, err = own.turn(ctx, row); return err },
				func() (err error) { p.Other, err = other.turn(ctx, row); return err },
			}
			if i%2 == 1 { // whatever the first turn leaves behind must not always hit the same side
				slices.Reverse(turns)
			}
			for _, t := range turns {
				if err := t(); err != nil {
					return nil, fmt.Errorf("cannot measure %q: %w", row.name, err)
				}
			}
			res.Pairs = append(res.Pairs, p)
		}
		res.sum()
		c.Rows = append(c.Rows, res)
	}
	return c, nil
}

// sum forms the medians and ratios of the pairs.
func (r *result) sum() {
	var own, other, ownCPU, otherCPU, ratios, cpuRatios, clientAllocs, serverAllocs []float64
	for _, p := range r.Pairs {
		own, other = append(own, p.Own.Figure), append(other, p.Other.Figure)
		ownCPU, otherCPU = append(ownCPU, p.Own.CPU), append(otherCPU, p.Other.CPU)
		if p.Other.Figure > 0 {
			ratios = append(ratios, p.Own.Figure/p.Other.Figure)
		}
		if p.Own.CPU > 0 && p.Other.CPU > 0 {
			cpuRatios = append(cpuRatios, p.Own.CPU/p.Other.CPU)
		}
		if p.Own.ClientAllocs != nil {
			clientAllocs = append(clientAllocs, *p.Own.ClientAllocs)
		}
		if p.Own.ServerAllocs != nil {
			serverAllocs = append(serverAllocs, *p.Own.ServerAllocs)
		}
		for _, t := range []turn{p.Own, p.Other} {
			if r.Failed += t.failed; t.failed > 0 {
				r.Why = t.why
			}
		}
	}
	r.Own, r.Other, r.OwnCPU, r.OtherCPU = median(own), median(other), median(ownCPU), median(otherCPU)
	r.Ratio, r.CPURatio = spreadOf(ratios), spreadOf(cpuRatios)
	if len(clientAllocs) > 0 {
		m := median(clientAllocs)
		r.OwnClientAllocs = &m
	}
	if len(serverAllocs) > 0 {
		m := median(serverAllocs)
		r.OwnServerAllocs = &m
	}
}

// median gives the middle of values, the mean of the two middle ones of an even number; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	return spread{median(values), slices.Min(values), slices.Max(values)}
}

// idleTime is how long allocations of idle servers are counted.
const idleTime = 5 * time.Second

// idleAllocs counts what the servers allocate in a second while nobody asks them for anything. The first of three
// questions tells, with the second, what a question costs.
func idleAllocs(ctx context.Context, metrics []string) (float64, error) {
	if len(metrics) == 0 {
		return 0, nil
	}
	var counts [3]uint64
	for i := range counts {
		if i == len(counts)-1 {
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(idleTime):
			}
		}
		for _, endpoint := range metrics {
			n, err := bench.ServerMallocs(ctx, endpoint)
			if err != nil {
				return 0, err
			}
			counts[i] += n
		}
	}
	between, question := counts[2]-counts[1], counts[1]-counts[0]
	return float64(between-min(between, question)) / idleTime.Seconds(), nil
}
