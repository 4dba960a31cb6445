package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvstore/consensus"
	"kvstore/engine"
	"kvstore/wire"
)

// segment gives the one file of a stopped or idle node's log, and what it holds now.
func (c *cluster) segment(id string) (path string, now []byte) {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.places[id].dir, "groups", "1", "log", "*.wal"))
	if err != nil || len(files) != 1 {
		c.t.Fatalf("%v, %v", files, err)
	}
	if now, err = os.ReadFile(files[0]); err != nil {
		c.t.Fatal(err)
	}
	return files[0], now
}

// Goal: a disk that lied about fsync lost the end of the log. Nothing but the checkpoint tells; also a node that is to
// make its state anew must not come back, vote for who lacks the same, and lose what was acknowledged.
func TestRebuild_LogLostItsEnd_IsRefusedAndNothingIsLost(t *testing.T) {
	slow(t)
	for _, quarantined := range []bool{false, true} {
		t.Run(fmt.Sprint("quarantined=", quarantined), func(t *testing.T) {
			c := newCluster(t, 3, nil)
			c.start(c.ids...)
			leader, _ := c.leader()
			recorded(t, leader)
			if leader.info.NodeID == "node-3" {
				mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "transfer", ID: "node-2"}))
			}
			c.same()
			c.stop("node-3") // which lacks what comes now
			leader, _ = c.leader()
			put(t, leader, "a", "1")
			c.same()
			path, then := c.segment("node-1")
			for range 3 {
				if r := put(t, leader, "k", "acknowledged"); r.Status != wire.StatusOK {
					t.Fatal(r.Status)
				}
			}
			c.same()
			c.stop("node-2")
			c.stop("node-1")
			if err := os.WriteFile(path, then, 0o600); err != nil {
				t.Fatal(err)
			}
			if quarantined {
				c.quarantined("node-1")
			}
			if _, err := c.open("node-1", nil); !errors.Is(err, consensus.ErrContradiction) {
				t.Fatalf("a node whose log lost its end starts: %v", err)
			}
			if quarantined {
				if _, there, err := engine.ReadCheckpoint(c.places["node-1"].dir, 1); err != nil || !there {
					t.Errorf("the only witness was set aside: %v", err)
				}
			}
			c.start("node-2", "node-3")
			leader, _ = c.leader()
			if got := do(t, leader, wire.OpGet, nil, "k", nil); string(got.Payload) != "acknowledged" {
				t.Errorf("%s %q", got.Status, got.Payload)
			}
		})
	}
}

// Goal: --start-timeout is for others who are waited for. A copy that takes longer would begin anew for ever.
func TestRebuild_LongerThanTheStartTimeout_Ends(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, func(o *Options) { o.Consensus.TrailingLogs, o.Consensus.LogKeepBytes = 1, -1 })
	c.start(c.ids...)
	leader, _ := c.leader()
	for i := range 4 {
		v := make([]byte, 100<<10)
		rand.Read(v) // so that it stays as large as it is
		if r := do(t, leader, wire.OpPut, nil, fmt.Sprint("k", i), v); r.Status != wire.StatusOK {
			t.Fatal(r.Status)
		}
	}
	c.same()
	if err := c.node("node-1").shard.group.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.stop("node-1")
	c.quarantined("node-1")
	const timeout = time.Second
	began := time.Now()
	n, err := c.open("node-1", func(o *Options) { o.StartTimeout, o.Consensus.SnapshotRateBytes = timeout, 128<<10 })
	if err != nil {
		t.Fatalf("after %v: %v", time.Since(began), err)
	}
	if took := time.Since(began); took < timeout || n.shard.group.Metrics().SnapshotsFetched.Load() != 1 {
		t.Errorf("a copy of %v shows nothing", took)
	}
	c.ready("node-1")
	c.same()
}

