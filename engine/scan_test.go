package engine

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

type listed struct {
	key, value string
	meta       wire.Meta
	ext        []byte
}

// page reads one page and returns its items and cursor.
func page(t testing.TB, e *Engine, req *wire.ScanRequest) ([]listed, []byte, wire.Revision) {
	t.Helper()
	payload, st, err := e.Scan(ReadOptions{Namespace: 1}, req, []byte("before"))
	if err != nil || st != wire.StatusOK {
		t.Fatalf("scan: %v, %v", st, err)
	}
	if !bytes.HasPrefix(payload, []byte("before")) {
		t.Fatal("scan wrote over what stood before its page")
	}
	var p wire.ScanPage
	if err := wire.DecodeScanPage(payload[len("before"):], &p); err != nil {
		t.Fatal(err)
	}
	var out []listed
	items := p.Items
	for range p.Count {
		var it wire.Item
		if items, err = wire.NextItem(items, &it); err != nil {
			t.Fatal(err)
		}
		typ, v, kept, err := wire.NextExt(it.Ext)
		if err != nil || typ != wire.ExtMeta {
			t.Fatalf("item without meta: %v, %v", typ, err)
		}
		x := listed{key: string(it.Key), value: string(it.Value), ext: bytes.Clone(kept)}
		if err := wire.DecodeMeta(v, &x.meta); err != nil {
			t.Fatal(err)
		}
		out = append(out, x)
	}
	if len(items) != 0 {
		t.Fatalf("%d bytes behind the items", len(items))
	}
	return out, bytes.Clone(p.Cursor), p.Revision
}

// listAll reads all pages and checks that they show one revision.
func listAll(t testing.TB, e *Engine, req *wire.ScanRequest) (all []listed) {
	t.Helper()
	r := *req
	var rev wire.Revision
	for {
		items, cursor, got := page(t, e, &r)
		if rev == 0 {
			rev = got
		}
		if got != rev {
			t.Fatalf("page of revision %d in a listing of %d", got, rev)
		}
		all = append(all, items...)
		if len(cursor) == 0 {
			return all
		}
		r.Cursor = cursor
	}
}

func keysOf(items []listed) (keys []string) {
	for _, it := range items {
		keys = append(keys, it.key)
	}
	return keys
}

func TestScan_BoundsAndDirections_ListWhatTheySay(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	keys := []string{"a", "ab", "ab/1", "ab/2", "ab0", "b", "b\x00", "c", "\U0010ffff"}
	for _, k := range keys {
		d.put(k, "value of "+k)
	}
	in := func(prefix, start, end string) (out []string) {
		for _, k := range keys {
			if strings.HasPrefix(k, prefix) && k >= start && (end == "" || k < end) {
				out = append(out, k)
			}
		}
		return out
	}
	bounds := []string{"", "a", "ab", "ab/", "ab/2", "b", "b\x00", "c", "zz", "\U0010ffff"}
	for _, prefix := range bounds {
		for _, start := range bounds {
			for _, end := range bounds {
				for flags := range uint8(4) {
					for _, limit := range []uint32{1, 2, 100} {
						req := &wire.ScanRequest{Flags: flags, Limit: limit, BytesMax: 1 << 20, Prefix: []byte(prefix), Start: []byte(start), End: []byte(end)}
						got := listAll(t, d.e, req)
						want := in(prefix, start, end)
						if flags&wire.ScanReverse != 0 {
							slices.Reverse(want)
						}
						if !slices.Equal(keysOf(got), want) {
							t.Fatalf("prefix %q, start %q, end %q, flags %d, limit %d: %q, want %q", prefix, start, end, flags, limit, keysOf(got), want)
						}
						for _, it := range got {
							value := "value of " + it.key
							if flags&wire.ScanKeysOnly != 0 {
								value = ""
							}
							if it.value != value || it.meta.Version == 0 {
								t.Fatalf("item %+v, want value %q", it, value)
							}
						}
					}
				}
			}
		}
	}
}

