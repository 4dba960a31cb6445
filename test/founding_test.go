package test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// oneCluster checks that all nodes are in the same cluster, with the same members.
func oneCluster(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	c.MustConverge()
	first := c.Node(0).MustStatus()
	for i, n := range c.Nodes() {
		s := n.MustStatus()
		if s.ClusterID != first.ClusterID || s.ClusterID == "" || s.HistoryID != first.HistoryID || len(s.CurrentConfig) != c.Size() {
			t.Errorf("%s is in cluster %s with %d members, node 1 in %s", c.ID(i), s.ClusterID, len(s.CurrentConfig), first.ClusterID)
		}
	}
}

// nobodyLeads checks that no node says that it leads or has applied anything. One that does not answer says
// neither.
func nobodyLeads(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	all, _ := c.Statuses(context.Background())
	for i, s := range all {
		if s.IsLeader || s.LeaderID != "" || s.AppliedIndex > 0 {
			t.Errorf("%s is in a cluster: %+v", c.ID(i), s)
		}
	}
}

func TestCluster_Founding_AnyOrderAndOneLate(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for seconds")
	}
	s := seed(t)
	rng := random(s, 0)
	c := testcluster.NewCluster(t, testcluster.ClusterOptions{})
	order := rng.Perm(c.Size())
	for _, i := range order[:2] {
		c.Node(i).Launch()
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
	}
	// Two of three would be a majority, but founding takes all: otherwise two others could do the same.
	time.Sleep(2 * time.Second)
	for _, i := range order[:2] {
		if !c.Node(i).Running() {
			t.Fatalf("%s did not wait for the others:\n%s", c.ID(i), c.Node(i).LastOutput())
		}
	}
	nobodyLeads(t, c)
	if out := c.Node(order[0]).LastOutput() + c.Node(order[1]).LastOutput(); !strings.Contains(out, c.ID(order[2])) {
		t.Errorf("no node says for whom it waits: %s", out)
	}
	began := time.Now()
	c.Node(order[2]).Launch()
	c.MustBeReady()
	t.Logf("all three are ready %v after the last one was started", time.Since(began).Round(time.Millisecond))
	oneCluster(t, c)
	var b blobs
	b.write(t, c, 5)
	b.everywhere(t, c)
}

// TestCluster_KilledWhileFounding_FoundsOneClusterAllTheSame kills one node, or all, at random instants of the
// first start.
func TestCluster_KilledWhileFounding_FoundsOneClusterAllTheSame(t *testing.T) {
	s := seed(t)
	rng := random(s, 0)
	for round := range count(t, "FOUNDINGS", 5, 1) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			c := testcluster.NewCluster(t, testcluster.ClusterOptions{})
			for _, i := range rng.Perm(c.Size()) {
				c.Node(i).Launch()
				time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
			}
			for range 1 + rng.IntN(3) {
				time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
				i := rng.IntN(c.Size())
				c.Kill(i)
				if rng.IntN(4) == 0 {
					c.KillAll()
				}
				time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
				c.Launch()
			}
			c.MustBeReady()
			oneCluster(t, c)
			var b blobs
			b.write(t, c, 5)
			b.everywhere(t, c)
		})
	}
}

// TestCluster_DifferentLists_Refused starts nodes whose lists disagree.
func TestCluster_DifferentLists_Refused(t *testing.T) {
	if testing.Short() {
		t.Skip("the short suite founds with equal lists")
	}
	c := testcluster.NewCluster(t, testcluster.ClusterOptions{})
	addr, err := c.Net().Add("node-9")
	if err != nil {
		t.Fatal(err)
	}
	list := c.Node(0).Flag("initial-cluster")
	c.Node(2).Set("initial-cluster", list+",node-9="+addr)
	c.Launch()
	ended := make(map[int]bool)
	eventually(t, "a node refuses", func() (bool, error) {
		for i, n := range c.Nodes() {
			if !n.Running() {
				ended[i] = true
			}
		}
		return len(ended) > 0, nil
	})
	for i := range ended {
		refusedWith(t, c.Node(i), 1, "--initial-cluster", "same list")
	}
	nobodyLeads(t, c)
	c.KillAll()
	c.Node(2).Set("initial-cluster", list)
	c.Launch()
	c.MustBeReady()
	oneCluster(t, c)

	// A list without this very node, or with it elsewhere, is a mistake that it can see alone.
	for _, wrong := range []string{"node-2=127.0.0.1:1,node-3=127.0.0.1:2", "node-1=127.0.0.1:1,node-2=127.0.0.1:2", "node-1", "node-1=127.0.0.1:1,node-1=127.0.0.1:2"} {
		n := testcluster.New(t, testcluster.Options{Settings: map[string]string{"initial-cluster": wrong}, Quiet: true})
		n.Launch()
		refusedWith(t, n, 2, "initial-cluster")
	}
}

// TestCluster_Join_LearnerIsPromotedOnceItHasCaughtUp adds a fourth node to a running cluster.
func TestCluster_Join_LearnerIsPromotedOnceItHasCaughtUp(t *testing.T) {
	if testing.Short() {
		t.Skip("the short suite joins a node whose directory was wiped")
	}
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: shortLog()})
	var b blobs
	b.write(t, c, 80)
	n := c.AddJoining()
	n.Start()
	waitVoter(t, c.Node(0), c.ID(3))
	b.write(t, c, 5)
	b.everywhere(t, c)
	// It comes back like any other.
	c.Kill(3)
	b.write(t, c, 5)
	c.Node(3).Start()
	b.everywhere(t, c)
	// And goes.
	kvctl(t, c.Node(0), "member", "remove", c.ID(3))
	if role := roleAt(t, c.Node(0), c.ID(3)); role != "" {
		t.Errorf("%s is still a %s", c.ID(3), role)
	}
}
