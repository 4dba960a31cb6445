package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

func TestGet_ManyReadersBesideApply_SeeNoOlderAndNoLaterState(t *testing.T) {
	seed := testSeed(t)
	o := engineOptions(t, t.TempDir())
	o.MemtableBytes = 1 << 20
	o.CacheBytes = 64 << 10 // one stripe, which evicts all the time
	o.CheckpointInterval = time.Millisecond
	o.HistoryWindow = -1
	d := newDriver(t, o)
	const keys = 300
	key := func(i int) string { return fmt.Sprintf("key/%d", i) }
	pad := bytes.Repeat([]byte("x"), 200)
	value := func(n uint64) []byte { return append(binary.LittleEndian.AppendUint64(nil, n), pad...) }
	// Entry n writes n to every key but one, which it deletes: a reader knows what index its answer is of.
	write := func() {
		n := d.index + 1
		var ops []testOp
		for i := range keys {
			if uint64(i) == n%keys {
				ops = append(ops, deleteOp(key(i), nil))
			} else {
				ops = append(ops, putOp(key(i), value(n), nil))
			}
		}
		d.apply(ops...)
	}
	write()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	reader := func(r uint64, get func(k string) (value []byte, st wire.Status, hit bool)) {
		defer wg.Done()
		rng := rand.New(rand.NewPCG(seed, r))
		for {
			select {
			case <-stop:
				return
			default:
			}
			i := rng.IntN(keys)
			before := d.e.Applied().Index
			got, st, hit := get(key(i))
			after := d.e.Applied().Index
			if !hit {
				continue
			}
			switch st {
			case wire.StatusOK:
				if n := binary.LittleEndian.Uint64(got); n < before || n > after {
					t.Errorf("key %d: state of entry %d, read between %d and %d", i, n, before, after)
					return
				}
			case wire.StatusNotFound:
				ok := false
				for n := before; n <= after; n++ {
					ok = ok || n%keys == uint64(i)
				}
				if !ok {
					t.Errorf("key %d: absent, read between %d and %d", i, before, after)
					return
				}
			default:
				t.Errorf("key %d: %v", i, st)
				return
			}
		}
	}
	wg.Add(3)
	defer wg.Wait()
	defer close(stop)
	// Readers: owned by this test; end when stop closes.
	go reader(1, func(k string) ([]byte, wire.Status, bool) {
		rec, _, st, err := d.e.Get(ReadOptions{Namespace: 1}, []byte(k), nil)
		if err != nil {
			t.Errorf("get: %v", err)
		}
		return rec.Value, st, true
	})
	go reader(2, func(k string) (value []byte, st wire.Status, hit bool) {
		st, hit = getCached(d.e, []byte(k), func(rec *wire.Record, at Point) { value = bytes.Clone(rec.Value) })
		return value, st, hit
	})
	go reader(3, func(k string) (value []byte, st wire.Status, hit bool) {
		items := wire.AppendItem(nil, &wire.Item{Op: wire.OpGet, Key: []byte(k)})
		payload, st, err := d.e.MultiGet(ReadOptions{Namespace: 1}, items, 1, nil)
		if err != nil || st != wire.StatusOK {
			return nil, st, true
		}
		var it wire.Item
		if _, err := wire.NextItem(payload[wire.ResultHeaderBytes:], &it); err != nil {
			t.Errorf("multiget: %v", err)
		}
		return it.Value, it.Status, true
	})
	// Each entry writes every key, so all stand in the tail and none is filled until a layer has gone to Badger; what readers fill
	// then stands beside the entries that follow.
	stats := func() Stats {
		st, err := d.e.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	for range 10 {
		before := stats()
		for range 20 {
			write()
		}
		deadline := time.Now().Add(30 * time.Second)
		for st := stats(); st.CacheHits == before.CacheHits || st.CacheEvicted == before.CacheEvicted || st.CacheFills == before.CacheFills; st = stats() {
			if t.Failed() || time.Now().After(deadline) {
				t.Fatalf("no use of the cache behind entry %d: %+v", d.index, st)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func TestGetCached_AfterPutGetAndDelete_Knows(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	rev := d.put("k", "v")
	calls := 0
	st, hit := getCached(d.e, []byte("k"), func(rec *wire.Record, at Point) {
		calls++
		if string(rec.Value) != "v" || rec.Meta.Version != rev || at != d.e.Applied() {
			t.Errorf("%+v at %+v", rec, at)
		}
	})
	if st != wire.StatusOK || !hit || calls != 1 {
		t.Fatalf("%v, %v, %d calls", st, hit, calls)
	}
	never := func(*wire.Record, Point) { t.Error("called without a record") }
	if st, hit := getCached(d.e, []byte("other"), never); hit {
		t.Fatalf("%v of a key that nobody asked for", st)
	}
	d.wantAbsent("other")
	if st, hit := getCached(d.e, []byte("other"), never); st != wire.StatusNotFound || !hit {
		t.Fatalf("%v, %v after a get", st, hit)
	}
	d.one(deleteOp("k", nil))
	if st, hit := getCached(d.e, []byte("k"), never); st != wire.StatusNotFound || !hit {
		t.Fatalf("%v, %v after a delete", st, hit)
	}
	// A record that is too long leaves the cache.
	d.put("k", "small")
	d.put("k", strings.Repeat("x", cachedBytesMax))
	if _, hit := getCached(d.e, []byte("k"), never); hit {
		t.Fatal("hit after the record outgrew the cache")
	}
}

func TestGet_Exists_AgreeOnMeta(t *testing.T) {
	for _, cacheBytes := range []int64{-1, 1 << 20} {
		o := engineOptions(t, t.TempDir())
		o.CacheBytes = cacheBytes
		o.ChunkThresholdBytes, o.ChunkBytes = 1<<10, 1<<10
		d := newDriver(t, o)
		for _, size := range []int{0, 1, 1000, 1025, 100_000} {
			ext := wire.AppendExtTag(nil, "size", fmt.Sprint(size))
			value := bytes.Repeat([]byte("v"), size)
			res := d.one(putOp("k", value, ext))
			rec, _, st, err := d.e.Get(ReadOptions{Namespace: 1}, []byte("k"), nil)
			if err != nil || st != wire.StatusOK || !bytes.Equal(rec.Value, value) || !bytes.Equal(rec.Ext, ext) {
				t.Fatalf("get of %d bytes: %v, %v, %d bytes", size, st, err, len(rec.Value))
			}
			want := wire.Meta{Version: res.Rev, CreatedAt: testEpoch, UpdatedAt: testEpoch, Checksum: wire.Checksum(value)}
			meta, st, err := d.e.Exists(ReadOptions{Namespace: 1}, []byte("k"))
			if err != nil || st != wire.StatusOK || meta != want || rec.Meta != want {
				t.Fatalf("exists of %d bytes: %v, %v, %+v; want %+v", size, st, err, meta, want)
			}
		}
		if _, st, err := d.e.Exists(ReadOptions{Namespace: 1}, []byte("none")); err != nil || st != wire.StatusNotFound {
			t.Fatalf("exists of nothing: %v, %v", st, err)
		}
	}
}

func TestGet_AtRevision_ShowsThePastOrRefuses(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	r1 := d.put("k", "one")
	gap := d.put("other", "x")
	d.now += 1e6
	res := d.one(putOp("k", []byte("two"), withTTL(nil, 10*time.Second)))
	d.now += 20e6
	r3 := d.put("last", "x")
	at := func(key string, rev wire.Revision) (string, wire.Status) {
		rec, _, st, err := d.e.Get(ReadOptions{Namespace: 1, AtRevision: rev}, []byte(key), nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(rec.Value), st
	}
	for _, x := range []struct {
		key  string
		rev  wire.Revision
		want string
		st   wire.Status
	}{
		{"k", r1, "one", wire.StatusOK},
		{"k", gap, "one", wire.StatusOK},
		{"k", res.Rev, "two", wire.StatusOK},
		{"k", r3, "", wire.StatusNotFound}, // its deadline had passed by then
		{"last", res.Rev, "", wire.StatusNotFound},
		{"k", wire.MakeRevision(999, 0), "", wire.StatusFutureRevision},
		{"k", 1, "", wire.StatusCompacted},
	} {
		if got, st := at(x.key, x.rev); got != x.want || st != x.st {
			t.Errorf("%q at %d: %q, %v; want %q, %v", x.key, x.rev, got, st, x.want, x.st)
		}
	}
	// Within one entry only what is certain is told.
	results := d.apply(putOp("a", []byte("a1"), nil), putOp("b", []byte("b1"), nil), putOp("a", []byte("a2"), nil))
	for _, x := range []struct {
		key  string
		rev  wire.Revision
		want string
		st   wire.Status
	}{
		{"b", results[1].Rev, "b1", wire.StatusOK},
		{"a", results[2].Rev, "a2", wire.StatusOK},
		{"a", results[1].Rev, "", wire.StatusCompacted}, // a1, but it is no longer there
		{"b", results[0].Rev, "", wire.StatusCompacted},
		{"other", results[0].Rev, "x", wire.StatusOK},
		{"none", results[0].Rev, "", wire.StatusCompacted},
		{"none", results[2].Rev, "", wire.StatusNotFound},
	} {
		if got, st := at(x.key, x.rev); got != x.want || st != x.st {
			t.Errorf("%q within an entry at %d: %q, %v; want %q, %v", x.key, x.rev, got, st, x.want, x.st)
		}
	}
	if _, st, err := d.e.Exists(ReadOptions{Namespace: 1, MinRevision: wire.MakeRevision(d.index+1, 0)}, []byte("k")); err != nil || st != wire.StatusFutureRevision {
		t.Errorf("min revision in the future: %v, %v", st, err)
	}
	if _, st, err := d.e.Exists(ReadOptions{Namespace: 1, MinRevision: d.e.Applied().Revision}, []byte("last")); err != nil || st != wire.StatusOK {
		t.Errorf("min revision of now: %v, %v", st, err)
	}
}

func TestMultiGet_MixedKeys_AnswersInOrderAndWithinBounds(t *testing.T) {
	for _, cacheBytes := range []int64{-1, 1 << 20} {
		o := engineOptions(t, t.TempDir())
		o.CacheBytes = cacheBytes
		o.ChunkThresholdBytes = 4 << 10
		d := newDriver(t, o)
		d.put("a", "value a")
		d.one(putOp("big", bytes.Repeat([]byte("b"), 100_000), wire.AppendExtTag(nil, "t", "v")))
		d.one(putOp("gone", []byte("x"), withTTL(nil, time.Millisecond)))
		d.now += 1e6
		d.put("z", "value z")
		if err := d.e.Close(); err != nil { // an empty cache
			t.Fatal(err)
		}
		d.e = mustOpen(t, o)
		var items []byte
		keys := []string{"z", "none", "big", "gone", "a", "z"}
		for _, k := range keys {
			items = wire.AppendItem(items, &wire.Item{Op: wire.OpGet, Key: []byte(k)})
		}
		for _, replyMax := range []int{0, 50_000} {
			payload, st, err := d.e.MultiGet(ReadOptions{Namespace: 1, ReplyBytesMax: replyMax}, items, len(keys), []byte("pre"))
			if err != nil || st != wire.StatusOK {
				t.Fatalf("%v, %v", st, err)
			}
			if cacheBytes > 0 {
				for _, k := range []string{"z", "none", "a"} {
					if _, hit := getCached(d.e, []byte(k), func(*wire.Record, Point) {}); !hit {
						t.Errorf("key %q is not cached", k)
					}
				}
			}
			rev, n, rest, err := wire.DecodeResult(payload[3:])
			if err != nil || n != len(keys) || rev != d.e.Applied().Revision {
				t.Fatalf("%d items at %d, %v", n, rev, err)
			}
			bigStatus := wire.StatusOK
			if replyMax > 0 {
				bigStatus = wire.StatusReplyFull
				if len(payload)-3 > replyMax {
					t.Fatalf("answer of %d bytes, bound %d", len(payload)-3, replyMax)
				}
			}
			want := []wire.Status{wire.StatusOK, wire.StatusNotFound, bigStatus, wire.StatusNotFound, wire.StatusOK, wire.StatusOK}
			for i, k := range keys {
				var it wire.Item
				if rest, err = wire.NextItem(rest, &it); err != nil {
					t.Fatal(err)
				}
				if it.Status != want[i] || len(it.Key) != 0 {
					t.Errorf("key %q: %v; want %v", k, it.Status, want[i])
				}
				if it.Status == wire.StatusOK && k != "big" && string(it.Value) != "value "+k {
					t.Errorf("key %q: %q", k, it.Value)
				}
				if it.Status == wire.StatusOK && k == "big" && len(it.Value) != 100_000 {
					t.Errorf("key %q: %d bytes", k, len(it.Value))
				}
			}
			if len(rest) != 0 {
				t.Errorf("%d bytes left", len(rest))
			}
		}
	}
}

func TestGet_CacheHit_AllocatesNothing(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.put("k", strings.Repeat("v", 128))
	key, buf := []byte("k"), make([]byte, 0, 1024)
	if raceEnabled {
		t.Skip("the pool drops objects at random")
	}
	if n := testing.AllocsPerRun(1000, func() {
		if _, _, st, err := d.e.Get(ReadOptions{Namespace: 1}, key, buf); st != wire.StatusOK || err != nil {
			t.Fatal(st, err)
		}
	}); n != 0 {
		t.Errorf("Get allocates %v times", n)
	}
}
