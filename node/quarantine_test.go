package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func mustHold(t *testing.T, dir string) *hold {
	t.Helper()
	h, err := openHold(dir)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestQuarantine_FourthWithinAnHour_IsRefused(t *testing.T) {
	dir := t.TempDir()
	h := mustHold(t, dir)
	if q := h.state(); q.Pending || len(q.At) != 0 {
		t.Fatalf("an empty directory has %+v", q)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range rebuildsMax {
		if err := h.begin(now, errors.New("because "+strings.Repeat("x", 3*quarantineReasonMax))); err != nil {
			t.Fatal(err)
		}
		if q := mustHold(t, dir).state(); !q.Pending || q.Moved || len(q.At) != i+1 || !strings.HasPrefix(q.Reason, "because x") || len(q.Reason) != quarantineReasonMax {
			t.Fatalf("after quarantine %d the file says %+v", i+1, q)
		}
		if done, err := h.end(); err != nil || done {
			t.Fatalf("ended before the state was set aside: %v", err)
		}
		if err := h.moved(); err != nil {
			t.Fatal(err)
		}
		if q := mustHold(t, dir).state(); !q.Pending || !q.Moved {
			t.Fatalf("with the state set aside the file says %+v", q)
		}
		if done, err := h.end(); err != nil || !done {
			t.Fatalf("not ended: %v", err)
		}
		if q := mustHold(t, dir).state(); q.Pending || q.Moved || len(q.At) != i+1 {
			t.Fatalf("after rebuild %d the file says %+v", i+1, q)
		}
		now = now.Add(19 * time.Minute)
	}
	// The first is an hour old: there may be another.
	if err := h.begin(now.Add(4*time.Minute), errors.New("later")); err != nil {
		t.Fatal(err)
	}
	if n := len(h.state().At); n != rebuildsMax {
		t.Errorf("%d times are kept", n)
	}
	err := h.begin(now.Add(5*time.Minute), errors.New("once more"))
	for _, err := range []error{err, mustHold(t, dir).stopped()} {
		if err == nil || !strings.Contains(err.Error(), "once more") || !strings.Contains(err.Error(), filepath.Join(dir, quarantineName)) {
			t.Fatalf("a fourth quarantine within an hour: %v", err)
		}
	}
	if q := mustHold(t, dir).state(); !q.Pending || !q.Stopped || len(q.At) != rebuildsMax {
		t.Fatalf("after the fourth quarantine the file says %+v: its state could be served", q)
	}
}

func TestQuarantine_BegunAgainDuringRebuild_DoesNotEndWithIt(t *testing.T) {
	h := mustHold(t, t.TempDir())
	if err := errors.Join(h.begin(time.Now(), errors.New("first")), h.moved(), h.begin(time.Now(), errors.New("second"))); err != nil {
		t.Fatal(err)
	}
	if done, err := h.end(); done || err != nil {
		t.Fatalf("the end of the first rebuild ended the second quarantine: %v", err)
	}
	if q := h.state(); !q.Pending || q.Moved || q.Reason != "second" {
		t.Errorf("the file says %+v", q)
	}
}

// How far a state reached that is set aside, nobody can tell once that is done. But what was built since, and was lost as
// well, may have reached further.
func TestQuarantine_Reach_IsKeptForTheStateThatItIsAbout(t *testing.T) {
	dir := t.TempDir()
	h := mustHold(t, dir)
	says := func(when string, want uint64) {
		t.Helper()
		if q := mustHold(t, dir).state(); q.Reach != want {
			t.Errorf("%s the file says %+v, want %d", when, q, want)
		}
	}
	step := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	step(h.begin(time.Now(), errors.New("why")), h.reach(0, false))
	says("with a checkpoint that can't be read", 0)
	step(h.reach(7, true))
	says("with one that can be read", 7)
	step(h.reach(0, false))
	says("after a crash while the state was set aside", 7)
	step(h.moved())
	says("with the state set aside", 7)
	step(h.reach(9, true))
	says("when what was built is to be set aside as well", 9)
	step(h.reach(0, false))
	says("when what was built can't be read", 0)
	step(h.reach(9, true), h.begin(time.Now(), errors.New("again")))
	says("after another quarantine", 0)
	step(h.reach(9, true), h.giveUp())
	says("when it is given up", 0)
	_, err := h.end()
	step(h.begin(time.Now(), errors.New("once more")), h.reach(9, true), h.moved(), err)
	if done, err := h.end(); !done || err != nil {
		t.Fatal(err)
	}
	says("at the end", 0)
}

func TestQuarantine_GivenUp_DoesNotCount(t *testing.T) {
	dir := t.TempDir()
	h := mustHold(t, dir)
	for range 2 * rebuildsMax {
		if err := errors.Join(h.begin(time.Now(), errors.New("why")), h.giveUp()); err != nil {
			t.Fatal(err)
		}
	}
	if q := mustHold(t, dir).state(); q.Pending || len(q.At) != 0 {
		t.Errorf("the file says %+v", q)
	}
}

func TestReadQuarantine_DamagedFile_IsNeverTakenForNone(t *testing.T) {
	dir := t.TempDir()
	if err := mustHold(t, dir).begin(time.Now(), errors.New("why")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, quarantineName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x10
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readQuarantine(dir); err == nil || !strings.Contains(err.Error(), path) {
			t.Fatalf("with byte %d flipped: %v", i, err)
		}
		b[i] ^= 0x10
	}
}
