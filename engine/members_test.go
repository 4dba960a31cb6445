package engine

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"kvstore/wire"
)

func TestMember_AddedChangedRemoved_IsKeptInOrderAndOverRestarts(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	sink := &effectLog{}
	o.Sink = sink
	d := newDriver(t, o)
	if got := d.e.Members(); len(got) != 0 {
		t.Fatalf("members %+v of a new cluster", got)
	}
	want := []wire.Member{
		{ID: "node-1", Incarnation: [16]byte{1}, RaftAddress: "a:1", Level: 1},
		{ID: "node-10", Incarnation: [16]byte{10}},
		{ID: "node-2", Incarnation: [16]byte{2}, Address: "c:3"},
	}
	before := d.e.Members()
	results := d.apply(memberOp(want[2]), memberOp(want[0]), memberOp(wire.Member{ID: "node-10", Removed: true}), memberOp(want[1]))
	for i, res := range results {
		// One mutation each.
		if res.Status != wire.StatusOK || res.Rev != wire.MakeRevision(d.index, i) {
			t.Fatalf("result %d: %+v", i, res)
		}
	}
	if len(before) != 0 || !reflect.DeepEqual(d.e.Members(), want) {
		t.Fatalf("members %+v, want %+v", d.e.Members(), want)
	}
	if n := len(sink.effects); n < 4 || sink.effects[n-1].Namespace != wire.NamespaceSystem || string(sink.effects[n-1].Key) != "member/node-10" || !sink.effects[n-1].Last {
		t.Fatalf("effects %+v", sink.effects)
	}
	// An entry without a member record leaves the slice as it is.
	held := d.e.Members()
	d.put("k", "v")
	if now := d.e.Members(); &now[0] != &held[0] {
		t.Fatal("the slice was made anew for nothing")
	}
	// A change makes another one: who holds the first still sees what it was.
	removed := want[0]
	removed.Removed = true
	d.one(memberOp(removed))
	if held[0].Removed || !d.e.Members()[0].Removed {
		t.Fatal("the slice that a reader holds has changed, or the new one has not")
	}
	if m, ok := d.e.Member("node-1"); !ok || !m.Removed {
		t.Fatalf("node-1 is %+v, %v", m, ok)
	}
	if _, ok := d.e.Member("node-3"); ok {
		t.Fatal("there is a node-3")
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
	last := d.e.Members()
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	if got := mustOpen(t, o).Members(); !reflect.DeepEqual(got, last) {
		t.Fatalf("after a restart members are %+v, were %+v", got, last)
	}
}

func TestMember_MalformedOrTooMany_IsRefusedAndChangesNothing(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	_, before := d.e.Digest()
	whole := wire.AppendMember(nil, &wire.Member{ID: "node-1"})
	for _, payload := range [][]byte{nil, whole[:len(whole)-1], append(whole[:len(whole):len(whole)], 0)} {
		if res := d.one(testOp{wire.Op{Op: wire.OpMember, Payload: payload}}); res.Status != wire.StatusBadRequest || res.Rev != 0 {
			t.Fatalf("%x: %+v", payload, res)
		}
	}
	if _, after := d.e.Digest(); after != before || len(d.e.Members()) != 0 {
		t.Fatal("what was refused has changed the state")
	}
	var ops []testOp
	for i := range membersMax + 1 {
		ops = append(ops, memberOp(wire.Member{ID: fmt.Sprint("node-", i)}))
	}
	results := d.apply(ops...)
	if st := results[membersMax-1].Status; st != wire.StatusOK {
		t.Fatalf("the last one that has room: %v", st)
	}
	if st := results[membersMax].Status; st != wire.StatusTooLarge || len(d.e.Members()) != membersMax {
		t.Fatalf("one too many: %v, %d members", st, len(d.e.Members()))
	}
	if res := d.one(memberOp(wire.Member{ID: "node-7", Removed: true})); res.Status != wire.StatusOK {
		t.Fatalf("a change of one that is there: %v", res.Status)
	}
}

// TestOpen_SystemRecordsInPieces_AreLoaded: in how many pieces a value is stored never matters, so not for those
// either that say what the cluster is.
func TestOpen_SystemRecordsInPieces_AreLoaded(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	o.ChunkThresholdBytes, o.ChunkBytes = 1, 1<<10
	d := newDriver(t, o)
	report := wire.Recover{HistoryID: [16]byte{9}, BaseRaise: wire.RecoverBaseRaise, At: testEpoch, Text: strings.Repeat("x", 3000)}
	d.one(recoverOp(report))
	d.one(memberOp(wire.Member{ID: "node-1", Incarnation: [16]byte{1}, Address: "localhost:7000"}))
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	e := mustOpen(t, o)
	cluster, history, ok := e.Identity()
	if !ok || cluster != testInit.ClusterID || history != report.HistoryID || e.Level() != testInit.Level {
		t.Fatalf("cluster %x, history %x, %v, level %d", cluster, history, ok, e.Level())
	}
	if r := e.Recoveries(); len(r) != 1 || r[0].Recover != report {
		t.Fatalf("recoveries %+v", r)
	}
	if m, ok := e.Member("node-1"); !ok || m.Address != "localhost:7000" {
		t.Fatalf("member %+v, %v", m, ok)
	}
}
