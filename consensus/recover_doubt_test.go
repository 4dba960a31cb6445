package consensus

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"
)

// A leader that was cut off has taken somebody's vote, and nobody has heard of it: the others may be a majority with
// that one.
func TestRecover_ChangeThatNobodyHeardOf_NamesAllVotersBeforeIt(t *testing.T) {
	for _, removed := range []bool{false, true} {
		c := newTestCluster(t, 3)
		c.start()
		c.writeMany("a", 5)
		c.converge()
		last := c.leader()
		out := c.others(last)[0]
		if err := last.g.Snapshot(testContext(t)); err != nil {
			t.Fatal(err)
		}
		founders := last.g.Status().Configuration
		c.network.cut(last.id, true)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		change := last.g.Demote
		if removed {
			change = last.g.Remove
		}
		if err := change(ctx, out.id); err == nil {
			t.Fatal("a change was committed without a majority")
		}
		cancel()
		if now := last.g.Status().Configuration; slices.Equal(now, founders) {
			t.Fatal("the change did not reach the log")
		}
		for _, n := range c.nodes {
			n.kill()
		}
		byID := func(a, b Member) int { return strings.Compare(a.ID, b.ID) }
		slices.SortFunc(founders, byID)
		for i := range 2 { // the second time as it was done before
			r, err := last.recover()
			slices.SortFunc(r.OldConfiguration, byID)
			if err != nil || r.Changed != (i == 0) || !slices.Equal(r.OldConfiguration, founders) || !r.WasVoter {
				t.Errorf("removed %v, call %d: %+v, %v; want %v", removed, i+1, r, err, founders)
			}
		}
	}
}
