package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

// dataset is a number of keys that a node must have, or say what it lacks.
type dataset struct {
	keys     []string
	versions []client.Version
}

// write puts n keys, one log entry each.
func (d *dataset) write(t *testing.T, node *testcluster.Node, n int) {
	t.Helper()
	c := open(t, node)
	defer closeClient(t, c)
	for range n {
		key := fmt.Sprintf("data/%05d", len(d.keys))
		v, err := c.Put(context.Background(), key, content(key, 0, 3000))
		if err != nil {
			t.Fatal(err)
		}
		d.keys, d.versions = append(d.keys, key), append(d.versions, v)
	}
}

// missing reads all keys and tells what is wrong with them.
func (d *dataset) missing(t *testing.T, node *testcluster.Node) []string {
	t.Helper()
	c := open(t, node)
	defer closeClient(t, c)
	var wrong []string
	for i, key := range d.keys {
		v, err := c.Get(context.Background(), key)
		if err != nil || v.Version != d.versions[i] || !bytes.Equal(v.Data, content(key, 0, 3000)) {
			wrong = append(wrong, fmt.Sprintf("%s: %v (version %d, want %d)", key, err, v.Version, d.versions[i]))
		}
	}
	return wrong
}

func (d *dataset) mustBeThere(t *testing.T, node *testcluster.Node) {
	t.Helper()
	if wrong := d.missing(t, node); len(wrong) > 0 {
		t.Errorf("%d of %d keys are not as they were acknowledged, such as %s", len(wrong), len(d.keys), wrong[0])
	}
}

func TestRestart_SIGTERMUnderLoad_DrainsExits0AndKeepsEverything(t *testing.T) {
	s := seed(t)
	n := testcluster.Start(t, testcluster.Options{})
	l := startLoad(t, n, s)
	for round := range 3 {
		if !l.waitAcked(t, 300, n.Exited()) {
			t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
		}
		began := time.Now()
		if code := n.Terminate(); code != 0 {
			t.Fatalf("after SIGTERM the node exits %d:\n%s", code, n.LastOutput())
		}
		t.Logf("round %d: exit 0 after %v", round, time.Since(began).Round(time.Millisecond))
		n.Start()
	}
	if !l.waitAcked(t, 100, n.Exited()) {
		t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
	}
	l.end()
	c := open(t, n)
	l.ledger.verify(c)
	l.ledger.report()
	closeClient(t, c)
	checkDigest(t, n)
}

// TestRestart_ProcessStopsForAWhile_NothingIsLostOrDoneTwice freezes the process, as a suspended machine or
// a swapping one does, while clients wait or give up.
func TestRestart_ProcessStopsForAWhile_NothingIsLostOrDoneTwice(t *testing.T) {
	s := seed(t)
	rng := random(s, 0)
	n := testcluster.Start(t, testcluster.Options{})
	l := startLoad(t, n, s)
	for range 5 {
		if !l.waitAcked(t, 100, n.Exited()) {
			t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
		}
		if err := n.Freeze(); err != nil {
			t.Fatal(err)
		}
		// Around the election timeout of 600 ms, below the 5 s after which a hanging disk ends the node.
		time.Sleep(time.Duration(100+rng.IntN(1200)) * time.Millisecond)
		n.Thaw()
	}
	if !l.waitAcked(t, 100, n.Exited()) {
		t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
	}
	l.end()
	c := open(t, n)
	l.ledger.verify(c)
	l.ledger.report()
}

func TestRestart_SIGTERMWhileStarting_Exits0(t *testing.T) {
	s := seed(t)
	rng := random(s, 0)
	n := testcluster.Start(t, testcluster.Options{})
	var d dataset
	d.write(t, n, 300)
	for range 10 {
		n.Kill()
		n.Launch()
		// Before it listens to signals the signal itself ends it; it does so before it takes the directory.
		eventually(t, "the node takes its directory", func() (bool, error) { return holds(n, "LOCK") })
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
		if code := n.Terminate(); code != 0 {
			t.Fatalf("SIGTERM while starting: exit %d:\n%s", code, n.LastOutput())
		}
		n.Start()
	}
	d.mustBeThere(t, n)
}

