package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

// Damaged and divergent state: bytes of stored tables are flipped, and one node applies another thing than the log
// says. Where others have the data the node finds it, takes itself out of service and makes its state anew, by itself; alone it says what is lost.

// manyTables makes the store write tables after a few megabytes.
func manyTables(settings map[string]string) map[string]string {
	settings["memtable-size"] = "1MiB"
	return settings
}

// find lists the files of a data directory that match, which may be none.
func find(t *testing.T, n *testcluster.Node, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(n.DataDir(), pattern))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// tables waits until a node has n tables and none is being written any more, and gives their paths, by name.
func tables(t *testing.T, n *testcluster.Node, least int) []string {
	t.Helper()
	var now []string
	since := time.Now()
	eventually(t, fmt.Sprintf("the node has %d tables, and keeps them", least), func() (bool, error) {
		before := now
		now = find(t, n, "groups/1/gen-*/*.sst")
		slices.Sort(now)
		if !slices.Equal(before, now) {
			since = time.Now()
		}
		// Compactions follow a flush at once, or after 10 seconds if they wait for their turn.
		return len(now) >= least && time.Since(since) > time.Second, fmt.Errorf("%d tables", len(now))
	})
	return now
}

// flip changes one bit of the byte at a place of a file; negative: from its end. Again, and it is as before.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if at < 0 {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		at += info.Size()
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	if err == nil {
		b[0] ^= 0x20
		_, err = f.WriteAt(b[:], at)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// rebuilt waits until a node has made its state anew, and checks that nothing of the old one is left.
func rebuilt(t *testing.T, n *testcluster.Node, times int) {
	t.Helper()
	eventually(t, "the node makes its state anew and serves", func() (bool, error) {
		if !n.Running() {
			t.Fatalf("it ended: %s", n.LastOutput())
		}
		s, err := n.Status()
		if err == nil && s.Quarantine == nil {
			err = errors.New("no quarantine yet")
		}
		return err == nil && len(s.Quarantine.At) == times && s.Damage == "", err
	})
	if err := n.WaitReady(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was set aside is removed", func() (bool, error) {
		return len(find(t, n, "groups/1/quarantine-*")) == 0, nil
	})
	t.Logf("quarantined because: %s", n.MustStatus().Quarantine.Reason)
}

// TestQuarantine_DamagedFilesOfAStoppedFollower_RebuildsItselfFromItsPeers flips one byte in what a follower has on
// its disk, where the next start needs it. The node takes the state of another one and comes back as itself, as
// often as this happens, within bounds.
func TestQuarantine_DamagedFilesOfAStoppedFollower_RebuildsItselfFromItsPeers(t *testing.T) {
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: manyTables(shortLog())})
	var b blobs
	b.write(t, c, 120)
	i := follower(c)
	n := c.Node(i)
	waitCompacted(t, n)
	before := n.MustStatus()
	for k, what := range []string{"table", "checkpoint", "manifest"} {
		path := tables(t, n, 2)[0]
		n.Kill()
		switch what {
		case "table":
			flip(t, path, -10) // in its index
		case "checkpoint":
			flip(t, filepath.Join(n.DataDir(), "groups/1/CHECKPOINT"), 30)
		default:
			if err := os.Remove(filepath.Join(filepath.Dir(path), "MANIFEST")); err != nil {
				t.Fatal(err)
			}
		}
		b.write(t, c, 10)
		n.Start()
		rebuilt(t, n, k+1)
		b.write(t, c, 10)
		b.everywhere(t, c)
		if now := n.MustStatus(); now.Incarnation != before.Incarnation || now.Term < before.Term {
			t.Errorf("after the %s was damaged the node came back as another: %+v, before %+v", what, now, before)
		}
		// It is a state like any other.
		n.Kill()
		n.Start()
		b.everywhere(t, c)
	}
	// A fourth time within an hour its disk can't be trusted.
	n.Kill()
	flip(t, filepath.Join(n.DataDir(), "groups/1/CHECKPOINT"), 30)
	for range 2 {
		n.Launch()
		refusedWith(t, n, 1, "3 times within 1h0m0s", "can't be trusted", filepath.Join(n.DataDir(), "QUARANTINE"))
	}
	b.write(t, c, 5)
	if err := os.Remove(filepath.Join(n.DataDir(), "QUARANTINE")); err != nil {
		t.Fatal(err)
	}
	n.Start()
	rebuilt(t, n, 1)
	b.everywhere(t, c)
}

