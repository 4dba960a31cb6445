package consensus

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft-wal/fs"
)

// TestNemesis plays at random: nodes are killed and started again, cut off wholly or in one direction,
// cut off while their disks hang, asked for leadership transfers and for snapshots (with almost no log kept, so that followers come back
// by snapshots), while one writer counts upwards through whoever leads and readers read wherever a lease
// is held or ReadIndex succeeds. A read must see every number that was acknowledged before it began;
// at the end every acknowledged number must be on all nodes, once, in the same order. The time is in
// KVSTORE_CONSENSUS_NEMESIS_SECONDS.
func TestNemesis(t *testing.T) {
	seconds := 6
	if s := os.Getenv("KVSTORE_CONSENSUS_NEMESIS_SECONDS"); s != "" {
		var err error
		if seconds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	disks := map[string]*failingFS{}
	var disksMu sync.Mutex
	c := newTestCluster(t, 3, func(o *Options) {
		disksMu.Lock()
		defer disksMu.Unlock()
		disks[o.NodeID] = &failingFS{VFS: fs.New()}
		o.vfs = disks[o.NodeID]
		o.TrailingLogs, o.ProposalTimeout = 1, clusterHeartbeat
		o.rpcTimeout = 500 * time.Millisecond
	})
	c.start()
	var nodes []*testNode
	for _, id := range []string{"node-1", "node-2", "node-3"} {
		nodes = append(nodes, c.nodes[id])
	}

	// running keeps the nodes' fields still; the nemesis takes it to replace a group.
	var running sync.RWMutex
	var acked atomic.Int64
	var writes, leaseReads, indexReads, refused atomic.Int64
	stop := make(chan struct{})
	stopped := func() bool {
		select {
		case <-stop:
			return true
		default:
			return false
		}
	}
	var wg sync.WaitGroup
	acknowledged := map[int64]bool{}
	wg.Go(func() { // the writer; ends with stop
		for n := int64(1); !stopped(); n++ {
			done := make(chan error, 1)
			running.RLock()
			proposed := false
			for _, i := range rand.Perm(3) { // a leader that hangs calls itself leader, too
				node := nodes[i]
				if node.g == nil {
					continue
				}
				if _, ok := node.g.LeaderTerm(); ok && node.g.Propose([]byte(strconv.FormatInt(n, 10)), func(_ any, err error) { done <- err }) == nil {
					proposed = true
					break
				}
			}
			running.RUnlock()
			if !proposed {
				time.Sleep(time.Millisecond)
				continue
			}
			if err := <-done; err == nil {
				acked.Store(n)
				acknowledged[n] = true
				writes.Add(1)
			}
		}
	})
	newest := func(m *testMachine) int64 {
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.state.Entries) == 0 {
			return 0
		}
		n, err := strconv.ParseInt(string(m.state.Entries[len(m.state.Entries)-1].Data), 10, 64)
		if err != nil {
			t.Errorf("applied %q", m.state.Entries[len(m.state.Entries)-1].Data)
		}
		return n
	}
	for r := range 3 {
		wg.Go(func() { // a reader; ends with stop
			rnd := rand.New(rand.NewPCG(seed, uint64(r)+1))
			for !stopped() {
				node := nodes[rnd.IntN(3)]
				running.RLock()
				if node.g == nil {
					running.RUnlock()
					continue
				}
				g, m := node.g, node.m
				before := acked.Load()
				if g.Lease() {
					if got := newest(m); got < before {
						t.Errorf("%s holds a lease and reads %d; %d had been acknowledged", node.id, got, before)
					}
					leaseReads.Add(1)
				}
				running.RUnlock()
				done := make(chan error, 1)
				before = acked.Load()
				g.ReadIndex(func(err error) { done <- err })
				switch err := <-done; {
				case err == nil:
					if got := newest(m); got < before {
						t.Errorf("%s was confirmed and reads %d; %d had been acknowledged", node.id, got, before)
					}
					indexReads.Add(1)
				case errors.Is(err, ErrNotLeader), errors.Is(err, ErrTimeout), errors.Is(err, ErrClosed):
					refused.Add(1)
				default:
					t.Errorf("ReadIndex: %v", err)
				}
				time.Sleep(time.Duration(rnd.IntN(2000)) * time.Microsecond)
			}
		})
	}

	installed := uint64(0)
	kill := func(n *testNode) {
		installed += n.g.Metrics().SnapshotsInstalled.Load()
		n.kill()
	}
	events := map[string]int{}
	snapshot := func(nodes ...*testNode) {
		for _, n := range nodes {
			if err := n.g.Snapshot(testContext(t)); err != nil {
				events["snapshot refused"]++
			}
		}
	}
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end) && !t.Failed(); {
		node := nodes[rnd.IntN(3)]
		event := []string{"kill", "kill all", "cut", "cut", "deaf", "mute", "transfer", "snapshot", "snapshot", "hang and cut", "rest"}[rnd.IntN(11)]
		events[event]++
		wait := func(n int) { time.Sleep(time.Duration(rnd.IntN(n)) * clusterHeartbeat / 2) }
		switch event {
		case "kill":
			running.Lock()
			kill(node)
			running.Unlock()
			wait(6)
			snapshot(c.others(node)...)
			running.Lock()
			node.start()
			running.Unlock()
		case "kill all":
			running.Lock()
			for _, n := range nodes {
				kill(n)
			}
			for _, n := range nodes {
				n.start()
			}
			running.Unlock()
		case "cut":
			c.network.cut(node.id, true)
			wait(10)
			snapshot(c.others(node)...)
			c.network.cut(node.id, false)
		case "deaf", "mute":
			hold := func(on bool) {
				for _, other := range nodes {
					if other != node && event == "deaf" {
						c.network.hold(other.id, node.id, on)
					} else if other != node {
						c.network.hold(node.id, other.id, on)
					}
				}
			}
			hold(true)
			wait(10)
			hold(false)
		case "hang and cut": // the leader, long enough for another election
			for _, n := range nodes {
				if _, ok := n.g.LeaderTerm(); ok {
					node = n
				}
			}
			hang := make(chan struct{})
			disks[node.id].hang.Store(&hang)
			time.Sleep(clusterHeartbeat / 10) // until the next write hangs
			c.network.cut(node.id, true)
			wait(10)
			time.Sleep(3 * clusterHeartbeat)
			disks[node.id].hang.Store(nil)
			close(hang)
			c.network.cut(node.id, false)
		case "transfer":
			if err := node.g.Transfer(testContext(t), ""); err != nil {
				events["transfer refused"]++
			}
		case "snapshot":
			snapshot(nodes...)
		}
		wait(3)
	}
	close(stop)
	wg.Wait()
	if t.Failed() {
		return
	}
	last := acked.Load()
	leader := c.leader()
	c.write("999999999")
	var want []string
	for _, n := range append([]*testNode{leader}, c.others(leader)...) {
		eventually(t, n.id+" has everything", func() bool { return newest(n.m) == 999999999 })
		got := n.m.commands()
		if n == leader {
			want = got
		} else if !slices.Equal(got, want) {
			t.Errorf("%s and %s differ", n.id, leader.id)
		}
		installed += n.g.Metrics().SnapshotsInstalled.Load()
	}
	seen := map[string]bool{}
	for _, s := range want {
		if seen[s] && s != "999999999" {
			t.Errorf("%s was applied twice", s)
		}
		seen[s] = true
	}
	for n := range acknowledged {
		if !seen[fmt.Sprint(n)] {
			t.Errorf("%d was acknowledged and is lost", n)
		}
	}
	t.Logf("%d writes (the last is %d), %d reads under a lease, %d by ReadIndex, %d refused; %d snapshots installed; %v",
		writes.Load(), last, leaseReads.Load(), indexReads.Load(), refused.Load(), installed, events)
	if writes.Load() == 0 || leaseReads.Load() == 0 || indexReads.Load() == 0 {
		t.Error("hardly anything was done")
	}
}
