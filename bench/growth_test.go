package bench

import (
	"os"
	"strings"
	"testing"
	"time"
)

// Two targets of different speed: the ratio says by how much, both are loaded with what they should hold, and a read
// that finds nothing counts as a failure.
func TestGrowth_SlowerWithMany_RatioBelowOne(t *testing.T) {
	small, large := newFakeTarget(), newFakeTarget()
	large.delay = func(int) time.Duration { return time.Millisecond }
	pids := []int{os.Getpid()}
	o := GrowthOptions{
		Small: small, Large: large, SmallPIDs: pids, LargePIDs: pids, SmallKeys: 100, Keys: 2000, Callers: 2, Rounds: 1,
		Duration: 100 * time.Millisecond, SettleTimeout: time.Millisecond,
	}
	old := compareWarmup
	compareWarmup = -1
	defer func() { compareWarmup = old }()
	rep, err := Growth(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(small.data) != 100 || len(large.data) != 2000 {
		t.Errorf("%d and %d keys loaded", len(small.data), len(large.data))
	}
	if len(rep.Growth) != 2 || rep.Growth[0].Workload != "get" || rep.Growth[1].Workload != "put" || len(rep.RSSAnonBytes) != 1 || len(rep.SmallRSSAnonBytes) != 1 {
		t.Fatalf("%+v", rep)
	}
	for _, p := range rep.Growth {
		if !(p.Ratio > 0 && p.Ratio < 1) || p.RatioMin != p.Ratio || p.RatioMax != p.Ratio || p.Failed != 0 {
			t.Errorf("%+v", p)
		}
	}
	var b strings.Builder
	if err := rep.WriteTable(&b); err != nil || !strings.Contains(b.String(), "hot get") || !strings.Contains(b.String(), "RssAnon") {
		t.Errorf("%v in %s", err, b.String())
	}

	o.Small, o.Large, o.SkipLoad = newFakeTarget(), newFakeTarget(), true
	if rep, err = Growth(t.Context(), o); err != nil || rep.Failed() == 0 {
		t.Errorf("gets of nothing passed: %+v, %v", rep, err)
	}
	o.LargePIDs = nil
	if _, err := Growth(t.Context(), o); err == nil {
		t.Error("no process of the large store, and no error")
	}
}
