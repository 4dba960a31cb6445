package test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"kvstore/internal/failpoint"
	"kvstore/internal/testcluster"
)

// installSteps are the places around the install of a snapshot at which the receiver is killed, each with the hits
// that are let pass before: at most so many.
var installSteps = []struct {
	point string
	after int
}{
	{failpoint.SnapshotReceive, 12},
	{failpoint.SnapshotInstallBefore, 0},
	{failpoint.GenerationSwapBefore, 0},
	{failpoint.GenerationSwapAfter, 0},
	{failpoint.SnapshotInstallAfter, 0},
	{failpoint.LogTruncateBefore, 0},
	{failpoint.LogTruncateAfter, 0},
	{failpoint.CheckpointBefore, 1},
	{failpoint.CheckpointRename, 1},
	{failpoint.CheckpointAfter, 1},
	{failpoint.LogAppendBefore, 3},
	{failpoint.ApplyBefore, 3},
}

// failpoints gives the program with the tag that lets its named places strike.
func failpoints(t *testing.T) string {
	t.Helper()
	return testcluster.Variant(t, "failpoints", "-tags", "failpoints")
}

// TestInstall_KilledAtEachStep_OldStateOrNewNeverBetween has a node fall behind the kept log again and again, and
// kills it at a named place of the install of the snapshot that it then gets. Started again, it must come to
// the same state as the others, value for value.
func TestInstall_KilledAtEachStep_OldStateOrNewNeverBetween(t *testing.T) {
	rounds := count(t, "INSTALL_STEPS", len(installSteps), 3)
	s := seed(t)
	rng := random(s, 0)
	settings := shortLog()
	settings["snapshot-grace"] = "500ms" // the next round waits until the log is gone again
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: settings, Binary: failpoints(t)})
	var b blobs
	b.write(t, c, 60)
	// Each place once before any of them twice.
	var order []int
	for len(order) < rounds {
		order = append(order, rng.Perm(len(installSteps))...)
	}
	struck := make(map[string]int)
	for _, step := range order[:rounds] {
		i := follower(c)
		n := c.Node(i)
		last := n.MustStatus().AppliedIndex
		c.Kill(i)
		// Written on until it is gone everywhere: who has just sent a snapshot keeps the log for a while, and looks at
		// it again only when there is more.
		eventually(t, fmt.Sprintf("the logs of all others begin behind index %d", last), func() (bool, error) {
			b.write(t, c, 20)
			for _, o := range others(c, i) {
				if s, err := o.Status(); err != nil || s.FirstIndex <= last+1 {
					return false, err
				}
			}
			return true, nil
		})
		at := installSteps[step]
		struck[at.point] += killAt(t, c, &b, n, at.point, 1+rng.IntN(at.after+1), rng)
		n.SetEnv()
		n.Start()
		c.MustConverge()
		b.mustBeAt(t, c.ID(i), n)
	}
	b.everywhere(t, c)
	t.Logf("%d writes acknowledged, all of them there; crashes inside the install of a snapshot: %v", len(b.versions), struck)
	if t.Failed() {
		t.Logf("INSTALL_STEPS=%d %s=%d go test ./test -run TestInstall_KilledAtEachStep -count=1", rounds, seedEnv, s)
	}
}

// killAt starts a node that kills itself at the given hit of a place, and sometimes once more a little later, and
// returns how often it did. Meanwhile writes go on, so that there is something to append and to apply. A fault that
// never strikes fails the test.
func killAt(t *testing.T, c *testcluster.Cluster, b *blobs, n *testcluster.Node, point string, hit int, rng *rand.Rand) (times int) {
	t.Helper()
	for {
		n.SetEnv(fmt.Sprintf("KVSTORE_FAILPOINTS=%s=kill@%d", point, hit))
		n.Launch()
		for deadline := time.Now().Add(patience); n.Running(); time.Sleep(50 * time.Millisecond) {
			b.write(t, c, 1)
			if time.Now().After(deadline) {
				t.Fatalf("nothing struck at hit %d of %s: the test hit nothing\n%s", hit, point, n.LastOutput())
			}
		}
		if code := n.WaitExit(); code != -1 { // -1: by a signal
			t.Fatalf("at hit %d of %s the node ended with %d instead of by its kill\n%s", hit, point, code, n.LastOutput())
		}
		if times++; point != failpoint.SnapshotReceive || times > 2 || rng.IntN(2) == 0 {
			return times
		}
	}
}
