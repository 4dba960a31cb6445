package bench

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// quickOptions finish fast; the fake target's clock is the bubble's where one is used.
func quickOptions(workload string) Options {
	return Options{Workload: workload, Keys: 500, ValueBytes: 32, Concurrency: 3, Duration: 50 * time.Millisecond, Warmup: -1, sleep: time.Sleep}
}

// Coordinated omission, with virtual time: a server that answers one caller at 1 ms each stalls for 1 s
// once. 100 operations a second are due. A loop that waits would see one slow operation of 400; counted
// from the due time, the hundred that fell due during the stall were late as well: 1000, 991, 982 … ms.
func TestOpenLoop_OneStall_DelaysEveryOperationThatWasDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newFakeTarget()
		target.delay = func(op int) time.Duration {
			if op == 100 {
				return time.Second
			}
			return time.Millisecond
		}
		o := quickOptions("put")
		o.Concurrency, o.Rate, o.Duration = 1, 100, 4*time.Second
		rep, err := Run(t.Context(), target, o)
		if err != nil {
			t.Fatal(err)
		}
		put := rep.Operations["put"]
		if put.Ops != 400 || rep.Errors != 0 {
			t.Fatalf("%d operations and %d errors, want 400 and 0", put.Ops, rep.Errors)
		}
		// Operation 100+k ends 1000+k ms after the stall began and was due 10k ms after: 1000 - 9k ms, until
		// the backlog is gone at k = 111. So 112 of 400 are slower than 1 ms: the median is 1 ms, P95 is the
		// 20th slowest (k = 20), P99 the 4th (k = 4).
		for _, c := range []struct {
			name      string
			got, want float64 // µs
		}{
			{"p50", put.P50, 1000}, {"p95", put.P95, 1e6 - 20*9000}, {"p99", put.P99, 1e6 - 4*9000}, {"max", put.Max, 1e6},
		} {
			if math.Abs(c.got-c.want)/c.want > 0.012 {
				t.Errorf("%s is %.0fµs, want %.0fµs", c.name, c.got, c.want)
			}
		}
		if !rep.Schedule.Reached {
			t.Error("the rate was reached over all, and the report denies it")
		}
	})
}

// The same stall in a closed loop: one slow operation, which is all that such a loop can see.
func TestClosedLoop_OneStall_IsOneSlowOperation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newFakeTarget()
		target.delay = func(op int) time.Duration {
			if op == 100 {
				return time.Second
			}
			return time.Millisecond
		}
		o := quickOptions("put")
		o.Concurrency, o.Duration = 1, 2*time.Second
		rep, err := Run(t.Context(), target, o)
		if err != nil {
			t.Fatal(err)
		}
		put := rep.Operations["put"]
		if put.Ops != 1001 || put.P99 > 1010 || put.Max < 999_000 {
			t.Errorf("ops %d, P99 %.0fµs, max %.0fµs; want 1001, 1ms, 1s", put.Ops, put.P99, put.Max)
		}
	})
}

// A target that is slower than the rate for good: the backlog stays bounded, what does not fit is counted
// as not sent, and the report says that the rate was not reached.
func TestOpenLoop_TargetTooSlow_BacklogBoundedAndSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newFakeTarget()
		target.delay = func(int) time.Duration { return 10 * time.Millisecond }
		o := quickOptions("put")
		o.Concurrency, o.Rate, o.Duration, o.Backlog = 1, 1000, 10*time.Second, 50
		rep, err := Run(t.Context(), target, o)
		if err != nil {
			t.Fatal(err)
		}
		put := rep.Operations["put"]
		if rep.Schedule.Reached {
			t.Error("the report claims a rate of 1000/s from a target of 100/s")
		}
		if rep.Schedule.Dropped+put.Ops != 10_000 || rep.ErrorsByKind["not_sent"] != rep.Schedule.Dropped {
			t.Errorf("%d dropped, %d done, not_sent %d: they must add up to 10000", rep.Schedule.Dropped, put.Ops, rep.ErrorsByKind["not_sent"])
		}
		// 50 in the backlog, one in hand, one at work: nobody waited longer than 52 answers.
		if put.Max > 530_000 {
			t.Errorf("max is %.0fµs, the bounded backlog allows 520ms", put.Max)
		}
		var table strings.Builder
		if err := rep.WriteTable(&table); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(table.String(), "target rate NOT reached") {
			t.Errorf("the table does not say that the rate was not reached:\n%s", table.String())
		}
	})
}

