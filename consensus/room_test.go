package consensus

import (
	"errors"
	"sync/atomic"
	"testing"
)

// Goal: a follower without room keeps its leader and costs the others nothing; it is asked about ten times a
// second, however long it lasts (raft by itself would pause for twice as long each time, up to 10 s), and then
// has everything.
func TestStoring_FollowerWithoutRoom_KeptInMindAndBroughtUpAtOnce(t *testing.T) {
	var full atomic.Pointer[string]
	var refusals atomic.Int64
	c := newTestCluster(t, 3, func(o *Options) {
		o.Storing = func(size int64) error {
			if id := full.Load(); id == nil || *id != o.NodeID {
				return nil
			}
			if size <= 0 {
				t.Errorf("asked about %d bytes", size)
			}
			refusals.Add(1)
			return errors.New("no space")
		}
	})
	c.start()
	c.write("a")
	c.converge()
	leader := c.leader()
	_, _, term := leader.g.Leader()
	follower := c.others(leader)[0]
	full.Store(&follower.id)
	before := len(follower.m.commands())
	c.writeMany("b", 20)
	// By raft's own pauses 40 refusals would take more than four minutes.
	eventually(t, "it is asked again and again", func() bool { return refusals.Load() >= 40 })
	if got := len(follower.m.commands()); got != before {
		t.Errorf("a follower without room has taken %d commands", got-before)
	}
	if _, _, now := follower.g.Leader(); now != term {
		t.Errorf("a follower without room went from term %d to %d", term, now)
	}
	full.Store(nil)
	c.converge("b-0", "b-19")
	if _, _, now := leader.g.Leader(); now != term {
		t.Errorf("the leader went from term %d to %d", term, now)
	}
}