// TestQuarantine_NothingButTheStateNamedTheCluster_RebuildsItself damages the checkpoint of nodes whose file of known
// nodes never named their cluster: of one that founded alone, and of one that lost that file. Without their state they
// must still be able to say which cluster is theirs: the others answer nobody else.
func TestQuarantine_NothingButTheStateNamedTheCluster_RebuildsItself(t *testing.T) {
	damaged := func(t *testing.T, c *testcluster.Cluster, i int, b *blobs) {
		n := c.Node(i)
		waitCompacted(t, n)
		n.Kill()
		flip(t, filepath.Join(n.DataDir(), "groups/1/CHECKPOINT"), 30)
		n.Start()
		rebuilt(t, n, 1)
		b.write(t, c, 10)
		b.everywhere(t, c)
	}
	t.Run("founded alone", func(t *testing.T) {
		c := testcluster.StartCluster(t, testcluster.ClusterOptions{Nodes: 1, Settings: shortLog()})
		var b blobs
		b.write(t, c, 60)
		for i := 1; i < 3; i++ {
			c.AddJoining().Start()
			waitVoter(t, c.Node(0), c.ID(i))
		}
		b.write(t, c, 60)
		damaged(t, c, 0, &b)
	})
	t.Run("file of known nodes lost", func(t *testing.T) {
		c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: shortLog()})
		var b blobs
		b.write(t, c, 120)
		i := follower(c)
		n := c.Node(i)
		n.Kill()
		if err := os.Remove(filepath.Join(n.DataDir(), kindPeers)); err != nil {
			t.Fatal(err)
		}
		n.Start()
		b.write(t, c, 10)
		b.everywhere(t, c)
		damaged(t, c, i, &b)
	})
}

// TestQuarantine_KilledWhileItRebuilds_GoesOnWithIt kills a node several times while the copy comes in.
func TestQuarantine_KilledWhileItRebuilds_GoesOnWithIt(t *testing.T) {
	kills := count(t, "REBUILD_KILLS", 5, 2)
	s := seed(t)
	rng := random(s, 0)
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: manyTables(shortLog())})
	var b blobs
	b.write(t, c, 120)
	i := follower(c)
	n := c.Node(i)
	path := tables(t, n, 2)[0]
	n.Kill()
	flip(t, path, -10)
	slowly(c, i, 4*mib)
	size := int64(len(b.sizes)/4) * blobBytes
	during := 0
	for range kills {
		before, at := sentTo(c, i), rng.Int64N(size)
		n.Launch()
		eventually(t, "the copy is on its way", func() (bool, error) {
			if !n.Running() {
				t.Fatalf("it ended: %s", n.LastOutput())
			}
			return sentTo(c, i)-before > at, nil
		})
		if _, err := n.Status(); err != nil {
			during++ // it does not serve yet
		}
		n.Kill()
	}
	if during == 0 {
		t.Error("no kill struck while the state was made anew: the test hit nothing")
	}
	c.Net().Heal()
	n.Start()
	rebuilt(t, n, 1)
	b.write(t, c, 10)
	b.everywhere(t, c)
	t.Logf("%d of %d kills while the copy came in", during, kills)
}

// skips builds a server that skips one record when it applies the log, where the environment says so: a replica that
// has come to another state than the others by a fault of its program or its memory.
func skips(t *testing.T) string {
	t.Helper()
	return buildChanged(t,
		change{"engine/options.go", "// groupDir is the directory", `func skipsRecord(key []byte) bool {
	return os.Getenv("TEST_SKIP") != "" && string(userKey(key)) == os.Getenv("TEST_SKIP")
}

// groupDir is the directory`},
		change{"engine/mutate.go", "\tr := storedRecord{codec: a.codecOf(ch)}\n", `	if ch.op == wire.OpPut && skipsRecord(ch.key) {
		return done{rev: a.nextRevision()}
	}
	r := storedRecord{codec: a.codecOf(ch)}
`})
}

