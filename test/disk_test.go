package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

// Full disks in a cluster: each node has a file system of its own, which the test fills beside it.

const mib = 1 << 20

// diskCluster is a cluster each of whose nodes has a disk of its own.
type diskCluster struct {
	*testcluster.Cluster
	disks []*testcluster.Disk
}

// startOnDisks starts three nodes on disks of 600 MiB with a floor of 192 MiB.
func startOnDisks(t *testing.T, settings map[string]string) *diskCluster {
	t.Helper()
	d := &diskCluster{}
	for range 3 {
		d.disks = append(d.disks, testcluster.NewDisk(t, 600*mib))
	}
	all := map[string]string{"disk-floor": "192MiB", "disk-ballast": "8MiB"}
	for k, v := range settings {
		all[k] = v
	}
	d.Cluster = testcluster.StartCluster(t, testcluster.ClusterOptions{
		DataDir: func(i int) string { return filepath.Join(d.disks[i].Dir(), "data") }, Settings: all,
	})
	return d
}

// fill leaves so many bytes on the disk of node i and waits until the node says that it is in state.
func (d *diskCluster) fill(t *testing.T, i int, left int64, state string) {
	t.Helper()
	if err := d.disks[i].Fill(left); err != nil {
		t.Fatal(err)
	}
	eventually(t, fmt.Sprintf("the disk of %s is %s", d.ID(i), state), func() (bool, error) {
		s, err := d.Node(i).Status()
		return err == nil && s.Disk.State == state, fmt.Errorf("%s is %q: %w", d.ID(i), s.Disk.State, err)
	})
}

// writable waits until node i knows what the disks let it take as a leader, and that all others know of theirs.
func (d *diskCluster) writable(t *testing.T, i int, state string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s takes what is %s", d.ID(i), state), func() (bool, error) {
		s, err := d.Node(i).Status()
		if err != nil || s.Writable != state {
			return false, fmt.Errorf("it takes what is %q: %w", s.Writable, err)
		}
		for _, n := range s.Nodes {
			if n.Disk == nil {
				return false, fmt.Errorf("it knows nothing of the disk of %s", n.ID)
			}
		}
		return true, nil
	})
}

func (d *diskCluster) empty(t *testing.T, i int) {
	t.Helper()
	if err := d.disks[i].Empty(); err != nil {
		t.Fatal(err)
	}
}

// alive ends the test when a node has ended.
func (d *diskCluster) alive(t *testing.T) {
	t.Helper()
	if err := d.Ended(); err != nil {
		t.Fatal(err)
	}
}

// metricOf reads one value from a node's metrics.
func metricOf(t *testing.T, n *testcluster.Node, name string) float64 {
	t.Helper()
	v, err := readMetric(n, name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// readMetric is metricOf of a node that may be down.
func readMetric(n *testcluster.Node, name string) (float64, error) {
	resp, err := http.Get("http://" + n.MetricsAddr() + "/metrics")
	if err != nil {
		return 0, err
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", name, err)
			}
			return f, nil
		}
	}
	return 0, fmt.Errorf("the node has no metric %s", name)
}

