package consensus

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft-wal/fs"
)

func TestTransfer_LeaseOfTheTermIsGoneForGood(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	leader := c.leader()
	c.write("a")
	eventually(t, "the lease is held", leader.g.Lease)
	term, _ := leader.g.LeaderTerm()
	// The transfer fails: its target is out of reach. The lease stays given up.
	target := c.others(leader)[0]
	if err := leader.g.Transfer(testContext(t), leader.id); !errors.Is(err, ErrNotProposed) {
		t.Errorf("to itself: %v", err)
	}
	if err := leader.g.Transfer(testContext(t), "node-9"); !errors.Is(err, ErrNotProposed) || !leader.g.Lease() {
		t.Errorf("to nobody: %v, lease %v", err, leader.g.Lease())
	}
	c.network.cut(target.id, true)
	if err := leader.g.Transfer(testContext(t), target.id); err == nil {
		t.Error("leadership went to a node that is out of reach")
	}
	if now, ok := leader.g.LeaderTerm(); ok && now == term {
		for range 10 {
			if leader.g.Lease() {
				t.Fatal("the lease came back")
			}
			if err := leader.readIndex(); err != nil && !errors.Is(err, ErrNotLeader) {
				t.Errorf("ReadIndex without a lease: %v", err)
			}
		}
	}
	c.network.cut(target.id, false)
	// raft may still be busy with the one that failed.
	eventually(t, "another node leads", func() bool {
		return c.leader() != leader || leader.g.Transfer(testContext(t), "") == nil
	})
	eventually(t, "another node leads and has the lease", func() bool {
		l := c.leader()
		return l != leader && l.g.Lease()
	})
	c.write("b")
	c.converge("a", "b")
}

func TestReads_LeaderCutOff_LeaseEndsAndReadIndexNeverSucceeds(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	old := c.leader()
	c.write("a")
	eventually(t, "the lease is held", old.g.Lease)
	if err := old.readIndex(); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { old.g.Lease() }); n != 0 {
		t.Errorf("Lease allocates %v times", n)
	}
	c.network.cut(old.id, true)
	// Answers that were on their way count for what they are; from here on nothing was sent later.
	var succeeded atomic.Int64
	var asked, answered atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	time.Sleep(10 * time.Millisecond) // bytes in the sockets behind the proxy
	for range 4 {
		wg.Go(func() { // owned by the test; ends with stop
			for {
				select {
				case <-stop:
					return
				default:
				}
				asked.Add(1)
				old.g.ReadIndex(func(err error) {
					answered.Add(1)
					if err == nil {
						succeeded.Add(1)
					}
				})
				time.Sleep(time.Millisecond)
			}
		})
	}
	// Whenever another node has acknowledged a write, the old leader must hold no lease.
	eventually(t, "another node leads", func() bool { return c.leader() != old })
	c.write("b")
	if old.g.Lease() {
		t.Error("a deposed leader holds a lease")
	}
	eventually(t, "the old leader steps down", func() bool { _, ok := old.g.LeaderTerm(); return !ok })
	close(stop)
	wg.Wait()
	eventually(t, "every ReadIndex is answered", func() bool { return answered.Load() == asked.Load() })
	if succeeded.Load() != 0 {
		t.Errorf("%d of %d ReadIndex succeeded on a leader that was cut off", succeeded.Load(), asked.Load())
	}
	c.network.cut(old.id, false)
	c.converge("a", "b")
	if err := c.leader().readIndex(); err != nil {
		t.Error(err)
	}
}

func TestReads_LeaderHangsWhileAnotherIsElected_NothingIsReadFromIt(t *testing.T) {
	// raft's main goroutine hangs in the disk: it cannot step down, and goes on to call itself leader. Only
	// the lease's own end and the absence of answers keep it from serving what is out of date.
	disks := map[string]*failingFS{}
	var mu sync.Mutex
	c := newTestCluster(t, 3, func(o *Options) {
		mu.Lock()
		defer mu.Unlock()
		disks[o.NodeID] = &failingFS{VFS: fs.New()}
		o.vfs = disks[o.NodeID]
		o.logQueueBytes = 1 // raft's main goroutine waits for the disk with its second entry
	})
	c.start()
	old := c.leader()
	c.write("a")
	eventually(t, "the lease is held", old.g.Lease)
	term, _ := old.g.LeaderTerm()
	hang := make(chan struct{})
	disks[old.id].hang.Store(&hang)
	for range 2 {
		if err := old.g.Propose([]byte("hangs"), func(any, error) {}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the disk has an entry to write", func() bool { return old.g.logs.queue.first.Load() != 0 })
	}
	c.network.cut(old.id, true)
	eventually(t, "another node leads", func() bool { return c.leader() != old })
	c.write("b")
	if !old.g.leads(term) || old.g.leaderTerm.Load() != term {
		t.Error("the case did not arise: the old leader has noticed")
	}
	if old.g.Lease() {
		t.Error("a lease is held beside a newer leader")
	}
	if err := old.readIndex(); err == nil {
		t.Error("ReadIndex succeeded beside a newer leader")
	}
	disks[old.id].hang.Store(nil)
	close(hang)
	c.network.cut(old.id, false)
	c.converge("a", "b")
}

func TestLease_AnswersStop_EndsWithinItsDuration(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) {
		// Long, so that the leader does not step down by itself before the lease ends.
		o.HeartbeatTimeout, o.ElectionTimeout = time.Second, time.Second
		o.LeaseDuration = 300 * time.Millisecond
	})
	c.start()
	leader := c.leader()
	eventually(t, "the lease is held", leader.g.Lease)
	term, _ := leader.g.LeaderTerm()
	// Requests arrive, answers do not.
	for _, o := range c.others(leader) {
		c.network.hold(o.id, leader.id, true)
	}
	eventually(t, "the lease has ended", func() bool { return !leader.g.Lease() })
	if now, ok := leader.g.LeaderTerm(); !ok || now != term {
		t.Log("the leader had stepped down already: a slow day")
	}
	for _, o := range c.others(leader) {
		c.network.hold(o.id, leader.id, false)
	}
	eventually(t, "a lease is held again", func() bool { return c.leader().g.Lease() })
}

func TestReadIndex_ManyCallers_ShareRounds(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	leader := c.leader()
	eventually(t, "ReadIndex works", func() bool { return leader.readIndex() == nil })
	before := leader.g.Metrics().ReadIndexRounds.Load()
	const n = 2000
	var wg sync.WaitGroup
	var failed atomic.Int64
	wg.Add(n)
	for range n {
		leader.g.ReadIndex(func(err error) {
			if err != nil {
				failed.Add(1)
			}
			wg.Done()
		})
	}
	wg.Wait()
	rounds := leader.g.Metrics().ReadIndexRounds.Load() - before
	t.Logf("%d callers, %d rounds, %d failed", n, rounds, failed.Load())
	if failed.Load() != 0 || rounds > n/4 {
		t.Errorf("%d callers took %d rounds, %d failed", n, rounds, failed.Load())
	}
	follower := c.others(leader)[0]
	if err := follower.readIndex(); !errors.Is(err, ErrNotLeader) {
		t.Errorf("ReadIndex on a follower: %v", err)
	}
	if follower.g.Lease() {
		t.Error("a follower holds a lease")
	}
}
