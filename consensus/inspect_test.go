package consensus

import (
	"slices"
	"testing"
)

// TestInspect_LoneNode_IsAloneWhateverIsMissing looks at a compacted log with and without its checkpoint.
func TestInspect_LoneNode_IsAloneWhateverIsMissing(t *testing.T) {
	dir, o, _ := usedGroup(t)
	m := openMachine(t, dir)
	d, ok := m.Durable()
	if !ok {
		t.Fatal("there is no checkpoint")
	}
	for _, checkpoint := range []*Durable{&d, nil} {
		in, err := Inspect(o, checkpoint)
		if err != nil || len(in.Others) != 0 || in.First < 2 || in.Last <= d.Index {
			t.Errorf("with checkpoint %v: %+v, %v", checkpoint != nil, in, err)
		}
	}
	// Looking changed nothing.
	g := openGroup(t, o, m)
	waitReady(t, g)
	if _, err := Inspect(o, &d); err == nil {
		t.Error("a directory in use was looked at")
	}
	closeGroup(t, g)
}

// TestInspect_MemberOfACluster_KnowsTheOthers has three ways to know them: the checkpoint, the log, and the file of
// known nodes.
func TestInspect_MemberOfACluster_KnowsTheOthers(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.TrailingLogs = 1 })
	c.start()
	c.write("x")
	c.converge("x")
	n := c.nodes["node-2"]
	want := []string{"node-1", "node-3"}
	n.kill()
	look := func(how string, checkpoint *Durable, fromStart bool) {
		t.Helper()
		in, err := Inspect(n.options(t, nil), checkpoint)
		if err != nil || !slices.Equal(in.Others, want) || (in.First == 1) != fromStart {
			t.Errorf("by %s: %+v, %v; want %v", how, in, err, want)
		}
	}
	look("the log", nil, true)

	n.start()
	c.write("y")
	c.converge("x", "y")
	if err := n.g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	d, ok := n.m.Durable()
	if !ok {
		t.Fatal("there is no checkpoint")
	}
	n.kill()
	look("the checkpoint", &d, false)
	look("the file of known nodes", nil, false)
	look("the file of known nodes, since the checkpoint is damaged", &Durable{Index: d.Index, Configuration: []byte("x")}, false)

	o := n.options(t, nil)
	o.Dir = t.TempDir()
	if in, err := Inspect(o, nil); err != nil || len(in.Others) != 0 || in.Last != 0 {
		t.Errorf("of an empty directory: %+v, %v", in, err)
	}
}
