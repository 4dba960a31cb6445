package engine

import (
	"bytes"
	"fmt"
	"testing"

	"kvstore/wire"
)

func openTestSession(d *driver) uint64 {
	d.t.Helper()
	res := d.one(sessionOpenOp())
	g, ok := wire.DecodeSessionGrant(res.Payload)
	if !ok || res.Status != wire.StatusOK || g.TTLMs != uint64(wire.SessionTTL.Milliseconds()) {
		d.t.Fatalf("%+v", res)
	}
	return g.Session
}

func TestSession_Retries_GetTheKeptAnswerAndChangeNothing(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := newDriver(t, o)
	id := openTestSession(d)
	put := putOp("k", []byte("one"), nil).session(id, 1, 0)
	first := d.one(put)
	d.put("k", "two")
	// In a later entry, twice in one entry, and after a restart.
	for round := range 2 {
		for _, res := range d.apply(put, put) {
			if !res.Replayed || res.Rev != first.Rev || res.Status != wire.StatusOK {
				t.Fatalf("round %d: %+v, first %+v", round, res, first)
			}
		}
		d.wantValue("k", "two")
		if err := d.e.Close(); err != nil {
			t.Fatal(err)
		}
		d.e = mustOpen(t, o)
	}
	// Two of one number in the entry that executes the first.
	res := d.apply(putOp("n", []byte("1"), nil).session(id, 2, 0), putOp("n", []byte("2"), nil).session(id, 2, 0))
	if res[0].Replayed || !res[1].Replayed || res[0].Rev != res[1].Rev {
		t.Fatalf("%+v", res)
	}
	d.wantValue("n", "1")
	// A refusal is an answer too.
	exists := wire.AppendExtCondition(nil, wire.ConditionExists, nil)
	failing := putOp("none", []byte("x"), exists).session(id, 3, 0)
	a := d.one(failing)
	d.put("none", "there now")
	b := d.one(failing)
	if a.Status != wire.StatusConditionFailed || b.Status != a.Status || !b.Replayed || !bytes.Equal(a.Payload, b.Payload) {
		t.Fatalf("%+v, %+v", a, b)
	}
	// Long payloads are not kept; status and revision are.
	var items []wire.Item
	for i := range 100 {
		items = append(items, putItem(fmt.Sprintf("item/%d", i), "v", nil))
	}
	batch := groupOp(wire.OpBatch, wire.GroupAtomic, items...).session(id, 4, 0)
	a, b = d.one(batch), d.one(batch)
	if len(a.Payload) <= wire.SessionReplayBytesMax || len(b.Payload) != 0 || !b.Replayed || b.Rev != a.Rev || b.Status != wire.StatusOK {
		t.Fatalf("%d bytes, then %+v", len(a.Payload), b)
	}
}

func TestSession_BoundsOfSequenceNumbers_AreKept(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	id := openTestSession(d)
	write := func(seq, floor uint64) wire.Status {
		return d.one(putOp("k", []byte("v"), nil).session(id, seq, floor)).Status
	}
	for _, x := range []struct {
		seq, floor uint64
		want       wire.Status
	}{
		{wire.SessionWindow, 0, wire.StatusOK},
		{wire.SessionWindow + 1, 0, wire.StatusSessionStale},
		{5, 5, wire.StatusBadRequest},
		{wire.SessionWindow + 1, 1, wire.StatusOK},
		{1, 0, wire.StatusSessionStale}, // acknowledged
		{2, 0, wire.StatusOK},
		{1<<64 - 1, 1<<64 - 2, wire.StatusOK},
		{3, 0, wire.StatusSessionStale},
	} {
		if got := write(x.seq, x.floor); got != x.want {
			t.Errorf("seq %d, floor %d: %v, want %v", x.seq, x.floor, got, x.want)
		}
	}
	if res := d.one(putOp("k", nil, nil).session(12345, 1, 0)); res.Status != wire.StatusSessionExpired {
		t.Errorf("unknown session: %v", res.Status)
	}
}

