package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

// listedRecord is what a listing's model knows of a key.
type listedRecord struct {
	value   string
	expires int64 // 0: never
}

// listModel is a state: the keys of one namespace, and its time.
type listModel struct {
	records map[string]listedRecord
	now     int64
}

// list gives the names that a listing shows, in order.
func (m *listModel) list(req *wire.ScanRequest) (names []string) {
	var keys []string
	for k, r := range m.records {
		if r.expires != 0 && r.expires <= m.now || !strings.HasPrefix(k, string(req.Prefix)) || k < string(req.Start) || len(req.End) > 0 && k >= string(req.End) {
			continue
		}
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if i := strings.Index(k[len(req.Prefix):], string(req.Delimiter)); len(req.Delimiter) > 0 && i >= 0 {
			k = k[:len(req.Prefix)+i+len(req.Delimiter)] + " …"
		}
		if len(names) == 0 || names[len(names)-1] != k {
			names = append(names, k)
		}
	}
	if req.Flags&wire.ScanReverse != 0 {
		slices.Reverse(names)
	}
	return names
}

// walkListing asks for all pages of a listing, each of them bounded as it says, and gives the names and the count. Each
// item's value is checked against m, unless that is nil.
func walkListing(t testing.TB, e *Engine, ns uint32, req wire.ScanRequest, between func()) (names []string, values map[string]string, counted int, rev wire.Revision) {
	t.Helper()
	values = make(map[string]string)
	for pages := 0; ; pages++ {
		if pages > 100_000 {
			t.Fatal("the listing has no end")
		}
		payload, st, err := e.Scan(ReadOptions{Namespace: ns}, &req, nil)
		if err != nil || st != wire.StatusOK {
			t.Fatalf("page %d of %+v: %v, %v", pages, req, st, err)
		}
		var p wire.ScanPage
		if err := wire.DecodeScanPage(payload, &p); err != nil {
			t.Fatal(err)
		}
		if rev == 0 {
			rev = p.Revision
		}
		if p.Revision != rev || p.Count > int(req.Limit) || p.Count > 1 && len(p.Items) > int(req.BytesMax) {
			t.Fatalf("page of revision %d in a listing of %d, with %d items in %d bytes; asked for %d in %d", p.Revision, rev, p.Count, len(p.Items), req.Limit, req.BytesMax)
		}
		counted += p.Counted
		items := p.Items
		for range p.Count {
			var it wire.Item
			if items, err = wire.NextItem(items, &it); err != nil {
				t.Fatal(err)
			}
			switch {
			case it.Status != wire.StatusOK || it.Op == wire.OpScan && len(it.Ext)+len(it.Value) > 0:
				t.Fatalf("item %+v", it)
			case it.Op == wire.OpScan:
				names = append(names, string(it.Key)+" …")
			default:
				names = append(names, string(it.Key))
				values[string(it.Key)] = string(it.Value)
			}
		}
		if len(p.Cursor) == 0 {
			return names, values, counted, rev
		}
		req.Cursor = bytes.Clone(p.Cursor)
		if between != nil {
			between()
		}
	}
}

var listingDelimiters = []string{"", "", "/", "//", "é", "a", "/a"}

// randomKey makes keys that begin alike, with delimiters in them and at their ends.
func randomKey(rng *rand.Rand) string {
	parts := []string{"a", "b", "/", "/", "//", "é", "\U0010ffff", "\x00", "0", "\u00ff"}
	var b strings.Builder
	for range 1 + rng.IntN(6) {
		b.WriteString(parts[rng.IntN(len(parts))])
	}
	return b.String()
}

