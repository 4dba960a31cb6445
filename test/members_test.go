package test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// members is what GET /api/v1/admin/members answers.
type members struct {
	ClusterID string `json:"cluster_id"`
	LeaderID  string `json:"leader_id"`
	Term      uint64 `json:"term"`
	Members   []struct {
		ID          string `json:"id"`
		Role        string `json:"role"`
		Leader      bool   `json:"leader"`
		Address     string `json:"address"`
		HTTPAddress string `json:"http_address"`
		Incarnation string `json:"incarnation"`
		State       string `json:"state"`
		Priority    int    `json:"priority"`
	} `json:"members"`
}

func (m *members) read(t *testing.T, r *restReply) {
	t.Helper()
	got, err := readMembers(r)
	if err != nil {
		t.Fatal(err)
	}
	*m = *got
}

// readMembers reads an answer that lists the members.
func readMembers(r *restReply) (*members, error) {
	if r.status != 200 {
		return nil, fmt.Errorf("cannot list the members: %v", r)
	}
	m := new(members)
	if err := json.Unmarshal(r.body, m); err != nil {
		return nil, fmt.Errorf("cannot list the members: %w: %s", err, r.body)
	}
	return m, nil
}

// role gives a member's role, empty if it is none.
func (m *members) role(id string) string {
	for _, x := range m.Members {
		if x.ID == id {
			return x.Role
		}
	}
	return ""
}

func deletedIn(t *testing.T, r *restReply) bool {
	t.Helper()
	var body struct {
		Deleted bool `json:"deleted"`
	}
	if err := json.Unmarshal(r.body, &body); err != nil {
		t.Errorf("the answer to a DELETE is no JSON: %v: %s", err, r.body)
	}
	return body.Deleted
}

// membersAt asks a node for the members.
func membersAt(t *testing.T, n *testcluster.Node) (m members) {
	t.Helper()
	m.read(t, openREST(t, n, 20*time.Second).mustDo(t, "GET", "/api/v1/admin/members", nil, nil))
	return m
}

// ended waits until a node has ended by itself with exit code 1, and said so.
func ended(t *testing.T, n *testcluster.Node, says ...string) {
	t.Helper()
	select {
	case <-n.Exited():
	case <-time.After(patience):
		t.Fatalf("the node goes on, and should have said %q:\n%s", says, n.LastOutput())
	}
	refusedWith(t, n, 1, says...)
}

// TestMembers_ChangedUnderLoad_LeadersIncluded changes everything that can be changed while clients write: each
// leader is demoted, replaced and removed in turn. Nothing that was acknowledged is lost, and callers with
// sessions notice nothing.
func TestMembers_ChangedUnderLoad_LeadersIncluded(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	l := startLoadAt(t, c.Addrs(), seed(t))
	l.waitAckedBy(t, 200, c.Nodes()...)

	// The leader loses its vote and gets it back. Each change is asked of a node that does not lead.
	first := c.MustLead()
	other := c.Node((first + 1) % 3)
	kvctl(t, other, "member", "demote", c.ID(first))
	if m := membersAt(t, other); m.role(c.ID(first)) != "learner" || m.LeaderID == c.ID(first) {
		t.Fatalf("after the demotion of the leader: %+v", m)
	}
	l.waitAckedBy(t, 200, c.Nodes()...)
	kvctl(t, other, "member", "promote", c.ID(first))
	waitVoter(t, other, c.ID(first))

	// A fourth node takes the place of the leader.
	fourth := c.AddJoining()
	fourth.Start()
	waitVoter(t, other, "node-4")
	l.waitAckedBy(t, 200, c.Nodes()...)
	old := c.MustLead()
	kvctl(t, c.Node((old+1)%3), "member", "replace", c.ID(old), "--with", "node-4")
	m := membersAt(t, fourth)
	if m.role(c.ID(old)) != "" || m.role("node-4") != "voter" || len(m.Members) != 3 || m.LeaderID == c.ID(old) {
		t.Fatalf("after the replacement of the leader: %+v", m)
	}
	ended(t, c.Node(old), "was removed from the cluster", "--join")
	alive := slices.DeleteFunc(slices.Clone(c.Nodes()), func(n *testcluster.Node) bool { return n == c.Node(old) })
	l.waitAckedBy(t, 200, alive...)

	// The next leader goes for good: two are left.
	gone := c.MustLead()
	kvctl(t, alive[0], "member", "remove", c.ID(gone))
	ended(t, c.Node(gone), "was removed from the cluster", "--join")
	alive = slices.DeleteFunc(alive, func(n *testcluster.Node) bool { return n == c.Node(gone) })
	l.waitAckedBy(t, 200, alive...)
	l.end()
	l.noneSurfaced(t)
	cl := openAt(t, []string{alive[0].Addr(), alive[1].Addr()})
	l.ledger.verify(cl)
	closeClient(t, cl)
	l.ledger.report()
	index, digest := c.MustConverge()
	t.Logf("both nodes have digest %s at index %d", digest, index)
}

