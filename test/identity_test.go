package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// setAside moves a node's data directory away, as a lost disk does, and gives its new place.
func setAside(t *testing.T, n *testcluster.Node, suffix string) string {
	t.Helper()
	to := n.DataDir() + suffix
	if err := os.Rename(n.DataDir(), to); err != nil {
		t.Fatal(err)
	}
	return to
}

// putBack puts a directory in the place of a node's, which must be gone.
func putBack(t *testing.T, n *testcluster.Node, from string) {
	t.Helper()
	if err := os.RemoveAll(n.DataDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(from, n.DataDir()); err != nil {
		t.Fatal(err)
	}
}

// roleAt asks a node for a member's role.
func roleAt(t *testing.T, n *testcluster.Node, id string) string {
	t.Helper()
	var m members
	m.read(t, openREST(t, n, 20*time.Second).mustDo(t, "GET", "/api/v1/admin/members", nil, nil))
	return m.role(id)
}

func waitVoter(t *testing.T, n *testcluster.Node, id string) {
	t.Helper()
	eventually(t, id+" is a voter", func() (bool, error) { return roleAt(t, n, id) == "voter", nil })
}

// TestCluster_DirectoryWiped_RefusedAndTheWayBackWorks loses a node's data directory. Started again as before,
// the node must not take part: it has forgotten what it promised. What its refusal says leads back.
func TestCluster_DirectoryWiped_RefusedAndTheWayBackWorks(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: shortLog()})
	var b blobs
	b.write(t, c, 60)
	i := follower(c)
	n, id := c.Node(i), c.ID(i)
	leader := c.Node(c.MustLead())
	n.Kill()
	lost := setAside(t, n, ".lost")

	n.Launch()
	refusedWith(t, n, 1, "kvctl member remove "+id, "--join", "empty")
	// As often as it is tried.
	n.Launch()
	refusedWith(t, n, 1, "kvctl member remove "+id)
	b.write(t, c, 5)

	// The way back, step by step as it was told.
	kvctl(t, leader, "member", "remove", id)
	if role := roleAt(t, leader, id); role != "" {
		t.Errorf("%s is still a %s", id, role)
	}
	b.write(t, c, 200)
	if err := os.RemoveAll(n.DataDir()); err != nil {
		t.Fatal(err)
	}
	n.Unset("initial-cluster")
	n.Set("join", c.JoinAddrs(n))
	n.Start()
	waitVoter(t, leader, id)
	b.everywhere(t, c)
	// It counts: with another node down the cluster works.
	third := 3 - i - c.Index(leader.MustStatus().NodeID)
	c.Kill(third)
	b.write(t, c, 5)
	c.Node(third).Start()

	// The directory that was lost turns up again: it must stay out for ever.
	n.Kill()
	kept := setAside(t, n, ".kept")
	putBack(t, n, lost)
	n.Launch()
	refusedWith(t, n, 1, "removed", "--join")
	putBack(t, n, kept)
	n.Start()
	b.write(t, c, 5)
	b.everywhere(t, c)
}

// TestCluster_TwoOfThreeWiped_NoSecondClusterAppears loses the directories of a majority. The two must not found
// the cluster again, although they have the list for it: neither while the third is down nor when it is
// there.
func TestCluster_TwoOfThreeWiped_NoSecondClusterAppears(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for seconds")
	}
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	var b blobs
	b.write(t, c, 20)
	c.MustConverge()
	c.KillAll()
	var lost []string
	for _, n := range c.Nodes()[:2] {
		lost = append(lost, setAside(t, n, ".lost"))
		n.Launch()
	}
	// They wait for the third. That they never begin can't be seen, only that they don't for a while: each
	// has said for whom it waits, and an election takes 2 seconds at most.
	for i, n := range c.Nodes()[:2] {
		eventually(t, c.ID(i)+" waits for the third founder", func() (bool, error) {
			return strings.Contains(n.LastOutput(), "waiting for"), nil
		})
	}
	time.Sleep(2 * time.Second)
	nobodyLeads(t, c)
	c.Node(2).Launch()
	for i, n := range c.Nodes()[:2] {
		refusedWith(t, n, 1, "kvctl member remove "+c.ID(i), "--join")
	}
	if all, _ := c.Statuses(context.Background()); all[2].IsLeader {
		t.Errorf("one node of three leads: %+v", all[2])
	}
	for i, n := range c.Nodes()[:2] {
		putBack(t, n, lost[i])
		n.Launch()
	}
	c.MustBeReady()
	b.everywhere(t, c)
}

// TestCluster_DirectoryOfAnotherClusterOrNode_Refused starts a node on data that is not its own.
func TestCluster_DirectoryOfAnotherClusterOrNode_Refused(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	var b blobs
	b.write(t, c, 10)
	i := follower(c)
	n := c.Node(i)
	n.Kill()
	own := setAside(t, n, ".own")

	// Another node's of this cluster.
	other := c.Node(3 - i - c.MustLead())
	other.Kill()
	foreign := other.DataDir()
	putBack(t, n, foreign)
	n.Launch()
	refusedWith(t, n, 1, `belongs to node "`, "--node-id")
	if err := os.Rename(n.DataDir(), foreign); err != nil {
		t.Fatal(err)
	}
	other.Start()

	// A single-node cluster's of the same name, as a first try with the program leaves behind.
	alone := testcluster.Start(t, testcluster.Options{Settings: map[string]string{"node-id": c.ID(i)}, Quiet: true})
	alone.Kill()
	putBack(t, n, alone.DataDir())
	checkKeptOut(t, c, n, i, &b)

	// That of the node with the same name in another cluster of three.
	second := testcluster.StartCluster(t, testcluster.ClusterOptions{Quiet: true})
	second.KillAll()
	putBack(t, n, second.Node(i).DataDir())
	checkKeptOut(t, c, n, i, &b)

	putBack(t, n, own)
	n.Start()
	b.everywhere(t, c)
}

// checkKeptOut starts a node on another cluster's data: it must not get in, must be told apart by the others,
// and must not disturb them.
func checkKeptOut(t *testing.T, c *testcluster.Cluster, n *testcluster.Node, i int, b *blobs) {
	t.Helper()
	leader := c.Node(c.MustLead())
	term := leader.MustStatus().Term
	n.Launch()
	said := ""
	eventually(t, "the leader names the foreign node, or the node refuses to run", func() (bool, error) {
		if !n.Running() {
			return true, nil
		}
		var m members
		m.read(t, openREST(t, leader, 20*time.Second).mustDo(t, "GET", "/api/v1/admin/members", nil, nil))
		for _, x := range m.Members {
			if x.ID == c.ID(i) {
				said = x.State
				return strings.HasPrefix(x.State, "refused"), fmt.Errorf("%s", x.State)
			}
		}
		return false, nil
	})
	if n.Running() {
		// The others name it; the node itself must say it too, and how to bring it back.
		eventually(t, "the node says why it is kept out, and the way back", func() (bool, error) {
			_, out, _ := strings.Cut(n.LastOutput(), "\n") // the first line is its command
			return !n.Running() || strings.Contains(out, "another cluster") && strings.Contains(out, "--join"), errors.New(out)
		})
		t.Logf("the others say: %s", said)
	}
	if n.Running() {
		n.Kill()
	} else {
		refusedWith(t, n, 1, "cluster", "--join")
	}
	b.write(t, c, 5)
	if s := leader.MustStatus(); s.Term != term || !s.IsLeader {
		t.Errorf("a foreign node has disturbed the cluster: term %d became %d", term, s.Term)
	}
}
