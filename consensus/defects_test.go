package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/fs"
)

// Defects of the library against which this package has a guard that no other test would miss. DESIGN.md lists
// all, each with its test.

// hashicorp/raft #695: a heartbeat that is not worked on by raft's main goroutine moves a leader to a later
// term behind that goroutine's back, which then logs what it is asked to in a term that it does not lead.
func TestHeartbeat_OfALaterTerm_DeposedLeaderAppendsNothingInIt(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	for range 5 {
		leader := c.leader()
		c.write("a")
		other := c.others(leader)[0]
		term, ok := leader.g.LeaderTerm()
		if !ok {
			continue
		}
		// What a leader of the next term would send; nobody leads it yet.
		req := &raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(other.id), Addr: []byte(other.address)},
			Term:      term + 1,
		}
		var resp raft.AppendEntriesResponse
		if err := other.g.transport.(networkTransport).Transport.AppendEntries(raft.ServerID(leader.id), raft.ServerAddress(leader.address), req, &resp); err != nil {
			t.Fatal(err)
		}
		f := leader.g.raft.ApplyLog(raft.Log{Data: []byte("of whom?")}, time.Second)
		err := f.Error()
		if !errors.Is(err, raft.ErrNotLeader) || f.Index() != 0 {
			var l raft.Log
			if f.Index() != 0 {
				_ = leader.g.logs.GetLog(f.Index(), &l) // for the message alone
			}
			t.Fatalf("the leader of term %d, which has heard of term %d, answers %v; its log has %q in term %d at %d", term, resp.Term, err, l.Data, l.Term, f.Index())
		}
	}
}

// hashicorp/raft #697 once more: the tail of a leader that was cut off ends at the very index of the snapshot
// that it then receives. raft remembers that entry's term, and compares it with that of the snapshot's.
func TestInstall_ConflictingTailEndsAtTheSnapshot_Heals(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.TrailingLogs, o.ProposalTimeout = 1, time.Second })
	c.start()
	c.writeMany("a", 5)
	c.converge()
	old := c.leader()
	c.network.cut(old.id, true)
	old.lost(25)
	eventually(t, "another node leads", func() bool { return c.leader() != old })
	applied := old.m.Applied()
	old.kill()
	tail, err := lastOf(old)
	if err != nil {
		t.Fatal(err)
	}
	for c.leader().m.Applied() < tail {
		c.write("b")
	}
	for _, n := range c.others(nil) {
		eventually(t, n.id+" has everything", func() bool { return n.m.Applied() >= tail })
		if err := n.g.Snapshot(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if d, _ := n.m.Durable(); d.Index != tail {
			t.Fatalf("the case did not arise: the snapshot is of %d, the tail ends at %d", d.Index, tail)
		}
	}
	// A leader that was elected later begins behind the tail, and so does not replace it with its first message.
	if err := c.leader().g.Transfer(testContext(t), ""); err != nil {
		t.Fatal(err)
	}
	c.write("c")
	if s := c.leader().g.Status(); s.FirstIndex <= applied+1 {
		t.Fatalf("the leader still has %d, of which %d are common", s.FirstIndex, applied)
	}
	c.network.cut(old.id, false)
	old.start()
	c.writeMany("d", 5)
	c.converge("a-0", "c", "d-4")
	if got := old.g.Metrics().SnapshotsInstalled.Load(); got != 1 {
		t.Errorf("%d snapshots were installed", got)
	}
	old.kill()
	old.start()
	c.converge("d-4")
}

// lastOf returns the last index in the log of a node that does not run.
func lastOf(n *testNode) (uint64, error) {
	o := n.options(n.c.tb, nil).withDefaults()
	l, err := openLogStore(logStoreOptions{
		dir: o.Dir, log: o.Logger, fault: newFailStop(o.Fatal), metrics: &Metrics{},
		segmentBytes: o.SegmentBytes, entryMax: o.EntryBytesMax, bytesMax: o.LogBytesMax, stall: o.WriteStallTimeout,
		vfs: o.vfs, meta: o.meta, crash: o.crash, durable: n.m.Durable,
	})
	if err != nil {
		return 0, err
	}
	last, err := l.LastIndex()
	return last, errors.Join(err, l.close())
}

// raft names a snapshot after a barrier that lies above the checkpoint, and deletes the log up to the checkpoint:
// what follows the checkpoint's entry then has nothing to be compared with, and each follower that was given the
// checkpoint would be given it again, for ever.
func TestSnapshot_NamedAfterABarrier_FollowerIsGivenItOnce(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.TrailingLogs = 1 })
	c.start()
	c.writeMany("a", 5)
	c.converge()
	down := c.others(c.leader())[0]
	down.kill()
	c.writeMany("b", 5)
	leader := c.leader()
	if err := leader.g.Barrier(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := leader.g.Barrier(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := leader.g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if d, _ := leader.m.Durable(); d.Index >= leader.g.Status().LastIndex {
		t.Fatalf("the case did not arise: the checkpoint is at %d of %+v", d.Index, leader.g.Status())
	}
	down.start()
	c.writeMany("c", 3)
	c.converge("a-0", "b-4", "c-2")
	if n := leader.g.Metrics().SnapshotsSent.Load(); n > 1 {
		t.Errorf("%d snapshots were sent", n)
	}
}

// After failures raft waits for up to 10 s before it tries to replicate to a follower again, also to one that has
// come back meanwhile.
func TestReplication_FollowerBackAfterALongTime_CaughtUpAtOnce(t *testing.T) {
	oneProcessor(t)
	synctest.Test(t, func(t *testing.T) {
		c := newSimCluster(t, 1, simPlan{})
		c.found(3)
		leader, rest := c.cast()
		away := rest[0]
		heal := c.isolate(away.node, true, true)
		for i := range 100 {
			c.write(leader, fmt.Sprint("a", i))
			time.Sleep(simHeartbeat)
		}
		if l := c.leader(); l != leader {
			t.Fatal("the leader has changed")
		}
		heal()
		const patience = 5 * simHeartbeat // for new connections, too
		time.Sleep(patience)
		if got, want := away.m.Applied(), c.check.newestAcked(); got < want {
			t.Errorf("%v after it was back, it has applied %d of %d", patience, got, want)
		}
		c.end()
	})
}

// hashicorp/raft never answers what waits in its queue when it shuts down.
func TestClose_RaftForgetsItsQueue_EveryProposalIsAnswered(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	disk := &failingFS{VFS: fs.New()}
	o.vfs = disk
	g := openGroup(t, o, openMachine(t, dir))
	mustPropose(t, g, "a")
	hang := make(chan struct{})
	disk.hang.Store(&hang)
	const n = 20
	answers := make(chan error, n)
	for range n {
		if err := g.Propose([]byte("waits"), func(_ any, err error) { answers <- err }); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	release := sync.OnceFunc(func() {
		disk.hang.Store(nil)
		close(hang)
	})
	defer release()
	if err := g.Close(ctx); err == nil {
		t.Error("closed although the disk hangs")
	}
	for i := range n {
		select {
		case err := <-answers:
			if !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNotProposed) {
				t.Errorf("answer %d: %v", i, err)
			}
		case <-time.After(testWait):
			t.Fatalf("only %d of %d proposals were answered", i, n)
		}
	}
}