// TestMembers_RemovedWhileAway_DisturbsNobodyAndLearnsIt takes a node out while it is cut off. It must not get the
// others to elect anew when it is back, and it must find out that it is out, though nobody lets it in any more.
func TestMembers_RemovedWhileAway_DisturbsNobodyAndLearnsIt(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	i := follower(c)
	n, leader := c.Node(i), c.Node(c.MustLead())
	c.Net().Isolate(c.ID(i))
	eventually(t, "the leader misses the node", func() (bool, error) {
		for _, x := range membersAt(t, leader).Members {
			if x.ID == c.ID(i) {
				return x.State == "unreachable", nil
			}
		}
		return false, nil
	})
	kvctl(t, leader, "member", "remove", c.ID(i))
	term := leader.MustStatus().Term
	c.Net().Heal()
	ended(t, n, "was removed", "--join")
	var b blobs
	b.write(t, c, 5)
	if s := leader.MustStatus(); s.Term != term || !s.IsLeader {
		t.Errorf("a removed node has disturbed the cluster: term %d became %d", term, s.Term)
	}
}

// TestMembers_OneOfTwoRemoved_BothKnow takes one of two voters out and kills it at once, before it can have read
// that: started again, it must learn it from the only node that is left. The other goes on alone.
func TestMembers_OneOfTwoRemoved_BothKnow(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Nodes: 2})
	var b blobs
	b.write(t, c, 10)
	leader := c.MustLead()
	n := c.Node(1 - leader)
	kvctl(t, c.Node(leader), "member", "remove", c.ID(1-leader))
	n.Kill()
	b.write(t, c, 5)
	n.Launch()
	ended(t, n, "was removed", "--join")
	b.mustBeAt(t, c.ID(leader), c.Node(leader))
}

// TestMembers_DeadVoter_LosesItsVoteAndGetsItBack kills one of four voters: after a while the majority is counted
// without it, so that two more may go, one after the other. Of three voters none loses its vote.
func TestMembers_DeadVoter_LosesItsVoteAndGetsItBack(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Nodes: 4, Settings: map[string]string{"dead-after": "2s"}})
	var b blobs
	b.write(t, c, 10)
	i := follower(c)
	n, leader := c.Node(i), c.Node(c.MustLead())
	n.Kill()
	eventually(t, "the dead voter is a learner", func() (bool, error) { return roleAt(t, leader, c.ID(i)) == "learner", nil })
	// Three voters are left, of which one more may die: it keeps its vote.
	second := -1
	for j := range c.Nodes() {
		if j != i && c.Node(j) != leader {
			second = j
		}
	}
	c.Kill(second)
	b.write(t, c, 5)
	n.Start()
	waitVoter(t, leader, c.ID(i))
	if role := roleAt(t, leader, c.ID(second)); role != "voter" {
		t.Errorf("one of three voters became a %s", role)
	}
	c.Node(second).Start()
	b.write(t, c, 5)
	b.everywhere(t, c)
}

// TestMembers_Priority_LeaderComesBackToItsNode prefers a node by its flag: it leads once it is well, and again after
// it was away.
func TestMembers_Priority_LeaderComesBackToItsNode(t *testing.T) {
	c := testcluster.NewCluster(t, testcluster.ClusterOptions{Settings: map[string]string{"priority-after": "1s"}})
	c.Node(1).Set("leader-priority", "50")
	c.Launch()
	c.MustBeReady()
	leads := func() (bool, error) { return c.MustLead() == 1, nil }
	eventually(t, "the preferred node leads", leads)
	if code := c.Node(1).Terminate(); code != 0 {
		t.Errorf("it ends with %d", code)
	}
	if out := c.Node(1).LastOutput(); !strings.Contains(out, "handing leadership over") || strings.Contains(out, "an election will follow") {
		t.Errorf("it did not hand the leadership over:\n%s", out)
	}
	c.MustLead()
	c.Node(1).Start()
	eventually(t, "the preferred node leads again", leads)
}

// TestMembers_LeaderWithoutDiskSpace_GivesItsPlaceAway gives one node no space: it must not keep the leadership while
// the others have some.
func TestMembers_LeaderWithoutDiskSpace_GivesItsPlaceAway(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	i := c.MustLead()
	n := c.Node(i)
	if code := n.Terminate(); code != 0 {
		t.Fatalf("it ends with %d", code)
	}
	n.Set("disk-floor", "512TiB")
	n.Start()
	var b blobs
	b.write(t, c, 5) // it stores what the others decided, or does not: they go on
	// It may be asked to lead all the same.
	openREST(t, n, 20*time.Second).mustDo(t, "POST", "/api/v1/admin/leader", nil, []byte(`{"node_id":"`+c.ID(i)+`"}`))
	eventually(t, "another node leads, and takes writes", func() (bool, error) { return c.MustLead() != i, nil })
	b.write(t, c, 5)
}
