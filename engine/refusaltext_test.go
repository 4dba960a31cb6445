package engine

import (
	"testing"

	"kvstore/wire"
)

// Goal: what sessions keep of a refusal is the same bytes in every build, since the state's digest covers them.
func TestRefusal_TextsThatSessionsKeep_ArePinned(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.one(createOp("app", wire.NamespaceSettings{KeysMax: 1}))
	d.one(createOp("bin", wire.NamespaceSettings{BytesMax: 4}))
	d.one(putOp("word", []byte("x"), nil))
	grant, ok := wire.DecodeSessionGrant(d.one(sessionOpenOp()).Payload)
	if !ok {
		t.Fatal("no session")
	}
	increment := wire.Item{Op: wire.OpIncrement, Key: []byte("word"), Value: wire.AppendIncrement(nil, 1)}
	two := []wire.Item{putItem("a", "x", nil), putItem("b", "xyz", nil)}
	for i, c := range []struct {
		op   testOp
		ns   uint32
		want string
	}{
		{groupOp(wire.OpTxn, 0, putItem("a", "x", nil), increment), 1, "operation 1: the value is not a whole number of 64 bits in decimal digits, or the sum is not; nothing was changed"},
		{groupOp(wire.OpTxn, 0, two...), 2, `quota of keys: namespace "app" holds 0 and may hold 1, this write needs 2 more; nothing was changed: delete some, or raise the quota`},
		{groupOp(wire.OpTxn, 0, two...), 3, `quota of bytes: namespace "bin" holds 0 and may hold 4, this write needs 6 more; nothing was changed: delete some, or raise the quota`},
	} {
		op := c.op.in(c.ns)
		op.Session, op.Seq = grant.Session, uint64(i+1)
		for _, replayed := range []bool{false, true} {
			if res := d.one(op); string(res.Payload) != c.want || res.Replayed != replayed {
				t.Errorf("%s, replayed %v: %q, want %q", res.Status, res.Replayed, res.Payload, c.want)
			}
		}
	}
	if got, want := refusalText(wire.StatusTooLarge), "the request is larger than the limit named in the answer; nothing was changed"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
