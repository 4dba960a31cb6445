package consensus

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// recoverOptions are those of a node that does not run.
func (n *testNode) recoverOptions() RecoverOptions {
	m := openMachine(n.c.tb, n.dir)
	o := testOptions(n.dir)
	return RecoverOptions{NodeID: n.id, Address: n.address, Durable: m.Durable, SegmentBytes: o.SegmentBytes, Logger: o.Logger}
}

func (n *testNode) recover(change ...func(*RecoverOptions)) (RecoverReport, error) {
	o := n.recoverOptions()
	for _, c := range change {
		c(&o)
	}
	return Recover(filepath.Join(n.dir, "log"), o)
}

// survivor returns one stopped node of three; the other two are gone for good. The survivor has an entry that
// was never committed.
func survivor(t *testing.T) (c *testCluster, last *testNode, founders []Member) {
	c = newTestCluster(t, 3, func(o *Options) { o.TrailingLogs = 4 })
	c.start()
	c.writeMany("a", 5)
	c.converge()
	last = c.leader()
	founders = last.g.Status().Configuration
	if err := last.g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	c.writeMany("b", 3)
	c.converge()
	c.network.cut(last.id, true)
	last.lost(1)
	for id, n := range c.nodes {
		n.kill()
		if n != last {
			delete(c.nodes, id)
		}
	}
	return c, last, founders
}

func TestRecover_OneOfThreeSurvives_LeadsAloneWithAllThatItHas(t *testing.T) {
	c, last, founders := survivor(t)
	lastIndex := func() uint64 {
		r, err := last.recover(func(o *RecoverOptions) { o.DryRun = true })
		if err != nil || !r.Changed {
			t.Fatalf("%+v, %v", r, err)
		}
		return r.LastIndex
	}
	end := lastIndex()
	if lastIndex() != end {
		t.Error("a dry run changed something")
	}
	first, err := last.recover()
	if err != nil || !first.Changed || first.NewTerm != first.OldTerm+1 || first.Index != end+1 || first.LastIndex != end ||
		!reflect.DeepEqual(first.OldConfiguration, founders) || !first.WasVoter || first.CheckpointIndex == 0 || first.LastTerm == 0 {
		t.Fatalf("%+v, %v", first, err)
	}
	again, err := last.recover()
	again.Changed = true
	if err != nil || !reflect.DeepEqual(again, first) {
		t.Errorf("the second time: %+v, %v; the first: %+v", again, err, first)
	}
	c.network.cut(last.id, false)
	last.start()
	waitReady(t, last.g)
	c.write("after")
	if got := last.m.commands(); !slices.Contains(got, "a-0") || !slices.Contains(got, "b-2") || !slices.Contains(got, "lost") || !slices.Contains(got, "after") {
		t.Errorf("applied %q", got)
	}
	if s := last.g.Status(); s.Voters != 1 || len(s.Configuration) != 1 || !s.Lease || s.Term <= first.NewTerm {
		t.Errorf("%+v", s)
	}
	if p := last.g.Status().Pending; p != nil {
		t.Errorf("pending %+v", p)
	}
	// A checkpoint that covers the entry of the recovery, which the log still has.
	if err := last.g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if s := last.g.Status(); s.FirstIndex > first.Index {
		t.Fatalf("the log begins at %d, the recovery was %d", s.FirstIndex, first.Index)
	}
	last.kill()
	if r, err := last.recover(); err != nil || r.Changed {
		t.Errorf("on the only voter: %+v, %v", r, err)
	}
	// It grows again, from empty directories.
	last.start()
	waitReady(t, last.g)
	fresh := c.add("node-9")
	fresh.joined = &Joined{Cluster: testClusterID, History: testHistoryID, Peers: []Peer{{ID: last.id, Address: last.address, Incarnation: last.incarnation}}}
	fresh.start()
	if err := last.g.AddLearner(testContext(t), fresh.id, fresh.address); err != nil {
		t.Fatal(err)
	}
	c.converge("a-0", "b-2", "after")
	if err := last.g.Promote(testContext(t), fresh.id); err != nil {
		t.Fatal(err)
	}
}

