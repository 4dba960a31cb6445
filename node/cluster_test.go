package node

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

// Whichever node is asked, a request is answered, and every node tells the same of the cluster.
func TestCluster_StartedInAnyOrder_AnswersOnEveryNode(t *testing.T) {
	c := newCluster(t, 3, nil)
	// The third comes when the others have waited for it for a while.
	var wg sync.WaitGroup
	waiting := make(chan string, 64)
	for _, id := range []string{"node-2", "node-1"} {
		wg.Go(func() {
			if _, err := c.open(id, func(o *Options) { o.Progress = func(text string) { waiting <- id + " " + text } }); err != nil {
				t.Error(err)
			}
		})
	}
	seen := map[string]bool{}
	for !seen["node-1 waiting for node-3"] || !seen["node-2 waiting for node-3"] {
		select {
		case text := <-waiting:
			seen[text] = true
		case <-time.After(waitMax):
			t.Fatalf("told only: %v", seen)
		}
	}
	c.start("node-3")
	wg.Wait()
	for _, id := range c.ids {
		c.ready(id)
	}
	leader, others := c.leader()
	for i, n := range append(others, leader) {
		key := fmt.Sprint("k", i)
		if r := put(t, n, key, "by "+n.info.NodeID); r.Status != wire.StatusOK {
			t.Fatalf("put by %s: %s %s", n.info.NodeID, r.Status, r.Payload)
		}
		for _, m := range append(others, leader) {
			if r := do(t, m, wire.OpGet, nil, key, nil); string(r.Payload) != "by "+n.info.NodeID {
				t.Errorf("get of %s by %s: %s %q", key, m.info.NodeID, r.Status, r.Payload)
			}
		}
	}
	if n := others[0].service.forwarded.done.Load(); n == 0 {
		t.Error("a follower passed nothing on")
	}

	// The binary protocol is told where to go instead.
	for _, n := range append(others, leader) {
		recorded(t, n)
	}
	for _, op := range []wire.Opcode{wire.OpGet, wire.OpDelete} {
		r := once(t, others[0], request(t, op, nil, "k0", nil))
		if r.Status != wire.StatusNotLeader || leaderHint(r.Ext) != leader.info.Advertise {
			t.Errorf("%s on a follower: %s, leader %q", op, r.Status, leaderHint(r.Ext))
		}
	}
	if r := once(t, others[0], request(t, wire.OpGet, wire.AppendExtU8(nil, wire.ExtConsistency, 1), "k2", nil)); r.Status != wire.StatusOK && r.Status != wire.StatusNotFound {
		t.Errorf("stale read on a follower: %s", r.Status)
	}
	ack, _, refusal := others[1].service.Hello(nil, &wire.Hello{})
	if refusal != nil || len(ack.Members) != 3 || ack.Term == 0 {
		t.Fatalf("hello: %+v, %v", ack, refusal)
	}
	for _, m := range ack.Members {
		if p := c.places[m.ID]; p == nil || m.Address != p.native || !m.Voter || m.Leader != (m.ID == leader.info.NodeID) {
			t.Errorf("hello names %+v", m)
		}
	}

	var scrape strings.Builder
	if err := (opsView{leader}).WriteMetrics(&scrape); err != nil {
		t.Fatal(err)
	}
	for _, n := range others {
		if want := fmt.Sprintf("kvstore_raft_peer_lag_entries{peer=%q} ", n.info.NodeID); !strings.Contains(scrape.String(), want) {
			t.Errorf("the leader's metrics lack %s", want)
		}
	}

	c.same()
	// Followers count for the lease once their clocks were measured: a heartbeat timeout after they met.
	until(t, "the leader holds its lease", leader.shard.group.Lease)
	for _, n := range append(others, leader) {
		d := status(t, n)
		if d.LeaderID != leader.info.NodeID || d.IsLeader != (n == leader) || d.Lease.Held != (n == leader) || len(d.CurrentConfig) != 3 || d.PendingConfig != nil || !d.Ready {
			t.Errorf("status of %s: %+v", n.info.NodeID, d)
		}
		for _, p := range d.Nodes {
			want := "follower"
			if p.ID == leader.info.NodeID {
				want = "leader"
			}
			if p.Role != want || p.State != stateOK || p.AppliedIndex == 0 || p.Address != c.places[p.ID].native || p.RaftAddress != c.places[p.ID].raft || p.Version != "dev" {
				t.Errorf("status of %s tells %+v", n.info.NodeID, p)
			}
		}
	}
}

