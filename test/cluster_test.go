package test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

// openCluster connects a client to all nodes; it is closed with the test.
func openCluster(t *testing.T, c *testcluster.Cluster, o ...client.Option) *client.Client {
	t.Helper()
	return openAt(t, c.Addrs(), o...)
}

// waitAckedBy waits until n more writes are acknowledged, while the given nodes live.
func (l *load) waitAckedBy(t *testing.T, n int64, alive ...*testcluster.Node) {
	t.Helper()
	want := l.ledger.acked.Load() + n
	deadline := time.Now().Add(patience)
	for l.ledger.acked.Load() < want {
		for _, node := range alive {
			if !node.Running() {
				t.Fatalf("a node ended by itself:\n%s", node.LastOutput())
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %d writes are acknowledged within %v", n, patience)
		}
		time.Sleep(time.Millisecond)
	}
}

// finish ends the load and checks the store through the leader and, by what each node itself has, everywhere.
func (l *load) finish(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	l.end()
	cl := openCluster(t, c)
	l.ledger.verify(cl)
	closeClient(t, cl)
	l.ledger.report()
	index, digest := c.MustConverge()
	t.Logf("all nodes have digest %s at index %d", digest, index)
	for i, n := range c.Nodes() {
		l.ledger.verifyLocal(t, c.ID(i), n)
	}
}

// noneSurfaced fails the test for errors that callers with sessions saw.
func (l *load) noneSurfaced(t *testing.T) {
	t.Helper()
	l.ledger.mu.Lock()
	defer l.ledger.mu.Unlock()
	if k := len(l.ledger.surfaced); k > 0 {
		t.Errorf("callers with sessions saw %d errors, such as %v", k, l.ledger.surfaced[:min(3, k)])
	}
}

// localSample bounds the keys that are read from one node's own state.
const localSample = 400

// verifyLocal compares what a node has itself with the ledger. REQUIRES: the nodes have converged.
func (l *ledger) verifyLocal(t *testing.T, name string, n *testcluster.Node) {
	t.Helper()
	c := openREST(t, n, patience)
	checked := 0
	for _, cl := range l.claims {
		if checked++; checked > localSample {
			break
		}
		r := c.mustDo(t, http.MethodGet, keyPath(cl.key)+"?consistency=stale", nil, nil)
		var v *client.Value
		switch r.status {
		case http.StatusNotFound:
		case http.StatusOK:
			v = &client.Value{Data: r.body}
			v.Version = client.Version(r.version())
			if at := r.header.Get("X-KV-Expires-At"); at != "" {
				v.ExpiresAt = time.Unix(1, 0) // that it expires, not when
			}
		default:
			t.Errorf("%s: a stale read of %s gives %v", name, cl.key, r)
			continue
		}
		if err := cl.check(v); err != nil {
			t.Errorf("%s itself: %v", name, err)
		}
	}
}

// TestCluster_KilledUnderLoad_EveryAcknowledgedWriteIsThereOnceEverywhere kills nodes by SIGKILL again and again:
// a random one, the leader, all three at once. The same clients go on. While a majority lives, they must not
// see an error where a session makes it safe to send again.
func TestCluster_KilledUnderLoad_EveryAcknowledgedWriteIsThereOnceEverywhere(t *testing.T) {
	kills := count(t, "CLUSTER_KILLS", 12, 2)
	s := seed(t)
	rng := random(s, 0)
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	l := startLoadAt(t, c.Addrs(), s)

	var leaders, randoms, alls int
	var failovers []time.Duration
	for round := range kills {
		l.waitAckedBy(t, 50+int64(rng.IntN(300)), c.Nodes()...)
		time.Sleep(time.Duration(rng.IntN(20_000)) * time.Microsecond)
		victim := c.MustLead()
		l.ledger.quiet()
		killed := time.Now()
		switch p := rng.IntN(10); {
		case p < 2 && round != 0 || round == 1:
			alls++
			c.KillAll()
			// In any order, not at once.
			for _, i := range rng.Perm(c.Size()) {
				c.Node(i).Launch()
				time.Sleep(time.Duration(rng.IntN(100_000)) * time.Microsecond)
			}
		case p < 7 || round == 0:
			leaders++
			c.Kill(victim)
			l.waitAckedBy(t, 1+int64(rng.IntN(300)), others(c, victim)...)
			failovers = append(failovers, l.ledger.resumed().Sub(killed))
			c.Node(victim).Launch()
		default:
			randoms++
			victim = rng.IntN(c.Size())
			c.Kill(victim)
			l.waitAckedBy(t, 1+int64(rng.IntN(300)), others(c, victim)...)
			c.Node(victim).Launch()
		}
		if rng.IntN(4) != 0 {
			c.MustBeReady()
		} else if err := c.Node(victim).WaitReady(); err != nil {
			t.Fatal(err)
		}
	}
	c.MustBeReady()
	l.waitAckedBy(t, 200, c.Nodes()...)
	l.end()
	slices.Sort(failovers)
	t.Logf("%d times the leader killed, %d times a random node, %d times all three; kill of the leader to next acknowledged write: %v",
		leaders, randoms, alls, failovers)
	if acked := l.ledger.acked.Load(); acked < int64(50*kills) {
		t.Errorf("only %d writes were acknowledged around %d kills: the test hit nothing", acked, kills)
	}
	l.noneSurfaced(t)
	// What is there must be there again after one more kill of all.
	c.KillAll()
	c.Launch()
	c.MustBeReady()
	l.finish(t, c)
	if t.Failed() {
		t.Logf("CLUSTER_KILLS=%d %s=%d go test ./test -run TestCluster_Killed -count=1", kills, seedEnv, s)
	}
}

// others are all nodes but the i-th.
func others(c *testcluster.Cluster, i int) []*testcluster.Node {
	return slices.Delete(slices.Clone(c.Nodes()), i, i+1)
}

// TestCluster_PowerCutOfAllUnderLoad_NothingAcknowledgedIsLost takes the power from all three nodes and their
// disks at the same moment. That a cut takes what was not synced, and that the ledger sees it, is shown by
// the controls for one node.
func TestCluster_PowerCutOfAllUnderLoad_NothingAcknowledgedIsLost(t *testing.T) {
	if testcluster.Isolate(t) {
		return
	}
	cuts := count(t, "CLUSTER_CUTS", 4, 1)
	s := seed(t)
	rng := random(s, 0)
	var disks []*testcluster.Disk
	for range 3 {
		disks = append(disks, testcluster.NewDisk(t, diskBytes(cuts)))
	}
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{DataDir: func(i int) string { return filepath.Join(disks[i].Dir(), "data") }})
	l := startLoadAt(t, c.Addrs(), s)
	for range cuts {
		l.waitAckedBy(t, 1+int64(rng.IntN(1000)), c.Nodes()...)
		time.Sleep(time.Duration(rng.IntN(20_000)) * time.Microsecond)
		// Frozen first, all of them: what one has acknowledged before its end, the others may have lost after.
		if err := c.FreezeAll(); err != nil {
			t.Fatal(err)
		}
		for _, d := range disks {
			if err := d.CutPower(); err != nil {
				t.Fatal(err)
			}
		}
		c.KillAll()
		for _, d := range disks {
			if err := d.PowerOn(); err != nil {
				t.Fatal(err)
			}
		}
		c.Launch()
		c.MustBeReady()
	}
	l.waitAckedBy(t, 100, c.Nodes()...)
	if acked := l.ledger.acked.Load(); acked < int64(50*cuts) {
		t.Errorf("only %d writes were acknowledged around %d cuts: the test hit nothing", acked, cuts)
	}
	l.finish(t, c)
	t.Logf("%d power cuts of all three nodes", cuts)
	if t.Failed() {
		t.Logf("CLUSTER_CUTS=%d %s=%d go test ./test -run TestCluster_PowerCut -count=1", cuts, seedEnv, s)
	}
}