func TestScan_KeysRewrittenBetweenPages_ShowOneRevision(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	for i := range 50 {
		d.put(fmt.Sprintf("k%02d", i), "old")
	}
	d.now += 1e6
	d.one(putOp("k25x", []byte("old"), withTTL(nil, time.Second)))
	for _, flags := range []uint8{0, wire.ScanReverse} {
		req := wire.ScanRequest{Flags: flags, Limit: 7, BytesMax: 1 << 20}
		var all []listed
		for n := 0; ; n++ {
			items, cursor, _ := page(t, d.e, &req)
			all = append(all, items...)
			if len(cursor) == 0 {
				break
			}
			req.Cursor = cursor
			// Rewrite, delete, add; and let time pass the deadline: the listing's time stands still.
			d.now += 2e6
			for i := range 50 {
				d.put(fmt.Sprintf("k%02d", i), fmt.Sprintf("new %d", n))
			}
			d.one(deleteOp(fmt.Sprintf("k%02d", (n*13)%50), nil))
			d.put(fmt.Sprintf("k%02dz", n), "added")
			d.one(expireOp(100))
			if err := d.e.CheckpointNow(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if len(all) != 51 {
			t.Fatalf("flags %d: %d items, want 51: %q", flags, len(all), keysOf(all))
		}
		for _, it := range all {
			if it.value != "old" {
				t.Fatalf("flags %d: %q has value %q of a later revision", flags, it.key, it.value)
			}
		}
		// The second round lists the same data again.
		for _, it := range listAll(t, d.e, &wire.ScanRequest{Limit: 100, BytesMax: 1 << 20}) {
			d.one(deleteOp(it.key, nil))
		}
		for i := range 50 {
			d.put(fmt.Sprintf("k%02d", i), "old")
		}
		d.one(putOp("k25x", []byte("old"), withTTL(nil, time.Second)))
	}
}

func TestScan_BytesMax_EndsThePage(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	value := strings.Repeat("v", 1000)
	for i := range 20 {
		d.put(fmt.Sprintf("k%02d", i), value)
	}
	items, cursor, _ := page(t, d.e, &wire.ScanRequest{Limit: 100, BytesMax: 3500})
	if len(items) != 3 || len(cursor) == 0 {
		t.Fatalf("%d items and a cursor of %d bytes; want 3 and one", len(items), len(cursor))
	}
	items, cursor, _ = page(t, d.e, &wire.ScanRequest{Limit: 100, BytesMax: 10})
	if len(items) != 1 || len(cursor) == 0 {
		t.Fatalf("%d items and a cursor of %d bytes; want the first item and one", len(items), len(cursor))
	}
}

func TestScan_ForeignCursors_AreRefused(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	for i := range 5 {
		d.put(fmt.Sprintf("k%d", i), "v")
	}
	base := wire.ScanRequest{Limit: 2, BytesMax: 1 << 20, Prefix: []byte("k")}
	_, token, _ := page(t, d.e, &base)
	var c cursor
	if err := decodeCursor(token, &c); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(token)
	flipped[20] ^= 1
	otherHistory := c
	otherHistory.history[0] ^= 1
	otherTime := c
	otherTime.time++
	future := c
	future.rev = wire.MakeRevision(1000, 0)
	for name, x := range map[string]struct {
		req  wire.ScanRequest
		want wire.Status
	}{
		"garbage":        {wire.ScanRequest{Limit: 2, BytesMax: 1 << 20, Prefix: []byte("k"), Cursor: []byte("garbage")}, wire.StatusBadRequest},
		"changed":        {wire.ScanRequest{Limit: 2, BytesMax: 1 << 20, Prefix: []byte("k"), Cursor: flipped}, wire.StatusBadRequest},
		"other bounds":   {wire.ScanRequest{Limit: 2, BytesMax: 1 << 20, Prefix: []byte("k0"), Cursor: token}, wire.StatusBadRequest},
		"other flags":    {wire.ScanRequest{Flags: wire.ScanReverse, Limit: 2, BytesMax: 1 << 20, Prefix: []byte("k"), Cursor: token}, wire.StatusBadRequest},
		"other history":  {wire.ScanRequest{Limit: 2, BytesMax: 1 << 20, Prefix: []byte("k"), Cursor: appendCursor(nil, &otherHistory)}, wire.StatusCompacted},
		"other time":     {wire.ScanRequest{Limit: 2, BytesMax: 1 << 20, Prefix: []byte("k"), Cursor: appendCursor(nil, &otherTime)}, wire.StatusCompacted},
		"future":         {wire.ScanRequest{Limit: 2, BytesMax: 1 << 20, Prefix: []byte("k"), Cursor: appendCursor(nil, &future)}, wire.StatusFutureRevision},
		"other pages ok": {wire.ScanRequest{Limit: 9, BytesMax: 1 << 10, Prefix: []byte("k"), Cursor: token}, wire.StatusOK},
	} {
		payload, st, err := d.e.Scan(ReadOptions{Namespace: 1}, &x.req, nil)
		if err != nil || st != x.want {
			t.Errorf("%s: %v, %v; want %v", name, st, err, x.want)
		}
		if st != wire.StatusOK && len(payload) != 0 {
			t.Errorf("%s: a payload of %d bytes", name, len(payload))
		}
	}
	if _, st, err := d.e.Scan(ReadOptions{Namespace: 2}, &wire.ScanRequest{Limit: 2, BytesMax: 1 << 20, Prefix: []byte("k"), Cursor: token}, nil); err != nil || st != wire.StatusBadRequest {
		t.Errorf("other namespace: %v, %v; want bad request", st, err)
	}
}

func TestScan_AtRevision_ListsThePast(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	for i := range 5 {
		d.put(fmt.Sprintf("k%d", i), "old")
	}
	last := d.e.Applied().Revision
	d.index++ // an index that brings no entry here
	d.apply(putOp("k0", []byte("new"), nil), putOp("k1", []byte("new"), nil))
	for _, at := range []wire.Revision{last, wire.MakeRevision(wire.RevisionTS(last)+1, 0)} {
		payload, st, err := d.e.Scan(ReadOptions{Namespace: 1, AtRevision: at}, &wire.ScanRequest{Limit: 2, BytesMax: 1 << 20}, nil)
		var p wire.ScanPage
		if err != nil || st != wire.StatusOK || wire.DecodeScanPage(payload, &p) != nil || p.Revision != last {
			t.Fatalf("at %d: %v, %v, revision %d, want %d", at, st, err, p.Revision, last)
		}
		for _, it := range listAll(t, d.e, &wire.ScanRequest{Limit: 2, BytesMax: 1 << 20, Cursor: p.Cursor}) {
			if it.value != "old" {
				t.Errorf("at %d: %+v", at, it)
			}
		}
	}
	within := wire.MakeRevision(d.index, 0)
	if _, st, err := d.e.Scan(ReadOptions{Namespace: 1, AtRevision: within}, &wire.ScanRequest{Limit: 2, BytesMax: 1 << 20}, nil); err != nil || st != wire.StatusCompacted {
		t.Errorf("within an entry: %v, %v; want compacted", st, err)
	}
}
