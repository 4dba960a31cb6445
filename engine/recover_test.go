package engine

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"kvstore/wire"
)

var testRecover = wire.Recover{HistoryID: [16]byte{0x72, 1}, BaseRaise: wire.RecoverBaseRaise, At: testEpoch + 5, Text: `{"lost":["node-2","node-3"]}`}

// TestRecover_NewHistory_IsKeptOverRestartAndSnapshot follows a recovery through all that carries a state.
func TestRecover_NewHistory_IsKeptOverRestartAndSnapshot(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := newDriver(t, o)
	before := d.put("k", "old")
	for i := range 5 {
		d.put(fmt.Sprintf("list/%d", i), "v")
	}
	payload, st, err := d.e.Scan(ReadOptions{Namespace: 1}, &wire.ScanRequest{Prefix: []byte("list/"), Limit: 2, BytesMax: 1 << 20}, nil)
	if err != nil || st != wire.StatusOK {
		t.Fatalf("first page: %v, %v", st, err)
	}
	var page wire.ScanPage
	if err := wire.DecodeScanPage(payload, &page); err != nil || len(page.Cursor) == 0 {
		t.Fatalf("first page: cursor of %d bytes, %v", len(page.Cursor), err)
	}
	resume := func(e *Engine) wire.Status {
		_, st, _ := e.Scan(ReadOptions{Namespace: 1}, &wire.ScanRequest{Prefix: []byte("list/"), Limit: 2, BytesMax: 1 << 20, Cursor: page.Cursor}, nil)
		return st
	}
	if st := resume(d.e); st != wire.StatusOK {
		t.Fatalf("second page before the recovery: %v", st)
	}
	last := d.e.Applied().Revision
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}

	res := d.one(recoverOp(testRecover))
	if want := wire.MakeRevision(wire.RecoverBaseRaise+d.index, 0); res.Status != wire.StatusOK || res.Rev != want {
		t.Fatalf("recovery: %+v, want revision %d", res, want)
	}
	check := func(what string, e *Engine) {
		t.Helper()
		if cluster, history, ok := e.Identity(); !ok || cluster != testInit.ClusterID || history != testRecover.HistoryID {
			t.Fatalf("%s: cluster %x, history %x, %v", what, cluster, history, ok)
		}
		got := e.Recoveries()
		want := Recovery{Recover: testRecover, Number: 1, Revision: res.Rev, Applied: testEpoch}
		if len(got) != 1 || got[0] != want {
			t.Fatalf("%s: recoveries %+v, want %+v", what, got, want)
		}
		if st := resume(e); st != wire.StatusCompacted {
			t.Fatalf("%s: a cursor of the old history gets %v", what, st)
		}
		for _, rev := range []wire.Revision{wire.MakeRevision(d.index, 0), wire.MakeRevision(wire.RecoverBaseRaise, 7), res.Rev - 1<<wire.PositionBits} {
			if _, _, st, _ := e.Get(ReadOptions{Namespace: 1, MinRevision: rev}, []byte("k"), nil); st != wire.StatusCompacted {
				t.Fatalf("%s: reading what reflects revision %d of the lost history: %v", what, rev, st)
			}
			if _, _, st, _ := e.Get(ReadOptions{Namespace: 1, AtRevision: rev}, []byte("k"), nil); st != wire.StatusCompacted {
				t.Fatalf("%s: reading at revision %d of the lost history: %v", what, rev, st)
			}
		}
		for _, rev := range []wire.Revision{before, last, res.Rev} {
			if _, _, st, err := e.Get(ReadOptions{Namespace: 1, MinRevision: rev}, []byte("k"), nil); st != wire.StatusOK {
				t.Fatalf("%s: reading what reflects revision %d: %v, %v", what, rev, st, err)
			}
		}
		if err := e.VerifyDigest(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	check("recovered", d.e)
	if rec, _, st, err := d.e.Get(ReadOptions{Namespace: 1, AtRevision: last}, []byte("k"), nil); st != wire.StatusOK || string(rec.Value) != "old" {
		t.Fatalf("the past of before, which is kept: %v, %v", st, err)
	}

	// It was not durable: the restart replays it, to the same revision.
	recovered := sealEntry(d.now, recoverOp(testRecover))
	d.e.live.Load().store.failed.CompareAndSwap(nil, ptr(fmt.Errorf("crashed by the test")))
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	d.e = mustOpen(t, o)
	if got := d.e.Applied().Index; got != d.index-1 || len(d.e.Recoveries()) != 0 {
		t.Fatalf("restarted at %d with %d recoveries, want %d and none", got, len(d.e.Recoveries()), d.index-1)
	}
	wantSameResults(t, "replay", d.e.Apply(d.index, 1, recovered), []wire.Result{res})
	check("replayed", d.e)

	if rev := d.put("k", "new"); rev <= res.Rev || wire.RevisionTS(rev) != wire.RecoverBaseRaise+d.index {
		t.Fatalf("a write after the recovery has revision %d, that had %d", rev, res.Rev)
	}
	d.e.ApplyConfiguration(d.index+1, 2, []byte("configuration"))
	d.index++
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	d.e = mustOpen(t, o)
	check("restarted", d.e)
	d.wantValue("k", "new")

	behind := mustOpen(t, engineOptions(t, t.TempDir()))
	behind.Apply(1, 1, sealEntry(testEpoch, initOp()))
	if err := d.send(behind).Install(); err != nil {
		t.Fatal(err)
	}
	check("installed", behind)
	entry := sealEntry(d.now, putOp("k", []byte("newer"), nil))
	d.index++
	wantSameResults(t, "an entry after the snapshot", behind.Apply(d.index, 2, entry), d.e.Apply(d.index, 2, entry))
	wantEqualEngines(t, d.e, behind)
}

func TestRecover_AgainElsewhereOrMalformed_ChangesNothing(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	same := testRecover
	same.HistoryID = testInit.HistoryID
	if res := d.one(recoverOp(same)); res.Status != wire.StatusBadRequest || len(d.e.Recoveries()) != 0 {
		t.Fatalf("the history that there is: %+v", res)
	}
	first := d.one(recoverOp(testRecover))
	_, digest := d.e.Digest()
	with := func(change func(r *wire.Recover)) testOp {
		r := testRecover
		r.HistoryID[15]++
		change(&r)
		return recoverOp(r)
	}
	for name, c := range map[string]struct {
		op   testOp
		want wire.Result
	}{
		"the same again":      {recoverOp(testRecover), wire.Result{Replayed: true, Rev: first.Rev}},
		"raised too far":      {with(func(r *wire.Recover) { r.BaseRaise = recoverTSMax }), wire.Result{Status: wire.StatusBadRequest}},
		"raised into nowhere": {with(func(r *wire.Recover) { r.BaseRaise = 1<<64 - 1 }), wire.Result{Status: wire.StatusBadRequest}},
		"not raised":          {with(func(r *wire.Recover) { r.BaseRaise = 0 }), wire.Result{Status: wire.StatusBadRequest}},
		"long text":           {with(func(r *wire.Recover) { r.Text = strings.Repeat("x", wire.RecoverTextBytesMax+1) }), wire.Result{Status: wire.StatusBadRequest}},
	} {
		wantSameResults(t, name, d.apply(c.op), []wire.Result{c.want})
	}
	second := testRecover
	second.HistoryID[15]++
	res := d.apply(deleteOp("none", nil), recoverOp(second))
	if res[1].Status != wire.StatusRetryLater || res[1].Rev != 0 {
		t.Fatalf("behind another operation: %+v", res[1])
	}
	if _, now := d.e.Digest(); now != digest || len(d.e.Recoveries()) != 1 {
		t.Fatal("what was refused has changed the state")
	}
	held := d.e.Recoveries()
	if res := d.one(recoverOp(second)); res.Status != wire.StatusOK || res.Rev != wire.MakeRevision(2*wire.RecoverBaseRaise+d.index, 0) {
		t.Fatalf("second recovery: %+v", res)
	}
	if len(held) != 1 || len(d.e.Recoveries()) != 2 {
		t.Fatalf("%d and %d recoveries", len(held), len(d.e.Recoveries()))
	}
	// A history that was given up never comes back: its cursors would be taken again.
	if res := d.one(recoverOp(testRecover)); res.Status != wire.StatusBadRequest {
		t.Fatalf("the history before the last again: %+v", res)
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRecover_TooMany_AreRefused(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	for i := range recoveriesMax + 1 {
		r := testRecover
		r.HistoryID = [16]byte{1, byte(i), byte(i >> 8)}
		want := wire.StatusOK
		if i == recoveriesMax {
			want = wire.StatusTooLarge
		}
		if res := d.one(recoverOp(r)); res.Status != want {
			t.Fatalf("recovery %d: %+v", i+1, res)
		}
	}
}

// TestOpen_BaseThatContradictsTheMarker_IsDamage: entries would get other timestamps than on the other nodes.
func TestOpen_BaseThatContradictsTheMarker_IsDamage(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := newDriver(t, o)
	key := appendRecordKey(nil, wire.NamespaceSystem, []byte(systemBase))
	value := []byte{5, 0, 0, 0, 0, 0, 0, 0}
	r := storedRecord{Record: wire.Record{Meta: wire.Meta{Version: wire.MakeRevision(1, 3), Checksum: wire.Checksum(value)}, Value: value}, valueLen: 8}
	lose(t, d.e, key, appendRecord(nil, key, &r))
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	e, err := Open(o)
	if !errors.Is(err, ErrDamaged) {
		t.Fatalf("opened: %v, %v", e, err)
	}
}