// holds reports whether the node's process has a file of its data directory open.
func holds(n *testcluster.Node, name string) (bool, error) {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.Pid()))
	if err != nil {
		return false, err
	}
	for _, l := range links {
		// A descriptor that was closed meanwhile is none of interest.
		if target, err := os.Readlink(l); err == nil && target == filepath.Join(n.DataDir(), name) {
			return true, nil
		}
	}
	return false, nil
}

func TestStart_DirectoryInUse_RefusedWithTheReason(t *testing.T) {
	n := testcluster.Start(t, testcluster.Options{})
	var d dataset
	d.write(t, n, 20)
	second := testcluster.New(t, testcluster.Options{DataDir: n.DataDir()})
	second.Launch()
	refusedWith(t, second, 1, "is in use by another process", n.DataDir(), "--data-dir")
	d.mustBeThere(t, n)
}

func TestStart_OtherNodeID_RefusedWithTheReason(t *testing.T) {
	n := testcluster.Start(t, testcluster.Options{})
	n.Kill()
	other := testcluster.New(t, testcluster.Options{DataDir: n.DataDir(), Settings: map[string]string{"node-id": "node-2"}})
	other.Launch()
	refusedWith(t, other, 1, `belongs to node "node-1"`, "--node-id node-1")
	n.Start()
}

func TestStart_PortInUse_RefusedWithTheReason(t *testing.T) {
	n := testcluster.Start(t, testcluster.Options{})
	second := testcluster.New(t, testcluster.Options{Settings: map[string]string{"listen": n.Addr()}})
	second.Launch()
	refusedWith(t, second, 1, n.Addr(), "address already in use", "--listen")
}

func TestStart_BeyondLoopbackWithoutInsecure_Exits2(t *testing.T) {
	n := testcluster.New(t, testcluster.Options{Settings: map[string]string{"listen": "0.0.0.0:0"}})
	n.Launch()
	refusedWith(t, n, 2, "--insecure")
}

func TestStart_UnknownOption_Exits2AndNamesTheNearest(t *testing.T) {
	n := testcluster.New(t, testcluster.Options{Settings: map[string]string{"memtabel-size": "4MiB"}})
	n.Launch()
	refusedWith(t, n, 2, "memtabel-size", "memtable-size")
}

// refusedWith waits until the node ends and checks its exit code and what it says.
func refusedWith(t *testing.T, n *testcluster.Node, code int, says ...string) {
	t.Helper()
	got := n.WaitExit()
	out := n.LastOutput()
	// The first line is the command, which the tests themselves wrote.
	_, said, _ := strings.Cut(out, "\n")
	if got != code {
		t.Errorf("exit code %d, want %d: %s", got, code, said)
	}
	for _, s := range says {
		if !strings.Contains(said, s) {
			t.Errorf("the refusal does not say %q: %s", s, said)
		}
	}
}

// TestStart_DirectoryDamaged_RefusedOrWholeNeverSilentlyEmpty removes, cuts, flips or exchanges parts of a
// data directory. After each the node must refuse to start and name what is wrong, or start with every
// acknowledged write. An operator who lost a file must never find a store that looks healthy and is empty.
func TestStart_DirectoryDamaged_RefusedOrWholeNeverSilentlyEmpty(t *testing.T) {
	// Two origins: a log that reaches back to its first entry, and one whose head was compacted.
	for _, origin := range []struct {
		name      string
		settings  map[string]string
		compacted bool
	}{
		{"whole log", map[string]string{"snapshot-threshold": "1000000", "log-segment-size": "1MiB"}, false},
		{"compacted log", map[string]string{"log-segment-size": "1MiB", "log-keep-size": "0"}, true},
	} {
		if testing.Short() && !origin.compacted {
			continue
		}
		t.Run(origin.name, func(t *testing.T) { damageDirectories(t, origin.settings, origin.compacted) })
	}
}