// TestQuarantine_DivergentReplica_FoundByItsDigestAndRebuilt has one node skip one record. Nothing about what it
// stores is damaged: only the comparison with the others can show it.
func TestQuarantine_DivergentReplica_FoundByItsDigestAndRebuilt(t *testing.T) {
	for _, who := range whoIsAway() {
		t.Run(who, func(t *testing.T) {
			c := testcluster.NewCluster(t, testcluster.ClusterOptions{Binary: skips(t), Settings: shortLog()})
			const i = 1
			n := c.Node(i)
			n.SetEnv("TEST_SKIP=poison")
			c.Launch()
			c.MustBeReady()
			target := c.ID(i)
			if who == "follower" {
				target = c.ID(0)
			}
			if leader := c.MustLead(); c.ID(leader) != target {
				kvctl(t, c.Node(leader), "move-leader", target)
			}
			eventually(t, target+" leads", func() (bool, error) { return c.ID(c.MustLead()) == target, nil })

			// From here on no status is compared: they differ.
			cl := openCluster(t, c)
			ctx := context.Background()
			if _, err := cl.Put(ctx, "poison", []byte("antidote")); err != nil {
				t.Fatal(err)
			}
			for k := range 2200 { // two digests are told
				if _, err := cl.Put(ctx, fmt.Sprintf("key/%03d", k%500), content("key", k, 100)); err != nil {
					t.Fatal(err)
				}
			}
			rebuilt(t, n, 1)
			if reason := n.MustStatus().Quarantine.Reason; !strings.Contains(reason, "digest") {
				t.Errorf("it was quarantined because %s", reason)
			}
			c.MustConverge()
			r := openREST(t, n, patience).mustDo(t, "GET", keyPath("poison")+"?consistency=stale", nil, nil)
			if r.status != 200 || string(r.body) != "antidote" {
				t.Errorf("the node that had skipped the record has %d %q now", r.status, r.body)
			}
			for k, other := range c.Nodes() {
				if s := other.MustStatus(); k != i && s.Quarantine != nil {
					t.Errorf("%s, whose state was right, quarantined itself: %+v", c.ID(k), s.Quarantine)
				}
			}
		})
	}
}

