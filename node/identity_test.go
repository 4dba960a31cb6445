package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLockDir_SecondProcess_IsRefusedUntilTheFirstEnds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockDir(gone, dir); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("second lock: %v", err)
	}
	// A process that is just ending is waited for.
	ended := make(chan error, 1)
	time.AfterFunc(2*lockPause, func() { ended <- first.Close() })
	again, err := lockDir(t.Context(), dir)
	if err := errors.Join(err, <-ended); err != nil {
		t.Fatalf("while the first ended: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLoadIdentity_NewDirectory_GetsOneForEver(t *testing.T) {
	dir := t.TempDir()
	first, fresh, err := loadIdentity(dir, "n1")
	if err != nil || !fresh || len(first.Incarnation) != 32 {
		t.Fatalf("%+v fresh=%v err=%v", first, fresh, err)
	}
	second, fresh, err := loadIdentity(dir, "n1")
	if err != nil || fresh || second != first {
		t.Fatalf("second start: %+v fresh=%v err=%v, want %+v", second, fresh, err, first)
	}
	other, _, err := loadIdentity(t.TempDir(), "n1")
	if err != nil || other.Incarnation == first.Incarnation {
		t.Fatalf("two directories share an incarnation: %v", err)
	}
}

func TestCountStart_EachStart_CountsOnAndIsDurable(t *testing.T) {
	dir := t.TempDir()
	var before []uint64
	for want := uint64(1); want <= lineageMax+3; want++ {
		id, _, err := loadIdentity(dir, "n1")
		if err != nil {
			t.Fatal(err)
		}
		got, err := id.countStart(dir)
		if err != nil || id.Starts != want || len(got) != int(min(want, lineageMax)) {
			t.Fatalf("start %d counts %d, with %d numbers, %v", want, id.Starts, len(got), err)
		}
		former, last := got[:len(got)-1], got[len(got)-1]
		if !slices.Equal(former, before[len(before)-len(former):]) || last == 0 || slices.Contains(before, last) {
			t.Fatalf("start %d tells %x after %x", want, got, before)
		}
		before = got
	}
	id, _, err := loadIdentity(dir, "n1")
	if err != nil || id.Starts != lineageMax+3 {
		t.Fatalf("looking at it makes %d starts of %d, %v", id.Starts, lineageMax+3, err)
	}
	// A count that can't be written down must not be used.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := id.countStart(dir); err == nil {
		t.Fatal("a start was counted without a directory")
	}
}

func TestLoadIdentity_ForeignOrDamagedDirectory_IsRefusedWithTheWayOut(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := loadIdentity(dir, "n1"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := loadIdentity(dir, "n2"); err == nil || !strings.Contains(err.Error(), `--node-id n1`) {
		t.Errorf("another node's directory: %v", err)
	}
	path := filepath.Join(dir, "identity")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		broken := append([]byte(nil), b...)
		broken[i] ^= 1
		if err := os.WriteFile(path, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := loadIdentity(dir, "n1"); err == nil || !strings.Contains(err.Error(), "member remove") || !strings.Contains(err.Error(), path) {
			t.Fatalf("with a flipped bit in byte %d: %v", i, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "groups"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := loadIdentity(dir, "n1"); err == nil || !strings.Contains(err.Error(), "holds data but no identity") {
		t.Errorf("data without identity: %v", err)
	}
}

func TestOptions_ListenersBeyondLoopback_NeedInsecure(t *testing.T) {
	o := Options{DataDir: "d", Listen: "0.0.0.0:1", HTTPListen: "127.0.0.1:2", MetricsListen: "localhost:3", RaftListen: "[::1]:4"}
	err := o.Check()
	if err == nil || !strings.Contains(err.Error(), "listen") || !strings.Contains(err.Error(), "--insecure") {
		t.Fatalf("got %v", err)
	}
	o.Insecure = true
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	o.HTTPListen = "nonsense"
	if err := o.Check(); err == nil || !strings.Contains(err.Error(), `http-listen: "nonsense"`) {
		t.Fatalf("got %v", err)
	}
}

// A supervisor starts a refused node again and again. Each start counts, and in the end an older copy would count more
// than the newest one: so the directory itself has to know that it is out.
func TestSetRefused_HoldsForEveryLaterStart(t *testing.T) {
	c := newCluster(t, 1, nil)
	o := c.options(c.ids[0])
	id, _, err := loadIdentity(o.DataDir, o.NodeID)
	if err := errors.Join(err, id.checkNotRefused(o.DataDir)); err != nil {
		t.Fatalf("a new directory: %v", err)
	}
	why := "an older copy; " + strings.Repeat("é", refusedMax)
	if err := errors.Join(id.setRefused(o.DataDir, why), id.setRefused(o.DataDir, "something else")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.open(o.NodeID, nil); err == nil || !strings.Contains(err.Error(), "refused for ever") || !strings.Contains(err.Error(), "an older copy; é") {
		t.Fatalf("a start with a refused directory: %v", err)
	}
	again, _, err := loadIdentity(o.DataDir, o.NodeID)
	if err != nil || again.Starts != 0 || again.Refused != id.Refused {
		t.Fatalf("%+v, %v: the start was counted, or the reason is another", again, err)
	}
}