func randomListing(rng *rand.Rand) wire.ScanRequest {
	bound := func() []byte {
		switch rng.IntN(6) {
		case 0:
			return []byte(randomKey(rng))
		case 1:
			k := randomKey(rng)
			return []byte(k[:rng.IntN(len(k))]) // perhaps within a character
		case 2:
			return append([]byte(randomKey(rng)), 0xff)
		case 3:
			return []byte{"\xff\x00a/\xc3\xf4"[rng.IntN(6)]}
		}
		return nil
	}
	req := wire.ScanRequest{
		Limit: 1 + rng.Uint32N(5), BytesMax: []uint32{1, 200, 1 << 20}[rng.IntN(3)],
		Start: bound(), End: bound(), Flags: uint8(rng.IntN(4)), // reverse, keys only
	}
	if rng.IntN(2) == 0 {
		req.Prefix = bound()
	}
	if rng.IntN(4) == 0 {
		req.Flags |= wire.ScanCount
	} else {
		req.Delimiter = []byte(listingDelimiters[rng.IntN(len(listingDelimiters))])
	}
	return req
}

// checkListing compares a listing with its model.
func checkListing(t testing.TB, m *listModel, req *wire.ScanRequest, names []string, values map[string]string, counted int) {
	t.Helper()
	want := m.list(req)
	if req.Flags&wire.ScanCount != 0 {
		if counted != len(want) || len(names) > 0 {
			t.Fatalf("%+v: %d counted, %d items; want %d: %q", req, counted, len(names), len(want), want)
		}
		return
	}
	if !slices.Equal(names, want) || counted != 0 {
		t.Fatalf("prefix %q, start %q, end %q, delimiter %q, flags %d:\n%q, want\n%q", req.Prefix, req.Start, req.End, req.Delimiter, req.Flags, names, want)
	}
	for k, v := range values {
		want := m.records[k].value
		if req.Flags&wire.ScanKeysOnly != 0 {
			want = ""
		}
		if v != want {
			t.Fatalf("%q has value %q, want %q", k, short(v), short(want))
		}
	}
}