func TestCluster_LeaderStops_AnotherGoesOnAndItComesBack(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	old, _ := c.leader()
	id := old.info.NodeID
	if r := put(t, old, "before", "1"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	c.stop(id)
	leader, others := c.leader()
	if r := put(t, others[0], "meanwhile", "2"); r.Status != wire.StatusOK {
		t.Fatalf("%s %s", r.Status, r.Payload)
	}
	d := status(t, leader)
	for _, n := range d.Nodes {
		if (n.ID == id) != (n.State == stateUnreachable) {
			t.Errorf("%s is %s", n.ID, n.State)
		}
	}
	// Another list of founders than the one it was founded with means nothing any more.
	if _, err := c.open(id, func(o *Options) { o.InitialCluster = []Founder{{id, o.RaftListen}} }); err != nil {
		t.Fatal(err)
	}
	c.ready(id)
	c.same()
	for key, want := range map[string]string{"before": "1", "meanwhile": "2"} {
		if r := do(t, c.node(id), wire.OpGet, nil, key, nil); string(r.Payload) != want {
			t.Errorf("%s: %s %q", key, r.Status, r.Payload)
		}
	}
}

func TestCluster_Transfer_MovesTheLeadershipWhereItWasAsked(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	// Asked on a follower, which passes it on.
	d := mustAdminister[clusterDocument](t, others[0], asJSON(t, adminRequest{Action: "transfer", ID: others[1].info.NodeID}))
	if d.LeaderID != others[1].info.NodeID || d.Term == 0 {
		t.Errorf("transfer to %s answers %+v", others[1].info.NodeID, d)
	}
	now, _ := c.leader()
	if now != others[1] {
		t.Fatalf("%s leads", now.info.NodeID)
	}
	mustAdminister[clusterDocument](t, now, asJSON(t, adminRequest{Action: "transfer"}))
	if again, _ := c.leader(); again == now {
		t.Error("a transfer to nobody in particular changed nothing")
	}
	_ = leader
}

// Whoever asks a node by REST does not see that the leader changes: a request is held back until there is one
// again, unless its outcome is unknown, which no node may guess away.
func TestCluster_LeaderChanges_RequestsToOthersWait(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var done [2]int
	for i, n := range others {
		wg.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				r := n.service.Do(context.Background(), n.service.Anonymous(), request(t, wire.OpPut, nil, fmt.Sprintf("k%d-%d", i, k), []byte("v")))
				switch {
				case r.Status == wire.StatusOK:
					done[i]++
				case r.Status.Class() != wire.ClassUnknown:
					t.Errorf("a write by %s: %s %s", n.info.NodeID, r.Status, r.Payload)
					return
				}
				if r := n.service.Do(context.Background(), n.service.Anonymous(), request(t, wire.OpGet, nil, fmt.Sprintf("k%d-%d", i, k), nil)); r.Status.Class() != wire.ClassResult {
					t.Errorf("a read by %s: %s %s", n.info.NodeID, r.Status, r.Payload)
					return
				}
			}
		})
	}
	written := func() uint64 { return others[0].shard.engine.Applied().Index }
	before := written()
	until(t, "there are writes", func() bool { return written() > before+20 })
	c.stop(leader.info.NodeID)
	c.leader()
	before = written()
	until(t, "there are writes again", func() bool { return written() > before+20 })
	close(stop)
	wg.Wait()
	if done[0] == 0 || done[1] == 0 {
		t.Errorf("%v writes were done", done)
	}
}

// Without a majority a request is surely not applied, and says so when its time is up.
func TestCluster_NoMajority_RequestsAreRefusedInTheirTime(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	c.stop(others[0].info.NodeID)
	c.stop(leader.info.NodeID)
	last := others[1]
	until(t, "the last node misses its leader", func() bool { return last.Leader() == "" })
	for _, op := range []wire.Opcode{wire.OpDelete, wire.OpGet} {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		if r := last.service.Do(ctx, last.service.Anonymous(), request(t, op, nil, "k", nil)); r.Status != wire.StatusNoLeader {
			t.Errorf("%s: %s %s", op, r.Status, r.Payload)
		}
		cancel()
	}
	if err := last.service.readiness(); err == nil {
		t.Error("the node is ready")
	}
}