// In an open loop with pipelining, callers overlap: 10 ms each at 1000/s need ten in flight.
func TestOpenLoop_Pipelined_OperationsOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newFakeTarget()
		target.delay = func(int) time.Duration { return 10 * time.Millisecond }
		o := quickOptions("mixed")
		o.Concurrency, o.Pipeline, o.Rate, o.Duration, o.SkipLoad = 1, 16, 1000, 2*time.Second, true
		rep, err := Run(t.Context(), target, o)
		if err != nil {
			t.Fatal(err)
		}
		if rep.Ops != 2000 || !rep.Schedule.Reached || rep.Operations["get"].P999 > 11_000 {
			t.Errorf("%d of 2000 operations, reached %v, P99.9 of get %.0fµs; want all, true, 10ms", rep.Ops, rep.Schedule.Reached, rep.Operations["get"].P999)
		}
	})
}

// Warm-up is not measured: ten slow operations before the window leave no trace.
func TestRun_WarmUp_NotMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newFakeTarget()
		target.delay = func(op int) time.Duration {
			if op < 10 {
				return 100 * time.Millisecond
			}
			return time.Millisecond
		}
		o := quickOptions("put")
		o.Concurrency, o.Warmup, o.Duration = 1, time.Second, time.Second
		rep, err := Run(t.Context(), target, o)
		if err != nil {
			t.Fatal(err)
		}
		if put := rep.Operations["put"]; put.Ops != 1000 || put.Max > 1010 || math.Abs(rep.Seconds-1) > 0.01 {
			t.Errorf("%d ops in %.3fs, max %.0fµs; want 1000 in 1s, 1ms", put.Ops, rep.Seconds, put.Max)
		}
	})
}

// Every workload does the operations that it names, on existing keys, in both forms of driving.
func TestRun_EveryWorkload_NoErrorsNoMisses(t *testing.T) {
	for name, w := range workloads {
		for _, depth := range []int{1, 4} {
			if depth > 1 && !w.async() {
				continue
			}
			t.Run(name, func(t *testing.T) {
				target := newFakeTarget()
				target.delay = func(int) time.Duration { return 20 * time.Microsecond }
				o := quickOptions(name)
				o.Pipeline = depth
				loaded := 0
				o.Progress = func(done, _ int) { loaded = done }
				rep, err := Run(t.Context(), target, o)
				if err != nil {
					t.Fatal(err)
				}
				if !w.noLoad && loaded != o.Keys {
					t.Errorf("progress ended at %d of %d keys", loaded, o.Keys)
				}
				for _, s := range w.shares {
					op := rep.Operations[s.op.String()]
					if op == nil || op.Ops == 0 {
						t.Errorf("%s never happened: %+v", s.op, rep.Operations)
						continue
					}
					if op.Errors+op.Misses > 0 {
						t.Errorf("%s: %d errors, %d misses", s.op, op.Errors, op.Misses)
					}
				}
				if len(rep.Operations) != len(w.shares) {
					t.Errorf("%d operations reported, the workload has %d", len(rep.Operations), len(w.shares))
				}
			})
		}
	}
}

// The mix of operations follows the workload's shares.
func TestGenerator_YCSBShares_WithinOnePercent(t *testing.T) {
	for name, w := range workloads {
		o, err := Options{Workload: name, Keys: 1000, Reads: 0.8}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		p := newPlan(o)
		g := newGenerator(p, 0)
		var counts [opCount]int
		var req request
		const draws = 50_000
		for range draws {
			g.next(&req)
			counts[req.op]++
			if req.op == OpScan && (req.items < 1 || req.items > ScanItemsMax) {
				t.Fatalf("scan of %d items", req.items)
			}
			if req.op == OpInsert {
				p.inserts.finish(req.number)
			}
		}
		for i, s := range p.shares {
			if got := float64(counts[s.op]) / draws; math.Abs(got-s.part) > 0.01 {
				t.Errorf("%s: %s has a share of %.3f, want %.3f", name, w.shares[i].op, got, s.part)
			}
		}
	}
}