// emptied makes node-1, which is stopped, look as a crash leaves it right after a copy of the state of node-2, which
// runs, has taken the place of its log. older is what its log held before. It gives the entry that the copy covers.
func (c *cluster) emptied(older []byte) uint64 {
	t := c.t
	t.Helper()
	source := stateMachine{c.node("node-2").shard.engine}
	if err := source.WaitDurable(t.Context(), source.Applied()); err != nil {
		t.Fatal(err)
	}
	path, _ := c.segment("node-1")
	if err := os.WriteFile(path, older, 0o600); err != nil {
		t.Fatal(err)
	}
	o := c.options("node-1")
	eo := o.Engine
	eo.Dir, eo.Group = o.DataDir, 1
	if _, err := engine.Quarantine(o.DataDir, 1); err != nil {
		t.Fatal(err)
	}
	if err := engine.RemoveQuarantined(o.DataDir, 1); err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(eo)
	if err != nil {
		t.Fatal(err)
	}
	d, stream, err := source.OpenSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	came, err := stateMachine{e}.ReceiveSnapshot(t.Context(), d, stream)
	if err = errors.Join(err, stream.Close()); err != nil {
		t.Fatal(err)
	}
	if err := came.Install(); err != nil {
		t.Fatal(err)
	}
	// A start empties the log then. It ends before raft runs.
	id, _, err := loadIdentity(o.DataDir, "node-1")
	if err != nil {
		t.Fatal(err)
	}
	bits, err := id.bits()
	if err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	co := o.Consensus
	co.Dir, co.NodeID, co.Group, co.Incarnation, co.Logger = filepath.Join(o.DataDir, "groups", "1", "log"), "node-1", 1, bits, o.Logger
	co.Address, co.EntryBytesMax, co.Fatal = o.RaftListen, wire.EntryBytesMax, o.Fatal
	co.Starting = func() error { return enough }
	if _, err := consensus.Open(t.Context(), co, stateMachine{e}); !errors.Is(err, enough) {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	co.Starting = nil
	if in, err := consensus.Inspect(co, nil); err != nil || in.Last != 0 {
		t.Fatalf("the log is not empty: %+v, %v", in, err)
	}
	return d.Index
}

// emptiedOfTwo has two voters, of which node-2 runs and can't lead without node-1, whose log was emptied for a copy.
func emptiedOfTwo(t *testing.T) (c *cluster, index uint64) {
	t.Helper()
	c = newCluster(t, 2, func(o *Options) { o.Engine.CheckpointInterval = time.Hour })
	c.start(c.ids...)
	leader, _ := c.leader()
	recorded(t, leader)
	c.same()
	_, older := c.segment("node-1")
	for _, key := range []string{"a", "b"} {
		if r := put(t, leader, key, "v"); r.Status != wire.StatusOK {
			t.Fatal(r.Status)
		}
	}
	c.same()
	c.stop("node-1")
	index = c.emptied(older)
	// It comes back as a process that knows nothing of what node-1 acknowledged to the one before it.
	c.stop("node-2")
	if _, err := c.open("node-2", nil); err != nil {
		t.Fatal(err)
	}
	return c, index
}

// Goal: a readable checkpoint tells how far the state reached, though the log is empty. Of two voters none leads while
// the other makes its state anew: a leader that a majority confirms can't be waited for.
func TestRebuild_LogEmptiedAndCheckpointReadable_OfTwoVotersNoLeaderIsNeeded(t *testing.T) {
	c, index := emptiedOfTwo(t)
	c.quarantined("node-1")
	// The first start crashes between setting the state aside and noting so: what the checkpoint told must be noted.
	dir, image := c.places["node-1"].dir, t.TempDir()
	crash, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := c.options("node-1")
	o.Progress = func(text string) {
		if strings.HasPrefix(text, "making the state anew") && crash.Err() == nil {
			if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
				t.Error(err)
			}
			cancel()
		}
	}
	if _, err := Open(crash, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("the start that was to be cut short: %v", err)
	}
	// That start went on for a moment: it was counted, and others may have met it. As a crash leaves it, so does the image.
	counted, err := os.ReadFile(filepath.Join(dir, "identity"))
	if err == nil {
		err = os.WriteFile(filepath.Join(image, "identity"), counted, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Quarantine(image, 1); err != nil {
		t.Fatal(err)
	}
	if q, err := readQuarantine(image); err != nil || !q.Pending || q.Moved || q.Reach != index {
		t.Fatalf("what the crash left: %+v, %v; the checkpoint was at %d", q, err, index)
	}
	c.places["node-1"].dir = image
	c.start("node-1")
	n := c.node("node-1")
	if got := n.shard.group.Metrics().SnapshotsFetched.Load(); got != 1 {
		t.Errorf("%d states were fetched", got)
	}
	if q := n.shard.hold.state(); q.Pending || q.Reach != 0 {
		t.Errorf("afterwards the file says %+v", q)
	}
	leader, _ := c.leader()
	if r := put(t, leader, "c", "v"); r.Status != wire.StatusOK {
		t.Error(r.Status)
	}
	c.same()
	for _, key := range []string{"a", "b", "c"} {
		if got := do(t, n, wire.OpGet, nil, key, nil); string(got.Payload) != "v" {
			t.Errorf("%s: %s", key, got.Status)
		}
	}
}

// Goal: with an empty log and a checkpoint that can't be read nobody knows how far the node once was. One other voter
// that is no leader is not enough.
func TestRebuild_LogEmptiedAndCheckpointDamaged_OnlyALeaderIsBelieved(t *testing.T) {
	slow(t)
	c, _ := emptiedOfTwo(t)
	path := filepath.Join(c.places["node-1"].dir, "groups", "1", "CHECKPOINT")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	n, err := Open(ctx, c.options("node-1"))
	if err == nil {
		_ = n.Close(context.Background())
		t.Fatal("the one that is left, which nobody confirms, was believed")
	}
	if q, qerr := readQuarantine(c.places["node-1"].dir); !errors.Is(err, context.DeadlineExceeded) || qerr != nil || !q.Moved || q.Reach != 0 {
		t.Errorf("%v; the file says %+v, %v", err, q, qerr)
	}
}
