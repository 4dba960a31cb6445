package consensus

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A replicator of a deposed leader may put a request together from two logs: the entry before the first
// from its own tail, the others from the next leader's. Such a request must not go out.
func TestAppendEntries_NodeDoesNotLeadTheTermAnyMore_NothingIsSent(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	c.write("a")
	c.converge()
	leader := c.leader()
	deposed, target := c.others(leader)[0], c.others(leader)[1]
	term, _ := leader.g.LeaderTerm()
	last := target.g.Status().LastIndex
	var prev raft.Log
	if err := target.g.logs.GetLog(last, &prev); err != nil {
		t.Fatal(err)
	}
	tr := deposed.g.transport.(networkTransport)
	req := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(deposed.id), Addr: []byte(deposed.address)},
		Term:      term, PrevLogEntry: last, PrevLogTerm: prev.Term,
		Entries: []*raft.Log{{Index: last + 1, Term: term, Type: raft.LogCommand, Data: []byte("spliced")}},
	}
	var resp raft.AppendEntriesResponse
	if err := tr.AppendEntries(raft.ServerID(target.id), raft.ServerAddress(target.address), req, &resp); !errors.Is(err, errDeposed) {
		t.Errorf("error = %v, answer %+v", err, resp)
	}
	if got := target.g.raft.LastIndex(); got == last+1 {
		var l raft.Log
		if err := target.g.logs.GetLog(got, &l); err == nil && string(l.Data) == "spliced" {
			t.Error("the entry of a node that does not lead is in a follower's log")
		}
	}
}

// The one voter that is left when a leader of two removes itself may restart and lead at once: it needs
// nobody's vote, so the leader's lease cannot count on what it had promised.
func TestRemove_LeaderItself_HoldsNoLeaseFromThenOn(t *testing.T) {
	for range 10 {
		if removeLeaderUnseen(t) {
			return
		}
	}
	t.Fatal("the case did not arise")
}

// removeLeaderUnseen reports whether the case arose: where an append was under way when the answers began to be held
// up, the leader waits for that one's and gives up its leadership before it could send the removal.
func removeLeaderUnseen(t *testing.T) bool {
	c := newTestCluster(t, 2, func(o *Options) { o.HeartbeatTimeout, o.ElectionTimeout = 2*time.Second, 2*time.Second })
	c.start()
	leader := c.leader()
	last := c.others(leader)[0]
	c.write("a")
	eventually(t, "the lease is held", leader.g.Lease)
	// What the other one answers is lost: the removal is not committed as far as the leader knows.
	c.network.hold(last.id, leader.id, true)
	removed := make(chan error, 1)
	go func() { removed <- leader.g.Remove(testContext(t), leader.id) }()
	defer func() {
		c.network.hold(last.id, leader.id, false)
		if err := <-removed; err != nil {
			t.Log(err)
		}
	}()
	isMember := func() bool {
		return slices.ContainsFunc(last.g.members(), func(m Member) bool { return m.ID == leader.id })
	}
	eventually(t, "the other one is the last voter, or the leader gave up", func() bool {
		_, leads := leader.g.LeaderTerm()
		return !isMember() || !leads
	})
	if isMember() {
		return false
	}
	last.kill()
	last.start()
	if last.g.Status().Voters != 1 {
		t.Fatal("the node has forgotten that it is the last voter")
	}
	eventually(t, "the last voter leads", func() bool { _, ok := last.g.LeaderTerm(); return ok })
	if err := propose(t, last.g, []byte("b")).err; err != nil {
		t.Fatal(err)
	}
	if leader.g.Lease() {
		t.Error("a removed leader holds a lease beside the next leader")
	}
	return true
}

func TestTransfer_TwiceToANodeOutOfReach_WritesGoOn(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	leader := c.leader()
	c.write("a")
	target := c.others(leader)[0]
	c.network.cut(target.id, true)
	c.write("b") // which the target has not: raft would bring it up to date first
	for range 2 {
		if err := leader.g.Transfer(testContext(t), target.id); err == nil {
			t.Error("leadership went to a node that is out of reach")
		}
	}
	c.write("c")
	// The same once it is back.
	c.network.cut(target.id, false)
	c.converge("a", "b", "c")
	eventually(t, "leadership is handed over", func() bool {
		l := c.leader()
		return l == target || l.g.Transfer(testContext(t), target.id) == nil
	})
}

func TestOpen_FoundingHadBegun_NoGroupOfItsOwn(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	c.write("a")
	n := c.others(c.leader())[0]
	n.kill()
	// All but the file of known nodes is gone, and the founders are not named any more.
	for _, pattern := range []string{"log/*.wal", "log/wal-meta.db", "log/vote", "checkpoint"} {
		files, err := filepath.Glob(filepath.Join(n.dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	founders := n.founders
	for name, list := range map[string][]Member{
		"none":    nil,
		"another": {founders[0], founders[1], founders[2], {ID: "node-9", Address: "127.0.0.1:9", Voter: true}},
	} {
		n.founders = list
		err := n.open(testContext(t))
		if err == nil {
			t.Errorf("%s: the node founded a group of %v", name, n.g.Status().Configuration)
			n.kill()
		}
		t.Log(err)
		n.g = nil
	}
}