// TestDisk_OneFollowerFull_ClusterWritesOnAndItCatchesUp fills the disk of a follower, to low and then to critical. It
// refuses to store what it is sent, which costs the cluster nothing, and has it all soon after space returns.
func TestDisk_OneFollowerFull_ClusterWritesOnAndItCatchesUp(t *testing.T) {
	if testcluster.Isolate(t) {
		return
	}
	d := startOnDisks(t, map[string]string{"log-keep-size": "64MiB"})
	var b blobs
	b.write(t, d.Cluster, 20)
	i := follower(d.Cluster)
	leader := d.MustLead()
	for _, c := range []struct {
		left  int64
		state string
	}{{100 * mib, "low"}, {4 * mib, "critical"}} {
		d.fill(t, i, c.left, c.state)
		before := d.Node(i).MustStatus()
		b.write(t, d.Cluster, 40)
		after, ahead := d.Node(i).MustStatus(), d.Node(leader).MustStatus()
		if after.LastIndex != before.LastIndex || after.Term != before.Term {
			t.Errorf("the follower whose disk is %s went from entry %d in term %d to %d in %d: it stored what it has no room for, or disturbed", c.state, before.LastIndex, before.Term, after.LastIndex, after.Term)
		}
		if ahead.LastIndex < before.LastIndex+40 || !ahead.IsLeader {
			t.Errorf("the leader went from %d to %d only, or leads no more", before.LastIndex, ahead.LastIndex)
		}
		d.alive(t)
		// What it has it still serves.
		openREST(t, d.Node(i), patience).mustDo(t, "GET", keyPath(blobKey(0))+"?consistency=stale", nil, nil)
		began := time.Now()
		d.empty(t, i)
		b.everywhere(t, d.Cluster)
		t.Logf("from %s: caught up %v after space had returned", c.state, time.Since(began).Round(100*time.Millisecond))
	}
	b.write(t, d.Cluster, 5)
	b.everywhere(t, d.Cluster)
}

// TestDisk_TwoOfThreeFull_WritesRefusedForSureAndItHeals leaves a majority without space. The leader, which has some,
// must refuse what cannot be stored before it gets into the log.
func TestDisk_TwoOfThreeFull_WritesRefusedForSureAndItHeals(t *testing.T) {
	if testcluster.Isolate(t) {
		return
	}
	d := startOnDisks(t, nil)
	var b blobs
	b.write(t, d.Cluster, 20)
	leader := d.MustLead()
	i, k := (leader+1)%3, (leader+2)%3
	cl := openCluster(t, d.Cluster, client.WithTimeout(2*time.Second))
	ctx := context.Background()
	put := func(key string) error { _, err := cl.Put(ctx, key, []byte("v")); return err }
	for key := range 30 {
		if err := put(fmt.Sprintf("del/%02d", key)); err != nil {
			t.Fatal(err)
		}
	}
	d.MustConverge()

	d.fill(t, i, 100*mib, "low")
	d.fill(t, k, 100*mib, "low")
	d.writable(t, leader, "low")
	eventually(t, "writes are refused for lack of space", func() (bool, error) {
		err := put("more")
		if err != nil && !errors.Is(err, client.ErrDiskFull) {
			t.Fatalf("with two full disks a write fails with %v", err)
		}
		return err != nil, err
	})
	last := d.Node(leader).MustStatus().LastIndex
	for range 3 { // each is tried again until its time is over
		if err := put("more"); !errors.Is(err, client.ErrDiskFull) || !errors.Is(err, client.ErrNotApplied) {
			t.Errorf("a write with two full disks: %v; want full and surely not applied", err)
		}
	}
	if now := d.Node(leader).MustStatus(); now.LastIndex != last || now.Writable != "low" {
		t.Errorf("refused writes moved the log from %d to %d; writable is %q", last, now.LastIndex, now.Writable)
	}
	// By REST, through each node.
	for n := range d.Size() {
		r := openREST(t, d.Node(n), patience).mustDo(t, "PUT", keyPath("more"), nil, []byte("v"))
		if r.status != 503 || !strings.Contains(string(r.body), `"applied":"no"`) || !strings.Contains(string(r.body), d.ID(i)+" is low") {
			t.Errorf("REST at %s: %d %s", d.ID(n), r.status, r.body)
		}
	}
	// Reads and deletes go on.
	for key := range 20 {
		name := fmt.Sprintf("del/%02d", key)
		if v, err := cl.Get(ctx, name); err != nil || string(v.Data) != "v" {
			t.Errorf("read of %s: %q, %v", name, v.Data, err)
		}
		if deleted, _, err := cl.Delete(ctx, name); err != nil || !deleted {
			t.Errorf("delete of %s: %v, %v", name, deleted, err)
		}
	}
	d.alive(t)

	// Nothing is left at all: deletes are refused too, as surely; reads go on.
	for _, n := range []int{i, k} {
		d.empty(t, n)
		d.fill(t, n, 4*mib, "critical")
	}
	// What is under way when a disk becomes full may stay open: who has not heard of it yet can't refuse it.
	d.writable(t, leader, "critical")
	eventually(t, "deletes are refused for lack of space", func() (bool, error) {
		_, _, err := cl.Delete(ctx, "del/20")
		if err != nil && !errors.Is(err, client.ErrDiskFull) {
			t.Fatalf("without any space a delete fails with %v", err)
		}
		return err != nil, err
	})
	if v, err := cl.Get(ctx, "del/29"); err != nil || string(v.Data) != "v" {
		t.Errorf("a read without any space: %q, %v", v.Data, err)
	}
	d.alive(t)

	// One of the two has space again: a majority has.
	began := time.Now()
	d.empty(t, i)
	eventually(t, "writes are taken again", func() (bool, error) { err := put("more"); return err == nil, err })
	t.Logf("writes are taken %v after space has returned", time.Since(began).Round(100*time.Millisecond))
	b.write(t, d.Cluster, 20)
	d.empty(t, k)
	b.everywhere(t, d.Cluster)
	d.alive(t)
}

