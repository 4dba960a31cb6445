package consensus

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// lose removes the state of a stopped node, and keeps its log and its vote.
func (n *testNode) lose() {
	n.c.tb.Helper()
	if err := os.Remove(filepath.Join(n.dir, "checkpoint")); err != nil {
		n.c.tb.Fatal(err)
	}
}

// rebuilding has the node fetch its state when it starts.
func (n *testNode) rebuilding() { n.change = func(o *Options) { o.Rebuild = true } }

// shortLogs starts three nodes whose logs no longer reach back to their first entry, and gives one that does not lead.
func shortLogs(t *testing.T) (c *testCluster, n *testNode) {
	t.Helper()
	c = newTestCluster(t, 3, func(o *Options) { o.TrailingLogs = 2 })
	c.start()
	c.writeMany("a", 10)
	c.converge()
	c.compacted()
	return c, c.others(c.leader())[0]
}

// compacted makes every running node's log begin behind entry 1.
func (c *testCluster) compacted() {
	c.tb.Helper()
	for _, n := range c.others(nil) {
		if err := n.g.Snapshot(testContext(c.tb)); err != nil {
			c.tb.Fatal(err)
		}
		if s := n.g.Status(); s.FirstIndex < 2 {
			c.tb.Fatalf("the log of %s begins at %d", n.id, s.FirstIndex)
		}
	}
}

func TestRebuild_StateLost_FetchedAndLogAndVoteKept(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.TrailingLogs = 2 })
	c.start()
	c.writeMany("a", 10)
	c.converge()
	c.compacted()
	c.writeMany("b", 5) // only in the logs
	c.converge()
	n := c.others(c.leader())[0]
	before := n.g.Status()
	n.kill()
	n.lose()
	if err := n.open(testContext(t)); !errors.Is(err, ErrContradiction) {
		t.Fatalf("without Rebuild: %v", err)
	}
	n.g = nil
	n.rebuilding()
	n.start()
	c.writeMany("c", 3)
	c.converge("a-0", "b-4", "c-2")
	m := n.g.Metrics()
	if m.SnapshotsFetched.Load() != 1 || m.SnapshotsInstalled.Load() != 0 || m.SnapshotBytesReceived.Load() == 0 {
		t.Errorf("%d fetched, %d installed, %d bytes received", m.SnapshotsFetched.Load(), m.SnapshotsInstalled.Load(), m.SnapshotBytesReceived.Load())
	}
	if s := n.g.Status(); s.FirstIndex != before.FirstIndex || s.Term < before.Term {
		t.Errorf("it had %d to %d in term %d and now has %d to %d in term %d", before.FirstIndex, before.LastIndex, before.Term, s.FirstIndex, s.LastIndex, s.Term)
	}
	if left := n.g.Transfers(); len(left) != 0 || n.m.waiting != 0 {
		t.Errorf("transfers %+v, %d states are waiting", left, n.m.waiting)
	}
	// With a checkpoint there is nothing to do any more; it is as any other node.
	n.kill()
	n.start()
	if got := n.g.Metrics().SnapshotsFetched.Load(); got != 0 {
		t.Errorf("%d fetched at the next start", got)
	}
	n.change = nil
	for _, other := range c.others(n)[:1] {
		other.kill() // so that it is needed
	}
	c.writeMany("d", 3)
	c.converge("a-0", "d-2")
}

// Goal: the copy must reach to where the log begins, also if those who are asked have not checkpointed that far.
func TestRebuild_OthersCheckpointsAreOlder_TheyMakeNewOnes(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.TrailingLogs = 2 })
	c.start()
	c.writeMany("a", 10)
	c.converge()
	c.compacted()
	c.writeMany("b", 20)
	c.converge()
	n := c.others(c.leader())[0]
	if err := n.g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	first := n.g.Status().FirstIndex
	n.kill()
	for _, other := range c.others(nil) {
		if d, _ := other.m.Durable(); d.Index+1 >= first {
			t.Fatalf("the checkpoint of %s is at %d, the log of the one that lost its own begins at %d", other.id, d.Index, first)
		}
	}
	n.lose()
	n.rebuilding()
	n.start()
	c.writeMany("c", 3)
	c.converge("a-0", "b-19", "c-2")
}

func TestRebuild_LogReachesBackToTheFirstEntry_NobodyIsAsked(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	c.writeMany("a", 5)
	c.converge()
	n := c.others(c.leader())[0]
	if err := n.m.checkpoint(); err != nil {
		t.Fatal(err)
	}
	n.kill()
	n.lose()
	n.rebuilding()
	n.start()
	c.converge("a-0", "a-4")
	if got := n.g.Metrics().SnapshotsFetched.Load(); got != 0 {
		t.Errorf("%d fetched", got)
	}
}

