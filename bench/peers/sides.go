package main

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"kvstore/bench"
)

// side is one that takes turns.
type side struct {
	name string
	turn func(ctx context.Context, r row) (turn, error)
	// load writes the keys that reads will find; nil where there is nothing to load.
	load  func(ctx context.Context) error
	close func() error
}

// openSides connects to all that are there. The sides are to be closed even when it fails.
func openSides(ctx context.Context, o compareOptions) (sides map[string]*side, left []string, err error) {
	sides = map[string]*side{}
	if sides["kvstore"], err = ownSide(ctx, o); err != nil {
		delete(sides, "kvstore")
		return sides, nil, err
	}
	sides["floor"] = &side{
		name: "floor of three processes", close: func() error { return nil },
		turn: func(ctx context.Context, _ row) (turn, error) {
			p50, err := floorP50(ctx, o.dir, bench.FloorReplicatedOverlapped)
			return turn{Figure: p50}, err
		},
	}
	for _, p := range []struct {
		system    string
		endpoints []string
		pids      []int
	}{{"etcd", o.etcd, o.etcdPIDs}, {"redis", o.redis, o.redisPIDs}} {
		if len(p.endpoints) == 0 {
			left = append(left, p.system+": not installed, or not asked for")
			continue
		}
		peer, err := connectPeer(ctx, p.system, p.endpoints, timeoutOp, waitServers)
		if err != nil {
			return sides, left, err
		}
		sides[p.system] = &side{
			name: peer.version, close: peer.target.Close,
			load: func(ctx context.Context) error { return loadKeys(ctx, peer.target) },
			turn: func(ctx context.Context, r row) (turn, error) {
				return drive(ctx, peer.target, r, o.duration, p.pids, nil)
			},
		}
	}
	switch r := sides["redis"]; {
	case r == nil:
	case o.redisBenchmark == "":
		left = append(left, "redis-benchmark: not installed")
	default:
		b := &redisBenchmark{program: o.redisBenchmark, address: o.redis[0], pids: o.redisPIDs, duration: o.duration}
		sides["redis-benchmark"] = &side{name: r.name + ", redis-benchmark -P 128", close: func() error { return nil }, load: b.load, turn: b.turn}
	}
	return sides, left, nil
}

// ownSide opens a client of ours for each number of connections that the rows ask for.
func ownSide(ctx context.Context, o compareOptions) (*side, error) {
	clients := map[int]*bench.ClientTarget{}
	s := &side{name: "kvstore", close: func() error {
		var errs []error
		for _, c := range clients {
			errs = append(errs, c.Close())
		}
		return errors.Join(errs...)
	}}
	for _, r := range rows {
		conns := max(r.conns, 1)
		if clients[conns] != nil {
			continue
		}
		c, err := bench.Open(ctx, bench.ClientOptions{Endpoints: o.own, Conns: conns, Timeout: timeoutOp})
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		clients[conns] = c
	}
	s.load = func(ctx context.Context) error { return loadKeys(ctx, clients[1]) }
	s.turn = func(ctx context.Context, r row) (turn, error) {
		t := clients[max(r.conns, 1)]
		if r.name == rowPut && len(o.metrics) > 0 {
			return driveSampled(ctx, t, r, o.duration, o.ownPIDs, o.metrics)
		}
		return drive(ctx, t, r, o.duration, o.ownPIDs, o.metrics)
	}
	return s, nil
}

// warmupSeed makes a warm-up that is a run of its own draw other keys than the run that counts, which else would begin with the
// very keys that were put last.
const warmupSeed = 2

// driveSampled takes one turn and finds out which share of the servers' allocations is Badger's, from samples of exactly the window
// in which drive counts all of them. Checkpoints make nearly all of Badger's, some turns have none, and they go on while the
// servers stand idle: samples of the peer's turns or of the warm-up would tell the share of something else. So the
// warm-up is a run of its own here, and after it the window waits until the samples are read.
func driveSampled(ctx context.Context, t bench.Target, r row, d time.Duration, pids []int, metrics []string) (turn, error) {
	first := r
	first.load.Warmup, first.load.Seed = -1, warmupSeed
	if _, err := drive(ctx, t, first, warmup, nil, nil); err != nil {
		return turn{}, err
	}
	before, err := badgerSamples(ctx, metrics)
	r.load.Warmup = -1
	out, terr := drive(ctx, t, r, d, pids, metrics)
	if terr != nil {
		return turn{}, terr
	}
	var after bench.AllocSamples
	if err == nil {
		after, err = badgerSamples(ctx, metrics)
	}
	if err != nil { // everything else about the turn is known all the same
		fmt.Fprintf(os.Stderr, "Badger's share of the allocations is not known: %v\n", err)
		return out, nil
	}
	if during := after.Since(before); during.Samples() > 0 {
		share := during.Share()
		out.BadgerShare, out.AllocSamples = &share, math.Round(during.Samples())
	}
	return out, nil
}

// badgerSamples asks all nodes at once.
func badgerSamples(ctx context.Context, metrics []string) (sum bench.AllocSamples, err error) {
	var wg sync.WaitGroup
	samples, errs := make([]bench.AllocSamples, len(metrics)), make([]error, len(metrics))
	for i, endpoint := range metrics {
		// One goroutine for each node: ends with its question, at the latest after that one's timeout.
		wg.Go(func() { samples[i], errs[i] = bench.ServerAllocSamples(ctx, endpoint, badgerPrefix) })
	}
	wg.Wait()
	for _, s := range samples {
		sum = sum.Add(s)
	}
	return sum, errors.Join(errs...)
}

