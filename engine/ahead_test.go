package engine

import (
	"fmt"
	"strings"
	"testing"

	"kvstore/wire"
)

// Goal: the keys of all writes of an entry are read ahead, those of groups too, within bounds; an operation that can't be decoded
// changes nothing about that; and what an entry does is the same.
func TestReadAhead_EntryOfAllKinds_ItsKeysAreReadAndNothingElseChanges(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	ahead := &d.e.live.Load().applier.ahead
	for round := range 3 { // the first finds nothing, the others what the one before has stored
		res := d.apply(
			putOp("a", []byte("1"), nil), putOp("b", []byte("2"), nil), deleteOp("b", nil),
			groupOp(wire.OpTxn, 0, putItem("c", fmt.Sprint(round), nil), wire.Item{Op: wire.OpGet, Key: []byte("a")}),
			groupOp(wire.OpBatch, 0, putItem("d", "4", nil), putItem("e", "5", nil)),
			testOp{wire.Op{Op: wire.OpBatch, Namespace: 1, Payload: []byte{0, 9, 9, 9}}},
			putOp("f", nil, nil),
		)
		if n := ahead.Len(); n != 8 {
			t.Errorf("%d keys were read ahead", n)
		}
		for i, r := range res {
			if bad := i == 5; (r.Status != wire.StatusOK) != bad {
				t.Errorf("round %d, operation %d: %v", round, i, r.Status)
			}
		}
		d.wantAbsent("b")
	}
	var ops []testOp
	for i := range aheadMost + 10 {
		ops = append(ops, putOp(fmt.Sprint(i), []byte("x"), nil))
	}
	if d.apply(ops...); ahead.Len() != aheadMost {
		t.Errorf("%d keys were read ahead", ahead.Len())
	}
	long := strings.Repeat("k", 1000)
	ops = ops[:0]
	for i := range 2 * aheadBytesMax / len(long) {
		ops = append(ops, putOp(fmt.Sprint(i, long), []byte("x"), nil))
	}
	if d.apply(ops...); len(ahead.keys) > aheadBytesMax+2*len(long) || ahead.Len() == 0 {
		t.Errorf("%d bytes of %d keys were read ahead", len(ahead.keys), ahead.Len())
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
}
