package test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// diskBytes is the size of a disk that loses its power so many times: room for all that is written in
// between, so that the disk never fills up. The image is sparse.
func diskBytes(cuts int) int64 { return 2<<30 + int64(cuts)*32<<20 }

// cutPower takes the power from the node and its disk, and gives it back to the disk.
func cutPower(t *testing.T, n *testcluster.Node, d *testcluster.Disk) {
	t.Helper()
	if err := n.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := d.CutPower(); err != nil {
		t.Fatal(err)
	}
	n.Kill()
	if err := d.PowerOn(); err != nil {
		t.Fatal(err)
	}
}

// TestPowerCut_UnderLoad_EveryAcknowledgedWriteIsThereOnce cuts the power of the node's disk under load:
// the file system stops at once, and what was only in the page cache or in memory maps is gone. After
// that the process is killed, the disk is mounted again (its journal is recovered), and the same command
// starts the node. That the cut does lose what was not synced, and that this checker sees it, is shown
// by TestDisk_PowerCut… in internal/testcluster and by TestPowerCut_StoreWithoutFsync… below.
func TestPowerCut_UnderLoad_EveryAcknowledgedWriteIsThereOnce(t *testing.T) {
	if testcluster.Isolate(t) {
		return
	}
	cuts := count(t, "CUTS", 12, 3)
	s := seed(t)
	rng := random(s, 0)
	d := testcluster.NewDisk(t, diskBytes(cuts))
	n := testcluster.Start(t, testcluster.Options{DataDir: filepath.Join(d.Dir(), "data")})
	l := startLoad(t, n, s)

	var slowest time.Duration
	for range cuts {
		if !l.waitAcked(t, 1+int64(rng.IntN(1500)), n.Exited()) {
			t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
		}
		time.Sleep(time.Duration(rng.IntN(20_000)) * time.Microsecond)
		cutPower(t, n, d)
		began := time.Now()
		n.Start()
		slowest = max(slowest, time.Since(began))
	}
	if !l.waitAcked(t, 200, n.Exited()) {
		t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
	}
	l.end()
	t.Logf("%d power cuts under load; slowest start to ready %v", cuts, slowest.Round(time.Millisecond))
	if acked := l.ledger.acked.Load(); acked < int64(100*cuts) {
		t.Errorf("only %d writes were acknowledged around %d cuts: the test hit nothing", acked, cuts)
	}
	c := open(t, n)
	l.ledger.verify(c)
	l.ledger.report()
	closeClient(t, c)
	checkDigest(t, n)
	if t.Failed() {
		t.Logf("CUTS=%d %s=%d go test ./test -run TestPowerCut_UnderLoad -count=1", cuts, seedEnv, s)
	}
}

// TestPowerCut_StoreWithoutFsync_LosesAcknowledgedWrites is the control: the same store, built so that
// fsync does nothing, survives every SIGKILL, and must not survive one power cut. It shows that the cut
// takes what was not synced, and that the ledger sees what is missing.
func TestPowerCut_StoreWithoutFsync_LosesAcknowledgedWrites(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the standard library anew")
	}
	if testcluster.Isolate(t) {
		return
	}
	s := seed(t)
	d := testcluster.NewDisk(t, diskBytes(1))
	n := testcluster.Start(t, testcluster.Options{
		Binary: withoutFsync(t), DataDir: filepath.Join(d.Dir(), "data"), Quiet: true,
		// No checkpoint after the start: it would be ahead of the log that is lost, which the node finds by itself.
		Settings: map[string]string{"log-segment-size": "64MiB", "memtable-size": "64MiB", "checkpoint-interval": "1m", "snapshot-interval": "1h"},
	})
	l := startLoad(t, n, s)
	if !l.waitAcked(t, 500, n.Exited()) {
		t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
	}
	n.Kill()
	n.Start()
	if !l.waitAcked(t, 1, n.Exited()) {
		t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
	}
	// Up to here all shall be kept, so that the node finds a data directory to start from.
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	if !l.waitAcked(t, 500, n.Exited()) {
		t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
	}
	l.ledger.mu.Lock()
	if len(l.ledger.anomalies) > 0 {
		t.Errorf("SIGKILL alone must lose nothing, since the kernel has it: %v", l.ledger.anomalies)
	}
	l.ledger.mu.Unlock()
	cutPower(t, n, d)
	n.Launch()
	if err := n.WaitReady(); err != nil {
		if !strings.Contains(n.LastOutput(), "acknowledged writes would be missing") {
			t.Fatalf("the node does not start from the state that was synced: %v", err)
		}
		t.Log("the node itself finds that acknowledged writes are lost, and does not start")
		return
	}
	l.end()
	c := open(t, n)
	l.ledger.verify(c)
	if len(l.ledger.anomalies) == 0 {
		t.Error("a store without fsync lost nothing by a power cut: the cut or the ledger proves nothing")
	}
	for _, a := range l.ledger.anomalies[:min(3, len(l.ledger.anomalies))] {
		t.Logf("lost, as it must be: %s", a)
	}
}

// withoutFsync builds kvstore with an fsync that does nothing.
func withoutFsync(t *testing.T) string {
	t.Helper()
	return buildChanged(t, withoutFsyncChanges(t)...)
}

// change is one place of a source file, which is named from the module's root, or absolute.
type change struct{ file, from, to string }

// buildChanged builds kvstore with some places of its source changed, each in a file of its own, and gives the
// program.
func buildChanged(t *testing.T, changes ...change) string {
	t.Helper()
	return buildChangedWith(t, nil, changes...)
}

// buildChangedWith is buildChanged with further arguments of go build.
func buildChangedWith(t *testing.T, args []string, changes ...change) string {
	t.Helper()
	o, err := testcluster.NewOverlay(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return buildOverlay(t, o, args, changes...)
}

// buildOverlay builds the store with changes on top of those of an overlay.
func buildOverlay(t *testing.T, o *testcluster.Overlay, args []string, changes ...change) string {
	t.Helper()
	for _, c := range changes {
		if err := o.Change(c.file, c.from, c.to); err != nil {
			t.Fatal(err)
		}
	}
	more, err := o.Args()
	if err != nil {
		t.Fatal(err)
	}
	path, err := testcluster.Build(t.TempDir(), "kvstore", slices.Concat(args, more)...)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
