package peer

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"kvstore/internal/record"
)

// directory is node-1's data directory as far as its starts go.
type directory struct {
	t       *testing.T
	o       Options
	lineage []uint64
}

// copied returns a copy of d as it is now; its processes listen on other ports.
func (d *directory) copied() *directory {
	return &directory{d.t, copyOf(d.t, d.o, d.o.Starts), slices.Clone(d.lineage)}
}

// count counts a start of a process that draws nonce.
func (d *directory) count(nonce uint64) {
	d.lineage = append(d.lineage, nonce)
	d.lineage = d.lineage[max(0, len(d.lineage)-LineageMax):]
	d.o.Starts, d.o.Nonce, d.o.Lineage = d.o.Starts+1, nonce, slices.Clone(d.lineage)
}

// open starts a process of the last start that was counted.
func (d *directory) open() *Transport {
	d.t.Helper()
	if d.o.Listener == nil {
		d.o.Listener = relisten(d.t, d.o.Address)
	}
	tr := open(d.t, d.o)
	d.o.Listener = nil
	serve(d.t, tr, agree)
	return tr
}

// lineageCase is node-1, which is known to node-2 by start 4, and a copy from start 2.
func lineageCase(t *testing.T) (d, older *directory, ob Options) {
	t.Helper()
	ob = testOptions(t, 2)
	ob.Starts = 1
	b := open(t, ob)
	serve(t, b, agree)
	d = &directory{t: t, o: testOptions(t, 1)}
	d.count(11)
	d.count(12)
	older = d.copied()
	d.count(13)
	d.count(14)
	a := d.open()
	if err := beat(a, b, 1); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Fatal(err)
	}
	ob.Listener, ob.Starts = relisten(t, ob.Address), 2
	return d, older, ob
}

// Goal: starts that nobody hears of don't make an older copy pass for the directory itself, in either direction, also
// where the node that knows better has been restarted.
func TestLineage_OlderCopyStartedMoreOften_RefusedInBothDirectionsAfterARestart(t *testing.T) {
	d, older, ob := lineageCase(t)
	for nonce := uint64(23); nonce < 28; nonce++ { // starts 3 to 7
		older.count(nonce)
	}
	b := open(t, ob)
	serve(t, b, agree)
	stale := older.open()
	refusedWith(t, beat(stale, b, 1), true, `it counts start 7, but another process was start 4 of it when node "node-2" met it`)
	refusedWith(t, beat(b, stale, 1), true, "older copy")
	if s := statusOf(t, stale, "node-2"); !s.Copied {
		t.Errorf("at the copy: %+v", s)
	}
	// The directory itself comes back, with fewer starts than the copy.
	d.count(15)
	a := d.open()
	if err := errors.Join(beat(a, b, 1), beat(b, a, 1)); err != nil {
		t.Error(err)
	}
}

// Goal: a process with the very count that is known, but not the one, is refused after a restart as well.
func TestLineage_OlderCopyStartedAsOften_RefusedAfterARestart(t *testing.T) {
	_, older, ob := lineageCase(t)
	older.count(23)
	older.count(24)
	b := open(t, ob)
	serve(t, b, agree)
	stale := older.open()
	refusedWith(t, beat(stale, b, 1), true, "both call this start 4")
	refusedWith(t, beat(b, stale, 1), true, "both call this start 4")
}

// Goal: as far as the lineage reaches it is judged by, and a directory that was started more often than that while
// nobody answered is let in: else a cluster whose nodes each failed to start for an hour would never be one again.
func TestLineage_StartedUnheardOf_LetInHoweverOften(t *testing.T) {
	for _, unheard := range []int{1, LineageMax - 1, LineageMax, LineageMax + 1, 3 * LineageMax} {
		d, _, ob := lineageCase(t)
		for i := range unheard {
			d.count(uint64(100 + i))
		}
		b := open(t, ob)
		serve(t, b, agree)
		a := d.open()
		if err := errors.Join(beat(a, b, 1), beat(b, a, 1)); err != nil {
			t.Errorf("after %d starts: %v", unheard, err)
		}
	}
	// The last start by which the copy is told.
	_, older, ob := lineageCase(t)
	for i := range 2 + LineageMax - 1 {
		older.count(uint64(100 + i))
	}
	b := open(t, ob)
	refusedWith(t, beat(older.open(), b, 1), true, "another process was start 4 of it")
}