// TestCluster_REST_AnyNodeAnswersLikeTheLeader asks each node in turn for everything that REST offers on keys.
func TestCluster_REST_AnyNodeAnswersLikeTheLeader(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{})
	leader := c.MustLead()
	nodes := make([]*restClient, c.Size())
	for i, n := range c.Nodes() {
		nodes[i] = openREST(t, n, 20*time.Second)
	}
	want := func(r *restReply, status int, what string) *restReply {
		t.Helper()
		if r.status != status {
			t.Fatalf("%s: %v, want %d", what, r, status)
		}
		return r
	}
	for i, at := range nodes {
		other := nodes[(i+1)%len(nodes)]
		key := fmt.Sprintf("dir %d/ключ//x", i)
		what := func(op string) string { return fmt.Sprintf("%s at %s, which leads: %v", op, c.ID(i), i == leader) }
		put := want(at.mustDo(t, http.MethodPut, keyPath(key)+"?ttl_seconds=3600&tag.owner=me", map[string]string{"Content-Type": "text/x-test"}, []byte("first")), 200, what("put"))
		v := put.version()
		if v == 0 {
			t.Fatalf("%s: no version: %v", what("put"), put.header)
		}
		// Any other node shows it at once, with all that was kept with it.
		for _, from := range []*restClient{at, other} {
			got := want(from.mustDo(t, http.MethodGet, keyPath(key), nil, nil), 200, what("get"))
			if string(got.body) != "first" || got.version() != v || got.header.Get("Content-Type") != "text/x-test" ||
				got.header.Get("X-KV-Tag-owner") != "me" || got.header.Get("X-KV-Expires-At") == "" || got.header.Get("X-KV-Checksum") == "" {
				t.Errorf("%s: version %d, %v, body %q", what("get"), got.version(), got.header, got.body)
			}
		}
		tag := func(v uint64) string { return fmt.Sprintf("%q", fmt.Sprint(v)) }
		want(at.mustDo(t, http.MethodHead, keyPath(key), nil, nil), 200, what("head"))
		want(at.mustDo(t, http.MethodGet, keyPath(key), map[string]string{"If-None-Match": tag(v)}, nil), 304, what("get of a known version"))
		want(at.mustDo(t, http.MethodPut, keyPath(key), map[string]string{"If-Match": tag(v + 1)}, []byte("x")), 412, what("put against its condition"))
		want(at.mustDo(t, http.MethodPut, keyPath(key), map[string]string{"If-None-Match": "*"}, []byte("x")), 412, what("put if absent"))
		second := want(at.mustDo(t, http.MethodPut, keyPath(key), map[string]string{"If-Match": tag(v)}, []byte("second")), 200, what("put on condition"))
		if second.version() <= v {
			t.Errorf("%s: version %d after %d", what("put"), second.version(), v)
		}
		want(at.mustDo(t, http.MethodDelete, keyPath(key), map[string]string{"If-Match": tag(v)}, nil), 412, what("delete against its condition"))
		if got := want(other.mustDo(t, http.MethodGet, keyPath(key), nil, nil), 200, what("get")); string(got.body) != "second" {
			t.Errorf("%s: %q", what("get"), got.body)
		}
		if got := want(at.mustDo(t, http.MethodDelete, keyPath(key), nil, nil), 200, what("delete")); !deletedIn(t, got) {
			t.Errorf("%s: %v", what("delete"), got)
		}
		if got := want(at.mustDo(t, http.MethodDelete, keyPath(key), nil, nil), 200, what("delete again")); deletedIn(t, got) {
			t.Errorf("%s: %v", what("delete again"), got)
		}
		want(at.mustDo(t, http.MethodGet, keyPath(key), nil, nil), 404, what("get of a deleted key"))
		// A value that takes many frames between the nodes.
		big := content("big", i, 3<<20)
		v = want(at.mustDo(t, http.MethodPut, keyPath("big"), nil, big), 200, what("put of 3 MiB")).version()
		if got := want(other.mustDo(t, http.MethodGet, keyPath("big"), nil, nil), 200, what("get of 3 MiB")); got.version() != v || !slices.Equal(got.body, big) {
			t.Errorf("%s: %d bytes of version %d, want %d of %d", what("get of 3 MiB"), len(got.body), got.version(), len(big), v)
		}
		want(at.mustDo(t, http.MethodPut, keyPath("too/big"), nil, make([]byte, 16<<20+1)), 413, what("put of more than 16 MiB"))
		want(at.mustDo(t, http.MethodPut, "/api/v1/keys/", nil, []byte("x")), 400, what("put without a key"))
		want(at.mustDo(t, http.MethodGet, keyPath("nothing/here"), nil, nil), 404, what("get of an absent key"))
	}
	checkAgreement(t, c, nodes)
}

