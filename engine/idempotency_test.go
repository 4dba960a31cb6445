package engine

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"kvstore/wire"
)

// once gives a write an idempotency key.
func (o testOp) once(key string, fingerprint uint64) testOp {
	ext := wire.AppendExtIdempotency(nil, wire.Idempotency{Key: wire.IdempotencyKey(key), Fingerprint: fingerprint})
	o.Ext = append(ext, o.Ext...)
	return o
}

func (o testOp) named(namespace string) testOp {
	o.Ext = append(wire.AppendExtString(nil, wire.ExtNamespace, namespace), o.Ext...)
	return o
}

func (d *driver) restart(o Options) {
	d.t.Helper()
	if err := d.e.Close(); err != nil {
		d.t.Fatal(err)
	}
	d.e = mustOpen(d.t, o)
}

func (d *driver) wantKept(n int) {
	d.t.Helper()
	stored := 0
	err := d.e.live.Load().store.read(0, func(r *reader) error {
		stored = 0
		lower, upper := familyRange(familyOnce)
		return r.iterate(lower, upper, false, true, func([]byte, func() ([]byte, error)) (bool, error) {
			stored++
			return true, nil
		})
	})
	if err != nil {
		d.t.Fatal(err)
	}
	st, err := d.e.Stats()
	if err != nil {
		d.t.Fatal(err)
	}
	if stored != n || st.IdempotencyKeys != n {
		d.t.Fatalf("%d answers are stored and %d known, want %d", stored, st.IdempotencyKeys, n)
	}
}

