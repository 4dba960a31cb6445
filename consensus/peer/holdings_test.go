package peer

import (
	"testing"

	"github.com/hashicorp/raft"
)

// Goal: only what is committed counts as held, whatever the order in which it becomes known.
func TestHolding_Acks_CountAsFarAsTheyAreCommittedInTheirTerm(t *testing.T) {
	tr := open(t, testOptions(t, 2))
	n := newFakeNode(4)
	tr.Bind(n)
	let := func(starts uint64) {
		h := Hello{Purpose: PurposePulse, Target: "node-2", Source: "node-1", Incarnation: incarnation(1), Address: "a:1",
			Cluster: incarnation(0xcc), History: incarnation(0xdd), Heartbeat: tr.o.HeartbeatTimeout, Starts: starts, Nonce: starts}
		if r := tr.admit(&h); r != nil {
			t.Fatal(r.text)
		}
	}
	must := func(starts, want uint64) {
		t.Helper()
		if got, _ := tr.mustHold(&Hello{Source: "node-1", Incarnation: incarnation(1), Starts: starts}); got != want {
			t.Errorf("start %d must hold %d, want %d", starts, got, want)
		}
	}
	ack := func(term, match uint64) { tr.noteAck(&Ack{Peer: "node-1", Term: term, Match: match}) }

	let(7)
	must(8, 0)
	ack(4, 100)
	must(8, 0) // nothing is committed
	n.commit.Store(60)
	must(8, 60)
	must(7, 0) // its own hello may be older than what it acknowledged since
	ack(4, 0)  // a heartbeat
	n.commit.Store(200)
	must(8, 100)

	ack(4, 300)
	n.term.Store(5)
	n.commit.Store(400) // under another leader, which may have replaced 201 to 300
	must(8, 200)        // it was committed in term 4 when the ack came
	ack(5, 350)
	must(8, 350)
	ack(4, 399) // late, of an older term
	must(8, 350)

	let(8)
	ack(5, 360)
	must(8, 350)
	must(9, 360)

	// What others tell counts as well, but not about other directories, nor about this node.
	tr.noteHeld("node-1", process{incarnation: incarnation(1), starts: 8}, 390)
	must(9, 390)
	must(8, 350)
	tr.noteHeld("node-1", process{incarnation: incarnation(1), starts: 7}, 355)
	must(8, 355)
	tr.noteHeld("node-1", process{incarnation: incarnation(9), starts: 99}, 1000)
	tr.noteHeld("node-1", process{incarnation: incarnation(1)}, 1000)
	tr.noteHeld("node-2", process{incarnation: incarnation(2), starts: 1}, 1000)
	tr.noteHeld("node-3", process{incarnation: incarnation(3), starts: 1}, 1000)
	must(9, 390)
	if l := tr.listHeld(); len(l) != 1 || l[0].ID != "node-1" || l[0].Index != 390 || l[0].Starts != 8 {
		t.Errorf("told on: %+v", l)
	}
	if got, _ := tr.mustHold(&Hello{Source: "node-1", Incarnation: incarnation(9), Starts: 9}); got != 0 {
		t.Errorf("another directory must hold %d", got)
	}

	// The term comes with it while the log has the entry.
	n.put(390, 5)
	if _, term := tr.mustHold(&Hello{Source: "node-1", Incarnation: incarnation(1), Starts: 9}); term != 5 {
		t.Errorf("term %d", term)
	}
	n.commit.Store(389) // an entry that is not committed here says nothing
	if _, term := tr.mustHold(&Hello{Source: "node-1", Incarnation: incarnation(1), Starts: 9}); term != 0 {
		t.Errorf("term %d of an entry that is not committed", term)
	}
	if err := tr.Forget("node-1"); err != nil {
		t.Fatal(err)
	}
	must(9, 0)
}

// Goal: a leader has stored what it says is committed, also where this follower has not.
func TestHolding_LeadersCommitIndex_IsHeldByTheLeader(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	oa.Starts = 3
	a, b := open(t, oa), open(t, ob)
	b.Bind(newFakeNode(1))
	serve(t, b, agree)
	req := heartbeat(a, 1)
	req.PrevLogEntry, req.LeaderCommitIndex = 5, 50
	var resp raft.AppendEntriesResponse
	if err := a.AppendEntries("node-2", b.LocalAddr(), req, &resp); err != nil {
		t.Fatal(err)
	}
	if got, _ := b.mustHold(&Hello{Source: "node-1", Incarnation: incarnation(1), Starts: 4}); got != 50 {
		t.Errorf("the leader must hold %d, want 50", got)
	}
}

// Goal: what one node knows of a third one, all know a pulse later.
func TestHolding_Pulses_TellItOn(t *testing.T) {
	oa, ob, oc := testOptions(t, 1), testOptions(t, 2), testOptions(t, 3)
	oa.Starts, ob.Starts, oc.Starts = 1, 2, 3
	a, b, c := open(t, oa), open(t, ob), open(t, oc)
	na := newFakeNode(1)
	na.commit.Store(70)
	na.applied.Store(44)
	a.Bind(na)
	for _, tr := range []*Transport{b, c} {
		tr.Bind(newFakeNode(1))
		serve(t, tr, agree)
	}
	for _, to := range []*Transport{b, c} {
		if err := beat(a, to, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := beat(b, c, 1); err != nil { // c knows b
		t.Fatal(err)
	}
	req := heartbeat(a, 1)
	req.Entries = []*raft.Log{{Index: 80, Term: 1}}
	var resp raft.AppendEntriesResponse
	if err := a.AppendEntries("node-2", b.LocalAddr(), req, &resp); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c knows what b acknowledged to a", func() bool {
		got, _ := c.mustHold(&Hello{Source: "node-2", Incarnation: incarnation(2), Starts: 3})
		return got == 70
	})
	eventually(t, "c knows what a has applied", func() bool {
		got, _ := c.mustHold(&Hello{Source: "node-1", Incarnation: incarnation(1), Starts: 2})
		return got == 44
	})
}