// checkAgreement compares what the nodes say of the cluster.
func checkAgreement(t *testing.T, c *testcluster.Cluster, nodes []*restClient) {
	t.Helper()
	c.MustConverge()
	leader := c.MustLead()
	all, errs := c.Statuses(context.Background())
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, s := range all {
		if s.NodeID != c.ID(i) || s.IsLeader != (i == leader) || s.LeaderID != c.ID(leader) || s.ClusterID != all[0].ClusterID ||
			s.Term != all[0].Term || len(s.CurrentConfig) != c.Size() || len(s.Nodes) != c.Size() || s.Revision != all[0].Revision {
			t.Errorf("%s says %+v; node 1 says %+v", c.ID(i), s, all[0])
		}
		for _, n := range s.Nodes {
			role := "follower"
			if n.ID == c.ID(leader) {
				role = "leader"
			}
			if n.Role != role || n.State != "ok" || n.AppliedIndex == 0 || n.Address == "" {
				t.Errorf("%s says of %s: %+v", c.ID(i), n.ID, n)
			}
		}
	}
	for i, at := range nodes {
		var m members
		m.read(t, at.mustDo(t, http.MethodGet, "/api/v1/admin/members", nil, nil))
		if len(m.Members) != c.Size() || m.LeaderID != c.ID(leader) || m.ClusterID != all[0].ClusterID {
			t.Errorf("%s lists the members %+v", c.ID(i), m)
		}
		for _, x := range m.Members {
			k := c.Index(x.ID)
			if k < 0 || x.Role != "voter" || x.Leader != (k == leader) || x.State != "ok" || x.Address != c.Node(k).Addr() || x.HTTPAddress != c.Node(k).HTTPAddr() {
				t.Errorf("%s lists the member %+v", c.ID(i), x)
			}
		}
	}
}
