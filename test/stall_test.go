package test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// standstill is the silence after which a process counts as standing still: longer than the watch on writes waits.
const standstill = 20 * time.Second

// TestStall_DiskHangs_NodeEndsAndTheOthersGoOn has the disk of one node hang, first the leader's, then a follower's: it
// answers nothing, neither with success nor with an error. The leader's heartbeats go on meanwhile, so that the others
// would follow it for ever: its watch on writes must end it. What is left of it can't be killed as long as the disk
// hangs, and its ports stay open; callers must get past that too.
func TestStall_DiskHangs_NodeEndsAndTheOthersGoOn(t *testing.T) {
	if testcluster.Isolate(t) {
		return
	}
	seed := seed(t)
	var disks []*testcluster.Disk
	for range 3 {
		disks = append(disks, testcluster.NewDisk(t, 1<<30))
	}
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{
		DataDir:  func(i int) string { return filepath.Join(disks[i].Dir(), "data") },
		Settings: map[string]string{"write-stall-timeout": hangLimit},
	})
	l := startGentleLoad(t, c.Addrs(), seed)
	for _, who := range []string{"leader", "follower"} {
		l.waitAckedBy(t, 100, c.Nodes()...)
		i := c.MustLead()
		if who == "follower" {
			i = (i + 1) % c.Size()
		}
		n := c.Node(i)
		l.ledger.quiet()
		began := time.Now()
		if err := disks[i].Hang(); err != nil {
			t.Fatal(err)
		}
		// Most often the watch on writes ends the node. If a thread waits in a page of a mapped file at that moment, the
		// whole process stands still instead, since the garbage collector waits for that thread: then it sends no
		// heartbeats either, and holds up nobody.
		watched, how := false, "the whole process stands still"
		eventually(t, "the watch finds that the disk hangs, or the process stands still", func() (bool, error) {
			if watched = strings.Contains(n.LastOutput(), "the disk hangs"); watched {
				how = "the watch on writes ended it"
				return true, nil
			}
			_, err := n.Status()
			return err != nil && time.Since(began) > standstill, nil
		})
		found := time.Since(began)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		leader, err := c.LeaderOtherThan(ctx, i)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		l.waitAckedBy(t, 100, others(c, i)...)
		t.Logf("the disk of %s, the %s, hangs: %s, seen after %v, %s leads, the longest time without an acknowledged write was %v", c.ID(i), who,
			how, found.Round(time.Millisecond), c.ID(leader), l.ledger.longestGap().Round(time.Millisecond))
		// All of that while the disk hung.
		if err := disks[i].Thaw(); err != nil {
			t.Fatal(err)
		}
		if !watched {
			// With time running again it may go on, or find that it was gone for too long.
			eventually(t, "the node ends or goes on", func() (bool, error) {
				s, err := n.Status()
				return !n.Running() || err == nil && s.LeaderID != "", nil
			})
			select {
			case <-n.Exited():
			case <-time.After(time.Second):
			}
		}
		if watched || !n.Running() {
			if code := n.WaitExit(); code != 1 {
				t.Fatalf("%s ended with %d, want 1\n%s", c.ID(i), code, n.LastOutput())
			}
			n.Start()
		}
		c.MustBeReady()
	}
	l.waitAckedBy(t, 100, c.Nodes()...)
	l.end()
	l.noneSurfaced(t)
	l.finish(t, c)
	if t.Failed() {
		t.Logf("%s=%d go test ./test -run TestStall -count=1", seedEnv, seed)
	}
}

// longestGap gives the longest time without an acknowledgement since quiet.
func (l *ledger) longestGap() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gapEnd.Sub(l.gapStart)
}
