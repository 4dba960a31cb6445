package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

func TestApply_BeforeInit_NothingIsDone(t *testing.T) {
	e := mustOpen(t, engineOptions(t, t.TempDir()))
	if _, _, ok := e.Identity(); ok || e.Level() != 0 || e.Applied() != (Point{}) {
		t.Fatal("a virgin engine claims an identity")
	}
	if err := e.VerifyDigest(context.Background()); err != nil {
		t.Fatal(err)
	}
	res := e.Apply(1, 1, sealEntry(testEpoch, putOp("k", []byte("v"), nil), initOp(), putOp("k", []byte("v"), nil), initOp()))
	want := []wire.Status{wire.StatusNotReady, wire.StatusOK, wire.StatusOK, wire.StatusBadRequest}
	for i, st := range want {
		if res[i].Status != st {
			t.Errorf("operation %d: %v, want %v", i, res[i].Status, st)
		}
	}
	cluster, history, ok := e.Identity()
	if !ok || cluster != testInit.ClusterID || history != testInit.HistoryID || e.Level() != LevelNewest {
		t.Fatalf("identity %x %x %v, level %d", cluster, history, ok, e.Level())
	}
	// The system keyspace is read like any other.
	rec, _, st, err := e.Get(ReadOptions{Namespace: wire.NamespaceSystem}, []byte("cluster_id"), nil)
	if err != nil || st != wire.StatusOK || !bytes.Equal(rec.Value, cluster[:]) {
		t.Fatalf("system record: %x, %v, %v", rec.Value, st, err)
	}
}

func TestApply_SameEntryTwice_SameState(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	entry := sealEntry(d.now, putOp("k", []byte("v"), nil))
	if res := d.e.Apply(2, 1, entry); len(res) != 1 || res[0].Status != wire.StatusOK {
		t.Fatalf("%+v", res)
	}
	before := d.e.Applied()
	_, digest := d.e.Digest()
	if res := d.e.Apply(2, 1, entry); res != nil {
		t.Fatalf("the second time: %+v", res)
	}
	if _, again := d.e.Digest(); again != digest || d.e.Applied() != before {
		t.Fatal("the second time changed the state")
	}
}

func TestOpen_DamagedSession_IsDamage(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := newDriver(t, o)
	// A session that no entry wrote, under a marker that fits.
	m := d.e.live.Load().applier.last
	m.index, m.ts = m.index+1, m.ts+1
	b := appendMarker(nil, &m)
	w := d.e.live.Load().store.begin(m.ts)
	w.set(appendSessionKey(nil, 7), []byte("garbage"))
	if err := w.commit(b); err != nil {
		t.Fatal(err)
	}
	d.e.live.Load().store.publish(m.point(), b)
	if err := d.e.VerifyDigest(t.Context()); !errors.Is(err, ErrRecordDamaged) {
		t.Errorf("verify: %v", err)
	}
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); !errors.Is(err, ErrDamaged) {
		t.Fatalf("%v, want ErrDamaged", err)
	}
}