func TestRebuild_CopyReachesBeyondTheLog_LogIsEmptied(t *testing.T) {
	c, n := shortLogs(t)
	last := n.g.Status().LastIndex
	n.kill()
	n.lose()
	// A later term, too: the vote file must not look like an older copy afterwards.
	c.writeMany("b", 10)
	if err := c.leader().g.Transfer(testContext(t), ""); err != nil {
		t.Fatal(err)
	}
	c.writeMany("c", 10)
	c.compacted()
	n.rebuilding()
	n.start()
	if d, ok := n.m.Durable(); !ok || d.Index <= last {
		t.Errorf("checkpoint %+v, the log had ended at %d", d, last)
	}
	c.writeMany("d", 3)
	c.converge("a-0", "c-9", "d-2")
	n.kill()
	n.start()
	c.converge("d-2")
}

// emptied returns a stopped node whose log a snapshot has emptied, and that has not had an entry since.
func emptied(t *testing.T, c *testCluster) *testNode {
	t.Helper()
	down := lagBySnapshot(t, c)
	image := t.TempDir()
	var once sync.Once
	copied := make(chan struct{})
	down.crash = func(s string) {
		if s == "emptied" {
			once.Do(func() {
				if err := os.CopyFS(image, os.DirFS(down.dir)); err != nil {
					t.Error(err)
				}
				close(copied)
			})
		}
	}
	down.start()
	select {
	case <-copied:
	case <-time.After(testWait):
		t.Fatal("no snapshot was installed")
	}
	down.kill()
	down.crash, down.dir = func(string) {}, image
	return down
}

// Goal: a node whose log is empty does not know how far it once was. It must not come back with less: only a leader
// that a majority confirms without it may say what is enough.
func TestRebuild_LogIsEmpty_OnlyAConfirmedLeaderIsBelieved(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.TrailingLogs = 2 })
	n := emptied(t, c)
	had := openMachine(t, n.dir).durable.Index
	n.lose()
	n.rebuilding()
	other := c.others(c.leader())[0]
	other.kill()
	ctx, cancel := context.WithTimeout(context.Background(), 8*clusterHeartbeat)
	err := n.open(ctx)
	cancel()
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the one that is left, which nobody confirms, was believed: %v", err)
	}
	t.Log(err)
	n.g = nil
	other.start()
	c.leader()
	n.start()
	if d, _ := n.m.Durable(); d.Index < had {
		t.Errorf("it comes back at %d and had %d", d.Index, had)
	}
	c.writeMany("c", 3)
	c.converge("a-0", "b-19", "c-2")
}

// Goal: where the node knows how far it once was, anybody who has as much will do, also while nobody leads.
func TestRebuild_LogIsEmptyAndReachKnown_NoLeaderIsNeeded(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.TrailingLogs = 2 })
	n := emptied(t, c)
	had, _ := openMachine(t, n.dir).Durable()
	in, err := Inspect(n.options(t, nil), &had)
	if err != nil || in.Last != 0 || in.Reach != had.Index {
		t.Fatalf("%+v, %v; the checkpoint is at %d", in, err, had.Index)
	}
	n.lose()
	c.others(c.leader())[0].kill()
	n.change = func(o *Options) { o.Rebuild, o.RebuildReach = true, in.Reach }
	n.start()
	if d, _ := n.m.Durable(); d.Index < had.Index {
		t.Errorf("it comes back at %d and had %d", d.Index, had.Index)
	}
	c.writeMany("c", 3)
	c.converge("a-0", "b-19", "c-2")
}

// Goal: a copy of a state that is known to be wrong is no help.
func TestRebuild_StateOfOneNodeDiffers_AnotherOneIsAsked(t *testing.T) {
	c, n := shortLogs(t)
	others := c.others(n)
	n.kill()
	n.lose()
	n.change = func(o *Options) {
		o.Rebuild, o.Unfit = true, func(id string) bool { return id == others[0].id }
	}
	others[1].kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := n.open(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("with the one whose state is wrong alone: %v", err)
	}
	n.g = nil
	others[1].start()
	n.start()
	c.converge("a-0")
	if got := n.g.Metrics().SnapshotsFetched.Load(); got != 1 {
		t.Errorf("%d fetched", got)
	}
}

func TestRebuild_CrashAtAnyStep_NodeComesBack(t *testing.T) {
	for _, step := range []string{"fetched", "raised", "rebuilt", "emptied"} {
		t.Run(step, func(t *testing.T) {
			c, n := shortLogs(t)
			n.kill()
			n.lose()
			c.writeMany("b", 10)
			if err := c.leader().g.Transfer(testContext(t), ""); err != nil {
				t.Fatal(err)
			}
			c.writeMany("c", 3)
			c.compacted()
			n.rebuilding()
			image := t.TempDir()
			copied := false
			n.crash = func(s string) {
				if s == step && !copied {
					copied = true
					if err := os.CopyFS(image, os.DirFS(n.dir)); err != nil {
						t.Error(err)
					}
				}
			}
			n.start()
			n.kill()
			if !copied {
				t.Fatal("the step was never reached")
			}
			n.crash, n.dir = func(string) {}, image
			n.start()
			c.writeMany("d", 3)
			c.converge("a-0", "b-9", "c-2", "d-2")
			n.kill()
			n.change = nil
			n.start()
			c.converge("d-2")
		})
	}
}