func TestCluster_ReadIndexMode_ReadsAreConfirmedByAMajority(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.ReadMode = readModeReadIndex })
	c.start(c.ids...)
	leader, others := c.leader()
	if r := put(t, leader, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	for _, r := range []*wire.Request{
		request(t, wire.OpGet, nil, "k", nil), request(t, wire.OpExists, nil, "k", nil), request(t, wire.OpScan, nil, "", scanPayload("")),
		request(t, wire.OpMultiGet, nil, "", group(wire.OpMultiGet, 0, wire.Item{Op: wire.OpGet, Key: []byte("k")})),
	} {
		if got := once(t, leader, r); got.Status != wire.StatusOK {
			t.Errorf("%s: %s %s", r.Op, got.Status, got.Payload)
		}
	}
	if n := leader.service.reads.confirmed.Load(); n != 4 {
		t.Errorf("%d reads were confirmed, want 4", n)
	}
	if got := do(t, others[0], wire.OpGet, nil, "k", nil); string(got.Payload) != "v" {
		t.Errorf("by a follower: %s", got.Status)
	}
	// Without a majority nothing is confirmed, and nothing is read.
	for _, n := range others {
		c.stop(n.info.NodeID)
	}
	if got := once(t, leader, request(t, wire.OpGet, nil, "k", nil)); got.Status.Class() != wire.ClassRetry {
		t.Errorf("alone: %s %q", got.Status, got.Payload)
	}
	if n := leader.service.reads.bytes.Load(); n != 0 {
		t.Errorf("%d bytes of reads are still counted", n)
	}
}

// A bunch larger than one job is split, and every request of it answered once.
func TestCluster_ReadIndexMode_LongBunch_IsAnsweredWhole(t *testing.T) {
	n := openNode(t, t.TempDir(), func(o *Options) { o.ReadMode = readModeReadIndex })
	defer closeNode(t, n)
	if r := put(t, n, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	var reqs []wire.Request
	for i := range 3*readJobItemsMax + 5 {
		r := *request(t, wire.OpGet, nil, "k", nil)
		r.ID = uint32(i + 1)
		reqs = append(reqs, r)
	}
	var got counter
	got.wg.Add(len(reqs))
	n.service.Serve(&got, n.service.Anonymous(), reqs)
	got.wg.Wait()
	got.mu.Lock()
	defer got.mu.Unlock()
	for i := range reqs {
		if got.ok[reqs[i].ID] != 1 {
			t.Fatalf("request %d was answered %d times", reqs[i].ID, got.ok[reqs[i].ID])
		}
	}
}

// counter counts the good answers to each request.
type counter struct {
	wg sync.WaitGroup
	mu sync.Mutex
	ok map[uint32]int // guarded by mu
}

func (c *counter) Complete(t wire.Token, r *wire.Response) {
	c.mu.Lock()
	if c.ok == nil {
		c.ok = map[uint32]int{}
	}
	if r.Status == wire.StatusOK {
		c.ok[t.ID]++
	}
	c.mu.Unlock()
	c.wg.Done()
}

// However many ask for the status, the other nodes are asked once in a while.
func TestStatus_AskedByMany_CostsTheOthersLittle(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, _ := c.leader()
	var reqs []wire.Request
	for i := range 1000 {
		r := *request(t, wire.OpStatus, nil, "", nil)
		r.ID = uint32(i + 1)
		reqs = append(reqs, r)
	}
	var got counter
	got.wg.Add(len(reqs))
	before := leader.service.board.rounds.Load()
	leader.service.Serve(&got, leader.service.Anonymous(), reqs)
	got.wg.Wait()
	if len(got.ok) != len(reqs) {
		t.Errorf("%d of %d were answered", len(got.ok), len(reqs))
	}
	if n := leader.service.board.rounds.Load() - before; n == 0 || n > 20 {
		t.Errorf("%d rounds of questions for %d requests", n, len(reqs))
	}
}
