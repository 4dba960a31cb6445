package engine

import (
	"testing"
	"time"

	"kvstore/wire"
)

// Goal: what an expiry ends can be read at the revision before it, also when other entries have brought log time beyond
// its deadline; whoever doesn't ask for that finds nothing there.
func TestGet_Due_FindsWhatIsDueAndNotRemoved(t *testing.T) {
	for _, size := range []int{10, 3 << 20} { // in one piece, and in several
		d := newDriver(t, engineOptions(t, t.TempDir()))
		d.one(putOp("k", make([]byte, size), wire.AppendExtU64(nil, wire.ExtTTL, 1000)))
		d.now += 2 * time.Second.Microseconds()
		at := d.put("other", "x")
		d.one(expireOp(10))
		for _, c := range []struct {
			due  bool
			at   wire.Revision
			want wire.Status
		}{{true, at, wire.StatusOK}, {false, at, wire.StatusNotFound}, {true, d.e.Applied().Revision, wire.StatusNotFound}} {
			rec, _, st, err := d.e.Get(ReadOptions{Namespace: wire.NamespaceDefault, AtRevision: c.at, Due: c.due}, []byte("k"), nil)
			if err != nil || st != c.want || st == wire.StatusOK && len(rec.Value) != size {
				t.Errorf("due %v at %d: %s with %d bytes, %v; want %s", c.due, c.at, st, len(rec.Value), err, c.want)
			}
		}
	}
}
