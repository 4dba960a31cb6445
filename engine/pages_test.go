package engine

import (
	"fmt"
	"testing"
	"time"

	"kvstore/wire"
)

func TestScan_SlowListing_OutlivesTheHistoryWindowWhilePagesAreAskedFor(t *testing.T) {
	clock := time.Unix(0, 0)
	o := engineOptions(t, t.TempDir())
	o.HistoryWindow = -1 // nothing is kept but what is pinned
	o.hooks.now = func() time.Time { return clock }
	d := newDriver(t, o)
	for i := range 6 {
		d.put(fmt.Sprintf("k%d", i), "old")
	}
	rewrite := func() {
		t.Helper()
		for i := range 6 {
			d.put(fmt.Sprintf("k%d", i), "new")
		}
		if err := d.e.CheckpointNow(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	req := wire.ScanRequest{Limit: 1, BytesMax: 1 << 20}
	for i := range 5 {
		items, cursor, _ := page(t, d.e, &req)
		if len(items) != 1 || items[0].value != "old" {
			t.Fatalf("page %d: %+v", i, items)
		}
		req.Cursor = cursor
		rewrite()
		clock = clock.Add(pagePinAge - time.Second) // each page renews the hold
	}
	if n := d.e.live.Load().pages.count(); n != 1 {
		t.Fatalf("%d revisions held, want 1", n)
	}
	// A listing that nobody goes on with loses its revision, once another one sweeps.
	clock = clock.Add(2 * pagePinAge)
	_, other, _ := page(t, d.e, &wire.ScanRequest{Limit: 1, BytesMax: 1 << 20})
	if len(other) == 0 || d.e.live.Load().pages.count() != 1 {
		t.Fatalf("%d revisions held, want the other's alone", d.e.live.Load().pages.count())
	}
	rewrite()
	if _, st, err := d.e.Scan(ReadOptions{Namespace: 1}, &req, nil); err != nil || st != wire.StatusCompacted {
		t.Fatalf("%v, %v; want compacted", st, err)
	}
}

func TestScan_ManyExpiredRecords_PageEndsWithItsWorkBounded(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	const perEntry = 10_000
	for i := 0; i < scanVisitsMax+perEntry; i += perEntry {
		ops := make([]testOp, perEntry)
		for j := range ops {
			ops[j] = putOp(fmt.Sprintf("expired/%06d", i+j), nil, withTTL(nil, time.Millisecond))
		}
		d.apply(ops...)
	}
	d.now += 1e6
	d.put("z", "live")
	req := wire.ScanRequest{Limit: 10, BytesMax: 1 << 20}
	items, cursor, _ := page(t, d.e, &req)
	if len(items) != 0 || len(cursor) == 0 {
		t.Fatalf("%d items and a cursor of %d bytes; want an empty page and one", len(items), len(cursor))
	}
	if all := listAll(t, d.e, &req); len(all) != 1 || all[0].key != "z" {
		t.Fatalf("%+v", all)
	}
}