// newestSegmentDeleted is the one case that is not told: the log creates the file of a new segment after its
// metadata, so a directory that lost just that file looks like one whose node crashed in between. Only the
// newest entries may be missing then, those behind the last checkpoint.
const newestSegmentDeleted = "newest log segment deleted"

func damageDirectories(t *testing.T, settings map[string]string, compacted bool) {
	n := testcluster.Start(t, testcluster.Options{Settings: settings})
	var d dataset
	d.write(t, n, 700)
	n.Kill()
	older := copyDir(t, n.DataDir())
	n.Start()
	d.write(t, n, 300)
	if compacted {
		waitCompacted(t, n)
	} else if first := n.MustStatus().FirstIndex; first != 1 {
		t.Fatalf("the log begins at %d: this is not the directory that the test is about", first)
	}
	n.Kill()
	newer := copyDir(t, n.DataDir())

	const group = "groups/1/"
	remove := func(globs ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, g := range globs {
				for _, path := range glob(t, dir, g) {
					if err := os.RemoveAll(path); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	// flip changes one byte at a share of the file's length.
	flip := func(name string, share float64) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			paths := glob(t, dir, name)
			path := paths[len(paths)-1] // of log segments the newest
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// The newest segment is allocated in full: look for its end.
			end := len(bytes.TrimRight(b, "\x00"))
			b[int(float64(end-1)*share)] ^= 0x40
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	cut := func(name string, share float64) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			paths := glob(t, dir, name)
			path := paths[len(paths)-1]
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, int64(float64(len(bytes.TrimRight(b, "\x00")))*share)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// exchange replaces parts by those of the older copy.
	exchange := func(globs ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			remove(globs...)(t, dir)
			for _, g := range globs {
				for _, path := range glob(t, older, g) {
					rel, err := filepath.Rel(older, path)
					if err != nil {
						t.Fatal(err)
					}
					copyTree(t, path, filepath.Join(dir, rel))
				}
			}
		}
	}
	either := "" // refused with any text, or whole
	for _, k := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		says   string // what the refusal must name; either: it may also start, with everything there
	}{
		{"nothing", func(*testing.T, string) {}, either},
		{"log deleted", remove(group + "log"), "log"},
		{"log segments deleted", remove(group + "log/*.wal"), "log"},
		{newestSegmentDeleted, func(t *testing.T, dir string) {
			paths := glob(t, dir, group+"log/*.wal")
			if err := os.Remove(paths[len(paths)-1]); err != nil {
				t.Fatal(err)
			}
		}, either},
		{"log's metadata deleted", remove(group + "log/wal-meta.db"), "log"},
		{"log's metadata flipped", flip(group+"log/wal-meta.db", 0.5), either},
		{"vote deleted", remove(group + "log/vote"), "vote"},
		{"vote flipped", flip(group+"log/vote", 0.5), "vote"},
		{"vote empty", cut(group+"log/vote", 0), "vote"},
		{"newest segment flipped in its header", flip(group+"log/*.wal", 0.0001), either},
		{"newest segment flipped in the middle", flip(group+"log/*.wal", 0.5), either},
		{"newest segment flipped near its end", flip(group+"log/*.wal", 0.99), either},
		{"newest segment cut in half", cut(group+"log/*.wal", 0.5), either},
		{"CHECKPOINT deleted", remove(group + "CHECKPOINT"), "CHECKPOINT"},
		{"CHECKPOINT flipped", flip(group+"CHECKPOINT", 0.5), "checkpoint"},
		{"CHECKPOINT empty", cut(group+"CHECKPOINT", 0), "checkpoint"},
		{"generation deleted", remove(group + "gen-*"), "generation"},
		{"generation and CHECKPOINT deleted", remove(group+"gen-*", group+"CHECKPOINT"), either},
		{"memtable logs deleted", remove(group + "gen-*/*.mem"), either},
		{"tables deleted", remove(group + "gen-*/*.sst"), either},
		{"store's manifest deleted", remove(group + "gen-*/MANIFEST"), "MANIFEST"},
		{"identity deleted", remove("identity"), "identity"},
		{"identity flipped", flip("identity", 0.5), "identity"},
		{"groups deleted", remove("groups"), "groups/1 is gone"},
		{"group deleted", remove("groups/1"), "groups/1 is gone"},
		{"everything of the group but its directory deleted", remove(group + "*"), "groups/1 is gone"},
		{"everything but the log deleted", remove(group+"CHECKPOINT", group+"gen-*", "identity", "LOCK", "ballast"), "identity"},
		{"LOCK and ballast deleted", remove("LOCK", "ballast"), either},
		{"log of an older copy", exchange(group + "log"), either},
		{"vote of an older copy", exchange(group + "log/vote"), "vote"},
		{"store of an older copy", exchange(group+"CHECKPOINT", group+"gen-*"), either},
		{"CHECKPOINT of an older copy", exchange(group + "CHECKPOINT"), either},
	} {
		t.Run(k.name, func(t *testing.T) {
			dir := copyDir(t, newer)
			k.damage(t, dir)
			m := testcluster.New(t, testcluster.Options{Settings: settings, DataDir: dir})
			m.Launch()
			if err := m.WaitReady(); err != nil {
				if m.Running() {
					t.Fatal(err)
				}
				_, said, _ := strings.Cut(m.LastOutput(), "\n")
				if code := m.WaitExit(); code != 1 || strings.Contains(said, "panic:") || strings.Contains(said, "goroutine ") {
					t.Errorf("exit code %d, want 1 and a sentence: %s", code, said)
				}
				if !strings.Contains(said, k.says) {
					t.Errorf("the refusal does not name %q: %s", k.says, said)
				}
				t.Logf("refused: %s", lastLine(said))
				if k.name == "nothing" || k.name == "LOCK and ballast deleted" {
					t.Error("a healthy directory is refused")
				}
				return
			}
			wrong := d.missing(t, m)
			if n := len(wrong); n > 0 && k.name == newestSegmentDeleted && strings.HasPrefix(wrong[0], d.keys[len(d.keys)-n]+":") {
				t.Logf("KNOWN LIMIT: the %d newest of %d keys are missing and the node does not say so", n, len(d.keys))
				return
			}
			if len(wrong) > 0 {
				t.Errorf("the node serves, but %d of %d keys are not as they were acknowledged, such as %s", len(wrong), len(d.keys), wrong[0])
				return
			}
			if k.says != either {
				t.Logf("it started with everything, where a refusal was expected")
			} else {
				t.Log("it started with everything")
			}
		})
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 && !strings.HasSuffix(pattern, "LOCK") && !strings.HasSuffix(pattern, ".mem") {
		t.Fatalf("there is no %s in %s: the layout has changed, and this test with it must", pattern, dir)
	}
	slices.Sort(paths)
	return paths
}

// copyDir copies a directory to a new one of the test.
func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "data")
	copyTree(t, dir, to)
	return to
}

