package consensus

import "testing"

// Goal: one voice of another history is enough to keep a node from beginning anew with the history that has ended, but
// does not stop one that follows a leader: a recovery that was a mistake would take a running cluster down.
func TestRefused_GivenUpBySingleVoice_HoldsOnlyUntilTheFirstLeader(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	c.write("a")
	c.converge()
	others := c.others(c.leader())
	survivor, member := others[0], others[1]
	survivor.kill()
	survivor.change = func(o *Options) {
		o.Cluster = func() (cluster, history [16]byte, ok bool) {
			history = testHistoryID
			history[0]++
			return testClusterID, history, true
		}
		o.Record = func(id string) (incarnation [16]byte, removed, ok bool) {
			return c.nodes[id].incarnation, true, id != survivor.id
		}
	}
	survivor.start()
	eventually(t, "the member is told that it was given up", func() bool {
		return member.g.transport.connections()[survivor.id].givenUp
	})
	if err := member.g.Refused(); err != nil {
		t.Errorf("it follows a leader: %v", err)
	}
	c.write("b")
	for _, n := range c.nodes {
		if n != survivor {
			n.kill()
		}
	}
	member.start()
	eventually(t, "the member, alone with the survivor, says that it is refused", func() bool { return member.g.Refused() != nil })
	if err := member.g.Refused(); !isRefused(err) {
		t.Error(err)
	}
}
