package consensus

import (
	"bytes"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/fs"
)

// gate is a disk whose syncs can be held up, and made to fail.
type gate struct {
	faultyFS

	mu sync.Mutex
	// Guarded by mu.
	syncs  int
	closed chan struct{} // not nil: syncs wait for it
	err    error         // what they then end with
}

func newGate() *gate {
	g := &gate{faultyFS: faultyFS{VFS: fs.New()}}
	g.sync = func(string) error {
		g.mu.Lock()
		g.syncs++
		c := g.closed
		g.mu.Unlock()
		if c == nil {
			return nil
		}
		<-c
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.err
	}
	g.armed.Store(true)
	return g
}

// hold makes syncs wait until the function is called.
func (g *gate) hold() (release func(err error)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := make(chan struct{})
	g.closed, g.err = c, nil
	return func(err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.closed == c {
			g.closed, g.err = nil, err
			close(c)
		}
	}
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.syncs
}

// openQueued opens a log that overlaps, holds its disk up, and gives it its first entries.
func openQueued(t *testing.T, n uint64, change ...func(*logStoreOptions)) (s *logStore, disk *gate, release func(error)) {
	t.Helper()
	disk = newGate()
	s = mustOpenLog(t, t.TempDir(), append([]func(*logStoreOptions){func(o *logStoreOptions) { o.vfs, o.queueMax = disk, logQueueBytes }}, change...)...)
	s.overlap = func() bool { return true }
	release = disk.hold()
	t.Cleanup(func() {
		release(nil)
		s.mustClose(t)
	})
	for i := range n {
		if err := s.StoreLog(testEntry(i+1, 10)); err != nil {
			t.Fatal(err)
		}
	}
	return s, disk, release
}

// blocked runs f beside the test and checks that it does not end before release is called, but then.
func blocked(t *testing.T, what string, release func(error), f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }() // ends with f
	select {
	case err := <-done:
		t.Fatalf("%s ended with %v while the disk hangs", what, err)
	case <-time.After(50 * time.Millisecond): // what must not happen has had its chance
	}
	release(nil)
	if err := receive(t, what, done); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Goal: entries that the disk does not hold yet are there for raft, in one piece, and go to the disk together.
func TestLogQueue_DiskHangs_EntriesAreReadAndLaterWrittenAtOnce(t *testing.T) {
	for _, cache := range []int64{0, 1 << 20} {
		const n = 10
		s, disk, release := openQueued(t, n, func(o *logStoreOptions) { o.cache = cache })
		for i := uint64(1); i <= n; i++ {
			var got raft.Log
			if err := s.GetLog(i, &got); err != nil || got.Index != i || !bytes.Equal(got.Data, testEntry(i, 10).Data) {
				t.Fatalf("entry %d: %+v, %v", i, got, err)
			}
		}
		if err := s.GetLog(n+1, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
			t.Errorf("the entry behind the last: %v", err)
		}
		if last, err := s.LastIndex(); err != nil || last != 0 || s.queue.synced(1) {
			t.Errorf("the disk is said to hold %d entries (%v)", last, err)
		}
		blocked(t, "waiting for the last entry", release, func() error { return s.queue.await(n) })
		// One sync for the first entry, with which the disk began, one for all that came meanwhile, and one of a new file.
		if got := disk.count(); got > 3 {
			t.Errorf("%d entries took %d syncs", n, got)
		}
		s.cache.drop(1, n)
		checkEntries(t, s, 1, n, 10)
	}
}