func TestSession_FloorAndEnd_DropAnswersAndTheirJournal(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	id, other := openTestSession(d), openTestSession(d)
	stored := func() (journals int) {
		t.Helper()
		err := d.e.live.Load().store.read(0, func(r *reader) error {
			journals = 0
			lower, upper := familyRange(familyJournal)
			return r.iterate(lower, upper, false, true, func([]byte, func() ([]byte, error)) (bool, error) {
				journals++
				return true, nil
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(mustJournalsOf(t, d.e.live.Load().applier.sessions)); n != journals {
			t.Fatalf("%d journal records stored, %d known", journals, n)
		}
		return journals
	}
	for seq := uint64(1); seq <= 5; seq++ {
		d.apply(putOp("a", nil, nil).session(id, seq, 0), putOp("b", nil, nil).session(other, seq, 0))
	}
	if n := stored(); n != 5 {
		t.Fatalf("%d journal records, want 5", n)
	}
	d.one(putOp("a", nil, nil).session(id, 6, 5)) // drops id's five, other's remain
	if n := stored(); n != 6 {
		t.Fatalf("%d journal records, want 6", n)
	}
	d.one(putOp("b", nil, nil).session(other, 6, 3))
	if n := stored(); n != 2+2 {
		t.Fatalf("%d journal records, want 4", n)
	}
	// What one entry keeps and drops again is never stored.
	d.apply(putOp("a", nil, nil).session(id, 7, 5), putOp("a", nil, nil).session(id, 8, 7))
	if n := stored(); n != 4 {
		t.Fatalf("%d journal records, want 4", n)
	}
	if res := d.one(sessionCloseOp(other)); res.Status != wire.StatusOK {
		t.Fatal(res.Status)
	}
	if res := d.one(sessionCloseOp(other)); res.Status != wire.StatusSessionExpired {
		t.Fatal(res.Status)
	}
	if n := stored(); n != 1 {
		t.Fatalf("%d journal records, want 1", n)
	}
	// One session idle for precisely its time lives, a microsecond more ends it.
	d.now += sessionTTL
	d.put("tick", "")
	if n := stored(); n != 1 {
		t.Fatal("the session ended early")
	}
	d.now++
	d.put("tick", "")
	if st, err := d.e.Stats(); err != nil || st.Sessions != 0 || stored() != 0 {
		t.Fatalf("%d sessions, %d journal records, %v", st.Sessions, stored(), err)
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestSession_AnswersBeyondOneJournalRecord_AreSplitAndLoaded(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := newDriver(t, o)
	id := openTestSession(d)
	var ops []testOp
	for seq := uint64(1); seq <= 3000; seq++ { // 28 bytes each: three parts
		ops = append(ops, putOp("k", nil, nil).session(id, seq, 0))
	}
	first := d.apply(ops...)
	if n := len(mustJournalsOf(t, d.e.live.Load().applier.sessions)); n != 3 {
		t.Fatalf("%d parts, want 3", n)
	}
	before := d.e.live.Load().applier.sessions
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	d.e = mustOpen(t, o)
	wantEqualSessions(t, before, d.e.live.Load().applier.sessions)
	for i, res := range d.apply(ops...) {
		if !res.Replayed || res.Rev != first[i].Rev {
			t.Fatalf("%d: %+v, first %+v", i, res, first[i])
		}
	}
	// The middle part goes, the others stay.
	d.one(putOp("k", nil, nil).session(id, 3001, 2400))
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestSession_MoreThanThereMayBe_AreRefused(t *testing.T) {
	table := newSessions()
	for id := range uint64(wire.SessionsMax) {
		if !table.open(id+1, 0) {
			t.Fatalf("session %d refused", id)
		}
	}
	if table.open(1<<40, 0) {
		t.Fatal("one too many")
	}
	table.expire(sessionTTL + 1)
	if len(table.byID) != 0 || !table.open(1<<40, 0) {
		t.Fatal("idle sessions still count")
	}
}

func TestSession_AnswersBeyondTheirBound_EndTheLongestIdleSessions(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := newDriver(t, o)
	table := func() *sessions { return d.e.live.Load().applier.sessions }
	idle, lively, writer := openTestSession(d), openTestSession(d), openTestSession(d)
	for seq := uint64(1); seq <= 10; seq++ {
		d.one(putOp("k", nil, nil).session(idle, seq, 0))
		d.one(putOp("k", nil, nil).session(writer, seq, 0))
	}
	d.one(putOp("k", nil, nil).session(lively, 1, 0))
	if got, want := table().bytes, int64(21*keptResultOverheadBytes); got != want {
		t.Fatalf("%d bytes kept, want %d", got, want)
	}
	table().bytesMax = 21 * keptResultOverheadBytes
	res := d.one(putOp("k", nil, nil).session(writer, 11, 0))
	if res.Status != wire.StatusOK {
		t.Fatalf("the write that went over the bound: %+v", res)
	}
	if got := d.one(putOp("k", nil, nil).session(idle, 1, 0)); got.Status != wire.StatusSessionExpired {
		t.Fatalf("the idle session: %+v", got)
	}
	for id, seq := range map[uint64]uint64{lively: 1, writer: 11} {
		if got := d.one(putOp("k", nil, nil).session(id, seq, 0)); !got.Replayed {
			t.Fatalf("session %d lost its answer: %+v", id, got)
		}
	}
	// Acknowledged answers give their room back, and the count is the same after a restart.
	d.one(putOp("k", nil, nil).session(writer, 12, 11))
	if got, want := table().bytes, int64(2*keptResultOverheadBytes); got != want {
		t.Fatalf("%d bytes kept after the floor rose, want %d", got, want)
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	d.e = mustOpen(t, o)
	if got, want := table().bytes, int64(2*keptResultOverheadBytes); got != want {
		t.Fatalf("%d bytes kept after a restart, want %d", got, want)
	}
}

// TestSession_EndedForRoom_RestartChangesNothing: sessions that were used last at the same log time stand in the
// idle ring in order of use, and after a restart in order of id. Which of them ends must not depend on that.
func TestSession_EndedForRoom_RestartChangesNothing(t *testing.T) {
	options := [2]Options{engineOptions(t, t.TempDir()), engineOptions(t, t.TempDir())}
	var digests [2][16]byte
	for i, o := range options {
		d := newDriver(t, o)
		first, second, writer := openTestSession(d), openTestSession(d), openTestSession(d)
		write := func(id, seq uint64) wire.Result { return d.one(putOp("k", nil, nil).session(id, seq, 0)) }
		write(second, 1)
		write(first, 1)
		if i == 1 {
			if err := d.e.Close(); err != nil {
				t.Fatal(err)
			}
			d.e = mustOpen(t, o)
		}
		d.e.live.Load().applier.sessions.bytesMax = 2 * keptResultOverheadBytes
		write(writer, 1)
		if res := write(second, 1); !res.Replayed {
			t.Errorf("engine %d: of two that are idle for equally long the one of the lower id ends; got %+v", i, res)
		}
		if res := write(first, 1); res.Status != wire.StatusSessionExpired {
			t.Errorf("engine %d: %+v", i, res)
		}
		_, digests[i] = d.e.Digest()
	}
	if digests[0] != digests[1] {
		t.Errorf("digests differ: %x, restarted %x", digests[0], digests[1])
	}
}