// TestQuarantine_TwoThatDiffer_AlarmAndNobodyGivesUp has two voters disagree: nobody can tell who is right.
func TestQuarantine_TwoThatDiffer_AlarmAndNobodyGivesUp(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a changed server")
	}
	c := testcluster.NewCluster(t, testcluster.ClusterOptions{Nodes: 2, Binary: skips(t), Quiet: true})
	c.Node(1).SetEnv("TEST_SKIP=poison")
	c.Launch()
	c.MustBeReady()
	cl := openCluster(t, c)
	ctx := context.Background()
	for k := range 2200 {
		if _, err := cl.Put(ctx, []string{"poison", "other"}[min(k, 1)], []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	for k, n := range c.Nodes() {
		eventually(t, c.ID(k)+" raises the alarm", func() (bool, error) {
			s, err := n.Status()
			return err == nil && s.DigestMismatch != nil && !s.DigestMismatch.Odd && slices.Equal(s.DigestMismatch.With, []string{c.ID(1 - k)}), err
		})
		if v := metricOf(t, n, "kvstore_digest_mismatch"); v != 1 {
			t.Errorf("%s counts %v members that differ", c.ID(k), v)
		}
		if s := n.MustStatus(); s.Quarantine != nil {
			t.Errorf("%s quarantined itself: %+v", c.ID(k), s.Quarantine)
		}
	}
	if _, err := cl.Put(ctx, "other", []byte("w")); err != nil {
		t.Errorf("a write during the alarm: %v", err)
	}
}

// TestQuarantine_DamageInAColdTable_FoundByScrubAndRebuilt flips one byte in a running node's table, in data that
// nobody reads.
func TestQuarantine_DamageInAColdTable_FoundByScrubAndRebuilt(t *testing.T) {
	settings := manyTables(shortLog())
	settings["scrub-interval"], settings["scrub-rate"] = "500ms", "1GiB"
	c := testcluster.StartCluster(t, testcluster.ClusterOptions{Settings: settings})
	var b blobs
	b.write(t, c, 120)
	for k, who := range whoIsAway() {
		i := c.MustLead()
		if who == "follower" {
			i = follower(c)
		}
		n := c.Node(i)
		eventually(t, "a scrub has found all well", func() (bool, error) {
			s, err := n.Status()
			return err == nil && s.Scrub.Digest != nil && *s.Scrub.Digest && s.Scrub.Records > 0 && s.Scrub.LogError == "", err
		})
		pid := n.Pid()
		at := tables(t, n, 2)
		flip(t, at[len(at)/2], 64<<10)
		rebuilt(t, n, 1)
		if n.Pid() != pid {
			t.Errorf("the process is another: %d, before %d", n.Pid(), pid)
		}
		b.write(t, c, 10)
		b.everywhere(t, c)
		if k == 0 && len(whoIsAway()) > 1 {
			continue
		}
		if err := c.Ended(); err != nil {
			t.Fatal(err)
		}
	}
}

// aloneWithTables is a lone node with a few tables.
func aloneWithTables(t *testing.T, settings map[string]string) (*testcluster.Node, *dataset) {
	t.Helper()
	n := testcluster.Start(t, testcluster.Options{Settings: manyTables(settings)})
	var d dataset
	d.write(t, n, 1200)
	return n, &d
}

// TestQuarantine_LoneNodeDamaged_StopsAndSaysWhatIsLost has nobody to take the state from.
func TestQuarantine_LoneNodeDamaged_StopsAndSaysWhatIsLost(t *testing.T) {
	n, d := aloneWithTables(t, shortLog())
	waitCompacted(t, n)
	all := tables(t, n, 2)
	n.Kill()
	at := all[0]
	flip(t, at, -10)
	for range 2 {
		n.Launch()
		refusedWith(t, n, 1, "no other node has it", "does not reach back", filepath.Base(at), "can't be read", "Nothing was changed", "backup")
	}
	if now := find(t, n, "groups/1/gen-*/*.sst"); !slices.Equal(slices.Sorted(slices.Values(now)), all) {
		t.Errorf("the tables were %v and are %v", all, now)
	}
	// The damaged file is put back: nothing else was touched.
	flip(t, at, -10)
	n.Start()
	d.mustBeThere(t, n)
}

// TestQuarantine_LoneNodeWithItsWholeLog_MakesItsStateAnew needs nobody else.
func TestQuarantine_LoneNodeWithItsWholeLog_MakesItsStateAnew(t *testing.T) {
	n, d := aloneWithTables(t, map[string]string{"log-keep-size": "1GiB"})
	before := restState(t, n)
	if before.FirstIndex != 1 {
		t.Fatalf("the log begins at %d: this is not what the test is about", before.FirstIndex)
	}
	at := tables(t, n, 2)[0]
	n.Kill()
	flip(t, at, -10)
	n.Start()
	after := restState(t, n)
	if after.Quarantine == nil || after.StateDigest != before.StateDigest || after.Records != before.Records {
		t.Errorf("the state was %+v and is %+v", before, after)
	}
	d.mustBeThere(t, n)
	if aside := find(t, n, "groups/1/quarantine-*"); len(aside) != 1 {
		t.Errorf("what was set aside: %v", aside)
	}
}

// TestQuarantine_LoneNodeMeetsDamageWhileItRuns_ServesTheRest finds damage by a scrub: what is damaged is refused, the
// rest is served, and everybody can see it.
func TestQuarantine_LoneNodeMeetsDamageWhileItRuns_ServesTheRest(t *testing.T) {
	n := testcluster.Start(t, testcluster.Options{Settings: manyTables(map[string]string{"scrub-interval": "500ms", "scrub-rate": "1GiB", "cache-size": "0"})})
	var d dataset
	d.write(t, n, 1200)
	all := tables(t, n, 2)
	flip(t, all[0], 64<<10)
	eventually(t, "the scrub finds the damage", func() (bool, error) {
		s, err := n.Status()
		return err == nil && s.Damage != "" && s.Scrub.DamagedCount > 0 && len(s.Scrub.Damaged) > 0, err
	})
	if v := metricOf(t, n, "kvstore_state_damaged"); v != 1 {
		t.Errorf("the metrics say %v", v)
	}
	cl := open(t, n, client.WithTimeout(5*time.Second))
	good, bad := 0, 0
	for i, key := range d.keys {
		v, err := cl.Get(context.Background(), key)
		switch {
		case err != nil && !errors.Is(err, client.ErrNotFound):
			bad++
		case err != nil || v.Version != d.versions[i] || !slices.Equal(v.Data, content(key, 0, 3000)):
			t.Fatalf("%s: version %d, want %d, %v: damage is served as data", key, v.Version, d.versions[i], err)
		default:
			good++
		}
	}
	if bad == 0 || good < len(d.keys)*9/10 {
		t.Errorf("%d keys are served and %d refused", good, bad)
	}
	t.Logf("%d keys are served, %d refused; %s", good, bad, n.MustStatus().Damage)
	// The byte is as it was: the next scrub says so.
	flip(t, all[0], 64<<10)
	eventually(t, "the next scrub finds all well", func() (bool, error) {
		s, err := n.Status()
		return err == nil && s.Damage == "", err
	})
	d.mustBeThere(t, n)
}
