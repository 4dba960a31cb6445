package engine

import (
	"testing"
	"time"

	"kvstore/wire"
)

func TestHold_KeepsARevisionBeyondTheHistoryUntilItIsReleasedOrTooOld(t *testing.T) {
	clock := time.Unix(0, 0)
	o := engineOptions(t, t.TempDir())
	o.HistoryWindow = -1 // nothing is kept but what is held
	o.hooks.now = func() time.Time { return clock }
	d := newDriver(t, o)
	d.put("k", "old")
	at := d.e.Applied().Revision
	move := func() {
		t.Helper()
		d.put("k", "new")
		if err := d.e.CheckpointNow(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	read := func() (string, wire.Status) {
		t.Helper()
		rec, _, st, err := d.e.Get(ReadOptions{Namespace: wire.NamespaceDefault, AtRevision: at}, []byte("k"), nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(rec.Value), st
	}
	for _, end := range []string{"released", "too old"} {
		at = d.e.Applied().Revision
		want, _ := read()
		release, st, err := d.e.Hold(at)
		if st != wire.StatusOK || err != nil {
			t.Fatal(st, err)
		}
		move()
		if got, st := read(); got != want || st != wire.StatusOK {
			t.Errorf("held: %q, %v", got, st)
		}
		if end == "released" {
			release()
			release()
		} else {
			clock = clock.Add(d.e.live.Load().store.o.PinAgeMax + 1)
		}
		move()
		if _, st := read(); st != wire.StatusCompacted {
			t.Errorf("%s: %v", end, st)
		}
		if _, st, err := d.e.Hold(at); st != wire.StatusCompacted || err != nil {
			t.Errorf("%s, held again: %v, %v", end, st, err)
		}
	}
	if _, st, err := d.e.Hold(wire.MakeRevision(wire.RevisionTS(at)+1000, 0)); st != wire.StatusFutureRevision || err != nil {
		t.Errorf("the future: %v, %v", st, err)
	}
}
