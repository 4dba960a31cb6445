package engine

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"kvstore/wire"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 takes one from the clock")

func testSeed(t testing.TB) uint64 {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with -seed=%d", seed)
	return seed
}

// effectLog keeps what a sink is given.
type effectLog struct{ effects []Effect }

func (l *effectLog) Effects(p Point, effects []Effect) {
	for _, x := range effects {
		x.Key = bytes.Clone(x.Key)
		x.Record.Ext, x.Record.Value = bytes.Clone(x.Record.Ext), bytes.Clone(x.Record.Value)
		l.effects = append(l.effects, x)
	}
}

func (l *effectLog) Published(Point)  {}
func (l *effectLog) Sync(Point) error { return nil }
func (l *effectLog) Installed(Point)  {}

func effectsEqual(a, b []Effect) bool {
	return len(a) == len(b) && fmt.Sprintf("%+v", normalEffects(a)) == fmt.Sprintf("%+v", normalEffects(b))
}

// normalEffects tells nil from empty no more.
func normalEffects(in []Effect) (out []Effect) {
	for _, x := range in {
		if len(x.Record.Ext) == 0 {
			x.Record.Ext = nil
		}
		if len(x.Record.Value) == 0 {
			x.Record.Value = nil
		}
		out = append(out, x)
	}
	return out
}

func wantSameResults(t testing.TB, what string, got, want []wire.Result) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d results, want %d", what, len(got), len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		if g.Status != w.Status || g.Rev != w.Rev || g.Replayed != w.Replayed || !bytes.Equal(g.Payload, w.Payload) {
			t.Fatalf("%s, operation %d: got %+v, want %+v", what, i, g, w)
		}
	}
}