func TestGenerator_SameSeed_SameOperations(t *testing.T) {
	o, err := Options{Workload: "ycsb-a", Keys: 1000, Seed: 99}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	a, b, other := newGenerator(newPlan(o), 3), newGenerator(newPlan(o), 3), newGenerator(newPlan(o), 4)
	var x, y, z request
	differ := false
	for i := range 1000 {
		a.next(&x)
		b.next(&y)
		other.next(&z)
		if x.op != y.op || x.key != y.key || string(x.value) != string(y.value) {
			t.Fatalf("operation %d differs: %v %s, %v %s", i, x.op, x.key, y.op, y.key)
		}
		differ = differ || x.key != z.key
	}
	if !differ {
		t.Error("two workers draw the same keys")
	}
}

// A read-modify-write is one operation of a read and a write, also asynchronously.
func TestRun_ReadModifyWrite_ReadsThenWrites(t *testing.T) {
	for _, depth := range []int{1, 8} {
		target := newFakeTarget()
		o := quickOptions("ycsb-f")
		o.Pipeline = depth
		rep, err := Run(t.Context(), target, o)
		if err != nil {
			t.Fatal(err)
		}
		rmw, reads := rep.Operations["rmw"].Ops, rep.Operations["read"].Ops
		if uint64(target.puts) != rmw || uint64(target.gets) != rmw+reads {
			t.Errorf("pipeline %d: %d rmw and %d reads made %d puts and %d gets", depth, rmw, reads, target.puts, target.gets)
		}
	}
}

func TestRun_Failures_CountedByKindUnknownApart(t *testing.T) {
	for _, depth := range []int{1, 4} {
		target := newFakeTarget()
		target.fail = func(op int) error {
			switch {
			case op%10 == 3:
				return errFakeUnknown
			case op%10 == 6:
				return errFakeBusy
			}
			return nil
		}
		o := quickOptions("put")
		o.Pipeline = depth
		rep, err := Run(t.Context(), target, o)
		if err != nil {
			t.Fatal(err)
		}
		if rep.Unknown == 0 || rep.ErrorsByKind["unknown"] != rep.Unknown || rep.ErrorsByKind["busy"] == 0 {
			t.Errorf("unknown %d, by kind %v", rep.Unknown, rep.ErrorsByKind)
		}
		if got := rep.ErrorsByKind["unknown"] + rep.ErrorsByKind["busy"]; rep.Errors != got || rep.Operations["put"].Errors != got {
			t.Errorf("errors %d, of put %d, by kind %d", rep.Errors, rep.Operations["put"].Errors, got)
		}
		if uint64(target.puts) != rep.Ops {
			t.Errorf("%d successes reported, the target did %d", rep.Ops, target.puts)
		}
		if rep.ErrorSamples["unknown"] != errFakeUnknown.Error() {
			t.Errorf("no sample of the error: %v", rep.ErrorSamples)
		}
	}
}

func TestRun_LoadFails_SaysSo(t *testing.T) {
	target := newFakeTarget()
	target.fail = func(int) error { return errFakeBusy }
	synctest.Test(t, func(t *testing.T) {
		_, err := Run(t.Context(), target, quickOptions("get"))
		if !errors.Is(err, errFakeBusy) || !strings.Contains(err.Error(), "cannot load") {
			t.Errorf("got %v", err)
		}
	})
}

func TestRun_ContextEnds_ReportOfWhatWasMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := newFakeTarget()
		target.delay = func(int) time.Duration { return time.Millisecond }
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		o := quickOptions("put")
		o.Duration = time.Hour
		rep, err := Run(ctx, target, o)
		if !errors.Is(err, context.DeadlineExceeded) || rep == nil || rep.Ops < 200 || rep.Seconds > 1 {
			t.Errorf("report %+v, error %v", rep, err)
		}
	})
}

func TestOptions_AllFaultsAtOnce(t *testing.T) {
	_, err := Options{Workload: "nonsense", Keys: -1, Rate: -5, Reads: 2, Distribution: "odd", Pipeline: -1}.withDefaults()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"nonsense", "keys", "rate", "reads", "odd", "pipeline"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if _, err := (Options{Workload: "ycsb-e", Pipeline: 4}).withDefaults(); err == nil {
		t.Error("a pipelined scan workload was accepted")
	}
}