// copyTree copies a file or a directory, sparse files as sparse files.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if !info.IsDir() {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		used := bytes.TrimRight(b, "\x00")
		if err := errors.Join(os.WriteFile(to, used, 0o600), os.Truncate(to, int64(len(b)))); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		copyTree(t, filepath.Join(from, e.Name()), filepath.Join(to, e.Name()))
	}
}

// TestDisk_FillsUp_WritesRefusedReadsAndDeletesGoOnAndItHeals takes the space away beside the node.
func TestDisk_FillsUp_WritesRefusedReadsAndDeletesGoOnAndItHeals(t *testing.T) {
	if testcluster.Isolate(t) {
		return
	}
	const mb = 1 << 20
	disk := testcluster.NewDisk(t, 600*mb)
	n := testcluster.Start(t, testcluster.Options{DataDir: filepath.Join(disk.Dir(), "data"), Settings: map[string]string{
		"disk-floor": "192MiB", "disk-ballast": "8MiB",
	}})
	var d dataset
	d.write(t, n, 100)
	c := open(t, n, client.WithTimeout(time.Second))
	ctx := context.Background()
	put := func() error { _, err := c.Put(ctx, "more", []byte("v")); return err }
	fill := func(left int64) {
		t.Helper()
		if err := disk.Fill(left); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(i int) error {
		deleted, _, err := c.Delete(ctx, d.keys[i])
		if err == nil && !deleted {
			return fmt.Errorf("%s was not there", d.keys[i])
		}
		return err
	}

	// Below the floor: no new data; reads and deletes go on.
	fill(100 * mb)
	eventually(t, "writes are refused for lack of space", func() (bool, error) {
		err := put()
		if err != nil && !errors.Is(err, client.ErrDiskFull) {
			t.Fatalf("on a full disk a write fails with %v", err)
		}
		return errors.Is(err, client.ErrDiskFull), err
	})
	if err := put(); !errors.Is(err, client.ErrDiskFull) || !errors.Is(err, client.ErrNotApplied) {
		t.Errorf("a write on a full disk: %v; want full and surely not applied", err)
	}
	for i := range 10 {
		if err := remove(i); err != nil {
			t.Errorf("a delete on a full disk: %v", err)
		}
	}
	if _, err := c.Txn().Put("more", []byte("v")).Delete(d.keys[10]).Commit(ctx); !errors.Is(err, client.ErrDiskFull) {
		t.Errorf("a transaction with a put on a full disk: %v", err)
	}
	d.keys, d.versions = d.keys[10:], d.versions[10:]
	d.mustBeThere(t, n)
	if s := n.MustStatus(); s.Disk.State != "low" {
		t.Errorf("the status says that the disk is %q", s.Disk.State)
	}

	// A node that is killed on a full disk comes back and serves reads.
	n.Kill()
	n.Launch()
	eventually(t, "a node on a full disk serves reads", func() (bool, error) {
		if !n.Running() {
			t.Fatalf("it ended: %s", n.LastOutput())
		}
		_, err := c.Get(ctx, d.keys[0])
		return err == nil, err
	})
	d.mustBeThere(t, n)
	if err := put(); !errors.Is(err, client.ErrDiskFull) {
		t.Errorf("a write on a full disk, after a restart: %v", err)
	}

	// Nearly nothing left: reads go on, the process lives.
	if err := disk.Empty(); err != nil {
		t.Fatal(err)
	}
	fill(4 * mb)
	eventually(t, "the last reserve is used", func() (bool, error) {
		s, err := n.Status()
		return s.Disk.State == "critical", err
	})
	if err := remove(0); !errors.Is(err, client.ErrDiskFull) {
		t.Errorf("a delete without any reserve left: %v", err)
	}
	d.mustBeThere(t, n)

	// Space comes back: so do writes, by themselves.
	if err := disk.Empty(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "writes are taken again", func() (bool, error) { err := put(); return err == nil, err })
	if !n.Running() {
		t.Fatalf("the node ended: %s", n.LastOutput())
	}
	n.Kill()
	n.Start()
	d.mustBeThere(t, n)
}

// TestDisk_FilledByTheStoreItself_NodeLivesAndKeepsEverything writes until the disk is full.
func TestDisk_FilledByTheStoreItself_NodeLivesAndKeepsEverything(t *testing.T) {
	if testing.Short() {
		t.Skip("writes some 300 MiB")
	}
	if testcluster.Isolate(t) {
		return
	}
	const mb = 1 << 20
	disk := testcluster.NewDisk(t, 600*mb)
	// A compaction writes its output before it removes its input, without asking for space, and the store dies
	// of SIGBUS where that fails: the floor must leave it room.
	n := testcluster.Start(t, testcluster.Options{DataDir: filepath.Join(disk.Dir(), "data"), Settings: map[string]string{
		"disk-ballast": "8MiB",
	}})
	c := open(t, n, client.WithTimeout(2*time.Second))
	var mu sync.Mutex
	var d dataset
	var writers sync.WaitGroup
	const size = 100 << 10
	for w := range 8 {
		writers.Go(func() { // ends when the disk is full
			for i := 0; ; i++ {
				key := fmt.Sprintf("fill/%d/%05d", w, i)
				v, err := c.Put(context.Background(), key, content(key, 0, size))
				if err != nil {
					if !errors.Is(err, client.ErrDiskFull) {
						t.Errorf("%s: %v", key, err)
					}
					return
				}
				mu.Lock()
				d.keys, d.versions = append(d.keys, key), append(d.versions, v)
				mu.Unlock()
			}
		})
	}
	writers.Wait()
	if !n.Running() {
		t.Fatalf("the node ended: %s", n.LastOutput())
	}
	s := n.MustStatus()
	t.Logf("%d MiB of values acknowledged; %d MiB are free; the disk is %s", len(d.keys)*size/mb, s.Disk.FreeBytes/mb, s.Disk.State)
	for _, restart := range []bool{false, true} {
		if restart {
			n.Kill()
			n.Launch()
		}
		eventually(t, "reads are served", func() (bool, error) {
			if !n.Running() {
				t.Fatalf("the node ended: %s", n.LastOutput())
			}
			_, err := c.Get(context.Background(), d.keys[0])
			return err == nil, err
		})
		for i, key := range d.keys {
			v, err := c.Get(context.Background(), key)
			if err != nil || v.Version != d.versions[i] || !bytes.Equal(v.Data, content(key, 0, size)) {
				t.Fatalf("%s: %v (version %d, want %d)", key, err, v.Version, d.versions[i])
			}
		}
	}
}

// TestRestart_TimeToFirstWrite_Printed measures from the start of the process to the first acknowledged
// write, and asserts nothing: figures depend on the machine.
func TestRestart_TimeToFirstWrite_Printed(t *testing.T) {
	if testing.Short() {
		t.Skip("only prints figures")
	}
	n := testcluster.New(t, testcluster.Options{})
	var d dataset
	for _, what := range []string{"empty directory", "after kill -9 with 1000 entries", "after SIGTERM"} {
		times := make([]time.Duration, 0, 5)
		for range 5 {
			switch {
			case what == "empty directory":
				n.Kill()
				if err := os.RemoveAll(n.DataDir()); err != nil {
					t.Fatal(err)
				}
			case what == "after SIGTERM":
				n.Terminate()
			default:
				d = dataset{}
				d.write(t, n, 1000)
				n.Kill()
			}
			began := time.Now()
			n.Launch()
			firstWrite(t, n)
			times = append(times, time.Since(began))
		}
		slices.Sort(times)
		t.Logf("start to first acknowledged write, %s: median %v, slowest %v of %d", what, times[2].Round(time.Millisecond), times[4].Round(time.Millisecond), len(times))
	}
}

// firstWrite returns when a write is acknowledged.
func firstWrite(t *testing.T, n *testcluster.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		c, err := client.Open(ctx, []string{n.Addr()}, client.WithoutSession())
		if err == nil {
			if _, err := c.Put(ctx, "first", []byte("write")); err != nil {
				t.Fatal(err)
			}
			closeClient(t, c)
			return
		}
		if ctx.Err() != nil || !n.Running() {
			t.Fatalf("no write is acknowledged: %v\n%s", err, n.LastOutput())
		}
		time.Sleep(time.Millisecond)
	}
}
