package engine

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

const (
	deathDirEnv = "KVSTORE_TEST_DEATH_DIR"
	deathHowEnv = "KVSTORE_TEST_DEATH_HOW"
)

// TestDeathChild is the process that dies, in a goroutine that nobody can protect.
func TestDeathChild(t *testing.T) {
	dir := os.Getenv(deathDirEnv)
	if dir == "" {
		t.Skip("run by TestOpen_AfterADeath_ChecksTheTablesIfItWasInBadger")
	}
	o := engineOptions(t, dir)
	o.hooks.largeStore = true
	e := mustOpen(t, o)
	switch os.Getenv(deathHowEnv) {
	case "badger": // as a compaction would
		s := e.live.Load().store
		go func() { // ends with the process
			txn := s.db.NewTransactionAt(s.current().ts, false)
			it := txn.NewIterator(badger.DefaultIteratorOptions)
			for it.Rewind(); it.Valid(); it.Next() {
			}
		}()
	case "own":
		go func() { panic("a broken promise of our own") }() // ends with the process
	}
	time.Sleep(20 * time.Second)
	t.Log("the child lived")
}

func TestOpen_AfterADeath_ChecksTheTablesIfItWasInBadger(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	o.hooks.largeStore = true // else every opening checks them
	d, path := tabled(t, o)
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	trace := filepath.Join(groupDir(o.Dir, 1), deathFile)
	if _, err := os.Stat(trace); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a trace after an end in order: %v", err)
	}
	_, _, end, _ := victimPlace(t, path)
	blockFile = path
	at := end - 4 - blockSumBytes(t, end) - 4
	die := func(how string) {
		t.Helper()
		cmd := exec.Command(os.Args[0], "-test.run=^TestDeathChild$", "-test.count=1")
		cmd.Env = append(os.Environ(), deathDirEnv+"="+o.Dir, deathHowEnv+"="+how)
		if out, err := cmd.CombinedOutput(); err == nil || strings.Contains(string(out), "the child lived") {
			t.Fatalf("%s: the child lived:\n%s", how, out)
		}
	}
	open := func() error {
		e, err := Open(o)
		if err == nil {
			err = e.Close()
		}
		return err
	}

	flip(t, path, at)
	die("own")
	if err := open(); err != nil { // nothing speaks of Badger: nothing is read
		t.Fatalf("after a death that has nothing to do with it: %v", err)
	}
	die("badger")
	for range 2 {
		if err := open(); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "key/0") {
			t.Fatalf("after a death in Badger: %v", err)
		}
	}
	flip(t, path, at)
	if err := open(); err != nil {
		t.Fatalf("with sound tables: %v", err)
	}
	if _, err := os.Stat(trace); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the trace is still there: %v", err)
	}

	flip(t, path, at)
	die("badger")
	if err := open(); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	if _, err := Quarantine(o.Dir, 1); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil {
		t.Fatalf("after the quarantine: %v", err)
	}
}

// TestOpen_TableDamaged_FoundBeforeAnythingIsServed: Badger would read a key whose head is damaged as absent.
func TestOpen_TableDamaged_FoundBeforeAnythingIsServed(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d, path := tabled(t, o)
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	o.hooks.openBadger = func(string) error { t.Error("Badger was opened"); return nil }
	for _, at := range []int64{0, 1, 100} {
		flip(t, path, at)
		if e, err := Open(o); err == nil || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), filepath.Base(path)) {
			t.Fatalf("byte %d flipped: %v, %v", at, e, err)
		}
		flip(t, path, at)
	}
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	zeroed := append(bytes.Clone(sound[:len(sound)*3/4]), make([]byte, len(sound)/4)...)
	for _, b := range [][]byte{zeroed, sound[:len(sound)/2], nil, sound} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if len(b) == len(sound) && &b[0] == &sound[0] {
			break
		}
		if e, err := Open(o); err == nil || !errors.Is(err, ErrDamaged) {
			t.Fatalf("%d of %d bytes are left: %v, %v", len(b), len(sound), e, err)
		}
	}
	o.hooks.openBadger = nil
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