func TestApply_RandomLog_AgreesWithTheModel(t *testing.T) {
	w := newWorkload(testSeed(t))
	m := newReference()
	sink := &effectLog{}
	o := engineOptions(t, t.TempDir())
	o.Sink = sink
	o.ChunkThresholdBytes, o.ChunkBytes = 4<<10, 1<<10
	e := mustOpen(t, o)
	for range 600 {
		index, entry := w.next()
		sink.effects = nil
		results := e.Apply(index, 1, entry)
		wantSameResults(t, fmt.Sprintf("entry %d", index), results, m.apply(index, entry))
		wantModelNamespaces(t, e, m)
		if !effectsEqual(sink.effects, m.effects) {
			t.Fatalf("entry %d: effects\n%+v\nwant\n%+v", index, sink.effects, m.effects)
		}
		w.learn(results)
	}
	wantModelState(t, e, m)
	if err := e.VerifyDigest(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// wantModelState compares all that can be read.
func wantModelState(t testing.TB, e *Engine, m *reference) {
	t.Helper()
	var buf []byte
	for _, k := range sortedKeys(m.records) {
		r := m.records[k]
		rec, out, st, err := e.Get(ReadOptions{Namespace: namespaceOf([]byte(k))}, userKey([]byte(k)), buf)
		buf = out
		want := wire.StatusOK
		if r.meta.ExpiresAt != 0 && r.meta.ExpiresAt <= m.now {
			want = wire.StatusNotFound
		}
		if err != nil || st != want {
			t.Fatalf("get %q: %v, %v; want %v", k, st, err, want)
		}
		if st == wire.StatusOK && (rec.Meta != r.meta || !bytes.Equal(rec.Ext, r.ext) || !bytes.Equal(rec.Value, r.value)) {
			t.Fatalf("get %q: %+v, %d bytes; want %+v, %d bytes", k, rec.Meta, len(rec.Value), r.meta, len(r.value))
		}
	}
	wantModelNamespaces(t, e, m)
	st, err := e.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if st.Records != uint64(len(m.records)) || st.Sessions != len(m.sessions) || st.IdempotencyKeys != len(m.once) || st.IdempotencyBytes != m.onceBytes() {
		t.Fatalf("%d records, %d sessions, %d keys of %d bytes; want %d, %d, %d of %d", st.Records, st.Sessions, st.IdempotencyKeys, st.IdempotencyBytes,
			len(m.records), len(m.sessions), len(m.once), m.onceBytes())
	}
	var next int64
	for _, r := range m.records {
		if d := r.meta.ExpiresAt; d != 0 && (next == 0 || d < next) {
			next = d
		}
	}
	if deadline, ok := e.DueExpiry(); ok != (next != 0) || ok && deadline != next {
		t.Fatalf("earliest deadline %d, %v; want %d", deadline, ok, next)
	}
}

// wantModelNamespaces compares the table and the usage of namespaces.
func wantModelNamespaces(t testing.TB, e *Engine, m *reference) {
	t.Helper()
	var want []Namespace
	purging := uint32(wire.NamespaceNone)
	for id, s := range m.spaces {
		n := Namespace{ID: id, Name: s.name, Dropping: s.dropping, Settings: s.settings, CreatedAt: s.created}
		if m.level >= 2 {
			n.Records, n.Bytes = m.usage(id)
		}
		want = append(want, n)
		if s.dropping {
			purging = min(purging, id)
		} else if got, ok := e.Namespace([]byte(s.name)); !ok || got != id {
			t.Fatalf("namespace %q: %d, %v; want %d", s.name, got, ok, id)
		}
		if got, ok := e.NamespaceByID(id); !ok || got != n {
			t.Fatalf("namespace %d: %+v, %v; want %+v", id, got, ok, n)
		}
	}
	slices.SortFunc(want, func(a, b Namespace) int { return int(a.ID) - int(b.ID) })
	if got := e.Namespaces(); !slices.Equal(got, want) {
		t.Fatalf("namespaces\n%+v\nwant\n%+v", got, want)
	}
	if got, ok := e.Purging(); ok != (purging != wire.NamespaceNone) || got != purging {
		t.Fatalf("%d is to be purged, %v; want %d", got, ok, purging)
	}
}

// TestTwoEngines_SameLog_EqualDigests feeds one log to engines that differ in all that must not matter: cache,
// memtable, chunk sizes, checkpoints, restarts with replay from the checkpoint.
func TestTwoEngines_SameLog_EqualDigests(t *testing.T) {
	seed := testSeed(t)
	w := newWorkload(seed)
	plain := mustOpen(t, engineOptions(t, t.TempDir()))

	other := engineOptions(t, t.TempDir())
	other.CacheBytes = -1
	other.MemtableBytes = 1 << 20
	other.ChunkThresholdBytes, other.ChunkBytes = 2<<10, 1<<10
	restarted := mustOpen(t, other)

	tiny := engineOptions(t, t.TempDir())
	tiny.CacheBytes = 64 << 10
	tiny.CheckpointInterval = 5 * time.Millisecond
	tiny.ChunkThresholdBytes = 8 << 10
	tiny.HistoryWindow = -1
	eager := mustOpen(t, tiny)

	// Its own source: what it decides must not change the log.
	rng := rand.New(rand.NewPCG(seed, 2))
	var log [][]byte
	for range 500 {
		index, entry := w.next()
		log = append(log, entry)
		results := plain.Apply(index, 1, entry)
		wantSameResults(t, "engine without a cache", restarted.Apply(index, 1, entry), results)
		wantSameResults(t, "engine with many checkpoints", eager.Apply(index, 1, entry), results)
		w.learn(results)
		switch rng.IntN(40) {
		case 0:
			if err := restarted.CheckpointNow(context.Background()); err != nil {
				t.Fatal(err)
			}
		case 1:
			restarted = crash(t, restarted, other, log)
		}
		wantEqualEngines(t, plain, restarted)
		wantEqualEngines(t, plain, eager)
	}
	restarted = crash(t, restarted, other, log)
	for _, e := range []*Engine{plain, restarted, eager} {
		wantEqualEngines(t, plain, e)
		wantEqualTables(t, plain, e)
		if err := e.VerifyDigest(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func wantEqualEngines(t testing.TB, a, b *Engine) {
	t.Helper()
	ai, ad := a.Digest()
	bi, bd := b.Digest()
	if ai != bi || ad != bd {
		t.Fatalf("digests differ: index %d %x, index %d %x", ai, ad, bi, bd)
	}
	if a.Applied() != b.Applied() {
		t.Fatalf("points differ: %+v, %+v", a.Applied(), b.Applied())
	}
	an, aok := a.DueExpiry()
	bn, bok := b.DueExpiry()
	if an != bn || aok != bok {
		t.Fatalf("earliest deadlines differ: %d, %d", an, bn)
	}
}

// crash closes e without a checkpoint, opens its directory again and replays what is missing.
func crash(t testing.TB, e *Engine, o Options, log [][]byte) *Engine {
	t.Helper()
	e.live.Load().pages.close()
	e.live.Load().store.failed.CompareAndSwap(nil, ptr(fmt.Errorf("crashed by the test"))) // no last checkpoint
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e = mustOpen(t, o)
	for index := e.Applied().Index + 1; index <= uint64(len(log)); index++ {
		e.Apply(index, 1, log[index-1])
	}
	return e
}

func ptr[T any](v T) *T { return &v }

// wantEqualTables compares what two engines hold beside the records.
func wantEqualTables(t testing.TB, a, b *Engine) {
	t.Helper()
	wantEqualSessions(t, a.live.Load().applier.sessions, b.live.Load().applier.sessions)
	wantEqualIdempotency(t, a.live.Load().applier.once, b.live.Load().applier.once)
}

// wantEqualIdempotency compares two tables in all but what belongs to an entry at hand.
func wantEqualIdempotency(t testing.TB, a, b *idempotency) {
	t.Helper()
	if al, bl := onceLines(a), onceLines(b); !slices.Equal(al, bl) {
		t.Fatalf("idempotency tables differ: %q, %q", al, bl)
	}
}

// onceLines lists a table in order of execution, with its sums.
func onceLines(t *idempotency) (lines []string) {
	for k := t.oldest.next; k != &t.oldest; k = k.next {
		lines = append(lines, fmt.Sprintf("key %x fingerprint %x at %d in %v: %v rev %d %x, digest %x, known %v", k.key, k.fingerprint, k.at, k.place, k.status, k.rev, k.payload, k.digest, t.byKey[k.key] == k))
	}
	return append(lines, fmt.Sprintf("%d keys of %d bytes", len(t.byKey), t.bytes))
}

// wantEqualSessions compares two tables in all but what belongs to an entry at hand.
func wantEqualSessions(t testing.TB, a, b *sessions) {
	t.Helper()
	if len(a.byID) != len(b.byID) {
		t.Fatalf("%d and %d sessions", len(a.byID), len(b.byID))
	}
	for id, s := range a.byID {
		o := b.byID[id]
		if o == nil || s.opened != o.opened || s.last != o.last || s.floor != o.floor || s.digest != o.digest || s.stored != o.stored {
			t.Fatalf("sessions differ: %+v, %+v", s, o)
		}
		if s.results.len() != o.results.len() {
			t.Fatalf("session %d: %d and %d answers", id, s.results.len(), o.results.len())
		}
		others := mustAll(t, &o.results)
		for seq, k := range mustAll(t, &s.results) {
			if ok, there := others[seq]; !there || !equalKept(k, ok) {
				t.Fatalf("session %d, answer %d: %+v, %+v", id, seq, k, ok)
			}
		}
	}
	if aj, bj := mustJournalsOf(t, a), mustJournalsOf(t, b); !reflect.DeepEqual(aj, bj) {
		t.Fatalf("journals differ: %v, %v", aj, bj)
	}
	if ai, bi := idleTimes(a), idleTimes(b); !reflect.DeepEqual(ai, bi) {
		t.Fatalf("idle rings differ: %v, %v", ai, bi)
	}
}

func idleTimes(t *sessions) (times []int64) {
	for s := t.idle.next; s != &t.idle; s = s.next {
		times = append(times, s.last)
	}
	return times
}

// TestApply_SameOperationsOtherEntries_SameStateButRevisions packs operations one per entry and many per
// entry. Conditions on versions are left out: versions are what differs.
func TestApply_SameOperationsOtherEntries_SameStateButRevisions(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 3))
	single := newDriver(t, engineOptions(t, t.TempDir()))
	packed := newDriver(t, engineOptions(t, t.TempDir()))
	var ids [2]uint64
	for i, d := range []*driver{single, packed} {
		g, ok := wire.DecodeSessionGrant(d.one(sessionOpenOp()).Payload)
		if !ok {
			t.Fatal("no session")
		}
		ids[i] = g.Session
	}
	w := newWorkload(rng.Uint64())
	w.versions = map[string]wire.Revision{} // never learned: a condition on a version always fails
	seq := uint64(0)
	for range 120 {
		single.now += int64(rng.IntN(4e6))
		packed.now = single.now
		var ops [2][]testOp
		for range 1 + rng.IntN(15) {
			op := w.write()
			if rng.IntN(8) == 0 {
				op = expireOp(uint32(rng.IntN(4)))
			}
			for i := range ops {
				o := op
				if op.Op.Op != wire.OpExpire && seq%3 == 0 {
					o = op.session(ids[i], seq+1, seq/2)
				}
				ops[i] = append(ops[i], o)
			}
			seq++
		}
		var results []wire.Result
		for _, op := range ops[0] {
			results = append(results, single.one(op))
		}
		for i, res := range packed.apply(ops[1]...) {
			if res.Status != results[i].Status || res.Replayed != results[i].Replayed || len(res.Payload) != len(results[i].Payload) {
				t.Fatalf("operation %d: %+v alone, %+v among others", i, results[i], res)
			}
		}
	}
	a, b := dumpState(t, single.e), dumpState(t, packed.e)
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("states differ:\n%v\n%v", a, b)
	}
	if len(a) < 10 {
		t.Fatalf("only %d records: the test shows little", len(a))
	}
}

// dumpState lists all records without their versions.
func dumpState(t testing.TB, e *Engine) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, it := range listAll(t, e, &wire.ScanRequest{Limit: 7, BytesMax: 1 << 20}) {
		m := it.meta
		m.Version = 0
		out[it.key] = fmt.Sprintf("%+v %x %x", m, it.ext, wire.Checksum([]byte(it.value)))
	}
	return out
}