// Each of these must find all entries on the disk.
func TestLogQueue_DiskHangs_WhoNeedsTheDiskWaits(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, s *logStore) error
	}{
		{"a change of the members", func(_ *testing.T, s *logStore) error {
			l := testEntry(4, 10)
			l.Type = raft.LogConfiguration
			return s.StoreLog(l)
		}},
		{"an append without overlap", func(_ *testing.T, s *logStore) error {
			s.overlap = func() bool { return false }
			return s.StoreLog(testEntry(4, 10))
		}},
		{"a tail that is given up", func(_ *testing.T, s *logStore) error { return s.DeleteRange(2, 3) }},
		{"a new term", func(t *testing.T, s *logStore) error {
			stable, err := openStableStore(t.TempDir(), testWait, s.fault)
			if err != nil {
				return err
			}
			stable.logged = s.queue.drain
			return stable.SetUint64([]byte(keyCurrentTerm), 7)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _, release := openQueued(t, 3)
			blocked(t, c.name, release, func() error {
				err := c.do(t, s)
				if err == nil && !s.queue.synced(3) {
					err = errors.New("ended before the disk held the entries")
				}
				return err
			})
		})
	}
}

func TestLogQueue_Full_AppendWaits(t *testing.T) {
	s, _, release := openQueued(t, 3, func(o *logStoreOptions) { o.queueMax = 3 * entryBytes(testEntry(1, 10)) })
	blocked(t, "the append beyond the bound", release, func() error { return s.StoreLog(testEntry(4, 10)) })
	if err := s.queue.drain(); err != nil {
		t.Fatal(err)
	}
	checkEntries(t, s, 1, 4, 10)
}

// Goal: the guard behind all others. What this node's disk does not hold is not applied.
func TestApply_EntryNotOnThisDisk_Refused(t *testing.T) {
	s, _, _ := openQueued(t, 1)
	m := openMachine(t, t.TempDir())
	var fatal []error
	f := &fsm{sm: m, logs: s, metrics: &Metrics{}, fault: newFailStop(func(err error) { fatal = append(fatal, err) })}
	f.fault.armed.Store(true)
	ended := make(chan struct{})
	go func() { // ends when the failure is released
		defer close(ended)
		f.ApplyBatch([]*raft.Log{testEntry(1, 10)})
	}()
	select {
	case <-f.fault.failed:
	case <-time.After(testWait):
		t.Fatal("nothing failed")
	}
	f.fault.close()
	<-ended
	if got := m.commands(); len(got) != 0 || len(fatal) != 1 {
		t.Errorf("applied %q; fatal: %v", got, fatal)
	}
}

// gatedCluster is a cluster each of whose nodes has a disk that can be held up.
func gatedCluster(t *testing.T, n int) (*testCluster, map[string]*gate) {
	gates := map[string]*gate{}
	c := newTestCluster(t, n, func(o *Options) { o.vfs = gates[o.NodeID] })
	for id := range c.nodes {
		gates[id] = newGate()
	}
	c.start()
	return c, gates
}

// hasAcked waits until a follower has told the leader that it holds index.
func hasAcked(t *testing.T, leader, follower *testNode, index uint64) {
	t.Helper()
	term, _ := leader.g.LeaderTerm()
	eventually(t, follower.id+" has acknowledged", func() bool {
		a, ok := leader.g.book.of(raft.ServerID(follower.id), term)
		return ok && a.match >= index
	})
}

// Goal: the leader's fsync and the followers' overlap, and without the leader's nothing is committed.
func TestOverlap_LeadersDiskHangs_FollowersStoreAndNothingIsCommitted(t *testing.T) {
	c, gates := gatedCluster(t, 3)
	c.write("before")
	leader := c.leader()
	release := gates[leader.id].hold()
	defer release(nil)
	answers := submitRaw(leader.g, "while it hangs")
	eventually(t, "the leader has taken the entry", func() bool { return !leader.g.logs.queue.synced(leader.g.raft.LastIndex()) })
	index := leader.g.raft.LastIndex()
	for _, n := range c.others(leader) {
		hasAcked(t, leader, n, index)
	}
	// The acknowledgements are there; a round of heartbeats later raft had the time to count them.
	if err := leader.readIndex(); err != nil {
		t.Fatal(err)
	}
	if got := leader.g.raft.CommitIndex(); got >= index {
		t.Errorf("%d is committed, and the leader's disk does not hold %d", got, index)
	}
	select {
	case err := <-answers:
		t.Errorf("the command was answered with %v", err)
	default:
	}
	release(nil)
	if err := receive(t, "the command", answers); err != nil {
		t.Fatal(err)
	}
	c.converge("before", "while it hangs")
}

