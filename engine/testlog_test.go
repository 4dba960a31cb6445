package engine

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"kvstore/wire"
)

// testOp is an operation with its body, ready for wire.AppendOp.
type testOp struct {
	wire.Op
}

func (o testOp) session(id, seq, floor uint64) testOp {
	o.Session, o.Seq, o.Floor = id, seq, floor
	return o
}

func putOp(key string, value []byte, ext []byte) testOp {
	return testOp{wire.Op{Op: wire.OpPut, Namespace: 1, Ext: ext, Key: []byte(key), Payload: value}}
}

func deleteOp(key string, ext []byte) testOp {
	return testOp{wire.Op{Op: wire.OpDelete, Namespace: 1, Ext: ext, Key: []byte(key)}}
}

func groupOp(op wire.Opcode, flags uint8, items ...wire.Item) testOp {
	p := wire.AppendGroupHeader(nil, flags, len(items))
	for i := range items {
		p = wire.AppendItem(p, &items[i])
	}
	return testOp{wire.Op{Op: op, Namespace: 1, Payload: p}}
}

func putItem(key, value string, ext []byte) wire.Item {
	return wire.Item{Op: wire.OpPut, Ext: ext, Key: []byte(key), Value: []byte(value)}
}

func sessionOpenOp() testOp { return testOp{wire.Op{Op: wire.OpSessionOpen}} }

func sessionCloseOp(id uint64) testOp {
	return testOp{wire.Op{Op: wire.OpSessionClose, Session: id}}
}

func expireOp(n uint32) testOp {
	return testOp{wire.Op{Op: wire.OpExpire, Payload: wire.AppendExpire(nil, n)}}
}

var testInit = wire.Init{ClusterID: [16]byte{0xc1, 2, 3}, HistoryID: [16]byte{0x41, 5, 6}, Level: LevelNewest}

// initRecords is how many records initOp writes.
const initRecords = 6

func initOp() testOp {
	return testOp{wire.Op{Op: wire.OpInit, Payload: wire.AppendInit(nil, &testInit)}}
}

func touchOp(key string, ext []byte) testOp {
	return testOp{wire.Op{Op: wire.OpTouch, Namespace: 1, Ext: ext, Key: []byte(key)}}
}

func incrementOp(key string, delta int64, ext []byte) testOp {
	return testOp{wire.Op{Op: wire.OpIncrement, Namespace: 1, Ext: ext, Key: []byte(key), Payload: wire.AppendIncrement(nil, delta)}}
}

func levelOp(level uint16) testOp {
	return testOp{wire.Op{Op: wire.OpLevel, Payload: wire.AppendLevel(nil, level)}}
}

func namespaceOp(c wire.NamespaceChange) testOp {
	return testOp{wire.Op{Op: wire.OpNamespace, Payload: wire.AppendNamespaceChange(nil, &c)}}
}

func createOp(name string, s wire.NamespaceSettings) testOp {
	return namespaceOp(wire.NamespaceChange{Action: wire.NamespaceCreate, Name: name, Settings: s})
}

func dropOp(name string) testOp {
	return namespaceOp(wire.NamespaceChange{Action: wire.NamespaceDrop, Name: name})
}

func purgeOp(id, most uint32) testOp {
	return namespaceOp(wire.NamespaceChange{Action: wire.NamespacePurge, ID: id, Max: most})
}

// in gives the operation another namespace.
func (o testOp) in(ns uint32) testOp {
	o.Namespace = ns
	return o
}

// initAtOp is initOp at a level of its own.
func initAtOp(level uint16) testOp {
	in := testInit
	in.Level = level
	return testOp{wire.Op{Op: wire.OpInit, Payload: wire.AppendInit(nil, &in)}}
}

func sealEntry(t int64, ops ...testOp) []byte {
	b := wire.AppendEntryHeader(nil)
	for i := range ops {
		o := &ops[i].Op
		body := append(append(append([]byte(nil), o.Ext...), o.Key...), o.Payload...)
		b = wire.AppendOp(b, o, body, len(o.Ext), len(o.Key))
	}
	wire.SealEntry(b, &wire.EntryHeader{Level: 1, Group: 1, Incarnation: 7, Proposal: 1, Time: t, Count: uint32(len(ops))})
	return b
}

