package test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// shortLog makes the log so short that a node that was away for a few hundred writes finds its place in it
// gone. Segments are removed as wholes.
func shortLog() map[string]string {
	return map[string]string{"log-keep-size": "0", "log-keep-size-max": "0", "trailing-logs": "16", "snapshot-threshold": "32", "snapshot-interval": "100ms", "log-segment-size": "1MiB"}
}

// blobs are large values, so that a snapshot takes a while.
type blobs struct {
	sizes    []int
	versions []uint64
}

const blobBytes = 256 << 10

// write puts n blobs and small keys beside them, each one log entry, through any node.
func (b *blobs) write(t *testing.T, c *testcluster.Cluster, n int) {
	t.Helper()
	cl := openCluster(t, c)
	defer closeClient(t, cl)
	for range n {
		i := len(b.sizes)
		size := 3000
		if i%4 == 0 {
			size = blobBytes
		}
		v, err := cl.Put(context.Background(), blobKey(i), content(blobKey(i), 0, size))
		if err != nil {
			t.Fatal(err)
		}
		b.sizes, b.versions = append(b.sizes, size), append(b.versions, uint64(v))
	}
}

func blobKey(i int) string { return fmt.Sprintf("blob/%05d", i) }

// mustBeAt compares what a node itself has with what was acknowledged.
func (b *blobs) mustBeAt(t *testing.T, name string, n *testcluster.Node) {
	t.Helper()
	c := openREST(t, n, patience)
	for i, size := range b.sizes {
		r := c.mustDo(t, "GET", keyPath(blobKey(i))+"?consistency=stale", nil, nil)
		if r.status != 200 || r.version() != b.versions[i] || !slices.Equal(r.body, content(blobKey(i), 0, size)) {
			t.Fatalf("%s: %s has status %d, version %d and %d bytes, want version %d and %d bytes", name, blobKey(i), r.status, r.version(), len(r.body), b.versions[i], size)
		}
	}
}

// everywhere waits until all nodes have the same and checks that it is what was acknowledged.
func (b *blobs) everywhere(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	c.MustConverge()
	for i, n := range c.Nodes() {
		b.mustBeAt(t, c.ID(i), n)
	}
}

// follower gives a node that does not lead, once it has all that the others have.
func follower(c *testcluster.Cluster) int {
	c.MustConverge()
	return (c.MustLead() + 1) % c.Size()
}

// gone waits until the log of every other node begins behind what node i has: it can't be brought up by
// entries any more.
func gone(t *testing.T, c *testcluster.Cluster, i int, last uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("the logs of all others begin behind index %d", last), func() (bool, error) {
		for _, n := range others(c, i) {
			if s, err := n.Status(); err != nil || s.FirstIndex <= last+1 {
				return false, fmt.Errorf("it begins at %d (%v)", s.FirstIndex, err)
			}
		}
		return true, nil
	})
}

// whoIsAway lists the roles of the node that goes away.
func whoIsAway() []string {
	if testing.Short() {
		return []string{"follower"}
	}
	return []string{"follower", "leader"}
}

func TestCluster_NodeDownForAWhile_ComesBackByTheLog(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: map[string]string{"log-keep-size": "64MiB"}})
	var b blobs
	b.write(t, c, 8)
	for _, who := range whoIsAway() {
		i := c.MustLead()
		if who == "follower" {
			i = follower(c)
		}
		last := c.Node(i).MustStatus().LastIndex
		c.Kill(i)
		b.write(t, c, 12)
		for _, n := range others(c, i) {
			if s := n.MustStatus(); s.FirstIndex > last+1 {
				t.Fatalf("the log begins at %d although the node that is down has up to %d: this is not what the test is about", s.FirstIndex, last)
			}
		}
		c.Node(i).Start()
		b.everywhere(t, c)
		// It still has the entries from before, which a snapshot would have replaced.
		if s := c.Node(i).MustStatus(); s.FirstIndex == 0 || s.FirstIndex > last {
			t.Errorf("the log of the %s begins at %d now, it was at %d: it came back by a snapshot", who, s.FirstIndex, last)
		}
	}
}

func TestCluster_NodeDownForLongerThanTheLogIsKept_ComesBackByASnapshot(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: shortLog()})
	var b blobs
	b.write(t, c, 40)
	for _, who := range whoIsAway() {
		i := c.MustLead()
		if who == "follower" {
			i = follower(c)
		}
		last := c.Node(i).MustStatus().LastIndex
		c.Kill(i)
		// What was there is changed and deleted meanwhile: the snapshot must replace, not add.
		deleteSome(t, c, &b)
		b.write(t, c, 200)
		gone(t, c, i, last)
		c.Node(i).Start()
		b.everywhere(t, c)
		// Its log is empty or begins anew: what it has of the entries before it has by a snapshot.
		if s := c.Node(i).MustStatus(); s.FirstIndex != 0 && s.FirstIndex <= last+1 {
			t.Errorf("the log of the %s begins at %d, it was at %d: nobody had the entries in between", who, s.FirstIndex, last)
		}
		// It goes on by the log, and what it received survives its next crash.
		b.write(t, c, 10)
		c.Kill(i)
		c.Node(i).Start()
		b.everywhere(t, c)
	}
}

