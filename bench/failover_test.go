package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeCluster is a target whose leader can be killed: writes that begin in the gap wait for its end, and
// those under way at the kill are answered as the test wants.
type fakeCluster struct {
	*fakeTarget
	gap time.Duration
	// late is how long after the kill the answer of the dead leader is still read from the socket.
	late time.Duration
	// restart is how long after the kill the cluster is whole again.
	restart time.Duration

	mu     sync.Mutex
	term   uint64
	killed time.Time
	kills  int
}

func newFakeCluster() *fakeCluster {
	return &fakeCluster{fakeTarget: newFakeTarget(), gap: 700 * time.Millisecond, restart: 2 * time.Second, term: 4}
}

func (f *fakeCluster) Put(ctx context.Context, key string, value []byte) error {
	begun := time.Now()
	time.Sleep(time.Millisecond + f.late)
	f.mu.Lock()
	killed := f.killed
	f.mu.Unlock()
	if !killed.IsZero() && !begun.Before(killed) {
		time.Sleep(time.Until(killed.Add(f.gap)))
	}
	return f.fakeTarget.Put(ctx, key, value)
}

func (f *fakeCluster) leader(context.Context) (Leader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.killed.IsZero() && time.Since(f.killed) < f.restart {
		return Leader{}, errors.New("node-2 is down")
	}
	return Leader{ID: fmt.Sprintf("node-%d", f.term%3+1), PID: 100 + f.kills, Term: f.term, Nodes: 3}, nil
}

func (f *fakeCluster) kill(context.Context, Leader) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.killed = time.Now()
	f.kills++
	f.term++
	return nil
}

func (f *fakeCluster) options() FailoverOptions {
	return FailoverOptions{Kills: 3, Leader: f.leader, Kill: f.kill}
}

// The gap runs from the kill to the first answer to a write that began after it. Answers of the dead leader
// that arrive later belong to writes that began before, and are no sign of life.
func TestFailover_LateAnswersOfTheDead_DoNotEndTheGap(t *testing.T) {
	for _, late := range []time.Duration{0, 100 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeCluster()
			f.late = late
			rep, err := Failover(t.Context(), f, f.options())
			if err != nil {
				t.Fatal(err)
			}
			if len(rep.Kills) != 3 || f.kills != 3 || rep.Nodes != 3 {
				t.Fatalf("%d kills reported, %d done, %d nodes", len(rep.Kills), f.kills, rep.Nodes)
			}
			for i, k := range rep.Kills {
				if math.Abs(k.Gap-700_000) > 6000 { // a write falls due every 5 ms
					t.Errorf("late %v, kill %d: a gap of %.0fµs, want 700ms", late, i, k.Gap)
				}
				if math.Abs(k.LongestWrite-700_000) > 6000 {
					t.Errorf("late %v, kill %d: longest write %.0fµs, want 700ms", late, i, k.LongestWrite)
				}
			}
			if rep.Errors+rep.Lost+rep.NotSent > 0 || rep.Writes != uint64(f.puts) {
				t.Errorf("%+v; the target did %d", rep, f.puts)
			}
			if rep.P50 > rep.P99 || rep.P99 != rep.Max {
				t.Errorf("p50 %.0f, p99 %.0f, max %.0f", rep.P50, rep.P99, rep.Max)
			}
		})
	}
}

// Acknowledged writes that are gone afterwards are counted and one is named.
func TestFailover_AcknowledgedWriteGone_Lost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster()
		o := f.options()
		o.Kill = func(ctx context.Context, l Leader) error {
			f.fakeTarget.mu.Lock()
			for k := range f.data {
				delete(f.data, k)
				break
			}
			f.fakeTarget.mu.Unlock()
			return f.kill(ctx, l)
		}
		rep, err := Failover(t.Context(), f, o)
		if err != nil || rep.Lost != 3 || !strings.HasPrefix(rep.LostKey, "kvbench/failover/") {
			t.Errorf("%+v, %v; three were deleted", rep, err)
		}
	})
}

// Failed writes are counted by kind; unknown ones apart.
func TestFailover_FailedWrites_CountedByKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster()
		f.fail = func(op int) error {
			switch {
			case op%50 == 7:
				return errFakeUnknown
			case op%50 == 9:
				return errFakeBusy
			}
			return nil
		}
		rep, err := Failover(t.Context(), f, f.options())
		if err != nil {
			t.Fatal(err)
		}
		if rep.Unknown == 0 || rep.Errors != rep.Unknown+rep.ErrorsByKind["busy"] || rep.ErrorsByKind["unknown"] != rep.Unknown ||
			rep.Writes != uint64(f.puts) || rep.ErrorSamples["busy"] != errFakeBusy.Error() {
			t.Errorf("%+v; the target did %d", rep, f.puts)
		}
	})
}

// What a measurement cannot be made of ends it with the reason, in bounded time.
func TestFailover_Hopeless_SaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		change func(f *fakeCluster, o *FailoverOptions)
		want   string
	}{
		"kill fails": {func(_ *fakeCluster, o *FailoverOptions) {
			o.Kill = func(context.Context, Leader) error { return errors.New("no such process") }
		}, "no such process"},
		"kill does nothing": {func(_ *fakeCluster, o *FailoverOptions) {
			o.Kill = func(context.Context, Leader) error { return nil }
		}, "it was not killed"},
		"never whole":    {func(f *fakeCluster, _ *FailoverOptions) { f.restart = time.Hour }, "node-2 is down"},
		"no write again": {func(f *fakeCluster, _ *FailoverOptions) { f.gap = 2 * time.Minute }, "no write was acknowledged after leader"},
		"no write at all": {func(f *fakeCluster, _ *FailoverOptions) {
			f.fail = func(int) error { return errFakeBusy }
		}, errFakeBusy.Error()},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeCluster()
			o := f.options()
			c.change(f, &o)
			start := time.Now()
			_, err := Failover(t.Context(), f, o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v; want %q in it", name, err, c.want)
			}
			if took := time.Since(start); took > 4*time.Minute {
				t.Errorf("%s: took %v", name, took)
			}
		})
	}
}

func TestFailoverOptions_AllFaultsAtOnce(t *testing.T) {
	err := FailoverOptions{Kills: -1, Interval: time.Microsecond, ValueBytes: -1, Settle: time.Hour}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"kills", "interval", "bytes", "patience", "nobody"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}