func TestIdempotency_Retries_GetTheKeptAnswerAndChangeNothing(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := newDriver(t, o)
	exists := wire.AppendExtCondition(nil, wire.ConditionExists, nil)
	d.put("text", "none")
	var items []wire.Item
	for i := range 1000 {
		items = append(items, putItem(fmt.Sprintf("item/%d", i), "v", nil))
	}
	ops := map[string]testOp{
		"put":                    putOp("k", []byte("one"), nil).once("put", 1),
		"delete":                 deleteOp("text", nil).once("delete", 1),
		"delete of nothing":      deleteOp("none", nil).once("delete of nothing", 1),
		"touch":                  touchOp("items", nil).once("touch", 1),
		"increment":              incrementOp("n", 5, nil).once("increment", 1),
		"increment of text":      incrementOp("words", 5, nil).once("increment of text", 1),
		"failed condition":       putOp("absent", []byte("x"), exists).once("failed condition", 1),
		"batch":                  groupOp(wire.OpBatch, wire.GroupAtomic, items...).once("batch", 1),
		"transaction":            groupOp(wire.OpTxn, 0, putItem("a", "b", nil), wire.Item{Op: wire.OpGet, Key: []byte("words")}).once("transaction", 1),
		"failed transaction":     groupOp(wire.OpTxn, 0, putItem("absent", "b", exists)).once("failed transaction", 1),
		"namespace that is none": putOp("k", nil, nil).in(77).once("namespace that is none", 1),
	}
	d.put("words", "some words")
	first := make(map[string]wire.Result)
	names := sortedKeys(ops)
	for _, name := range names {
		first[name] = d.one(ops[name])
		if first[name].Replayed {
			t.Fatalf("%s: %+v", name, first[name])
		}
	}
	for name, want := range map[string]wire.Status{
		"put": wire.StatusOK, "delete": wire.StatusOK, "delete of nothing": wire.StatusNotFound, "touch": wire.StatusNotFound, "increment": wire.StatusOK,
		"increment of text": wire.StatusNotANumber, "failed condition": wire.StatusConditionFailed, "batch": wire.StatusOK, "transaction": wire.StatusOK,
		"failed transaction": wire.StatusConditionFailed, "namespace that is none": wire.StatusNoNamespace,
	} {
		if first[name].Status != want {
			t.Errorf("%s: %v, want %v", name, first[name].Status, want)
		}
	}
	// All of it would be answered otherwise now.
	d.apply(putOp("k", []byte("two"), nil), putOp("absent", nil, nil), putOp("words", []byte("1"), nil), putOp("text", []byte("again"), nil), deleteOp("item/7", nil))
	d.wantKept(len(ops))
	for round := range 3 {
		_, before := d.e.Digest()
		for _, name := range names {
			// In a later entry, and twice in one.
			for _, res := range append(d.apply(ops[name]), d.apply(ops[name], ops[name])...) {
				if want := first[name]; !res.Replayed || res.Status != want.Status || res.Rev != want.Rev || !bytes.Equal(res.Payload, want.Payload) {
					t.Fatalf("round %d, %s: %+v, first %+v", round, name, res, want)
				}
			}
		}
		if _, after := d.e.Digest(); after != before {
			t.Fatalf("round %d: the retries changed the state", round)
		}
		d.wantValue("k", "two")
		d.wantValue("n", "5")
		d.restart(o)
		d.wantKept(len(ops))
	}
	if err := d.e.VerifyDigest(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestIdempotency_TwiceInOneEntry_IsDoneOnce(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	res := d.apply(incrementOp("n", 1, nil).once("k", 1), incrementOp("n", 1, nil).once("k", 1), incrementOp("n", 2, nil).once("k", 2), incrementOp("n", 1, nil).once("l", 1))
	if res[0].Replayed || !res[1].Replayed || res[0].Rev != res[1].Rev || res[2].Status != wire.StatusKeyReused || res[3].Replayed {
		t.Fatalf("%+v", res)
	}
	d.wantValue("n", "2")
	d.wantKept(2)
}

func TestIdempotency_KeyOfAnotherRequest_IsRefusedAndTheFirstAnswerStays(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	first := d.one(putOp("k", []byte("one"), nil).once("key", 1))
	if res := d.one(putOp("k", []byte("two"), nil).once("key", 2)); res.Status != wire.StatusKeyReused || res.Replayed || res.Rev != 0 {
		t.Errorf("%+v", res)
	}
	d.wantValue("k", "one")
	if res := d.one(putOp("k", []byte("one"), nil).once("key", 1)); !res.Replayed || res.Rev != first.Rev {
		t.Errorf("%+v", res)
	}
	// A session beside it, and an element of another length, are for the door to refuse; the log refuses them too.
	id := openTestSession(d)
	for _, op := range []testOp{
		putOp("k", []byte("x"), nil).once("other", 1).session(id, 1, 0),
		putOp("k", []byte("x"), wire.AppendExt(nil, wire.ExtIdempotency, make([]byte, 23))),
	} {
		if res := d.one(op); res.Status != wire.StatusBadRequest {
			t.Errorf("%+v", res)
		}
	}
	d.wantValue("k", "one")
	d.wantKept(1)
}

// Keys belong to a namespace by its name: they don't meet, and outlive it.
func TestIdempotency_Namespaces_HaveTheirOwnKeysAndAnswersOutliveThem(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.apply(createOp("app", wire.NamespaceSettings{}))
	app, _ := d.e.Namespace([]byte("app"))
	one := incrementOp("n", 1, nil).in(app).once("key", 1).named("app")
	first := d.one(one)
	if res := d.one(incrementOp("n", 1, nil).once("key", 1)); res.Replayed || res.Status != wire.StatusOK {
		t.Errorf("the same key in the default namespace: %+v", res)
	}
	if res := d.one(incrementOp("n", 1, nil).once("key", 1).named("default")); !res.Replayed {
		t.Errorf("the default namespace by its name: %+v", res)
	}
	d.apply(dropOp("app"))
	d.one(purgeOp(app, 100))
	if res := d.one(one.in(wire.NamespaceNone)); !res.Replayed || res.Rev != first.Rev {
		t.Errorf("after the drop: %+v", res)
	}
	if res := d.one(incrementOp("n", 1, nil).in(wire.NamespaceNone).once("new", 1).named("app")); res.Status != wire.StatusNoNamespace {
		t.Errorf("a new key after the drop: %+v", res)
	}
	d.wantValue("n", "1")
}

func TestIdempotency_AnswersAreKeptForTheirTimeAndNoLonger(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := newDriver(t, o)
	op := incrementOp("n", 1, nil).once("key", 1)
	d.one(op)
	d.now += idempotencyTTL / 2
	d.one(incrementOp("n", 1, nil).once("younger", 1))
	d.one(op) // a retry does not make it younger
	d.now += idempotencyTTL - idempotencyTTL/2
	if res := d.one(op); !res.Replayed {
		t.Errorf("at its time: %+v", res)
	}
	d.restart(o)
	d.now++
	// The first operation behind it finds it gone; in the same entry it is kept anew.
	res := d.apply(op, op)
	if res[0].Replayed || !res[1].Replayed || res[0].Rev != res[1].Rev {
		t.Errorf("behind its time: %+v", res)
	}
	d.wantValue("n", "3")
	d.wantKept(2)
	d.now += idempotencyTTL + 1
	d.put("tick", "")
	d.wantKept(0)
	if err := d.e.VerifyDigest(context.Background()); err != nil {
		t.Error(err)
	}
	// A clock that steps back brings nothing back.
	d.now -= 2 * idempotencyTTL
	if res := d.one(op); res.Replayed {
		t.Errorf("%+v", res)
	}
}

// One that is due counts as forgotten, though an entry drops a bounded number of them.
func TestIdempotency_ManyDue_AreDroppedOverSeveralEntries(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	const n = idempotencyForgetMax + 500
	var ops []testOp
	for i := range n {
		ops = append(ops, incrementOp("n", 1, nil).once(fmt.Sprint(i), 1))
	}
	d.apply(ops...)
	d.wantKept(n)
	d.now += idempotencyTTL + 1
	last := ops[n-1]
	res := d.apply(last, last)
	if res[0].Replayed || !res[1].Replayed {
		t.Errorf("%+v", res)
	}
	d.wantKept(n - idempotencyForgetMax) // the one of the retry went, and came anew
	d.put("tick", "")
	d.wantKept(1)
	d.wantValue("n", fmt.Sprint(n+1))
}

func TestIdempotency_Full_RefusesNewKeysAndForgetsNothing(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	table := func() *idempotency { return d.e.live.Load().applier.once }
	table().bytesMax = wire.IdempotencyAnswerBytesMax + 3*wire.IdempotencyOverheadBytes
	op := func(i int) testOp { return putOp(fmt.Sprint(i), nil, nil).once(fmt.Sprint(i), 1) }
	for i := range 3 {
		if res := d.one(op(i)); res.Status != wire.StatusOK {
			t.Fatalf("key %d: %+v", i, res)
		}
	}
	res := d.one(op(3))
	if res.Status != wire.StatusRetryLater || !strings.Contains(string(res.Payload), "nothing was changed") {
		t.Errorf("%v %s", res.Status, res.Payload)
	}
	d.wantAbsent("3")
	for i := range 3 {
		if res := d.one(op(i)); !res.Replayed {
			t.Errorf("key %d is forgotten: %+v", i, res)
		}
	}
	if res := d.one(putOp("without", nil, nil)); res.Status != wire.StatusOK {
		t.Errorf("a write without a key: %+v", res)
	}
	d.now += idempotencyTTL + 1
	if res := d.one(op(3)); res.Status != wire.StatusOK || res.Replayed {
		t.Errorf("when there is room again: %+v", res)
	}
}

// An answer is never longer than what can be kept: values that are read give way, and a group that leaves no room for the
// rest is refused before it is executed.
func TestIdempotency_LongAnswers_AreCutOrRefused(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d := newDriver(t, o)
	value := strings.Repeat("x", 30<<10)
	d.apply(putOp("a", []byte(value), nil), putOp("b", []byte(value), nil), putOp("c", []byte(value), nil))
	get := func(key string) wire.Item { return wire.Item{Op: wire.OpGet, Key: []byte(key)} }
	txn := groupOp(wire.OpTxn, 0, get("a"), get("b"), get("c"), putItem("d", "e", nil), wire.Item{Op: wire.OpIncrement, Key: []byte("n"), Value: wire.AppendIncrement(nil, 1)})
	statuses := func(res wire.Result) (out []wire.Status) {
		_, n, rest, err := wire.DecodeResult(res.Payload)
		for range n {
			var it wire.Item
			if err == nil {
				rest, err = wire.NextItem(rest, &it)
			}
			out = append(out, it.Status)
		}
		if err != nil {
			t.Fatalf("%+v: %v", res.Status, err)
		}
		return out
	}
	whole := d.one(txn)
	if got := statuses(whole); whole.Status != wire.StatusOK || slices.Contains(got, wire.StatusReplyFull) || len(whole.Payload) < 3*len(value) {
		t.Errorf("without a key: %v, %v in %d bytes", whole.Status, got, len(whole.Payload))
	}
	cut := d.one(txn.once("key", 1))
	if got := statuses(cut); cut.Status != wire.StatusOK || len(cut.Payload) > wire.IdempotencyAnswerBytesMax ||
		!slices.Equal(got, []wire.Status{wire.StatusOK, wire.StatusOK, wire.StatusReplyFull, wire.StatusOK, wire.StatusOK}) {
		t.Errorf("with a key: %v, %v in %d bytes", cut.Status, got, len(cut.Payload))
	}
	d.restart(o)
	if res := d.one(txn.once("key", 1)); !res.Replayed || !bytes.Equal(res.Payload, cut.Payload) {
		t.Errorf("again: %+v", res.Status)
	}
	for name, c := range map[string]struct {
		count int
		want  wire.Status
	}{
		"just fits":     {(wire.IdempotencyAnswerBytesMax - wire.ResultHeaderBytes) / memberAnswerBytes, wire.StatusOK},
		"is one longer": {(wire.IdempotencyAnswerBytesMax-wire.ResultHeaderBytes)/memberAnswerBytes + 1, wire.StatusTooLarge},
	} {
		var items []wire.Item
		for i := range c.count {
			items = append(items, putItem(fmt.Sprintf("many/%d", i), "", nil))
		}
		batch := groupOp(wire.OpBatch, wire.GroupAtomic, items...)
		res := d.one(batch.once(name, 1))
		if res.Status != c.want || len(res.Payload) > wire.IdempotencyAnswerBytesMax || c.want != wire.StatusOK && !strings.Contains(string(res.Payload), "nothing was changed") {
			t.Errorf("%s: %v", name, res.Status)
		}
		if again := d.one(batch.once(name, 1)); !again.Replayed || again.Status != res.Status || !bytes.Equal(again.Payload, res.Payload) {
			t.Errorf("%s, again: %v", name, again.Status)
		}
		if res := d.one(batch); res.Status != wire.StatusOK {
			t.Errorf("%s without a key: %v", name, res.Status)
		}
	}
}

// At the levels before, the element is what the builds of those took it for, and it is served from the raising entry on.
func TestIdempotency_EarlierLevels_RefuseTheElement(t *testing.T) {
	for _, level := range []uint16{1, 2} {
		o := engineOptions(t, t.TempDir())
		d := &driver{t: t, e: mustOpen(t, o), now: testEpoch}
		d.apply(initAtOp(level))
		op := putOp("k", []byte("v"), nil).once("key", 1)
		for range 2 {
			if res := d.one(op); res.Status != wire.StatusUnsupported {
				t.Errorf("level %d: %+v", level, res)
			}
		}
		item := putItem("k", "v", op.Ext)
		if res := d.one(groupOp(wire.OpBatch, wire.GroupAtomic, item)); res.Status != wire.StatusUnsupported {
			t.Errorf("level %d, in an item: %+v", level, res)
		}
		d.wantAbsent("k")
		d.wantKept(0)
		for l := level + 1; l <= LevelNewest; l++ {
			res := d.apply(levelOp(l), op)
			if want := wire.StatusOK; l == LevelNewest && res[1].Status != want || res[0].Status != wire.StatusOK {
				t.Errorf("level %d: %+v", l, res)
			}
		}
		if res := d.one(op); !res.Replayed {
			t.Errorf("after level %d: %+v", level, res)
		}
		if res := d.one(groupOp(wire.OpBatch, wire.GroupAtomic, item)); res.Status != wire.StatusBadRequest {
			t.Errorf("in an item: %+v", res)
		}
		d.restart(o)
		if got := d.e.Level(); got != LevelNewest {
			t.Errorf("level %d after the restart", got)
		}
		if err := d.e.VerifyDigest(context.Background()); err != nil {
			t.Error(err)
		}
		st, err := d.e.Stats()
		if err != nil || d.e.Namespaces()[0].Records != 1 || st.Records != initRecords+1 {
			t.Errorf("%v, namespaces %+v, %d records", err, d.e.Namespaces(), st.Records)
		}
	}
}

func TestIdempotency_DamagedAnswers_AreFound(t *testing.T) {
	k := &onceDone{key: idempotencyKey{1}, fingerprint: 2, at: 3, place: oncePlace{4, 5}, rev: 6, payload: []byte("answer")}
	key := appendOnceKey(nil, k.place)
	good := appendOnce(nil, key, k)
	got, err := decodeOnce(key, good)
	if err != nil || got.key != k.key || got.fingerprint != k.fingerprint || got.at != k.at || got.place != k.place || got.rev != k.rev || !bytes.Equal(got.payload, k.payload) || got.status != k.status {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if _, err := decodeOnce(key, bad); err == nil {
			t.Errorf("byte %d may be changed", i)
		}
		if _, err := decodeOnce(key, good[:i]); err == nil {
			t.Errorf("it may end at %d", i)
		}
	}
	if _, err := decodeOnce(appendOnceKey(nil, oncePlace{4, 6}), good); err == nil {
		t.Error("it may stand elsewhere")
	}
	for name, second := range map[string]*onceDone{
		"of the same key": {key: k.key, at: 3, place: oncePlace{5, 0}},
		"that is older":   {key: idempotencyKey{2}, at: 2, place: oncePlace{5, 0}},
	} {
		table := newIdempotency()
		if err := table.load(key, good); err != nil {
			t.Fatal(err)
		}
		secondKey := appendOnceKey(nil, second.place)
		if err := table.load(secondKey, appendOnce(nil, secondKey, second)); err == nil {
			t.Errorf("a second answer %s is taken", name)
		}
	}
}

// onceTableMachine is the table with a store of a map, beside the reference.
type onceTableMachine struct {
	t      testing.TB
	model  *reference
	index  uint64
	now    int64
	table  *idempotency
	digest digest
	mem    arena
	stored mapStorer
	seen   map[string]int
}

// apply does with the table what the applier does.
func (m *onceTableMachine) apply(at int64, ops []testOp) {
	m.t.Helper()
	m.index++
	m.now = max(m.now, at)
	revs := 0
	m.table.forget(m.now)
	var results []wire.Result
	for i := range ops {
		op := &ops[i].Op
		v, namespace, _ := wire.FindIdempotency(op.Ext)
		id, err := wire.DecodeIdempotency(v)
		if err != nil {
			m.t.Fatal(err)
		}
		key := idempotencyKeyOf(namespace, id.Key)
		res, answered := m.table.begin(key, id.Fingerprint, m.now)
		if !answered {
			res = answerOnce(op, func() wire.Revision { revs++; return wire.MakeRevision(m.index, revs-1) })
			m.table.keep(&onceDone{key: key, fingerprint: id.Fingerprint, at: m.now, place: oncePlace{m.index, uint32(i)}}, &res)
		}
		m.seen[fmt.Sprintf("%v, replayed %v", res.Status, res.Replayed)]++
		results = append(results, res)
	}
	m.table.flush(m.stored, &m.mem, &m.digest)
	m.mem.reset()
	if fault := differentResults(results, m.model.apply(m.index, sealEntry(at, ops...))); fault != "" {
		m.t.Fatalf("entry %d: the model disagrees: %s\n%s", m.index, fault, step{index: m.index, ops: ops})
	}
	var sum digest
	for key, b := range m.stored {
		sum.add(sealedDigest([]byte(key), b))
	}
	if sum != m.digest || len(m.stored) != len(m.table.byKey) || len(m.table.byKey) != len(m.model.once) || m.table.bytes != m.model.onceBytes() || m.table.bytes > m.table.bytesMax {
		m.t.Fatalf("entry %d: %d answers are stored with digest %x; %d of %d bytes known, digest %x; the model has %d of %d", m.index, len(m.stored), sum,
			len(m.table.byKey), m.table.bytes, m.digest, len(m.model.once), m.model.onceBytes())
	}
}

// restart builds the table from what is stored, as loadIdempotency does, and compares it with the one that was there.
func (m *onceTableMachine) restart() {
	m.t.Helper()
	t := newIdempotency()
	t.bytesMax = m.table.bytesMax
	for _, key := range sortedKeys(m.stored) {
		if err := t.load([]byte(key), m.stored[key]); err != nil {
			m.t.Fatal(err)
		}
	}
	if got, want := onceLines(t), onceLines(m.table); !slices.Equal(got, want) {
		m.t.Fatalf("entry %d: tables differ: %q after a restart, %q before", m.index, got, want)
	}
	m.table = t
}

// answerOnce answers a write by its bytes alone, so that nothing but keys is looked at.
func answerOnce(op *wire.Op, rev func() wire.Revision) wire.Result {
	switch n := len(op.Payload); {
	case op.Op == wire.OpDelete:
		return wire.Result{Status: wire.StatusNotFound}
	case n == 1:
		return wire.Result{Status: wire.StatusRetryLater} // not an answer: to be asked again
	case n == 2:
		return wire.Result{Status: wire.StatusConditionFailed, Payload: op.Payload}
	case n == 3:
		return wire.Result{Rev: rev(), Payload: bytes.Repeat(op.Payload[:1], wire.IdempotencyAnswerBytesMax)}
	}
	return wire.Result{Rev: rev()}
}

func TestIdempotencyTable_RandomPrograms_AgreeWithTheModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 43))
	n := 1000
	if testing.Short() {
		n = 100
	}
	seen := make(map[string]int)
	for range n {
		m := &onceTableMachine{t: t, model: newReference(), index: 1, now: testEpoch, table: newIdempotency(), stored: make(mapStorer), seen: seen}
		m.model.apply(1, sealEntry(testEpoch, initOp()))
		m.model.answer = func(model *reference, op *wire.Op) wire.Result { return answerOnce(op, model.rev) }
		if rng.IntN(2) == 0 {
			m.table.bytesMax = wire.IdempotencyAnswerBytesMax + int64(1+rng.IntN(12))*wire.IdempotencyOverheadBytes
			m.model.onceBytesMax = m.table.bytesMax
		}
		at := testEpoch
		for range 30 {
			var ops []testOp
			for range rng.IntN(6) {
				op := putOp("k", make([]byte, rng.IntN(6)), nil)
				if rng.IntN(8) == 0 {
					op = deleteOp("k", nil)
				}
				op = op.once(fmt.Sprint(rng.IntN(12)), 1+uint64(rng.IntN(6)/5))
				if rng.IntN(5) == 0 {
					op = op.named("other")
				}
				ops = append(ops, op)
			}
			m.apply(at, ops)
			switch rng.IntN(8) {
			case 0: // the boundary, from either side
				at += idempotencyTTL + int64(rng.IntN(3)) - 1
			case 1:
				at += idempotencyTTL / 3
			case 2:
				at -= 50e6
			case 3:
				m.restart()
			}
		}
		m.restart()
	}
	// What the programs never meet is not tested.
	for _, answer := range []string{"OK, replayed false", "OK, replayed true", "CONDITION_FAILED, replayed true", "NOT_FOUND, replayed true", "IDEMPOTENCY_KEY_REUSED, replayed false", "RETRY_LATER, replayed false"} {
		if seen[answer] < n/20 {
			t.Errorf("%q was answered %d times only: %v", answer, seen[answer], seen)
		}
	}
}
