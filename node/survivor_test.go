package node

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"kvstore/engine"
	"kvstore/wire"
)

// recover makes a stopped node, whose directory is dir, the survivor of its cluster.
func (c *cluster) recover(id, dir string, cluster [16]byte, lost ...string) *RecoveryReport {
	c.t.Helper()
	o := c.options(id)
	r, err := Recover(c.t.Context(), RecoverOptions{DataDir: dir, Lost: lost, Confirm: hex.EncodeToString(cluster[:]), Engine: o.Engine, Consensus: o.Consensus})
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// join has a new node join by way of node-1, and gives it a vote.
func (c *cluster) join(id string) {
	c.t.Helper()
	c.reserve(id)
	if _, err := c.open(id, func(o *Options) { o.InitialCluster, o.Join = nil, []string{c.places["node-1"].http} }); err != nil {
		c.t.Fatal(err)
	}
	c.ready(id)
	leader, _ := c.leader()
	recorded(c.t, leader)
	until(c.t, id+" has a vote", func() bool {
		for _, m := range leader.shard.group.Status().Configuration {
			if m.ID == id && m.Voter {
				return true
			}
		}
		_, _ = administer[clusterDocument](c.t, leader, asJSON(c.t, adminRequest{Action: "promote", ID: id})) // refused until it has caught up
		return false
	})
}

// quarantined notes that the state of a stopped node may not be served.
func (c *cluster) quarantined(id string) {
	c.t.Helper()
	q := quarantine{Format: quarantineFormat, Pending: true, Reason: "its digest differs"}
	if err := q.write(c.places[id].dir); err != nil {
		c.t.Fatal(err)
	}
}

// survivorInQuarantine has node-1 survive the loss of node-2 and node-3, which had gone on without it, and acknowledge
// k together with the new node-4. All nodes are stopped then, and the state of node-1 is to be made anew. compact has
// its log begin behind entry 1, so that the state must be fetched.
func survivorInQuarantine(t *testing.T, compact bool) *cluster {
	t.Helper()
	c := newCluster(t, 3, func(o *Options) {
		if compact {
			o.Consensus.TrailingLogs, o.Consensus.LogKeepBytes = 1, -1
		}
	})
	c.died = make(chan error, 16)
	c.start(c.ids...)
	leader, _ := c.leader()
	recorded(t, leader)
	mustPut := func(n *Node, key string) {
		t.Helper()
		if r := put(t, n, key, "v"); r.Status != wire.StatusOK {
			t.Fatalf("%s: %s", key, r.Status)
		}
	}
	mustPut(leader, "before")
	c.same()
	cluster, _, _ := leader.shard.engine.Identity()
	if compact {
		if err := c.node("node-1").shard.group.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.stop("node-1")
	leader, _ = c.leader()
	for i := range 40 {
		mustPut(leader, fmt.Sprint("lost", i))
	}
	c.stop("node-2")
	c.stop("node-3")
	c.recover("node-1", c.places["node-1"].dir, cluster, "node-2", "node-3")
	c.start("node-1")
	n := c.node("node-1")
	until(t, "the recovery is put on record", n.shard.recovery.over)
	c.join("node-4")
	leader, _ = c.leader()
	mustPut(leader, "k")
	c.same()
	c.stop("node-4")
	c.stop("node-1")
	c.quarantined("node-1")
	return c
}

// followsNoStranger lets node-1 and node-2, which was given up, meet, and fails if they get on with each other.
func followsNoStranger(t *testing.T, c *cluster) {
	t.Helper()
	given := c.node("node-2").shard
	until(t, "node-2 has refused node-1", func() bool {
		if n := c.node("node-1"); n != nil {
			if l := n.Leader(); l == "node-2" || l == "node-3" {
				t.Fatalf("a node of the new history follows %s, which was given up", l)
			}
			if n.shard.group.Metrics().SnapshotsFetched.Load() != 0 {
				t.Fatal("a node of the new history fetched its state while only nodes that were given up ran")
			}
		}
		_, there := given.group.Strangers()["node-1"]
		return there
	})
}

// comesBack checks that node-1 has all that was acknowledged in the new history.
func comesBack(t *testing.T, c *cluster) {
	t.Helper()
	until(t, "a node of the new history leads", func() bool {
		n := c.node("node-1")
		return n != nil && (n.Leader() == "node-1" || n.Leader() == "node-4")
	})
	c.ready("node-1")
	n := c.node("node-1")
	if got := do(t, n, wire.OpGet, nil, "k", nil); got.Status != wire.StatusOK {
		t.Errorf("what was acknowledged after the recovery: %s", got.Status)
	}
	if got := do(t, n, wire.OpGet, nil, "lost1", nil); got.Status != wire.StatusNotFound {
		t.Errorf("what was given up: %s", got.Status)
	}
}

// Goal: a survivor that loses its state too has forgotten the member records and the history. It must know all the same
// to whom it belongs: a node that was given up has an older state to offer.
func TestRecover_SurvivorInQuarantineWhileAGivenUpNodeRuns_FetchesNothingFromIt(t *testing.T) {
	c := survivorInQuarantine(t, true)
	if _, err := c.open("node-2", nil); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() { // owned by the test, which waits for it
		_, err := c.open("node-1", nil)
		opened <- err
	}()
	followsNoStranger(t, c)
	if _, err := c.open("node-4", func(o *Options) { o.InitialCluster = nil }); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	if got := c.node("node-1").shard.group.Metrics().SnapshotsFetched.Load(); got != 1 {
		t.Errorf("%d states were fetched", got)
	}
	comesBack(t, c)
}

// Goal: the same where the whole log is there, and the given-up nodes are a majority of the members that it begins with:
// their leader must not write to it.
func TestRecover_SurvivorReplaysWhileTheGivenUpNodesRun_FollowsNoneOfThem(t *testing.T) {
	slow(t)
	c := survivorInQuarantine(t, false)
	c.start("node-2", "node-3")
	if _, err := c.open("node-1", nil); err != nil {
		t.Fatal(err)
	}
	followsNoStranger(t, c)
	if _, err := c.open("node-4", func(o *Options) { o.InitialCluster = nil }); err != nil {
		t.Fatal(err)
	}
	comesBack(t, c)
}

// Goal: the recovery's file is put away as soon as its entry is applied, and the state that has it may not be durable
// yet. After a crash at that moment nothing but the identity tells of the new history.
func TestRecover_CrashBeforeTheNextCheckpoint_SurvivorStillShowsTheNewHistory(t *testing.T) {
	c := newCluster(t, 2, func(o *Options) { o.Engine.CheckpointInterval = time.Hour })
	c.start(c.ids...)
	leader, _ := c.leader()
	recorded(t, leader)
	c.same()
	cluster, old, _ := leader.shard.engine.Identity()
	c.stop("node-1")
	c.stop("node-2")
	o := c.options("node-1")
	c.recover("node-1", o.DataDir, cluster, "node-2")
	c.start("node-1")
	n := c.node("node-1")
	until(t, "the recovery is put on record", n.shard.recovery.over)
	_, now, _ := n.shard.engine.Identity()
	image := t.TempDir() // what a crash at this moment leaves
	if err := os.CopyFS(image, os.DirFS(o.DataDir)); err != nil {
		t.Fatal(err)
	}
	id, _, err := loadIdentity(image, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	eo := o.Engine
	eo.Dir, eo.Group = image, 1
	var s Shard
	var errRecovery, errClaims error
	s.recovery, errRecovery = openRecovery(image)
	s.claimedCluster, s.claimed, errClaims = id.claims()
	if s.engine, err = engine.Open(eo); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.engine.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := errors.Join(errRecovery, errClaims); err != nil || s.recovery != nil {
		t.Fatalf("the file of the recovery is there (%v), or: %v", s.recovery != nil, err)
	}
	if _, h, _ := s.engine.Identity(); h != old {
		t.Fatalf("the state is of history %x already, not of %x: this shows nothing", h[:3], old[:3])
	}
	if gotCluster, h, ok := s.identity(); !ok || h != now || gotCluster != cluster {
		t.Errorf("it shows history %x, want %x (the old one is %x)", h[:3], now[:3], old[:3])
	}
}

// Goal: between the first leadership of a survivor and the entry of the recovery, a write would get a revision that the
// lost majority may have given already.
func TestRecover_WritesWhileTheRecoveryIsNotInTheLog_AreRefused(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.start(c.ids...)
	leader, _ := c.leader()
	recorded(t, leader)
	c.same()
	cluster, _, _ := leader.shard.engine.Identity()
	c.stop("node-1")
	c.stop("node-2")
	dir := c.places["node-1"].dir
	r := c.recover("node-1", dir, cluster, "node-2")
	// It finds that there is something to add to the file, and can't: so its recovery stays pending.
	r.Lost[0].Incarnation = ""
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	block := filepath.Join(dir, recoveryFile+".tmp")
	if err := os.Mkdir(block, 0o700); err != nil {
		t.Fatal(err)
	}
	n, err := c.open("node-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "node-1 leads", func() bool { _, ok := n.shard.group.LeaderTerm(); return ok })
	for range 20 {
		if a := once(t, n, request(t, wire.OpPut, nil, "k", []byte("v"))); a.Status.Class() != wire.ClassRetry {
			t.Fatalf("a write before the recovery is in the log: %s", a.Status)
		}
		if a := once(t, n, request(t, wire.OpGet, nil, "k", nil)); a.Status.Class() != wire.ClassRetry {
			t.Fatalf("a read before the recovery is in the log: %s", a.Status)
		}
	}
	if !n.shard.recovery.pending(n.shard) {
		t.Fatal("the recovery is in the log: this shows nothing")
	}
	if err := os.Remove(block); err != nil {
		t.Fatal(err)
	}
	c.ready("node-1")
	if a := put(t, n, "k", "v"); a.Status != wire.StatusOK || n.shard.recovery.pending(n.shard) {
		t.Errorf("afterwards: %s, pending %v", a.Status, n.shard.recovery.pending(n.shard))
	}
}

// Goal: what stands in the log behind the checkpoint, the plan of a recovery does not know. The directory of a node that
// joined so late is given up like all others.
func TestRecover_LearnerWhoseRecordIsBehindTheCheckpoint_IsMarkedRemovedToo(t *testing.T) {
	c := newCluster(t, 2, func(o *Options) { o.Engine.CheckpointInterval = time.Hour })
	c.start(c.ids...)
	leader, _ := c.leader()
	recorded(t, leader)
	c.same()
	for _, id := range c.ids {
		if err := c.node(id).shard.group.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	cluster, _, _ := leader.shard.engine.Identity()
	c.reserve("node-3")
	if _, err := c.open("node-3", func(o *Options) { o.InitialCluster, o.Join = nil, []string{c.places["node-1"].http} }); err != nil {
		t.Fatal(err)
	}
	c.ready("node-3")
	recorded(t, leader)
	mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "demote", ID: "node-3"})) // it stays a learner
	c.same()
	image := t.TempDir() // what a crash at this moment leaves
	if err := os.CopyFS(image, os.DirFS(c.places["node-1"].dir)); err != nil {
		t.Fatal(err)
	}
	for id := range c.places {
		c.stop(id)
	}
	c.places["node-1"].dir = image
	report := c.recover("node-1", image, cluster, "node-2")
	if len(report.Dropped) != 1 || report.Dropped[0].ID != "node-3" || report.Dropped[0].Incarnation != "" {
		t.Fatalf("the plan knew all of it, so that this shows nothing: %+v", report)
	}
	c.start("node-1")
	n := c.node("node-1")
	until(t, "the recovery is put on record", n.shard.recovery.over)
	for _, id := range []string{"node-2", "node-3"} {
		if m, ok := n.shard.engine.Member(id); !ok || !m.Removed {
			t.Errorf("the record of %s: %+v, %v", id, m, ok)
		}
	}
}