// Goal: a file from before nonces were written down, and a process that tells none, are judged as before.
func TestLineage_FileOrHelloWithoutNonces_JudgedByTheCountAlone(t *testing.T) {
	d, older, ob := lineageCase(t)
	path := filepath.Join(ob.Dir, bookFileName)
	payload, err := record.ReadFile(path, bookBytesMax)
	if err != nil || !bytes.Contains(payload, []byte(`,"nonce":14`)) {
		t.Fatalf("%s, %v", payload, err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := record.WriteFileAtomic(path, bytes.Replace(payload, []byte(`,"nonce":14`), nil, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	for nonce := uint64(23); nonce < 26; nonce++ {
		older.count(nonce)
	}
	b := open(t, ob)
	serve(t, b, agree)
	if err := beat(older.open(), b, 1); err != nil { // start 5
		t.Errorf("no nonce is known: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	ob.Listener = relisten(t, ob.Address)
	b = open(t, ob)
	serve(t, b, agree)
	d.count(15)
	d.o.Lineage = nil
	if err := beat(d.open(), b, 1); err != nil {
		t.Errorf("no lineage is told: %v", err)
	}
}

// Goal: a process that does not count leaves what is known of the counted ones as it is.
func TestLineage_UncountedInBetween_CountedStartKeepsItsNonce(t *testing.T) {
	d, _, ob := lineageCase(t)
	b := open(t, ob)
	serve(t, b, agree)
	o := copyOf(t, d.o, 0)
	o.Nonce, o.Lineage = 99, nil
	uncounted := open(t, o)
	if err := beat(uncounted, b, 1); err != nil {
		t.Fatal(err)
	}
	if err := uncounted.Close(); err != nil {
		t.Fatal(err)
	}
	if e := b.book.read().entries["node-1"]; e.starts != 4 || e.mark != 14 || e.nonce != 99 {
		t.Errorf("%+v", e)
	}
	d.count(15)
	if err := beat(d.open(), b, 1); err != nil {
		t.Error(err)
	}
}

// Goal: a node that was given up is told so by one voice, in so many words; both sides know whose history it is.
func TestGivenUp_OldHistory_ToldWithACodeOfItsOwn(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	ob.Cluster = func() (cluster, history [16]byte, ok bool) { return incarnation(0xcc), incarnation(0xde), true }
	removed := oa.Incarnation
	ob.Record = func(id string) ([16]byte, bool, bool) { return removed, id == "node-1", id == "node-1" }
	a, b := open(t, oa), open(t, ob)
	serve(t, a, agree)
	serve(t, b, agree)
	refusedWith(t, beat(a, b, 1), true, "was given up by a recovery")
	if s := statusOf(t, a, "node-2"); !s.GivenUp || s.Copied {
		t.Errorf("at the node that was given up: %+v", s)
	}
	if s := statusOf(t, b, "node-1"); !s.Stranger {
		t.Errorf("at the survivor: %+v", s)
	}
	refusedWith(t, beat(b, a, 1), true, "different histories")
	if s := statusOf(t, b, "node-1"); s.GivenUp {
		t.Errorf("the survivor takes itself for given up: %+v", s)
	}
	removed = incarnation(9)
	var resp raft.AppendEntriesResponse
	eventually(t, "the record of another directory gives nobody up", func() bool {
		err := a.AppendEntries("node-2", b.LocalAddr(), heartbeat(a, 1), &resp)
		return errors.Is(err, ErrRefused) && !statusOf(t, a, "node-2").GivenUp
	})
}