func TestScan_RandomKeysAndBounds_ListWhatTheModelDoes(t *testing.T) {
	seed := testSeed(t)
	rng := rand.New(rand.NewPCG(seed, 31))
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for range rounds {
		o := engineOptions(t, t.TempDir())
		o.hooks.scanVisits = []int{1, 2, 5, 1000}[rng.IntN(4)]
		o.ChunkThresholdBytes, o.ChunkBytes = 2<<10, 1<<10
		d := newDriver(t, o)
		m := &listModel{records: make(map[string]listedRecord)}
		for range 20 + rng.IntN(100) {
			k, r := randomKey(rng), listedRecord{value: strings.Repeat("v", rng.IntN(100))}
			var ext []byte
			switch rng.IntN(8) {
			case 0, 1: // expires before the listings begin
				ext, r.expires = withTTL(nil, time.Second), d.now+1e6
			case 2:
				r.value = strings.Repeat("long", 1000) // in pieces
			case 3:
				r.value, ext = strings.Repeat("long", 1000), withCompress(nil, wire.CodecS2)
			}
			d.one(putOp(k, []byte(r.value), ext))
			m.records[k] = r
		}
		d.now += 2e6
		d.put("the last", "")
		m.records["the last"] = listedRecord{}
		m.now = d.now
		for range 400 {
			req := randomListing(rng)
			names, values, counted, _ := walkListing(t, d.e, 1, req, nil)
			checkListing(t, m, &req, names, values, counted)
		}
		if err := d.e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// inOther ends the values of the other namespace; it is long enough for them to be compressed.
var inOther = strings.Repeat(" in the other namespace", 50)

// A listing begun in one state goes on in it, whatever mode it has and whatever is written meanwhile: the store keeps
// nothing here but what listings hold.
func TestScan_ConcurrentWritesAndCheckpoints_EachListingShowsOneRevision(t *testing.T) {
	seed := testSeed(t)
	o := engineOptions(t, t.TempDir())
	o.HistoryWindow = -1
	o.hooks.scanVisits = 7
	d := newDriver(t, o)
	d.one(createOp("other", wire.NamespaceSettings{Compress: wire.CodecLZ4}))
	other, ok := d.e.Namespace([]byte("other"))
	if !ok {
		t.Fatal("no namespace")
	}
	m := listModel{records: make(map[string]listedRecord)} // of both namespaces, but for what inOther adds
	setup := rand.New(rand.NewPCG(seed, 32))
	keys := make([]string, 200)
	for i := range keys {
		keys[i] = randomKey(setup)
	}

	var mu sync.Mutex // guards states; held around an entry and the note of what it made
	states := make(map[wire.Revision]listModel)
	step := func(rng *rand.Rand) {
		mu.Lock()
		defer mu.Unlock()
		d.now += int64(rng.IntN(1e6))
		var ops []testOp
		for range 3 {
			k := keys[rng.IntN(len(keys))]
			if slices.ContainsFunc(ops, func(o testOp) bool { return string(o.Key) == k }) {
				continue
			}
			if r, ok := m.records[k]; ok && rng.IntN(3) == 0 {
				if r.expires == 0 || r.expires > d.now {
					ops = append(ops, deleteOp(k, nil), deleteOp(k, nil).in(other))
					delete(m.records, k)
				}
				continue
			}
			r := listedRecord{value: fmt.Sprint("at ", d.index)}
			var ext []byte
			if rng.IntN(3) == 0 {
				ext, r.expires = withTTL(nil, time.Second), d.now+1e6
			}
			ops = append(ops, putOp(k, []byte(r.value), ext), putOp(k, []byte(r.value+inOther), ext).in(other))
			m.records[k] = r
		}
		if rng.IntN(5) == 0 {
			ops = append(ops, expireOp(1000))
			for k, r := range m.records {
				if r.expires != 0 && r.expires <= d.now {
					delete(m.records, k)
				}
			}
		}
		d.apply(ops...)
		state := listModel{records: make(map[string]listedRecord, len(m.records)), now: d.now}
		for k, r := range m.records {
			state.records[k] = r
		}
		states[d.e.Applied().Revision] = state
	}
	for range 100 {
		step(setup)
	}
	var writer sync.WaitGroup
	stop := make(chan struct{})
	writer.Go(func() { // ends when stop is closed
		rng := rand.New(rand.NewPCG(seed, 33))
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			step(rng)
			if n%20 == 0 {
				if err := d.e.CheckpointNow(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	defer writer.Wait()
	defer close(stop)
	rng := rand.New(rand.NewPCG(seed, 34))
	moved := 0
	for range 40 {
		req := randomListing(rng)
		pages := 0
		ns := []uint32{wire.NamespaceDefault, other}[rng.IntN(2)]
		names, values, counted, rev := walkListing(t, d.e, ns, req, func() {
			// Between some pages something is written for sure.
			if pages++; pages%8 == 1 {
				for before := d.e.Applied(); d.e.Applied() == before && !t.Failed(); {
					time.Sleep(time.Millisecond)
				}
				moved++
			}
		})
		mu.Lock()
		state, ok := states[rev]
		mu.Unlock()
		if !ok {
			t.Fatalf("revision %d was never that of a state", rev)
		}
		if ns == other {
			for k, v := range values {
				own, ok := strings.CutSuffix(v, inOther)
				if !ok && req.Flags&wire.ScanKeysOnly == 0 {
					t.Fatalf("%q has value %q of the other namespace", k, v)
				}
				values[k] = own
			}
		}
		checkListing(t, &state, &req, names, values, counted)
	}
	if moved < 20 {
		t.Errorf("only %d times was something written between pages", moved)
	}
	if n := d.e.live.Load().pages.count(); n == 0 {
		t.Error("no listing had a revision held")
	}
}

func TestScan_CursorOfAnotherMode_IsRefused(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	o.hooks.scanVisits = 2
	d := newDriver(t, o)
	for i := range 9 {
		d.put(fmt.Sprintf("a/%d", i), "v")
		d.put(fmt.Sprintf("b/%d", i), "v")
	}
	base := wire.ScanRequest{Limit: 1, BytesMax: 1 << 20}
	modes := map[string]wire.ScanRequest{"plain": base}
	for name, change := range map[string]func(*wire.ScanRequest){
		"keys only": func(r *wire.ScanRequest) { r.Flags = wire.ScanKeysOnly },
		"count":     func(r *wire.ScanRequest) { r.Flags = wire.ScanCount },
		"reverse":   func(r *wire.ScanRequest) { r.Flags = wire.ScanReverse },
		"/":         func(r *wire.ScanRequest) { r.Delimiter = []byte("/") },
		"//":        func(r *wire.ScanRequest) { r.Delimiter = []byte("//") },
	} {
		req := base
		change(&req)
		modes[name] = req
	}
	for of, req := range modes {
		payload, st, err := d.e.Scan(ReadOptions{Namespace: 1}, &req, nil)
		var p wire.ScanPage
		if err != nil || st != wire.StatusOK || wire.DecodeScanPage(payload, &p) != nil || len(p.Cursor) == 0 {
			t.Fatalf("%s: %v, %v, no cursor", of, st, err)
		}
		for in, next := range modes {
			want := wire.StatusBadRequest
			if in == of {
				want = wire.StatusOK
			}
			for _, flags := range []uint8{0, wire.ScanStream} { // a stream that broke off goes on in pages
				next := next
				next.Cursor, next.Flags = p.Cursor, next.Flags|flags
				if _, st, err := d.e.Scan(ReadOptions{Namespace: 1}, &next, nil); err != nil || st != want {
					t.Errorf("cursor of %q in a listing of %q: %v, %v; want %v", of, in, st, err, want)
				}
			}
		}
	}
}

// A cursor with another place in it, rightly summed, shows nothing beyond the bounds of its listing.
func TestScan_CursorThatPointsBeyondTheBounds_ShowsNothingThere(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	for _, k := range []string{"a/1", "a9", "b/1", "b/2", "b/3", "c/1"} {
		d.put(k, "v")
	}
	for _, flags := range []uint8{0, wire.ScanReverse} {
		for _, last := range []string{"a", "a/", "z", "b/2", "\xff"} {
			for _, rolled := range []bool{false, true} {
				req := wire.ScanRequest{Flags: flags, Limit: 1, BytesMax: 1 << 20, Prefix: []byte("b/"), Delimiter: []byte("/")}
				_, token, _ := page(t, d.e, &req)
				var c cursor
				if err := decodeCursor(token, &c); err != nil {
					t.Fatal(err)
				}
				c.last, c.rolled = []byte(last), rolled
				req.Cursor, req.Limit = appendCursor(nil, &c), 100
				payload, st, err := d.e.Scan(ReadOptions{Namespace: 1}, &req, nil)
				if err != nil || st != wire.StatusOK {
					t.Fatalf("%q: %v, %v", last, st, err)
				}
				if bytes.Contains(payload, []byte("a/1")) || bytes.Contains(payload, []byte("a9")) || bytes.Contains(payload, []byte("c/1")) {
					t.Errorf("flags %d, cursor at %q shows what lies beyond %q", flags, last, req.Prefix)
				}
			}
		}
	}
}

// What a page looks at is bounded in bytes, also where it shows none of them.
func TestScan_CountOfLargeRecords_PageEndsWithItsBytesBounded(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	o.MemtableBytes = 16 << 20
	d := newDriver(t, o)
	const records = scanReadBytesMax/(500<<10) + 10
	for i := range records {
		d.put(fmt.Sprintf("k%04d", i), strings.Repeat("v", 500<<10))
	}
	pages, counted := 0, 0
	req := wire.ScanRequest{Flags: wire.ScanCount, Limit: 1, BytesMax: 1}
	for {
		payload, st, err := d.e.Scan(ReadOptions{Namespace: 1}, &req, nil)
		var p wire.ScanPage
		if err != nil || st != wire.StatusOK || wire.DecodeScanPage(payload, &p) != nil || p.Count != 0 || len(p.Items) != 0 {
			t.Fatalf("%v, %v, %+v", st, err, p)
		}
		pages++
		counted += p.Counted
		if req.Cursor = p.Cursor; len(p.Cursor) == 0 {
			break
		}
	}
	if pages != 2 || counted != records {
		t.Fatalf("%d records counted in %d pages, want %d in 2", counted, pages, records)
	}
}