func TestRecover_CrashAtAnyStep_SecondCallFinishes(t *testing.T) {
	for _, step := range []string{"voted", "appended"} {
		t.Run(step, func(t *testing.T) {
			c, last, founders := survivor(t)
			image := t.TempDir()
			if _, err := last.recover(func(o *RecoverOptions) {
				o.crash = func(s string) {
					if s == step {
						if err := os.CopyFS(image, os.DirFS(last.dir)); err != nil {
							t.Error(err)
						}
					}
				}
			}); err != nil {
				t.Fatal(err)
			}
			last.dir = image
			r, err := last.recover()
			if err != nil || r.Changed != (step == "voted") || !reflect.DeepEqual(r.OldConfiguration, founders) || r.Index != r.LastIndex+1 {
				t.Fatalf("%+v, %v", r, err)
			}
			c.network.cut(last.id, false)
			last.start()
			waitReady(t, last.g)
			c.write("after")
			if got := last.m.commands(); !slices.Contains(got, "a-0") || !slices.Contains(got, "b-2") {
				t.Errorf("applied %q", got)
			}
		})
	}
}

func TestRecover_AppendTorn_SecondCallFinishes(t *testing.T) {
	c, last, _ := survivor(t)
	first, err := last.recover()
	if err != nil {
		t.Fatal(err)
	}
	path := tailFile(t, filepath.Join(last.dir, "log"))
	used := usedBytes(t, path)
	edit(t, path, func(b []byte) { clear(b[used-4 : used]) }) // the end of its commit frame
	r, err := last.recover()
	if err != nil || !r.Changed || r.Index != first.Index || r.NewTerm != first.NewTerm+1 {
		t.Fatalf("%+v, %v; first %+v", r, err, first)
	}
	c.network.cut(last.id, false)
	last.start()
	waitReady(t, last.g)
}

func TestRecover_LearnerWithSnapshotAndEmptyLog_LeadsAlone(t *testing.T) {
	c := newTestCluster(t, 1, func(o *Options) { o.TrailingLogs = 1 })
	c.start()
	leader := c.leader()
	c.writeMany("a", 20)
	if err := leader.g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	n := c.add("node-2")
	n.joined = &Joined{Cluster: testClusterID, History: testHistoryID, Peers: []Peer{{ID: leader.id, Address: leader.address, Incarnation: leader.incarnation}}}
	n.start()
	if err := leader.g.AddLearner(testContext(t), n.id, n.address); err != nil {
		t.Fatal(err)
	}
	c.converge("a-0", "a-19")
	leader.kill()
	n.kill()
	delete(c.nodes, leader.id)
	r, err := n.recover()
	if err != nil || !r.Changed || r.WasVoter || len(r.OldConfiguration) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	n.joined = nil
	n.start()
	waitReady(t, n.g)
	c.write("after")
	c.converge("a-0", "a-19", "after")
}

func TestRecover_WrongDirectories_Refused(t *testing.T) {
	c, last, _ := survivor(t)
	if _, err := last.recover(func(o *RecoverOptions) { o.NodeID = "node-7" }); !errors.Is(err, ErrContradiction) {
		t.Errorf("another node's: %v", err)
	}
	virgin := c.add("node-8")
	if _, err := virgin.recover(); !errors.Is(err, ErrContradiction) {
		t.Errorf("an empty one: %v", err)
	}
	if files, err := os.ReadDir(virgin.dir); err != nil || len(files) != 0 {
		t.Errorf("made %v in an empty directory (%v)", files, err)
	}
	last.start()
	if _, err := last.recover(); err == nil {
		t.Error("recovered a node that runs")
	}
}
