package engine

import (
	"fmt"
	"strings"
	"testing"

	"kvstore/wire"
)

// getCached is a GetCached of one key of the first namespace, beside another read, so that both are warmed up.
func getCached(e *Engine, key []byte, fn func(rec *wire.Record, at Point)) (st wire.Status, hit bool) {
	var g CachedGets
	g.Add(1, []byte("a key that nobody has"))
	g.Add(1, key)
	e.GetCached(&g, func(_ int, rec *wire.Record, at Point) { fn(rec, at) })
	return g.Result(1)
}

// Each read of a bunch has the answer that it would have alone: in the newest layer, in one that is moved to Badger, in the
// cache, and not at all.
func TestGetCached_Bunch_AnswersEachRead(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	want := make(map[string]string)
	put := func(k, v string) {
		d.put(k, v)
		want[k] = v
	}
	for i := range 300 {
		put(fmt.Sprint("key", i), fmt.Sprint("in Badger ", i))
	}
	put("long", strings.Repeat("l", cachedBytesMax))
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		put(fmt.Sprint("key", i), strings.Repeat(fmt.Sprint("in the layer ", i), i))
	}
	put("medium", strings.Repeat("m", 3*warmBytesMax))
	d.one(deleteOp("key7", nil))
	delete(want, "key7")

	var g CachedGets
	for range 2 { // a second time in the same memory
		keys := []string{"key7", "long", "never", "medium", "key1", "key1"}
		for i := range 300 {
			keys = append(keys, fmt.Sprint("key", i))
		}
		for _, k := range keys {
			g.Add(1, []byte(k))
		}
		if g.Len() != len(keys) {
			t.Fatal(g.Len())
		}
		got := make(map[int]string)
		d.e.GetCached(&g, func(i int, rec *wire.Record, at Point) {
			if _, twice := got[i]; twice {
				t.Errorf("key %q twice", keys[i])
			}
			got[i] = string(rec.Value)
			if at != d.e.Applied() {
				t.Errorf("at %+v", at)
			}
		})
		for i, k := range keys {
			st, hit := g.Result(i)
			v, shown := got[i]
			switch {
			case k == "long" || k == "never":
				if hit || shown {
					t.Errorf("%s: %v, %v", k, st, hit)
				}
			case k == "key7":
				if !hit || shown || st != wire.StatusNotFound {
					t.Errorf("%s: %v, %v, shown %v", k, st, hit, shown)
				}
			case !hit || st != wire.StatusOK || v != want[k]:
				t.Errorf("%s: %v, %v, %.20q instead of %.20q", k, st, hit, v, want[k])
			}
		}
		g.Reset()
	}
}

func TestGetCached_Bunch_AllocatesNothing(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.put("k", strings.Repeat("v", 128))
	key, out := []byte("k"), make([]byte, 0, 1024)
	take := func(_ int, rec *wire.Record, _ Point) { out = append(out[:0], rec.Value...) }
	var g CachedGets
	if n := testing.AllocsPerRun(1000, func() {
		g.Reset()
		for range 8 {
			g.Add(1, key)
		}
		d.e.GetCached(&g, take)
		if st, hit := g.Result(7); st != wire.StatusOK || !hit {
			t.Fatal("no hit")
		}
	}); n != 0 {
		t.Errorf("GetCached allocates %v times", n)
	}
}