func TestVerifyDigest_RecordThatNoEntryWrote_IsFound(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.put("k", "v")
	m := d.e.live.Load().applier.last
	m.index, m.ts = m.index+1, m.ts+1
	b := appendMarker(nil, &m)
	w := d.e.live.Load().store.begin(m.ts)
	key := appendRecordKey(nil, 1, []byte("k"))
	w.set(key, cachedRecordOf(key, []byte("sound, and wrong"), 1))
	if err := w.commit(b); err != nil {
		t.Fatal(err)
	}
	d.e.live.Load().store.publish(m.point(), b)
	if err := d.e.VerifyDigest(t.Context()); err == nil {
		t.Fatal("nothing was found")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.e.VerifyDigest(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want that it was cancelled", err)
	}
}

func TestApplyConfiguration_BetweenEntries_IsCarriedByTheCheckpoint(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := newDriver(t, o)
	d.put("k", "v")
	_, digest := d.e.Digest()
	d.index++
	d.e.ApplyConfiguration(d.index, 3, []byte("three voters"))
	d.e.ApplyConfiguration(d.index, 3, []byte("applied before: ignored"))
	if p := d.e.Applied(); p.Index != d.index || p.Term != 3 || p.Time != d.now {
		t.Fatalf("%+v", p)
	}
	if _, after := d.e.Digest(); after != digest {
		t.Fatal("a configuration changed the digest")
	}
	if err := d.e.WaitDurable(t.Context(), d.index); err != nil {
		t.Fatal(err)
	}
	cp, ok := d.e.Durable()
	if !ok || string(cp.Configuration) != "three voters" || cp.ConfigurationIndex != d.index {
		t.Fatalf("%+v, %v", cp, ok)
	}
	if err := d.e.Witness(t.Context(), d.index, 3, []byte("three voters"), d.index); err != nil {
		t.Fatal(err)
	}
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	d.e = mustOpen(t, o)
	if cp, ok := d.e.Recovered(); !ok || cp.Index != d.index || cp.WitnessIndex != d.index {
		t.Fatalf("%+v, %v", cp, ok)
	}
	d.wantValue("k", "v")
}

func TestApply_LogTimeStepsBack_TimeStands(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.now += 5e6
	d.put("k", "v")
	d.now -= 60e6
	d.put("l", "v")
	if p := d.e.Applied(); p.Time != testEpoch+5e6 {
		t.Fatalf("time %d, want %d", p.Time, testEpoch+5e6)
	}
}

func TestApply_UndecodableEntry_StopsTheEngine(t *testing.T) {
	good := sealEntry(testEpoch, putOp("k", []byte("v"), nil))
	broken := bytes.Clone(good)
	broken[len(broken)-1] ^= 1
	foreign := bytes.Clone(good)
	wire.SealEntry(foreign, &wire.EntryHeader{Level: 1, Group: 2, Time: testEpoch, Count: 1})
	for name, entry := range map[string][]byte{"empty": nil, "damaged": broken, "of another group": foreign} {
		t.Run(name, func(t *testing.T) {
			var fatal []error
			o := engineOptions(t, t.TempDir())
			o.Fatal = func(err error) { fatal = append(fatal, err) }
			d := newDriver(t, o)
			d.put("before", "v")
			before := d.e.Applied()
			if results := d.e.Apply(d.index+1, 1, entry); results != nil {
				t.Errorf("it was answered: %+v", results)
			}
			// It is the log that is wrong, not the stored state.
			if len(fatal) != 1 || errors.Is(fatal[0], ErrDamaged) || !strings.Contains(fatal[0].Error(), fmt.Sprint("entry ", d.index+1)) {
				t.Errorf("fatal: %v", fatal)
			}
			// Nothing of it was taken, and nothing that comes after it is.
			if results := d.e.Apply(d.index+1, 1, good); results != nil {
				t.Errorf("an entry was applied after the failure: %+v", results)
			}
			d.e.ApplyConfiguration(d.index+2, 1, nil)
			if now := d.e.Applied(); now != before || len(fatal) != 1 {
				t.Errorf("applied %+v, was %+v; fatal %v", now, before, fatal)
			}
			d.wantValue("before", "v")
			d.wantAbsent("k")
		})
	}
}

func TestPut_WithTTL_VisibleUntilItsDeadlineByLogTime(t *testing.T) {
	sink := &effectLog{}
	o := engineOptions(t, t.TempDir())
	o.Sink = sink
	d := newDriver(t, o)
	if _, ok := d.e.DueExpiry(); ok {
		t.Fatal("a deadline without a record")
	}
	d.one(putOp("k", []byte("v"), withTTL(nil, 10*time.Second)))
	d.one(putOp("l", []byte("v"), withTTL(nil, 20*time.Second)))
	wantDue := func(want int64) {
		t.Helper()
		if got, ok := d.e.DueExpiry(); ok != (want != 0) || ok && got != want {
			t.Fatalf("earliest deadline %d, %v; want %d", got, ok, want)
		}
	}
	wantDue(testEpoch + 10e6)
	d.now += 10e6 - 1
	d.put("tick", "")
	d.wantValue("k", "v")
	d.now++
	d.put("tick", "")
	d.wantAbsent("k")
	// The record is still there, and counts as absent.
	if res := d.one(deleteOp("k", nil)); res.Status != wire.StatusNotFound || res.Rev != 0 {
		t.Fatalf("delete of an expired record: %+v", res)
	}
	if st, err := d.e.Stats(); err != nil || st.Records != initRecords+3 {
		t.Fatalf("%d records, %v", st.Records, err)
	}
	wantDue(testEpoch + 10e6)
	// To write over it ends it first.
	sink.effects = nil
	res := d.one(putOp("k", []byte("again"), nil))
	if len(sink.effects) != 2 || sink.effects[0].Kind != EffectExpire || sink.effects[1].Kind != EffectPut ||
		sink.effects[0].Last || !sink.effects[1].Last || sink.effects[0].Rev+1 != sink.effects[1].Rev || res.Rev != sink.effects[1].Rev {
		t.Fatalf("effects %+v, result %+v", sink.effects, res)
	}
	wantDue(testEpoch + 20e6)
	d.now += 15e6
	if res := d.one(expireOp(10)); res.Status != wire.StatusOK || res.Rev == 0 {
		t.Fatalf("%+v", res)
	}
	wantDue(0)
	d.wantAbsent("l")
	d.wantValue("k", "again")
	if res := d.one(expireOp(10)); res.Rev != 0 {
		t.Fatalf("nothing was due: %+v", res)
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestExpire_ManyDue_RemovesTheEarliestFirstWithinItsBound(t *testing.T) {
	sink := &effectLog{}
	o := engineOptions(t, t.TempDir())
	o.Sink = sink
	d := newDriver(t, o)
	for i := range 10 {
		d.one(putOp(fmt.Sprintf("k%d", 9-i), []byte("v"), withTTL(nil, time.Duration(1+i)*time.Second)))
	}
	d.now += 7e6
	sink.effects = nil
	// In the same entry k9 is written over (its deadline moves), and two expiries share the work.
	d.apply(putOp("k9", []byte("w"), withTTL(nil, time.Hour)), expireOp(2), expireOp(100))
	var got []string
	for _, x := range sink.effects {
		got = append(got, x.Kind.String()+" "+string(x.Key))
	}
	want := "[expire k9 put k9 expire k8 expire k7 expire k6 expire k5 expire k4 expire k3]"
	if fmt.Sprint(got) != want {
		t.Fatalf("effects %v, want %v", got, want)
	}
	// OpExpire has learnt the earliest deadline: nobody needs to ask for the scan of the next to begin there.
	if floor := d.e.live.Load().deadlines.floor(); floor != testEpoch+8e6 {
		t.Fatalf("deadlines are looked for from %d on", floor)
	}
	if deadline, ok := d.e.DueExpiry(); !ok || deadline != testEpoch+8e6 {
		t.Fatalf("earliest deadline %d, %v", deadline, ok)
	}
}

func TestDeadline_AtTheEndOfTime_DoesNotOverflow(t *testing.T) {
	if got := deadline(math.MaxInt64-5, wire.TTLMsMax); got != math.MaxInt64-1 {
		t.Fatalf("%d", got)
	}
	if got := deadline(5, 0); got != 0 {
		t.Fatalf("%d", got)
	}
	if got := deadline(5, 1); got != 1005 {
		t.Fatalf("%d", got)
	}
}

func TestPut_LargeValues_AreStoredInPiecesAndReadWhole(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	o.MemtableBytes = 16 << 20
	o.CacheBytes = -1
	d := newDriver(t, o)
	rng := rand.New(rand.NewPCG(testSeed(t), 4))
	value := make([]byte, wire.ValueBytesMax)
	for i := range value {
		value[i] = byte(rng.Uint32())
	}
	threshold := d.e.live.Load().store.o.ChunkThresholdBytes
	for _, size := range []int{wire.ValueBytesMax, threshold + 1, threshold, 3, 2 * threshold, 0} {
		if res := d.one(putOp("k", value[:size], nil)); res.Status != wire.StatusOK {
			t.Fatalf("put of %d bytes: %v", size, res.Status)
		}
		rec, _, st, err := d.e.Get(ReadOptions{Namespace: 1}, []byte("k"), nil)
		if err != nil || st != wire.StatusOK || !bytes.Equal(rec.Value, value[:size]) {
			t.Fatalf("get of %d bytes: %v, %v, %d bytes", size, st, err, len(rec.Value))
		}
		// No piece of a longer value before is left.
		pieces := 0
		err = d.e.live.Load().store.read(0, func(r *reader) error {
			pieces = 0
			lower, upper := familyRange(familyChunk)
			return r.iterate(lower, upper, false, true, func([]byte, func() ([]byte, error)) (bool, error) {
				pieces++
				return true, nil
			})
		})
		want := 0
		if size > threshold {
			want = (size + d.e.live.Load().store.o.ChunkBytes - 1) / d.e.live.Load().store.o.ChunkBytes
		}
		if err != nil || pieces != want {
			t.Fatalf("%d pieces of %d bytes, want %d; %v", pieces, size, want, err)
		}
	}
	if res := d.one(putOp("k", make([]byte, wire.ValueBytesMax+1), nil)); res.Status != wire.StatusTooLarge {
		t.Fatalf("one byte too many: %v", res.Status)
	}
	// A transaction reads a chunked value, and conditions pass over one.
	d.one(putOp("k", value[:threshold+1], nil))
	res := d.one(groupOp(wire.OpTxn, 0,
		wire.Item{Op: wire.OpGet, Key: []byte("k")},
		wire.Item{Op: wire.OpDelete, Key: []byte("k"), Ext: wire.AppendExtCondition(nil, wire.ConditionExists, nil)},
	))
	_, _, items, err := wire.DecodeResult(res.Payload)
	if err != nil || res.Status != wire.StatusOK {
		t.Fatal(res.Status, err)
	}
	var it wire.Item
	if _, err := wire.NextItem(items, &it); err != nil || !bytes.Equal(it.Value, value[:threshold+1]) {
		t.Fatalf("get in a transaction: %d bytes, %v", len(it.Value), err)
	}
	d.wantAbsent("k")
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestTxn_ConditionsSeeTheStateBefore_GetsSeeTheTransaction(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.put("a", "1")
	absent := wire.AppendExtCondition(nil, wire.ConditionAbsent, nil)
	res := d.one(groupOp(wire.OpTxn, 0,
		putItem("b", "2", absent),
		wire.Item{Op: wire.OpCheck, Key: []byte("b"), Ext: absent}, // b is put before, and still absent for conditions
		wire.Item{Op: wire.OpGet, Key: []byte("b")},
		wire.Item{Op: wire.OpDelete, Key: []byte("a")},
		wire.Item{Op: wire.OpGet, Key: []byte("a")},
		wire.Item{Op: wire.OpDelete, Key: []byte("none")},
	))
	rev, n, rest, err := wire.DecodeResult(res.Payload)
	if err != nil || res.Status != wire.StatusOK || rev != res.Rev || n != 6 {
		t.Fatalf("%+v, %v", res, err)
	}
	items := make([]wire.Item, n)
	for i := range items {
		if rest, err = wire.NextItem(rest, &items[i]); err != nil {
			t.Fatal(err)
		}
	}
	if string(items[2].Value) != "2" || items[4].Status != wire.StatusNotFound || items[5].Status != wire.StatusNotFound ||
		!bytes.Equal(items[3].Value, wire.AppendVersion(nil, rev+1)) {
		t.Fatalf("%+v", items)
	}
	// All or nothing, and every failure is told.
	before, digest := d.e.Digest()
	res = d.one(groupOp(wire.OpTxn, 0,
		putItem("c", "3", nil),
		putItem("b", "x", wire.AppendExtVersions(wire.AppendExtCondition(nil, wire.ConditionExists, nil), 1)),
		wire.Item{Op: wire.OpCheck, Key: []byte("a"), Ext: wire.AppendExtCondition(nil, wire.ConditionValue, []byte("1"))},
	))
	failed, err := wire.DecodeFailed(res.Payload)
	if err != nil || res.Status != wire.StatusConditionFailed || res.Rev != 0 || fmt.Sprint(failed) != "[{1 1} {2 0}]" {
		t.Fatalf("%+v, %v, %v", res, failed, err)
	}
	if index, after := d.e.Digest(); after != digest || index != before+1 {
		t.Fatal("a refused transaction changed the state")
	}
	d.wantValue("b", "2")
	d.wantAbsent("c")
}

func TestBatch_ItemsAlone_EachHasItsOwnFate(t *testing.T) {
	sink := &effectLog{}
	o := engineOptions(t, t.TempDir())
	o.Sink = sink
	d := newDriver(t, o)
	sink.effects = nil
	absent := wire.AppendExtCondition(nil, wire.ConditionAbsent, nil)
	res := d.one(groupOp(wire.OpBatch, 0, putItem("a", "1", absent), putItem("a", "2", absent), putItem("b", "3", nil)))
	if res.Status != wire.StatusOK {
		t.Fatal(res.Status)
	}
	_, _, rest, err := wire.DecodeResult(res.Payload)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 3 {
		var it wire.Item
		if rest, err = wire.NextItem(rest, &it); err != nil {
			t.Fatal(err)
		}
		got = append(got, it.Status.String())
	}
	if fmt.Sprint(got) != "[OK CONDITION_FAILED OK]" {
		t.Fatal(got)
	}
	if len(sink.effects) != 2 || !sink.effects[0].Last || !sink.effects[1].Last {
		t.Fatalf("%+v", sink.effects)
	}
	d.wantValue("a", "1")
}

func TestApply_TransactionWithAnswerTooLarge_LeavesReadsOut(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.one(putOp("big", make([]byte, 6<<20), nil))
	var items []wire.Item
	for range 4 {
		items = append(items, wire.Item{Op: wire.OpGet, Key: []byte("big")})
	}
	items = append(items, putItem("k", "v", nil))
	res := d.one(groupOp(wire.OpTxn, 0, items...))
	_, n, rest, err := wire.DecodeResult(res.Payload)
	if err != nil || res.Status != wire.StatusOK || len(res.Payload) > wire.FrameBodyBytesMax {
		t.Fatalf("%v, %v, %d bytes", res.Status, err, len(res.Payload))
	}
	var got []string
	for range n {
		var it wire.Item
		if rest, err = wire.NextItem(rest, &it); err != nil {
			t.Fatal(err)
		}
		got = append(got, it.Status.String())
	}
	if fmt.Sprint(got) != "[OK OK REPLY_FULL REPLY_FULL OK]" {
		t.Fatal(got)
	}
	d.wantValue("k", "v")
}

func TestApply_EntryWithMorePositionsThanThereAre_RefusesTheRest(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	a := d.e.live.Load().applier
	a.begin(d.index+1, 1, d.now)
	a.positions = 1<<wire.PositionBits - 3
	op := putOp("k", []byte("v"), nil).Op
	if res := a.execute(&op); res.Status != wire.StatusRetryLater {
		t.Fatalf("%+v", res)
	}
	a.positions = 1<<wire.PositionBits - systemRecords
	if res := a.execute(&op); res.Status != wire.StatusOK {
		t.Fatalf("%+v", res)
	}
	a.finish()
	d.index++
	d.wantValue("k", "v")
}

// TestGet_DamagedTable_IsReportedNotHidden flips bytes of the table files: an answer is right, or it is
// damage; it is never another value. (What Badger itself takes for absence is caught by VerifyDigest.)
func TestGet_DamagedTable_IsReportedNotHidden(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	o.CacheBytes = -1
	d := newDriver(t, o)
	value := func(i int) string { return strings.Repeat(fmt.Sprintf("value %d ", i), 40) }
	for i := range 500 {
		d.put(fmt.Sprintf("key/%03d", i), value(i))
	}
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(o.Dir, "groups", "1", "gen-*", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("no table to damage: %v, %v", tables, err)
	}
	for _, path := range tables {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// In the first three quarters there are blocks; behind them are index and checksums, which
		// Badger needs to open at all.
		for at := 1000; at < len(b)*3/4; at += 5003 {
			b[at] ^= 0x40
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e, err := Open(o)
	if err != nil {
		t.Logf("opening reported it: %v", err)
		return
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	damaged := 0
	for i := range 500 {
		rec, _, st, err := e.Get(ReadOptions{Namespace: 1}, fmt.Appendf(nil, "key/%03d", i), nil)
		switch {
		case st == wire.StatusOK && string(rec.Value) == value(i):
		case st == wire.StatusDamaged && errors.Is(err, ErrRecordDamaged):
			damaged++
		case st == wire.StatusNotFound:
			t.Logf("key %d reads as absent", i)
		default:
			t.Errorf("key %d: %v, %v, %q", i, st, err, short(string(rec.Value)))
		}
	}
	if damaged == 0 {
		t.Error("no damage was reported")
	}
	if err := e.VerifyDigest(t.Context()); err == nil {
		t.Error("the digest's check found nothing")
	}
}
