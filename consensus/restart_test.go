package consensus

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func TestTransferWatch_RefusalsWithoutATransfer_StuckAfterTenSeconds(t *testing.T) {
	now := time.Now()
	busy := raft.ErrLeadershipTransferInProgress
	for _, c := range []struct {
		name  string
		steps func(w *transferWatch)
		stuck bool
	}{
		{"refused for long", func(w *transferWatch) {
			w.answered(busy, now)
			w.answered(busy, now.Add(5*time.Second))
			w.answered(busy, now.Add(11*time.Second))
		}, true},
		{"not yet", func(w *transferWatch) {
			w.answered(busy, now)
			w.answered(busy, now.Add(10*time.Second))
		}, false},
		{"something was done in between", func(w *transferWatch) {
			w.answered(busy, now)
			w.answered(nil, now.Add(5*time.Second))
			w.answered(busy, now.Add(11*time.Second))
		}, false},
		{"something else was refused in between", func(w *transferWatch) {
			w.answered(busy, now)
			w.answered(raft.ErrNotLeader, now.Add(5*time.Second))
			w.answered(busy, now.Add(11*time.Second))
		}, false},
		{"a transfer of its own is under way", func(w *transferWatch) {
			w.begin()
			w.answered(busy, now)
			w.answered(busy, now.Add(11*time.Second))
		}, false},
		{"a transfer of its own was under way in between", func(w *transferWatch) {
			w.answered(busy, now)
			w.begin()
			w.end()
			w.answered(busy, now.Add(11*time.Second))
		}, false},
	} {
		var w transferWatch
		c.steps(&w)
		if err := w.err(); (err != nil) != c.stuck || err != nil && !errors.Is(err, ErrRestart) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestGroup_TransferBlockedForGood_FatalSaysThatARestartHeals(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	fatal := make(chan error, 10)
	o.Fatal = func(err error) { fatal <- err }
	g := openGroup(t, o, openMachine(t, dir))
	past := time.Now().Add(-transferStuckAfter - time.Second)
	g.transfers.answered(raft.ErrLeadershipTransferInProgress, past)
	g.transfers.answered(raft.ErrLeadershipTransferInProgress, time.Now())
	select {
	case err := <-fatal:
		if !errors.Is(err, ErrRestart) {
			t.Errorf("Fatal got %v", err)
		}
	case <-time.After(testWait):
		t.Fatal("Fatal was not called")
	}
	closeGroup(t, g)
}

// Two questions to a replicator that is busy: the second one blocks, and raft refuses all work meanwhile. Group
// does not ask a second time; here raft is asked behind its back.
func TestGroup_SecondTransferBlocksRaft_FatalSaysThatARestartHeals(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	leader := c.leader()
	leader.g.transfers.after = 2 * clusterHeartbeat // longer than a transfer that fails in order
	c.write("a")
	target := c.others(leader)[0]
	c.network.cut(target.id, true)
	c.write("b") // which the target has not: raft tries to bring it up to date first
	for range 2 {
		eventually(t, "a transfer fails", func() bool {
			err := leader.g.raft.LeadershipTransferToServer(raft.ServerID(target.id), raft.ServerAddress(target.address)).Error()
			if err == nil {
				t.Fatal("leadership went to a node that is out of reach")
			}
			return !errors.Is(err, raft.ErrLeadershipTransferInProgress) // the one before is not over yet
		})
	}
	eventually(t, "Fatal is called", func() bool {
		if err := leader.g.Propose([]byte("c"), func(any, error) {}); errors.Is(err, ErrNotLeader) {
			t.Fatal("the case did not arise: leadership was lost")
		}
		return leader.fatal.Load() != nil
	})
	if err := *leader.fatal.Load(); !errors.Is(err, ErrRestart) {
		t.Errorf("Fatal got %v", err)
	}
	leader.fatal.Store(nil)
}

// A new leader's barrier is refused while raft still believes in a transfer of an earlier term.
func TestGroup_BarrierOfATermRefusedForATransfer_TriedAgain(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.ElectionTimeout = 2 * time.Second })
	c.start()
	leader := c.leader()
	c.write("a")
	target := c.others(leader)[0]
	c.network.cut(target.id, true)
	c.write("b") // which the target has not: raft tries to bring it up to date
	// Not by Transfer: the watch must not know.
	transfer := leader.g.raft.LeadershipTransferToServer(raft.ServerID(target.id), raft.ServerAddress(target.address))
	eventually(t, "raft refuses work", func() bool {
		return errors.Is(propose(t, leader.g, []byte("c")).err, raft.ErrLeadershipTransferInProgress)
	})
	term, _ := leader.g.LeaderTerm()
	done := make(chan error, 1)
	go func() { done <- leader.g.termBarrier(term) }() // ends with the transfer
	select {
	case err := <-done:
		t.Fatalf("the barrier ended with %v while work was refused", err)
	case <-time.After(4 * establishPause):
	}
	if transfer.Error() == nil {
		t.Fatal("leadership went to a node that is out of reach")
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(testWait):
		t.Fatal("the barrier was not tried again")
	}
}

func TestGroup_OverratedLogAndNoLeader_FatalSaysThatARestartHeals(t *testing.T) {
	c := newTestCluster(t, 2)
	c.start()
	c.write("a")
	c.converge()
	leader := c.leader()
	n := c.others(leader)[0]
	real := n.g.logs.base.Load()
	phantom := *real
	phantom.overrated = 1000
	n.g.logs.base.Store(&phantom)
	// As long as there is a leader nothing is wrong.
	time.Sleep(3 * clusterHeartbeat)
	if err := n.fatal.Load(); err != nil {
		t.Fatalf("Fatal got %v beside a leader", *err)
	}
	leader.kill()
	eventually(t, "Fatal is called", func() bool { return n.fatal.Load() != nil })
	if err := *n.fatal.Load(); !errors.Is(err, ErrRestart) {
		t.Errorf("Fatal got %v", err)
	}
	n.fatal.Store(nil)
	n.g.logs.base.Store(real)
}

func TestGroup_ApplyHangs_FatalSaysThatARestartHeals(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	fatal := make(chan error, 10)
	o.Fatal = func(err error) { fatal <- err }
	m := openMachine(t, dir)
	g := openGroup(t, o, m)
	gate := make(chan struct{})
	m.mu.Lock()
	m.gate = gate
	m.mu.Unlock()
	g.applyWatch.mu.Lock()
	g.applyWatch.limit = 50 * time.Millisecond
	g.applyWatch.mu.Unlock()
	var answers atomic.Int32
	if err := g.Propose([]byte("x"), func(any, error) { answers.Add(1) }); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-fatal:
		if !errors.Is(err, ErrRestart) {
			t.Errorf("Fatal got %v", err)
		}
	case <-time.After(testWait):
		t.Fatal("Fatal was not called")
	}
	close(gate)
	closeGroup(t, g)
	if answers.Load() != 1 {
		t.Errorf("%d answers", answers.Load())
	}
}