// TestDisk_LeaderFull_LeadershipMoves fills the leader's disk: another leads soon, and writes go on.
func TestDisk_LeaderFull_LeadershipMoves(t *testing.T) {
	if testcluster.Isolate(t) {
		return
	}
	d := startOnDisks(t, nil)
	var b blobs
	b.write(t, d.Cluster, 20)
	d.MustConverge()
	old := d.MustLead()
	if err := d.disks[old].Fill(100 * mib); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	leader, err := d.LeaderOtherThan(ctx, old)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s leads %v after the disk of %s was full", d.ID(leader), time.Since(began).Round(100*time.Millisecond), d.ID(old))
	b.write(t, d.Cluster, 20)
	if s := d.Node(old).MustStatus(); s.IsLeader || s.Disk.State != "low" {
		t.Errorf("the node with the full disk: %+v", s)
	}
	d.empty(t, old)
	b.everywhere(t, d.Cluster)
	d.alive(t)
}

// TestDisk_NoRoomForASnapshot_RefusedBeforeTheDiskIsFull brings back a node that needs the whole state, on a disk that
// has space to go on but none for that.
func TestDisk_NoRoomForASnapshot_RefusedBeforeTheDiskIsFull(t *testing.T) {
	if testcluster.Isolate(t) {
		return
	}
	d := startOnDisks(t, shortLog())
	var b blobs
	b.write(t, d.Cluster, 40)
	i := follower(d.Cluster)
	last := d.Node(i).MustStatus().LastIndex
	d.Kill(i)
	b.write(t, d.Cluster, 200)
	gone(t, d.Cluster, i, last)
	// More than the floor, less than the floor and two steps of a copy.
	if err := d.disks[i].Fill(230 * mib); err != nil {
		t.Fatal(err)
	}
	d.Node(i).Launch()
	eventually(t, "a copy is refused for lack of room", func() (bool, error) {
		if !d.Node(i).Running() {
			t.Fatalf("it ended: %s", d.Node(i).LastOutput())
		}
		if s, err := d.Node(i).Status(); err != nil || s.NodeID == "" {
			return false, err
		}
		return metricOf(t, d.Node(i), "kvstore_raft_snapshots_refused_total") > 0, nil
	})
	if s := d.Node(i).MustStatus(); s.AppliedIndex > last || s.Disk.State != "ok" || s.Disk.FreeBytes < 192*mib {
		t.Errorf("after the refusal: %+v", s)
	}
	if out := d.Node(i).LastOutput(); !strings.Contains(out, "not enough free space") {
		t.Errorf("its log does not say why: %s", out)
	}
	d.empty(t, i)
	b.everywhere(t, d.Cluster)
	d.alive(t)
}
