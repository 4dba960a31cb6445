package engine

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

// wantStatuses compares the statuses of results.
func wantStatuses(t testing.TB, results []wire.Result, want ...wire.Status) {
	t.Helper()
	if len(results) != len(want) {
		t.Fatalf("%d results, want %d", len(results), len(want))
	}
	for i, st := range want {
		if results[i].Status != st {
			t.Errorf("operation %d: %v %q, want %v", i, results[i].Status, results[i].Payload, st)
		}
	}
}

// namespaceNamed gives what readers see of a namespace.
func (d *driver) namespaceNamed(name string) Namespace {
	d.t.Helper()
	id, ok := d.e.Namespace([]byte(name))
	if !ok {
		d.t.Fatalf("there is no namespace %q", name)
	}
	n, ok := d.e.NamespaceByID(id)
	if !ok || n.Name != name {
		d.t.Fatalf("namespace %d is %+v, %v; want %q", id, n, ok, name)
	}
	return n
}

func TestNamespace_EachChange_DoesWhatItSays(t *testing.T) {
	settings := wire.NamespaceSettings{BytesMax: 1, KeysMax: 2, OpsPerSecond: 3, WatchesMax: 4, Compress: wire.CodecZstd}
	change := func(action wire.NamespaceAction, name string) testOp {
		return namespaceOp(wire.NamespaceChange{Action: action, Name: name, Settings: settings})
	}
	cut := change(wire.NamespaceCreate, "x")
	cut.Payload = cut.Payload[:10]
	longest := strings.Repeat("n", wire.NamespaceBytesMax)
	d := newDriver(t, engineOptions(t, t.TempDir()))
	for _, c := range []struct {
		what string
		op   testOp
		want wire.Status
	}{
		{"create", change(wire.NamespaceCreate, "app"), wire.StatusOK},
		{"create again", change(wire.NamespaceCreate, "app"), wire.StatusNamespaceExists},
		{"create the default one", change(wire.NamespaceCreate, "default"), wire.StatusNamespaceExists},
		{"create with the longest name", change(wire.NamespaceCreate, longest), wire.StatusOK},
		{"create with a longer name", change(wire.NamespaceCreate, longest+"n"), wire.StatusBadRequest},
		{"create without a name", change(wire.NamespaceCreate, ""), wire.StatusBadRequest},
		{"create with a name of control characters", change(wire.NamespaceCreate, "a\x00b"), wire.StatusBadRequest},
		{"create with a name in UTF-8", change(wire.NamespaceCreate, "é"), wire.StatusBadRequest},
		{"create that is cut", cut, wire.StatusBadRequest},
		{"set", change(wire.NamespaceSet, "app"), wire.StatusOK},
		{"set the default one", namespaceOp(wire.NamespaceChange{Action: wire.NamespaceSet, Name: "default"}), wire.StatusOK},
		{"set one that is not there", change(wire.NamespaceSet, "none"), wire.StatusNoNamespace},
		{"drop one that is not there", change(wire.NamespaceDrop, "none"), wire.StatusNoNamespace},
		{"drop the default one", change(wire.NamespaceDrop, "default"), wire.StatusBadRequest},
		{"purge one that is not dropped", purgeOp(2, 10), wire.StatusNoNamespace},
		{"purge one that was never there", purgeOp(99, 10), wire.StatusNoNamespace},
		{"purge the default one", purgeOp(1, 10), wire.StatusBadRequest},
		{"purge the system's", purgeOp(0, 10), wire.StatusBadRequest},
		{"purge nothing", purgeOp(2, 0), wire.StatusBadRequest},
		{"drop", change(wire.NamespaceDrop, "app"), wire.StatusOK},
		{"drop again", change(wire.NamespaceDrop, "app"), wire.StatusNoNamespace},
		{"set a dropped one", change(wire.NamespaceSet, "app"), wire.StatusNoNamespace},
		{"an unknown action", change(9, "app"), wire.StatusBadRequest},
		{"create under the name of a dropped one", change(wire.NamespaceCreate, "app"), wire.StatusOK},
		{"purge", purgeOp(2, 1), wire.StatusOK},
		{"purge again", purgeOp(2, 1), wire.StatusNoNamespace},
	} {
		res := d.one(c.op)
		if res.Status != c.want || (res.Rev != 0) != (c.want == wire.StatusOK) {
			t.Errorf("%s: %+v, want %v", c.what, res, c.want)
		}
	}
	if n := d.namespaceNamed("app"); n.ID != 4 || n.Settings != settings || n.CreatedAt != d.now || n.Dropping {
		t.Errorf("%+v", n)
	}
	if id, ok := d.e.Namespace(nil); !ok || id != wire.NamespaceDefault {
		t.Errorf("no name means %d, %v", id, ok)
	}
	if id, ok := d.e.Namespace([]byte("none")); ok || id != wire.NamespaceNone {
		t.Errorf("an unknown name means %d, %v", id, ok)
	}
	if _, ok := d.e.NamespaceByID(0); ok {
		t.Error("the system keyspace shows as a namespace")
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNamespace_Dropped_IsGoneAtOnceAndPurgedInPieces(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	sink := &effectLog{}
	o.Sink = sink
	d := newDriver(t, o)
	d.one(createOp("app", wire.NamespaceSettings{}))
	d.one(createOp("other", wire.NamespaceSettings{}))
	for i := range 25 {
		ext := []byte(nil)
		if i == 3 || i == 20 {
			ext = withTTL(nil, time.Second)
		}
		wantStatuses(t, d.apply(putOp(fmt.Sprintf("k%02d", i), []byte("v"), ext).in(2), putOp("stays", nil, nil).in(3)), wire.StatusOK, wire.StatusOK)
	}
	d.now += 2e6
	// The one that is due goes by OpExpire, while the purge is under way as before.
	wantStatuses(t, d.apply(dropOp("app"), putOp("k", nil, nil).in(2), touchOp("k01", nil).in(2), groupOp(wire.OpTxn, 0, putItem("k", "", nil)).in(2), purgeOp(2, 10)),
		wire.StatusOK, wire.StatusNoNamespace, wire.StatusNoNamespace, wire.StatusNoNamespace, wire.StatusRetryLater)
	if id, ok := d.e.Purging(); !ok || id != 2 {
		t.Fatalf("%d is to be purged, %v", id, ok)
	}
	if _, ok := d.e.Namespace([]byte("app")); ok {
		t.Fatal("a dropped namespace has its name")
	}
	kinds := make(map[EffectKind]int)
	for round := 0; ; round++ {
		if round > 10 {
			t.Fatal("the purge doesn't end")
		}
		id, ok := d.e.Purging()
		if !ok {
			break
		}
		sink.effects = nil
		ops := []testOp{purgeOp(id, 7)}
		if round == 1 {
			ops = []testOp{expireOp(1), purgeOp(id, 7), expireOp(9)}
		}
		wantStatuses(t, d.apply(ops...), slices.Repeat([]wire.Status{wire.StatusOK}, len(ops))...)
		for _, x := range sink.effects {
			if x.Namespace == 2 {
				kinds[x.Kind]++
			}
		}
		if n, ok := d.e.NamespaceByID(2); ok && (!n.Dropping || n.Records == 0) {
			t.Fatalf("round %d: %+v", round, n)
		}
		if round == 1 {
			if err := d.e.CheckpointNow(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := d.e.Close(); err != nil {
				t.Fatal(err)
			}
			d.e = mustOpen(t, o)
		}
	}
	if kinds[EffectDelete] != 23 || kinds[EffectExpire] != 2 || kinds[EffectPut] != 0 {
		t.Errorf("effects %v", kinds)
	}
	if n := d.namespaceNamed("other"); n.Records != 1 {
		t.Errorf("%+v", n)
	}
	wantStatuses(t, d.apply(createOp("app", wire.NamespaceSettings{}), putOp("k", nil, nil).in(4)), wire.StatusOK, wire.StatusOK)
	if n := d.namespaceNamed("app"); n.ID != 4 || n.Records != 1 {
		t.Errorf("the id was given a second time, or its records: %+v", n)
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNamespace_ManyOfThem_AreBounded(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	for i := 1; i < wire.NamespacesMax; {
		var ops []testOp
		for ; i < wire.NamespacesMax && len(ops) < 500; i++ {
			ops = append(ops, createOp(fmt.Sprint("n", i), wire.NamespaceSettings{}))
		}
		for _, res := range d.apply(ops...) {
			if res.Status != wire.StatusOK {
				t.Fatal(res.Status)
			}
		}
	}
	wantStatuses(t, d.apply(createOp("more", wire.NamespaceSettings{}), dropOp("n7"), createOp("more", wire.NamespaceSettings{})),
		wire.StatusTooMany, wire.StatusOK, wire.StatusTooMany)
	wantStatuses(t, d.apply(purgeOp(8, 1), createOp("more", wire.NamespaceSettings{})), wire.StatusOK, wire.StatusOK)
	if n := len(d.e.Namespaces()); n != wire.NamespacesMax {
		t.Fatalf("%d namespaces", n)
	}
}

func TestNamespace_PublishedTable_IsAtLeastAsNewAsThePoint(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	done := make(chan string, 1)
	go func() { // ends with the last namespace
		for {
			index := d.e.Applied().Index
			if n := len(d.e.Namespaces()); n < int(index) {
				done <- fmt.Sprintf("%d namespaces are seen at index %d", n, index)
				return
			}
			if index == 200 || t.Failed() {
				close(done)
				return
			}
		}
	}()
	for range 199 {
		d.one(createOp(fmt.Sprint("n", d.index), wire.NamespaceSettings{}))
	}
	if fault, failed := <-done; failed {
		t.Fatal(fault)
	}
}

func TestNamespace_Lookup_AllocatesNothing(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.one(createOp("app", wire.NamespaceSettings{}))
	name := []byte("app")
	if n := testing.AllocsPerRun(100, func() {
		if id, ok := d.e.Namespace(name); !ok || id != 2 {
			t.Error(id, ok)
		}
		if n, ok := d.e.NamespaceByID(2); !ok || n.ID != 2 {
			t.Error(n, ok)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNamespace_SessionRetryAfterTheDrop_GetsItsAnswer(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.one(createOp("app", wire.NamespaceSettings{}))
	g, _ := wire.DecodeSessionGrant(d.one(sessionOpenOp()).Payload)
	op := incrementOp("n", 5, nil).in(2).session(g.Session, 1, 0)
	first := d.one(op)
	d.one(dropOp("app"))
	again := d.one(op)
	if first.Status != wire.StatusOK || again.Status != wire.StatusOK || !again.Replayed || again.Rev != first.Rev || !bytes.Equal(again.Payload, first.Payload) {
		t.Fatalf("%+v, then %+v", first, again)
	}
	if res := d.one(incrementOp("n", 5, nil).in(2).session(g.Session, 2, 0)); res.Status != wire.StatusNoNamespace || res.Replayed {
		t.Fatalf("%+v", res)
	}
}

func TestLevel_Raise_BringsNamespacesAndTheirUsage(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := &driver{t: t, e: mustOpen(t, o), now: testEpoch}
	d.apply(initAtOp(1))
	d.put("before", "value")
	if n := d.namespaceNamed("default"); n.ID != 1 || n.Records != 0 {
		t.Fatalf("%+v", n)
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
	short := testOp{wire.Op{Op: wire.OpLevel, Payload: []byte{2}}}
	wantStatuses(t, d.apply(levelOp(0), levelOp(3), levelOp(math.MaxUint16), short, levelOp(1),
		createOp("app", wire.NamespaceSettings{}), touchOp("before", nil), putOp("same entry", nil, nil), deleteOp("before", nil), levelOp(2),
		touchOp("same entry", nil), incrementOp("n", 1, nil), createOp("app", wire.NamespaceSettings{}), levelOp(2), levelOp(1)),
		wire.StatusBadRequest, wire.StatusBadRequest, wire.StatusBadRequest, wire.StatusBadRequest, wire.StatusOK,
		wire.StatusUnknownOp, wire.StatusUnknownOp, wire.StatusOK, wire.StatusOK, wire.StatusOK,
		wire.StatusOK, wire.StatusOK, wire.StatusOK, wire.StatusOK, wire.StatusBadRequest)
	if n := d.namespaceNamed("default"); n.Records != 2 || n.Bytes != uint64(len("same entry")+len("n")+len("1")) || n.CreatedAt != testEpoch {
		t.Fatalf("%+v", n)
	}
	d.namespaceNamed("app")
	if err := d.e.VerifyDigest(t.Context()); err != nil || d.e.Level() != 2 {
		t.Fatal(d.e.Level(), err)
	}
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	d.e = mustOpen(t, o)
	if n := d.namespaceNamed("default"); n.Records != 2 || d.e.Level() != 2 {
		t.Fatalf("after a restart: %+v", n)
	}
}

func TestLevel_RaiseBeyondWhatTheBuildKnows_StopsTheEngine(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	var failed []error
	o.Fatal = func(err error) { failed = append(failed, err) }
	d := newDriver(t, o)
	if res := d.apply(levelOp(LevelNewest + 1)); res != nil || len(failed) != 1 || !strings.Contains(failed[0].Error(), "newer build") {
		t.Fatalf("%+v, %v", res, failed)
	}
}

func TestQuota_EachKindOfWrite_KeepsIt(t *testing.T) {
	const full = "0123456789" // ten bytes with its key of one
	text := func(s string) []byte { return []byte(s) }
	keys, bytesMax := wire.NamespaceSettings{KeysMax: 2}, wire.NamespaceSettings{BytesMax: 20}
	none := wire.NamespaceSettings{}
	put := func(key, value string) testOp { return putOp(key, []byte(value), nil) }
	ok, quota := wire.StatusOK, wire.StatusQuota
	for _, c := range []struct {
		what     string
		settings wire.NamespaceSettings
		op       testOp
		want     wire.Status
		records  uint64 // afterwards
		bytes    uint64
	}{
		// There are "a" and "b", with values of nine bytes: 2 keys, 20 bytes.
		{"a third key", keys, put("c", ""), quota, 2, 20},
		{"over an old key", keys, put("a", full), ok, 2, 21},
		{"an increment of a third key", keys, incrementOp("c", 1, nil), quota, 2, 20},
		{"a touch", wire.NamespaceSettings{KeysMax: 1, BytesMax: 1}, touchOp("a", nil), ok, 2, 20},
		{"a delete", wire.NamespaceSettings{KeysMax: 1, BytesMax: 1}, deleteOp("a", nil), ok, 1, 10},
		{"one byte more", bytesMax, put("a", full), quota, 2, 20},
		{"as many bytes", bytesMax, put("a", "987654321"), ok, 2, 20},
		{"fewer bytes", bytesMax, put("a", "9"), ok, 2, 12},
		{"fewer bytes, and still too many", wire.NamespaceSettings{BytesMax: 3}, put("a", "9"), ok, 2, 12},
		{"a tag counts", bytesMax, putOp("a", text("87654321"), wire.AppendExtTag(nil, "t", "")), quota, 2, 20},
		{"no limit", none, put("c", full), ok, 3, 31},
		{"a transaction that ends within", keys, groupOp(wire.OpTxn, 0, putItem("c", "", nil), wire.Item{Op: wire.OpDelete, Key: text("a")}), ok, 2, 11},
		{"a transaction that ends beyond", keys, groupOp(wire.OpTxn, 0, wire.Item{Op: wire.OpDelete, Key: text("a")}, putItem("c", "", nil), putItem("d", "", nil)), quota, 2, 20},
		{"a transaction of bytes", bytesMax, groupOp(wire.OpTxn, 0, putItem("a", "", nil), putItem("b", full+full, nil)), quota, 2, 20},
		{"an atomic batch", keys, groupOp(wire.OpBatch, wire.GroupAtomic, putItem("a", "", nil), putItem("c", "", nil)), quota, 2, 20},
		{"a batch", keys, groupOp(wire.OpBatch, 0, putItem("a", "", nil), putItem("c", "", nil), putItem("b", "", nil)), ok, 2, 2},
		{"a batch that makes room", keys, groupOp(wire.OpBatch, 0, wire.Item{Op: wire.OpDelete, Key: text("a")}, putItem("c", "", nil), putItem("d", "", nil)), ok, 2, 11},
	} {
		t.Run(c.what, func(t *testing.T) {
			d := newDriver(t, engineOptions(t, t.TempDir()))
			d.apply(createOp("app", none), put("a", "123456789").in(2), put("b", "123456789").in(2))
			d.apply(namespaceOp(wire.NamespaceChange{Action: wire.NamespaceSet, Name: "app", Settings: c.settings}))
			before := d.e.live.Load().applier.last.digest
			res := d.one(c.op.in(2))
			if res.Status != c.want {
				t.Fatalf("%+v, want %v", res, c.want)
			}
			if what := map[bool]string{true: "quota of keys: namespace \"app\"", false: "quota of bytes: namespace \"app\""}[c.settings.KeysMax > 0]; c.want == quota && !strings.Contains(string(res.Payload), what) {
				t.Errorf("the refusal says %q", res.Payload)
			}
			if after := d.e.live.Load().applier.last.digest; (after == before) != (c.want == quota) || c.want == quota && res.Rev != 0 {
				t.Errorf("changed: %v, %+v", after != before, res)
			}
			if n := d.namespaceNamed("app"); n.Records != c.records || n.Bytes != c.bytes {
				t.Errorf("%d records of %d bytes, want %d of %d", n.Records, n.Bytes, c.records, c.bytes)
			}
			if err := d.e.VerifyDigest(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestQuota_ItemOfABatch_SaysWhich(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.one(createOp("app", wire.NamespaceSettings{KeysMax: 1}))
	res := d.one(groupOp(wire.OpBatch, 0, putItem("a", "x", nil), putItem("b", "x", nil), wire.Item{Op: wire.OpIncrement, Key: []byte("a"), Value: wire.AppendIncrement(nil, 1)}).in(2))
	_, _, items, err := wire.DecodeResult(res.Payload)
	if err != nil {
		t.Fatal(err)
	}
	var it wire.Item
	var got []wire.Status
	for len(items) > 0 {
		if items, err = wire.NextItem(items, &it); err != nil {
			t.Fatal(err)
		}
		if got = append(got, it.Status); it.Status == wire.StatusQuota && !strings.HasPrefix(string(it.Value), "quota of keys: namespace \"app\" holds 1 and may hold 1") {
			t.Errorf("%q", it.Value)
		}
	}
	if want := []wire.Status{wire.StatusOK, wire.StatusQuota, wire.StatusNotANumber}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestUsage_LostOrWrong_IsFound(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, e *Engine, key []byte){
		"lost": func(t *testing.T, e *Engine, key []byte) { lose(t, e, key, nil) },
		"of another number": func(t *testing.T, e *Engine, key []byte) {
			lose(t, e, key, appendUsage(nil, key, usage{1, 5}))
		},
		"not sound": func(t *testing.T, e *Engine, key []byte) { lose(t, e, key, []byte("what is this")) },
		"of a namespace that is not there": func(t *testing.T, e *Engine, _ []byte) {
			key := appendUsageKey(nil, 99)
			lose(t, e, key, appendUsage(nil, key, usage{1, 5}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t, engineOptions(t, t.TempDir()))
			d.put("a", "1")
			d.put("b", "1")
			harm(t, d.e, appendUsageKey(nil, 1))
			if err := d.e.VerifyDigest(t.Context()); !errors.Is(err, ErrDigestMismatch) && !errors.Is(err, ErrRecordDamaged) {
				t.Errorf("VerifyDigest: %v", err)
			}
			if report, err := d.e.Scrub(t.Context(), ScrubOptions{RateBytes: -1}); err != nil || report.Sound() {
				t.Errorf("Scrub: %+v, %v", report, err)
			}
			err := d.e.live.Load().store.read(0, func(r *reader) error {
				_, err := loadNamespaces(r, 2, &d.e.live.Load().applier.last)
				return err
			})
			if !errors.Is(err, ErrRecordDamaged) {
				t.Errorf("load: %v", err)
			}
		})
	}
}

func TestNamespace_StoredForms_Golden(t *testing.T) {
	n := namespaceState{cursor: []byte("k"), Namespace: Namespace{ID: 5, Name: "app", Dropping: true, CreatedAt: 7,
		Settings: wire.NamespaceSettings{BytesMax: 1, KeysMax: 2, OpsPerSecond: 3, WatchesMax: 4, Compress: wire.CodecS2}}}
	for _, c := range []struct {
		what, want string
		got        []byte
	}{
		{"namespace", "01010103000000000700000000000000" + "0100000000000000020000000000000003000000000000000400000000000000" + "6170706b", appendNamespace(nil, &n)},
		{"key of usage", "5500000005", appendUsageKey(nil, 5)},
		{"usage", "010000000000000006000000000000000700000000000000" + "dd6aa0ff", appendUsage(nil, appendUsageKey(nil, 5), usage{6, 7})},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

func FuzzNamespaceForms_AnyBytes_AreReadExactlyOrRefused(f *testing.F) {
	n := namespaceState{cursor: []byte("k"), Namespace: Namespace{ID: 5, Name: "app", Dropping: true}}
	f.Add([]byte{0, 0, 0, 5}, appendNamespace(nil, &n))
	f.Add([]byte{0, 0, 0, 5}, appendUsage(nil, appendUsageKey(nil, 5), usage{6, 7}))
	f.Fuzz(func(t *testing.T, id, b []byte) {
		var n namespaceState
		if err := decodeNamespace(b, &n); err == nil {
			if again := appendNamespace(nil, &n); !bytes.Equal(again, b) {
				t.Fatalf("namespace %x became %x", b, again)
			}
		} else if !errors.Is(err, ErrRecordDamaged) {
			t.Fatal(err)
		}
		key := append([]byte{familyUsage}, id...)
		if _, u, err := decodeUsage(key, b); err == nil {
			if again := appendUsage(nil, key, u); !bytes.Equal(again, b) {
				t.Fatalf("usage %x became %x", b, again)
			}
		} else if !errors.Is(err, ErrRecordDamaged) {
			t.Fatal(err)
		}
	})
}

func TestPut_UsageOfTheNamespace_CostsNoAllocation(t *testing.T) {
	allocations := func(level uint16) float64 {
		d := &driver{t: t, e: mustOpen(t, engineOptions(t, t.TempDir())), now: testEpoch}
		d.apply(initAtOp(level))
		entry := sealEntry(d.now, putOp("k", []byte("v"), nil))
		return testing.AllocsPerRun(200, func() {
			d.index++
			d.e.Apply(d.index, 1, entry)
		})
	}
	one, two := allocations(1), allocations(2)
	if two > one+4 { // measured: none more
		t.Errorf("%v allocations for a put at level 2, %v at level 1", two, one)
	}
}