// Goal: of two failures of the leader's disk, at the write behind which followers hold everything, neither ends in an
// acknowledgement; and the cluster goes on without that leader.
func TestOverlap_LeadersDiskFails_FatalAndNothingIsAcknowledged(t *testing.T) {
	c, gates := gatedCluster(t, 3)
	c.write("before")
	leader := c.leader()
	release := gates[leader.id].hold()
	defer release(nil)
	answers := submitRaw(leader.g, "bad")
	eventually(t, "the leader has taken the entry", func() bool { return !leader.g.logs.queue.synced(leader.g.raft.LastIndex()) })
	for _, n := range c.others(leader) {
		hasAcked(t, leader, n, leader.g.raft.LastIndex())
	}
	release(syscall.EIO)
	eventually(t, "Fatal is called", func() bool { return leader.fatal.Load() != nil })
	if err := *leader.fatal.Load(); !errors.Is(err, syscall.EIO) {
		t.Errorf("Fatal got %v", err)
	}
	leader.fatal.Store(nil)
	if err := leader.g.Propose([]byte("later"), func(any, error) {}); !errors.Is(err, ErrHalted) {
		t.Errorf("Propose on a halted group = %v", err)
	}
	leader.kill()
	if err := receive(t, "the command", answers); !errors.Is(err, ErrUnknown) {
		t.Errorf("it was answered with %v", err)
	}
	c.write("after")
	leader.start()
	c.converge("before", "after")
}

// Goal: a node that is a majority by itself, or is just becoming one, waits for its disk.
func TestOverlap_OneVoter_DoesNot(t *testing.T) {
	c, gates := gatedCluster(t, 2)
	c.write("two")
	leader := c.leader()
	other := c.others(leader)[0]
	eventually(t, "two voters overlap", leader.g.overlaps)
	if err := leader.g.Remove(testContext(t), other.id); err != nil {
		t.Fatal(err)
	}
	other.kill()
	if leader.g.overlaps() {
		t.Error("a lone voter overlaps")
	}
	release := gates[leader.id].hold()
	answers := submitRaw(leader.g, "alone")
	eventually(t, "the entry is being written", func() bool { return leader.g.logs.writing.Load() > 0 })
	select {
	case err := <-answers:
		t.Errorf("answered with %v before the disk held it", err)
	case <-time.After(50 * time.Millisecond):
	}
	release(nil)
	if err := receive(t, "the command", answers); err != nil {
		t.Fatal(err)
	}
}

// Goal: what a deposed leader has not written is on its disk before it enters the next term, in which it would answer
// the next leader, or vote, by it.
func TestOverlap_LeaderIsDeposedWhileItsDiskHangs_NextTermWaitsForTheDisk(t *testing.T) {
	c, gates := gatedCluster(t, 3)
	c.write("before")
	old := c.leader()
	_, _, term := old.g.Leader()
	release := gates[old.id].hold()
	defer release(nil)
	c.network.cut(old.id, true)
	submitRaw(old.g, "nobody else has it")
	eventually(t, "the leader has taken the entry", func() bool { return !old.g.logs.queue.synced(old.g.raft.LastIndex()) })
	eventually(t, "the others have a leader", func() bool {
		for _, n := range c.others(old) {
			if now, ok := n.g.LeaderTerm(); ok && now > term {
				return true
			}
		}
		return false
	})
	c.network.cut(old.id, false)
	time.Sleep(3 * clusterHeartbeat) // what must not happen has its chance
	if vote, _ := old.g.stable.state(); vote.currentTerm != term || old.g.raft.CurrentTerm() != term {
		t.Errorf("in term %d, by its file %d, while its disk still writes entries of term %d", old.g.raft.CurrentTerm(), vote.currentTerm, term)
	}
	release(nil)
	eventually(t, "the old leader is in the next term", func() bool { return old.g.raft.CurrentTerm() > term })
	c.write("after")
	c.converge("before", "after")
}