func TestRebuild_SourceGoesAwayMidway_AnotherOneIsAsked(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.TrailingLogs, o.SnapshotRateBytes = 2, 64<<10 })
	c.start()
	for range 24 {
		c.write(string(make([]byte, 4<<10)))
	}
	c.write("last")
	c.converge()
	c.compacted()
	n := c.others(c.leader())[0]
	n.kill()
	n.lose()
	sources := make(chan string, 100)
	n.change = func(o *Options) {
		o.Rebuild = true
		o.OnRebuild = func(x Transfer) {
			if x.Direction == DirectionFetch && x.Bytes > 0 {
				sources <- x.ID
			}
		}
	}
	opened := make(chan error, 1)
	go func() { opened <- n.open(testContext(t)) }() // owned by the test, which waits for it
	first := <-sources
	c.network.cut(first, true)
	c.nodes[first].kill()
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	c.network.cut(first, false)
	c.nodes[first].start()
	c.converge("last")
	var all []string
	for len(sources) > 0 {
		all = append(all, <-sources)
	}
	if !slices.ContainsFunc(all, func(id string) bool { return id != first }) {
		t.Errorf("only %s was asked", first)
	}
	if n.m.waiting != 0 {
		t.Errorf("%d states are waiting", n.m.waiting)
	}
}

func TestRebuild_MemberRemovedMeanwhile_Refused(t *testing.T) {
	c, n := shortLogs(t)
	n.kill()
	n.lose()
	for _, other := range c.others(n) {
		if err := other.g.transport.(networkTransport).Forget(n.id); err != nil {
			t.Fatal(err)
		}
	}
	n.rebuilding()
	err := n.open(testContext(t))
	if !isRefused(err) {
		t.Errorf("%v", err)
	}
	t.Log(err)
	n.g = nil
}

func TestDecide_Rebuild_OnlyWhereNothingElseIsMissing(t *testing.T) {
	voted := vote{currentTerm: 5, votedTerm: 5, candidate: []byte("a")}
	d := Durable{Index: 6, Term: 5, Installed: true}
	for name, c := range map[string]struct {
		f      found
		action action
		refuse bool
	}{
		"log behind entry 1":            {f: found{first: 4, last: 9, lastTerm: 5, vote: voted, voteExists: true}, action: actionRebuild},
		"log from entry 1":              {f: found{first: 1, last: 9, lastTerm: 5, vote: voted, voteExists: true}, action: actionContinue},
		"log from entry 1, overtaken":   {f: found{first: 1, last: 9, lastTerm: 5, vote: voted, voteExists: true, reach: 10}, action: actionRebuild},
		"log from entry 1, not passed":  {f: found{first: 1, last: 9, lastTerm: 5, vote: voted, voteExists: true, reach: 9}, action: actionContinue},
		"log emptied":                   {f: found{vote: voted, voteExists: true}, action: actionRebuild},
		"joined, log emptied":           {f: found{vote: vote{joined: true, currentTerm: 9}, voteExists: true}, action: actionRebuild},
		"never had an entry":            {f: found{vote: vote{currentTerm: 1}, voteExists: true}, action: actionBootstrap},
		"virgin":                        {f: found{}, action: actionBootstrap},
		"state is there":                {f: found{first: 4, last: 9, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: d, termAt: 5}, action: actionContinue},
		"state is there, log overtaken": {f: found{first: 2, last: 5, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: d}, action: actionEmptyLog},
		"no vote":                       {f: found{first: 4, last: 9, lastTerm: 5}, refuse: true},
		"vote of an older copy":         {f: found{first: 4, last: 9, lastTerm: 6, vote: voted, voteExists: true}, refuse: true},
		"log exchanged":                 {f: found{first: 4, last: 9, lastTerm: 5, logSeed: 1, vote: voted, voteExists: true}, refuse: true},
	} {
		c.f.rebuild = true
		got, err := c.f.decide("/d")
		if c.refuse != errors.Is(err, ErrContradiction) || !c.refuse && (err != nil || got != c.action) {
			t.Errorf("%s: decide = %v, %v", name, got, err)
		}
	}
}

func TestRebuild_NobodyKnown_IsAnError(t *testing.T) {
	dir, o, _ := usedGroup(t)
	if err := os.Remove(filepath.Join(dir, "checkpoint")); err != nil {
		t.Fatal(err)
	}
	o.Rebuild = true
	if _, err := Open(testContext(t), o, openMachine(t, dir)); err == nil {
		t.Error("it started")
	} else {
		t.Log(err)
	}
}