// deleteSome deletes the first tenth of the blobs.
func deleteSome(t *testing.T, c *testcluster.Cluster, b *blobs) {
	t.Helper()
	cl := openCluster(t, c)
	defer closeClient(t, cl)
	n := len(b.sizes) / 10
	for i := range n {
		v, err := cl.Put(context.Background(), blobKey(i), content(blobKey(i), 0, 10))
		if err != nil {
			t.Fatal(err)
		}
		b.sizes[i], b.versions[i] = 10, uint64(v)
		key := fmt.Sprintf("gone/%d", i)
		if _, err := cl.Put(context.Background(), key, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := cl.Delete(context.Background(), key); err != nil {
			t.Fatal(err)
		}
	}
}

// slowly makes a snapshot to node i take seconds.
func slowly(c *testcluster.Cluster, i int, bytesPerSecond int64) {
	for k := range c.Size() {
		if k != i {
			c.Net().Rate(c.ID(k), c.ID(i), bytesPerSecond)
		}
	}
}

// sentTo counts the bytes that the others have sent to node i.
func sentTo(c *testcluster.Cluster, i int) (sum int64) {
	for k := range c.Size() {
		if k != i {
			sum += c.Net().Sent(c.ID(k), c.ID(i))
		}
	}
	return sum
}

// TestCluster_ReceiverKilledDuringInstall_TriesAgainAndSucceeds kills the node that receives a snapshot at
// random instants: while it streams in, and around the moment at which it takes the place of what was there.
func TestCluster_ReceiverKilledDuringInstall_TriesAgainAndSucceeds(t *testing.T) {
	kills := count(t, "INSTALL_KILLS", 6, 1)
	s := seed(t)
	rng := random(s, 0)
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: shortLog()})
	var b blobs
	b.write(t, c, 60)
	i := follower(c)
	last := c.Node(i).MustStatus().AppliedIndex
	c.Kill(i)
	deleteSome(t, c, &b)
	b.write(t, c, 200)
	gone(t, c, i, last)
	slowly(c, i, 16<<20)
	size := int64(len(b.sizes)/4) * blobBytes
	during := 0
	for round := range kills {
		at := rng.Int64N(size - size/10)
		if round >= kills/2 {
			// Near the end, where the new state takes the place of the old one.
			at = size - size/20 + rng.Int64N(size/12)
		}
		before := sentTo(c, i)
		c.Node(i).Launch()
		applied := last
		eventually(t, "the snapshot is on its way", func() (bool, error) {
			if s, err := c.Node(i).Status(); err == nil {
				applied = s.AppliedIndex
			}
			return sentTo(c, i)-before > at || applied > last, nil
		})
		time.Sleep(time.Duration(rng.IntN(30_000)) * time.Microsecond)
		if !c.Node(i).Running() {
			t.Fatalf("the node ended by itself:\n%s", c.Node(i).LastOutput())
		}
		c.Kill(i)
		t.Logf("killed %d of about %d KiB into the install; it had applied up to %d, before %d", (sentTo(c, i)-before)>>10, size>>10, applied, last)
		if applied > last {
			break // installed: the log that follows the snapshot is kept now, so that it will not be sent again
		}
		during++
	}
	if during == 0 {
		t.Error("no kill struck before the snapshot was installed: the test hit nothing")
	}
	c.Net().Heal()
	c.Node(i).Start()
	b.everywhere(t, c)
	t.Logf("%d kills before the install was done", during)
	if t.Failed() {
		t.Logf("INSTALL_KILLS=%d %s=%d go test ./test -run TestCluster_ReceiverKilled -count=1", kills, seedEnv, s)
	}
}

// TestCluster_SenderKilledDuringInstall_AnotherLeaderSendsItsOwn kills the leader while it sends a snapshot.
// The receiver and the third node are a majority: they elect the third one, which begins anew.
func TestCluster_SenderKilledDuringInstall_AnotherLeaderSendsItsOwn(t *testing.T) {
	if testing.Short() {
		t.Skip("the short suite kills the receiver")
	}
	s := seed(t)
	rng := random(s, 0)
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: shortLog()})
	var b blobs
	b.write(t, c, 40)
	i := follower(c)
	last := c.Node(i).MustStatus().AppliedIndex
	c.Kill(i)
	b.write(t, c, 240)
	gone(t, c, i, last)
	size := int64(len(b.sizes)/4) * blobBytes
	slowly(c, i, 8<<20)
	before := sentTo(c, i)
	c.Node(i).Launch()
	at := size/20 + rng.Int64N(size/5)
	eventually(t, "the snapshot is on its way", func() (bool, error) { return sentTo(c, i)-before > at, nil })
	old := c.MustLead()
	if s := c.Node(i).MustStatus(); s.AppliedIndex > last {
		t.Fatal("the snapshot is installed already: the test hits nothing")
	}
	c.Kill(old)
	c.Net().Heal()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if leader, err := c.LeaderOtherThan(ctx, old); err != nil || leader == i {
		t.Fatalf("leader is %d (%v)", leader, err)
	}
	// The old leader stays away: the majority works, one half of it fresh from a snapshot.
	b.write(t, c, 5)
	if err := c.Node(i).WaitReady(); err != nil {
		t.Fatal(err)
	}
	c.MustConverge()
	b.mustBeAt(t, c.ID(i), c.Node(i))
	c.Node(old).Start()
	b.everywhere(t, c)
}