// loadKeys writes all keys, by a run that reads for an instant.
func loadKeys(ctx context.Context, t bench.Target) error {
	rep, err := bench.Run(ctx, t, bench.Options{Workload: "get", Keys: keys, ValueBytes: valueBytes, Duration: 100 * time.Millisecond, Warmup: -1})
	if err != nil {
		return err
	}
	if n := rep.Errors + rep.Operations["get"].Misses; n > 0 {
		return fmt.Errorf("%d of %d reads failed or found nothing", n, rep.Ops+rep.Errors)
	}
	return nil
}

// drive takes one turn with a target, after a warm-up unless the row has another one.
func drive(ctx context.Context, t bench.Target, r row, d time.Duration, pids []int, metrics []string) (turn, error) {
	o := r.load
	o.Keys, o.ValueBytes, o.Duration, o.SkipLoad, o.ServerPIDs, o.ServerMetrics = keys, valueBytes, d, true, pids, metrics
	o.Warmup = cmp.Or(o.Warmup, warmup)
	rep, err := bench.Run(ctx, t, o)
	if err != nil {
		return turn{}, err
	}
	out := turn{Figure: rep.OpsPerSecond, CPU: rep.ServerCPUMicrosPerOp, failed: rep.Errors}
	for _, text := range rep.ErrorSamples {
		out.why = text
	}
	for name, op := range rep.Operations {
		if op.Misses > 0 {
			out.failed, out.why = out.failed+op.Misses, name+" found no record"
		}
	}
	if r.unit == unitP50 {
		op := rep.Operations[r.op.String()]
		if op == nil || op.P50 <= 0 {
			return turn{}, fmt.Errorf("no %s succeeded: %s", r.op, out.why)
		}
		out.Figure = op.P50
	}
	if out.Figure <= 0 {
		return turn{}, fmt.Errorf("no operation succeeded: %s", out.why)
	}
	if metrics != nil {
		out.ClientAllocs, out.ServerAllocs = rep.ClientAllocsPerOp, rep.ServerAllocsPerOp
	}
	return out, nil
}

// floorP50 measures one test of the machine's floor.
func floorP50(ctx context.Context, dir, test string) (float64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("cannot find this program, to start followers: %w", err)
	}
	f, err := bench.Floor(ctx, bench.FloorOptions{Dir: dir, Follower: []string{self, followerCommand}, Tests: []string{test}})
	if err != nil {
		return 0, err
	}
	return f.Test(test).P50, nil
}

// redisBenchmark drives Redis with the program of that name, as many requests as about fill a turn.
type redisBenchmark struct {
	program, address string
	pids             []int
	duration         time.Duration
	// rate is what the last turn reached. Owned by the goroutine that compares.
	rate float64
}

// redisBenchmarkKey is how redis-benchmark names a key of its own choice: twelve digits in the place of __rand_int__.
func redisBenchmarkKey(n int) string { return fmt.Sprintf("key:%012d", n) }

// load writes the keys that redis-benchmark will ask for; on its own it would ask for keys that are not there.
func (b *redisBenchmark) load(ctx context.Context) (err error) {
	p, err := connectRedis(ctx, []string{b.address}, timeoutOp, waitServers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.target.Close()) }()
	const batch = 1000
	value := []byte(strings.Repeat("v", valueBytes))
	for from := 0; from < keys; from += batch {
		names, values := make([]string, 0, batch), make([][]byte, 0, batch)
		for n := from; n < min(from+batch, keys); n++ {
			names, values = append(names, redisBenchmarkKey(n)), append(values, value)
		}
		if err := p.target.PutMany(ctx, names, values); err != nil {
			return err
		}
	}
	return nil
}

// calibration is how many requests the first run makes, which counts for nothing but the rate.
const calibration = 200_000

func (b *redisBenchmark) turn(ctx context.Context, r row) (turn, error) {
	if b.rate == 0 {
		rate, err := b.run(ctx, r, calibration)
		if err != nil {
			return turn{}, err
		}
		b.rate = rate
	}
	n := max(int(b.rate*b.duration.Seconds()), r.load.Concurrency*r.load.Pipeline)
	before, err := cpuOf(b.pids)
	if err != nil {
		return turn{}, err
	}
	if b.rate, err = b.run(ctx, r, n); err != nil {
		return turn{}, err
	}
	after, err := cpuOf(b.pids)
	if err != nil {
		return turn{}, err
	}
	return turn{Figure: b.rate, CPU: float64(after-before) / float64(time.Microsecond) / float64(n)}, nil
}

func cpuOf(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		d, err := bench.ProcessCPU(pid)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// run makes n requests and gives their rate.
func (b *redisBenchmark) run(ctx context.Context, r row, n int) (float64, error) {
	host, port, err := net.SplitHostPort(b.address)
	if err != nil {
		return 0, err
	}
	args := []string{
		"-h", host, "-p", port, "-P", strconv.Itoa(r.load.Pipeline), "-c", strconv.Itoa(r.load.Concurrency), "-n", strconv.Itoa(n), "-r", strconv.Itoa(keys),
		"--csv", "GET", "key:__rand_int__",
	}
	out, err := exec.CommandContext(ctx, b.program, args...).Output()
	if err != nil {
		return 0, fmt.Errorf("%s %s: %w", b.program, strings.Join(args, " "), err)
	}
	return redisBenchmarkRate(string(out))
}

// redisBenchmarkRate reads the column rps of redis-benchmark --csv.
func redisBenchmarkRate(text string) (float64, error) {
	lines, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil || len(lines) != 2 || len(lines[0]) < 2 || lines[0][1] != "rps" {
		return 0, fmt.Errorf("redis-benchmark has answered in an unknown form: %q", text)
	}
	rate, err := strconv.ParseFloat(lines[1][1], 64)
	if err != nil || !(rate > 0) {
		return 0, fmt.Errorf("redis-benchmark has told no rate: %q", text)
	}
	return rate, nil
}