func withTTL(ext []byte, ttl time.Duration) []byte {
	return wire.AppendExtU64(ext, wire.ExtTTL, uint64(ttl.Milliseconds()))
}

func memberOp(m wire.Member) testOp {
	return testOp{wire.Op{Op: wire.OpMember, Payload: wire.AppendMember(nil, &m)}}
}

func recoverOp(r wire.Recover) testOp {
	return testOp{wire.Op{Op: wire.OpRecover, Payload: wire.AppendRecover(nil, &r)}}
}

// testEpoch is where log time begins in tests.
const testEpoch = int64(1_700_000_000_000_000)

// engineOptions are small and never checkpoint by themselves.
func engineOptions(t testing.TB, dir string) Options {
	t.Helper()
	return Options{
		Dir:                dir,
		Logger:             slog.New(slog.NewTextHandler(io.Discard, nil)),
		MemtableBytes:      4 << 20,
		CheckpointInterval: time.Hour,
		CheckpointBytes:    1 << 30,
		CacheBytes:         1 << 20,
		Fatal:              func(err error) { t.Errorf("engine failed: %v", err) },
	}
}

func mustOpen(t testing.TB, o Options) *Engine {
	t.Helper()
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a second Close is harmless
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

// driver is an engine with its next index and its time.
type driver struct {
	t     testing.TB
	e     *Engine
	index uint64
	now   int64
}

// newDriver opens an engine and applies OpInit.
func newDriver(t testing.TB, o Options) *driver {
	t.Helper()
	d := &driver{t: t, e: mustOpen(t, o), now: testEpoch}
	d.apply(initOp())
	return d
}

// apply applies one entry.
func (d *driver) apply(ops ...testOp) []wire.Result {
	d.index++
	return d.e.Apply(d.index, 1, sealEntry(d.now, ops...))
}

// one applies an entry of one operation.
func (d *driver) one(op testOp) wire.Result {
	return d.apply(op)[0]
}

func (d *driver) put(key, value string) wire.Revision {
	d.t.Helper()
	res := d.one(putOp(key, []byte(value), nil))
	if res.Status != wire.StatusOK {
		d.t.Fatalf("put %q: %v", key, res.Status)
	}
	return res.Rev
}

// get reads a key; "" and the status when it isn't there.
func (d *driver) get(key string) (string, wire.Status) {
	d.t.Helper()
	rec, _, st, err := d.e.Get(ReadOptions{Namespace: 1}, []byte(key), nil)
	if err != nil {
		d.t.Fatalf("get %q: %v", key, err)
	}
	return string(rec.Value), st
}

func (d *driver) wantValue(key, want string) {
	d.t.Helper()
	if got, st := d.get(key); st != wire.StatusOK || got != want {
		d.t.Fatalf("get %q: %q, %v; want %q", key, short(got), st, short(want))
	}
}

func (d *driver) wantAbsent(key string) {
	d.t.Helper()
	if got, st := d.get(key); st != wire.StatusNotFound {
		d.t.Fatalf("get %q: %q, %v; want it absent", key, short(got), st)
	}
}

func short(s string) string {
	if len(s) > 40 {
		return fmt.Sprintf("%s… (%d bytes)", s[:40], len(s))
	}
	return s
}

// workload makes random entries. It learns from the results, so that conditions and sessions refer to what
// is there. Everything follows from the seed and the results.
type workload struct {
	rng      *rand.Rand
	keys     int
	bigValue int    // largest value
	level    uint16 // of OpInit
	created  uint32 // namespaces, besides the default one
	now      int64
	index    uint64

	versions map[string]wire.Revision
	values   map[string][]byte
	sessions []*workloadSession
	onces    []testOp // writes with an idempotency key, to be sent again
	sent     []testOp // the entry at hand
}

type workloadSession struct {
	id, next, floor uint64
	sent            []testOp // unacknowledged, for retries
}

func newWorkload(seed uint64) *workload {
	return &workload{
		rng: rand.New(rand.NewPCG(seed, 1)), keys: 60, bigValue: 40 << 10, now: testEpoch, level: uint16(1 + seed%3),
		versions: make(map[string]wire.Revision), values: make(map[string][]byte),
	}
}

// next makes the next entry.
func (w *workload) next() (index uint64, entry []byte) {
	w.index++
	w.sent = w.sent[:0]
	if w.index == 1 {
		w.sent = append(w.sent, putOp("too early", nil, nil), initAtOp(w.level), initOp())
	} else {
		for range 1 + w.rng.IntN(12) {
			w.sent = append(w.sent, w.op())
		}
	}
	switch w.rng.IntN(60) {
	case 0:
		w.now += 11 * 60e6 // every idle session ends
	case 1:
		w.now -= 5e6 // a clock that stepped back
	default:
		w.now += int64(w.rng.IntN(3e6))
	}
	return w.index, sealEntry(w.now, w.sent...)
}

// learn takes the results of the entry that next made.
func (w *workload) learn(results []wire.Result) {
	for i, res := range results {
		op := &w.sent[i]
		switch {
		case res.Status != wire.StatusOK || res.Replayed:
		case op.Op.Op == wire.OpPut:
			w.versions[string(op.Key)] = res.Rev
			w.values[string(op.Key)] = op.Payload
		case op.Op.Op == wire.OpNamespace && op.Payload[1] == byte(wire.NamespaceCreate):
			w.created++
		case op.Op.Op == wire.OpSessionOpen:
			if g, ok := wire.DecodeSessionGrant(res.Payload); ok {
				w.sessions = append(w.sessions, &workloadSession{id: g.Session, next: 1})
			}
		}
	}
	if len(w.sessions) > 8 {
		w.sessions = w.sessions[1:]
	}
}

func (w *workload) key() string {
	switch w.rng.IntN(40) {
	case 0:
		return "" // refused
	case 1:
		return "\xff\xfe" // refused
	}
	return fmt.Sprintf("key/%03d", w.rng.IntN(w.keys))
}

// namespace names one, mostly the default one, which is there at every level.
func (w *workload) namespace() uint32 {
	switch w.rng.IntN(6) {
	case 0, 1:
		return w.spaceID()
	case 2:
		return []uint32{0, 77, wire.NamespaceNone, 1, 1, 1, 1, 1}[w.rng.IntN(8)]
	}
	return 1
}

// spaceID gives the id of a namespace, mostly of one of the newest.
func (w *workload) spaceID() uint32 {
	return 1 + max(1, w.created-min(w.created, uint32(w.rng.IntN(4))))
}

// number makes a value that increments like, or nearly.
func (w *workload) number() []byte {
	return []byte([]string{"0", "7", "-12", "007", "-0", "+1", " 1", "1 ", "9223372036854775807", "-9223372036854775808", "9223372036854775808",
		"00000000000000000001", "000000000000000000001", "-", "1e3", "1_0"}[w.rng.IntN(16)])
}

func (w *workload) delta() int64 {
	switch w.rng.IntN(8) {
	case 0:
		return math.MaxInt64
	case 1:
		return math.MinInt64
	case 2:
		return 0
	}
	return int64(w.rng.IntN(21)) - 10
}

// change makes a change of a namespace.
func (w *workload) change() testOp {
	c := wire.NamespaceChange{
		Action: wire.NamespaceAction(1 + w.rng.IntN(4)), Name: []string{"a", "b", "c/d", "default"}[w.rng.IntN(4)],
		ID: w.spaceID(), Max: uint32(1 + w.rng.IntN(4)),
		Settings: wire.NamespaceSettings{OpsPerSecond: w.rng.Uint64(), Compress: wire.Codec(w.rng.IntN(4))},
	}
	if w.rng.IntN(2) == 0 {
		c.Settings.KeysMax = uint64(w.rng.IntN(30))
	}
	if w.rng.IntN(2) == 0 {
		c.Settings.BytesMax = uint64(w.rng.IntN(3000))
	}
	if c.Name == "default" && c.Settings.KeysMax|c.Settings.BytesMax > 0 && w.rng.IntN(3) > 0 {
		c.Settings.KeysMax, c.Settings.BytesMax = 0, 0 // most writes go there
	}
	op := namespaceOp(c)
	switch w.rng.IntN(12) {
	case 0:
		op.Payload = op.Payload[:len(op.Payload)-1] // refused
	case 1:
		op = namespaceOp(wire.NamespaceChange{Action: wire.NamespacePurge, ID: c.ID, Max: math.MaxUint32})
	}
	return op
}

func (w *workload) value() []byte {
	n := w.rng.IntN(200)
	if w.rng.IntN(6) == 0 {
		return w.number()
	}
	switch w.rng.IntN(30) {
	case 0:
		n = w.rng.IntN(w.bigValue)
	case 1:
		n = 0
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(w.rng.Uint32())
	}
	return b
}

func (w *workload) conditions(ext []byte, key string) []byte {
	for w.rng.IntN(3) == 0 {
		switch w.rng.IntN(8) {
		case 0:
			ext = wire.AppendExtVersions(ext, w.versions[key], 12345)
		case 1:
			ext = wire.AppendExtCondition(ext, wire.ConditionExists, nil)
		case 2:
			ext = wire.AppendExtCondition(ext, wire.ConditionAbsent, nil)
		case 3:
			ext = wire.AppendExtTagCondition(ext, "colour", fmt.Sprint(w.rng.IntN(3)))
		case 4:
			ext = wire.AppendExtCondition(ext, wire.ConditionTagPresent+wire.ConditionKind(w.rng.IntN(2)), []byte("colour"))
		default:
			if v := w.values[key]; len(v) < 1000 {
				ext = wire.AppendExtCondition(ext, wire.ConditionValue, v)
			}
		}
	}
	return ext
}

func (w *workload) putExt(key string) (ext []byte) {
	ext = w.conditions(ext, key)
	if w.rng.IntN(4) == 0 {
		ext = withTTL(ext, time.Duration(1+w.rng.IntN(20_000))*time.Millisecond)
	}
	if w.rng.IntN(4) == 0 {
		ext = wire.AppendExtTag(ext, "colour", fmt.Sprint(w.rng.IntN(3)))
		ext = wire.AppendExtString(ext, wire.ExtContentType, "text/plain")
	}
	if w.rng.IntN(20) == 0 {
		ext = wire.AppendExtU64(ext, wire.ExtChecksum, 1) // refused
	}
	if w.rng.IntN(8) == 0 {
		ext = wire.AppendExtU8(ext, wire.ExtCompress, uint8(w.rng.IntN(5)))
	}
	return ext
}

// touchExt makes the elements of a touch or an increment.
func (w *workload) touchExt(key string) (ext []byte) {
	ext = w.conditions(ext, key)
	if w.rng.IntN(2) == 0 {
		ext = withTTL(ext, time.Duration(1+w.rng.IntN(20_000))*time.Millisecond)
	}
	return ext
}

func (w *workload) item(txn bool) wire.Item {
	key := w.key()
	it := wire.Item{Key: []byte(key), Op: wire.OpPut}
	n := 5
	if txn {
		n = 7
	}
	switch w.rng.IntN(n) {
	case 0:
		it.Op, it.Ext = wire.OpDelete, w.conditions(nil, key)
	case 1:
		it.Op, it.Ext = wire.OpTouch, w.touchExt(key)
	case 2:
		it.Op, it.Ext, it.Value = wire.OpIncrement, w.touchExt(key), wire.AppendIncrement(nil, w.delta())
	case 5:
		it.Op, it.Ext = wire.OpGet, w.conditions(nil, key)
	case 6:
		it.Op, it.Ext = wire.OpCheck, wire.AppendExtCondition(w.conditions(nil, key), wire.ConditionExists, nil)
	default:
		it.Ext, it.Value = w.putExt(key), w.value()
	}
	return it
}

func (w *workload) group(op wire.Opcode, flags uint8) testOp {
	var items []wire.Item
	for range w.rng.IntN(5) {
		items = append(items, w.item(op == wire.OpTxn))
	}
	return groupOp(op, flags, items...)
}

// write makes a write without a session, in any namespace.
func (w *workload) write() testOp { return w.writeInDefault().in(w.namespace()) }

func (w *workload) writeInDefault() testOp {
	switch w.rng.IntN(13) {
	case 10:
		key := w.key()
		return touchOp(key, w.touchExt(key))
	case 11, 12:
		key := w.key()
		return incrementOp(key, w.delta(), w.touchExt(key))
	case 0, 1, 2, 3:
		key := w.key()
		return putOp(key, w.value(), w.putExt(key))
	case 4, 5:
		key := w.key()
		return deleteOp(key, w.conditions(nil, key))
	case 6:
		return w.group(wire.OpBatch, 0)
	case 7:
		return w.group(wire.OpBatch, wire.GroupAtomic)
	default:
		return w.group(wire.OpTxn, 0)
	}
}

func (w *workload) op() testOp {
	if w.rng.IntN(80) == 0 {
		// A few ids, so that some come again.
		return recoverOp(wire.Recover{HistoryID: [16]byte{9, byte(w.rng.IntN(12))}, BaseRaise: wire.RecoverBaseRaise, At: w.now, Text: "{}"})
	}
	switch w.rng.IntN(30) {
	case 0, 1:
		return w.change()
	case 2:
		return levelOp([]uint16{0, 1, 2, 2, 3, 3, 3, 7}[w.rng.IntN(8)])
	}
	switch n := w.rng.IntN(46); {
	case n >= 40:
		return w.onceWrite()
	case n == 0:
		return sessionOpenOp()
	case n == 1:
		return sessionCloseOp(w.session().id)
	case n <= 3:
		return expireOp(uint32(w.rng.IntN(5)))
	case n == 4:
		return testOp{wire.Op{Op: wire.OpWatch, Namespace: 1}} // unknown in a log
	case n == 5:
		o := putOp("elsewhere", nil, nil)
		o.Namespace = 77
		return o
	case n == 6:
		o := memberOp(wire.Member{ID: fmt.Sprintf("node-%d", w.rng.IntN(9)), Incarnation: [16]byte{byte(w.rng.IntN(9))}, Removed: w.rng.IntN(4) == 0, Address: "localhost:7000"})
		if w.rng.IntN(5) == 0 {
			o.Payload = o.Payload[:len(o.Payload)-1] // refused
		}
		return o
	case n <= 20:
		return w.sessionWrite()
	}
	return w.write()
}

// onceWrite makes a write with an idempotency key: a new one, a retry, or another with the key of one before.
func (w *workload) onceWrite() testOp {
	if n := len(w.onces); n > 0 && w.rng.IntN(3) == 0 {
		return w.onces[w.rng.IntN(n)]
	}
	op := w.write()
	id := wire.Idempotency{Key: [16]byte{byte(w.rng.IntN(40))}, Fingerprint: w.rng.Uint64N(4)}
	ext := wire.AppendExtIdempotency(nil, id)
	switch w.rng.IntN(12) {
	case 0:
		ext = wire.AppendExtString(ext, wire.ExtNamespace, "a")
	case 1:
		ext = wire.AppendExtString(nil, wire.ExtNamespace, "default")
		ext = wire.AppendExtIdempotency(ext, id)
	}
	op.Ext = append(ext, op.Ext...)
	if w.onces = append(w.onces, op); len(w.onces) > 12 {
		w.onces = w.onces[1:]
	}
	return op
}

func (w *workload) session() *workloadSession {
	if len(w.sessions) == 0 {
		return &workloadSession{id: 999, next: 1}
	}
	return w.sessions[w.rng.IntN(len(w.sessions))]
}

// sessionWrite makes a write of a session: a new one, a retry, or one that is out of bounds.
func (w *workload) sessionWrite() testOp {
	s := w.session()
	if len(s.sent) > 0 && w.rng.IntN(4) == 0 {
		return s.sent[w.rng.IntN(len(s.sent))]
	}
	if w.rng.IntN(3) == 0 { // answers have arrived
		s.floor = s.next - 1 - uint64(w.rng.IntN(3))
		if s.floor > s.next {
			s.floor = 0
		}
	}
	seq := s.next
	if w.rng.IntN(50) == 0 {
		seq += wire.SessionWindow + 1
	} else {
		s.next += 1 + uint64(w.rng.IntN(2))
	}
	op := w.write().session(s.id, seq, s.floor)
	s.sent = append(s.sent, op)
	if len(s.sent) > 20 {
		s.sent = s.sent[1:]
	}
	return op
}
