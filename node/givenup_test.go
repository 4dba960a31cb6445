package node

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"kvstore/consensus"
	"kvstore/wire"
)

// ended waits until a node says why it may not go on.
func (c *cluster) ended() error {
	c.t.Helper()
	select {
	case err := <-c.died:
		return err
	case <-time.After(waitMax):
		c.t.Fatal("no node says that it may not go on")
		return nil
	}
}

// Goal: of the nodes that a recovery gave up, one that comes back stops on the survivor's word alone, and says why.
// Otherwise two of them would go on as the old cluster beside the new one.
func TestRecover_GivenUpNodeComesBack_StopsOnTheSurvivorsWordAlone(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.died = make(chan error, 3)
	c.start(c.ids...)
	leader, _ := c.leader()
	recorded(t, leader)
	c.same()
	cluster, _, _ := leader.shard.engine.Identity()
	for _, id := range c.ids {
		c.stop(id)
	}
	c.recover("node-1", c.places["node-1"].dir, cluster, "node-2", "node-3")
	c.start("node-1")
	until(t, "the recovery is put on record", c.node("node-1").shard.recovery.over)
	if _, err := c.open("node-2", nil); err != nil {
		t.Fatal(err)
	}
	err := c.ended()
	if !errors.Is(err, consensus.ErrRefused) || errors.Is(err, consensus.ErrCopied) || !strings.Contains(err.Error(), `node "node-2" was given up by a recovery`) {
		t.Errorf("node-2: %v", err)
	}
	if id, _, err := loadIdentity(c.places["node-2"].dir, "node-2"); err != nil || id.Refused != "" {
		t.Errorf("node-2 could not come back if the recovery was a mistake: %q, %v", id.Refused, err)
	}
	if r := put(t, c.node("node-1"), "k", "v"); r.Status != wire.StatusOK {
		t.Errorf("the survivor: %s", r.Status)
	}
}

// Goal: an older copy that was started often while nobody answered counts more starts than the directory did. The
// others, all started anew and without memory of what it had acknowledged, must know it all the same.
func TestStarts_OlderCopyStartedMoreOftenWhileAlone_RefusedForEver(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.died = make(chan error, 3)
	c.start(c.ids...)
	leader, _ := c.leader()
	recorded(t, leader)
	c.same()
	c.stop("node-3")
	older := t.TempDir()
	if err := os.CopyFS(older, os.DirFS(c.places["node-3"].dir)); err != nil {
		t.Fatal(err)
	}
	c.start("node-3")
	leader, _ = c.leader()
	if r := put(t, leader, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	c.same()
	for _, id := range c.ids {
		c.stop(id)
	}
	newest := c.places["node-3"].dir
	c.places["node-3"].dir = older
	for range 3 {
		if _, err := c.open("node-3", nil); err != nil {
			t.Fatal(err)
		}
		c.stop("node-3")
	}
	c.start("node-1", "node-2")
	if _, err := c.open("node-3", nil); err != nil {
		t.Fatal(err)
	}
	if err := c.ended(); !errors.Is(err, consensus.ErrCopied) || strings.Count(err.Error(), "but another process was start 2 of it") != 2 {
		t.Errorf("node-3: %v", err)
	}
	until(t, "the copy knows that it is out", func() bool {
		id, _, err := loadIdentity(older, "node-3")
		return err == nil && id.Starts == 5 && id.checkNotRefused(older) != nil
	})
	c.stop("node-3")
	c.places["node-3"].dir = newest
	c.start("node-3")
	c.same()
}

func TestStatusDocument_Stranger_OnlyOfAKnownOtherHistory(t *testing.T) {
	of := func(cluster, history string) *statusDocument {
		return &statusDocument{ClusterID: cluster, HistoryID: history}
	}
	here := of("c1", "h1")
	for _, x := range []struct {
		other *statusDocument
		want  bool
	}{{of("c1", "h1"), false}, {of("c1", "h2"), true}, {of("c2", "h1"), true}, {of("000", "000"), false}, {of("", ""), false}} {
		if got := x.other.stranger(here); got != x.want {
			t.Errorf("%+v: %v", x.other, got)
		}
		if got := here.stranger(x.other); got != x.want {
			t.Errorf("the other way, %+v: %v", x.other, got)
		}
	}
}
