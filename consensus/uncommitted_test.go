package consensus

import (
	"context"
	"slices"
	"testing"
	"time"
)

// A configuration at the end of a log may never have been committed. A node that is not in it must start all the
// same: the next leader takes it back.
func TestOpen_LogEndsWithAnUncommittedRemovalOfItself_StartsAndStaysAMember(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		c := newTestCluster(t, 3)
		c.start()
		c.writeMany("a", 3)
		c.converge()
		last := c.leader()
		if checkpoint {
			if err := last.g.Snapshot(testContext(t)); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range c.others(last) {
			n.kill()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if err := last.g.Remove(ctx, last.id); err == nil {
			t.Fatal("a leader that nobody hears removed itself")
		}
		cancel()
		if slices.ContainsFunc(last.g.members(), func(m Member) bool { return m.ID == last.id }) {
			t.Fatal("the removal is not in the log: the test hits nothing")
		}
		last.kill()
		for _, n := range c.nodes {
			if n != last {
				n.start()
			}
		}
		c.write("without it")
		last.start() // fails the test if it is refused
		c.write("b")
		c.converge("a-0", "b")
		if !slices.ContainsFunc(c.leader().g.Status().Configuration, func(m Member) bool { return m.ID == last.id && m.Voter }) {
			t.Error("it is no voter any more")
		}
	}
}
