package test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
	"kvstore/wire"
)

// Reads only go forward, checked at a high rate. A linearizable read, whichever node answers it, shows no key older
// than anybody had been told before the read began. A stale read of one connection shows no key older than the one
// before it: it speaks with one process, whose state only grows. And the age that a stale answer tells is true:
// everything that was acknowledged so long before it was asked for is in it.

func init() { workloads["monotonic"] = func() workload { return new(monotonicLoad) } }

const (
	// monotonicKeys are written over and over, and mostly read all at once.
	monotonicKeys   = 48
	monotonicPrefix = "monotonic/"
	// monotonicMemory is how many acknowledged writes of one key are remembered with their moments, to judge ages: at
	// some 5 writes a second of each key that is longer than any fault.
	monotonicMemory = 256
)

// shown is what a read tells of each key, by number: its version, 0 where it is not there, notAsked where the read did not
// ask for it.
type shown [monotonicKeys]uint64

const notAsked = math.MaxUint64

// told is an acknowledged write.
type told struct {
	at      time.Duration // when, since the begin of the run
	version uint64
}

// oldest is what is known of each key: what the next read must at least show.
type oldest struct {
	mu sync.Mutex
	// Guarded by mu.
	newest shown                 // the highest version that anybody was told by a linearizable operation
	acked  [monotonicKeys][]told // the last writes, in the order in which they were acknowledged
	lost   [monotonicKeys]told   // the newest of those that are forgotten
	notes  map[string]int        // what the checks were, by kind
}

// floor gives what a linearizable read that begins now must at least show.
func (o *oldest) floor() shown {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.newest
}

// before gives what was acknowledged at least by the moment at. What is not remembered any more claims nothing.
func (o *oldest) before(at time.Duration) (floor shown) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range floor {
		if o.lost[i].at <= at {
			floor[i] = o.lost[i].version
		}
		for _, w := range o.acked[i] {
			if w.at > at {
				break
			}
			floor[i] = max(floor[i], w.version)
		}
	}
	return floor
}

// acknowledged enters a write, at the moment at.
func (o *oldest) acknowledged(i int, version uint64, at time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.newest[i] = max(o.newest[i], version)
	if len(o.acked[i]) == monotonicMemory {
		first := o.acked[i][0]
		o.lost[i] = told{first.at, max(o.lost[i].version, first.version)}
		o.acked[i] = o.acked[i][:copy(o.acked[i], o.acked[i][1:])]
	}
	if n := len(o.acked[i]); n > 0 {
		at = max(at, o.acked[i][n-1].at) // two callers were told at once, and entered it the other way round
	}
	o.acked[i] = append(o.acked[i], told{at, version})
}

// reads enters what a linearizable read has shown.
func (o *oldest) reads(s *shown, kind string, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, v := range s {
		if v != notAsked {
			o.newest[i] = max(o.newest[i], v)
		}
	}
	o.notes[kind] += n
}

// noOlder tells which key of an answer is older than the floor.
func noOlder(s, floor *shown) error {
	for i, v := range s {
		if v != notAsked && v < floor[i] {
			return fmt.Errorf("key %d is shown with version %d (0: not there), and version %d was told before", i, v, floor[i])
		}
	}
	return nil
}

// count tells how many keys were asked for.
func (s *shown) count() (n int) {
	for _, v := range s {
		if v != notAsked {
			n++
		}
	}
	return n
}

// nothing is the answer to no question.
func nothing() (s shown) {
	for i := range s {
		s[i] = notAsked
	}
	return s
}

// monotonicLoad is the workload.
type monotonicLoad struct {
	r             *faultRun // set by drive
	known         oldest
	done, unknown atomic.Int64
	aged, unaged  atomic.Int64 // stale answers with an age, and without one
	oldestAge     atomic.Int64 // the largest age told, µs
}

func (l *monotonicLoad) name() string { return "monotonic" }

func (l *monotonicLoad) figures() figures {
	return figures{done: l.done.Load(), unknown: l.unknown.Load(), least: 1000}
}

func monotonicKey(i int) string { return fmt.Sprintf("%s%02d", monotonicPrefix, i) }

// indexOf is the number of a key.
func indexOf(key string) (i int, err error) {
	if _, err = fmt.Sscanf(key, monotonicPrefix+"%d", &i); err != nil || i < 0 || i >= monotonicKeys || monotonicKey(i) != key {
		return 0, fmt.Errorf("%q is no key of this load", key)
	}
	return i, nil
}

func (l *monotonicLoad) drive(r *faultRun) {
	l.r = r
	l.known.notes = make(map[string]int)
	patient := openAt(r.t, r.c.Addrs(), client.WithTimeout(loadTimeout), client.WithName("monotonic"))
	hasty := openAt(r.t, r.c.Addrs(), client.WithTimeout(hastyTimeout), client.WithoutSession(), client.WithName("monotonic, hasty"))
	for i, c := range []*client.Client{patient, hasty} {
		r.callAs(fmt.Sprintf("monotonic writer %d", i), 3*time.Millisecond, 12*time.Millisecond, func(rng *rand.Rand) bool { return l.write(c, rng) })
		for k := range 2 {
			r.callAs(fmt.Sprintf("monotonic reader %d %d", i, k), 4*time.Millisecond, 16*time.Millisecond, func(rng *rand.Rand) bool { return l.read(c, rng) })
		}
	}
	for _, n := range r.c.Nodes() {
		at := &monotonicNode{l: l, n: n}
		r.callAs("monotonic at "+n.Addr(), 4*time.Millisecond, 16*time.Millisecond, at.step)
		r.work.Go(func() { // ends with r.ctx
			<-r.ctx.Done()
			at.hangUp()
		})
	}
}

// write changes one key.
func (l *monotonicLoad) write(c *client.Client, rng *rand.Rand) bool {
	i := rng.IntN(monotonicKeys)
	floor := l.known.floor()
	v, err := c.Put(context.Background(), monotonicKey(i), []byte("m"))
	at := time.Since(l.r.began)
	switch o, _ := l.r.wrote(monotonicKey(i), err); o {
	case unknown:
		l.unknown.Add(1)
		return false
	case refused:
		return false
	}
	if uint64(v) <= floor[i] {
		l.r.anomaly("%s: a write has version %d, and version %d was told before it began", monotonicKey(i), v, floor[i])
	}
	l.known.acknowledged(i, uint64(v), at)
	l.done.Add(1)
	return true
}

// judge checks a linearizable answer.
func (l *monotonicLoad) judge(kind string, s, floor *shown) {
	n := s.count()
	if err := noOlder(s, floor); err != nil {
		l.r.anomaly("%s: %v", kind, err)
	}
	l.done.Add(int64(n))
	l.known.reads(s, kind, n)
}

// read reads one, some or all keys, linearizably.
func (l *monotonicLoad) read(c *client.Client, rng *rand.Rand) bool {
	s, where := nothing(), "at the leader"
	var opts []client.GetOption
	if rng.IntN(4) > 0 {
		opts, where = append(opts, client.AnyNode()), "at any node"
	}
	floor := l.known.floor()
	switch rng.IntN(3) {
	case 0:
		i := rng.IntN(monotonicKeys)
		v, err := c.Get(context.Background(), monotonicKey(i), opts...)
		if err != nil && !errors.Is(err, client.ErrNotFound) {
			l.r.readError("get", err)
			return false
		}
		s[i] = uint64(v.Version)
		l.judge("get "+where, &s, &floor)
	case 1:
		some := rng.Perm(monotonicKeys)[:8]
		keys := make([]string, len(some))
		for k, i := range some {
			keys[k] = monotonicKey(i)
		}
		res, err := c.BatchGet(context.Background(), keys, opts...)
		if err != nil {
			l.r.readError("batch", err)
			return false
		}
		for k, it := range res.Items {
			switch {
			case it.Value != nil:
				s[some[k]] = uint64(it.Value.Version)
			case errors.Is(it.Err, client.ErrNotFound):
				s[some[k]] = 0
			}
		}
		l.judge("batch "+where, &s, &floor)
	default:
		s = shown{}
		for e, err := range c.List(context.Background(), client.ListOptions{Prefix: monotonicPrefix, KeysOnly: true, Read: opts}) {
			if err != nil {
				l.r.readError("listing", err)
				return false
			}
			i, err := indexOf(e.Key)
			if err != nil {
				l.r.anomaly("listing: %v", err)
				return false
			}
			s[i] = uint64(e.Version)
		}
		l.judge("listing "+where, &s, &floor)
	}
	return true
}

// monotonicNode reads at one node and nowhere else, over one connection while that lasts. Owned by one caller, but for
// hangUp.
type monotonicNode struct {
	l *monotonicLoad
	n *testcluster.Node

	last shown // what the last stale answer of this connection has shown

	mu sync.Mutex
	f  *framer // guarded by mu; nil: there is no connection
}

// connection gives the one that is open, or a new one: then nothing is known of the process behind it.
func (m *monotonicNode) connection() (*framer, error) {
	m.mu.Lock()
	f := m.f
	m.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := openFramer(m.n.Addr(), linearTimeout)
	if err != nil {
		return nil, err
	}
	m.last = shown{}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.f = f
	return f, nil
}

func (m *monotonicNode) hangUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.f != nil {
		m.f.close()
		m.f = nil
	}
}

// step reads all keys in one way, stale or not.
func (m *monotonicNode) step(rng *rand.Rand) bool {
	f, err := m.connection()
	if err != nil {
		return false
	}
	kind, maxAge := byte(wire.ConsistencyStale), time.Duration(0)
	if rng.IntN(3) == 0 {
		kind = wire.ConsistencyAnyNode
	}
	ext := wire.AppendExtU8(nil, wire.ExtConsistency, kind)
	if kind == wire.ConsistencyStale && rng.IntN(3) == 0 {
		maxAge = between(rng, 10*time.Millisecond, 2*time.Second).Truncate(time.Millisecond)
		ext = wire.AppendExtU64(ext, wire.ExtMaxAge, uint64(maxAge.Milliseconds()))
	}
	h := wire.Header{Op: wire.OpScan, TimeOrTimeout: 3000}
	payload := wire.AppendScanRequest(nil, &wire.ScanRequest{Flags: wire.ScanKeysOnly, Prefix: []byte(monotonicPrefix)})
	if rng.IntN(3) == 0 {
		h.Op = wire.OpMultiGet
		payload = wire.AppendGroupHeader(nil, 0, monotonicKeys)
		for i := range monotonicKeys {
			payload = wire.AppendItem(payload, &wire.Item{Op: wire.OpGet, Key: []byte(monotonicKey(i))})
		}
	}
	floor, call := m.l.known.floor(), time.Since(m.l.r.began)
	st, answer, told, err := f.ask(h, ext, payload)
	if err != nil {
		m.hangUp()
		return false
	}
	if st != wire.StatusOK {
		if st.Class() != wire.ClassRetry {
			m.l.r.anomaly("%s answers a read with %s %q", m.n.Addr(), st, told)
		}
		return false
	}
	s, err := decodeShown(h.Op, told)
	if err != nil {
		m.l.r.anomaly("%s: %s: %v", m.n.Addr(), h.Op, err)
		return false
	}
	if kind == wire.ConsistencyAnyNode {
		m.l.judge(fmt.Sprintf("%s at one node", h.Op), &s, &floor)
		return true
	}
	m.stale(h.Op, s, answer, call, maxAge)
	return true
}

// stale judges a stale answer to what was asked for at call.
func (m *monotonicNode) stale(op wire.Opcode, s shown, ext []byte, call, maxAge time.Duration) {
	l, where := m.l, fmt.Sprintf("stale %s at %s", op, m.n.Addr())
	if err := noOlder(&s, &m.last); err != nil {
		l.r.anomaly("%s: it goes back over one connection: %v", where, err)
	}
	m.last = s
	age, known, err := ageOf(ext)
	if err != nil {
		l.r.anomaly("%s: %v", where, err)
	}
	l.done.Add(int64(s.count()))
	if !known {
		l.unaged.Add(1)
		if maxAge > 0 {
			l.r.anomaly("%s: no age is known, and one of at most %v was wanted", where, maxAge)
		}
		return
	}
	l.aged.Add(1)
	l.oldestAge.Store(max(l.oldestAge.Load(), age.Microseconds()))
	if maxAge > 0 && age > maxAge {
		l.r.anomaly("%s: the age is %v, and one of at most %v was wanted", where, age, maxAge)
	}
	// A node whose clock runs slower than the others' tells too small an age, and is not to blame.
	if l.r.scene.needs&needClocks == 0 {
		if err := trueAge(&l.known, &s, call, age); err != nil {
			l.r.anomaly("%s: %v", where, err)
		}
	}
}

// trueAge tells whether an answer of an age lacks something that was acknowledged so long before it was asked for.
func trueAge(known *oldest, s *shown, call, age time.Duration) error {
	floor := known.before(call - age)
	if err := noOlder(s, &floor); err != nil {
		return fmt.Errorf("asked for at %v, it says to be %v old: %w", call, age, err)
	}
	return nil
}

// ageOf reads the age of a stale answer.
func ageOf(ext []byte) (age time.Duration, known bool, err error) {
	for len(ext) > 0 {
		var t wire.ExtType
		var v []byte
		if t, v, ext, err = wire.NextExt(ext); err != nil {
			return 0, false, err
		}
		if t == wire.ExtAge && len(v) == 8 {
			us := binary.LittleEndian.Uint64(v)
			return time.Duration(us) * time.Microsecond, us != wire.AgeUnknown, nil
		}
	}
	return 0, false, errors.New("a stale answer tells no age")
}

// decodeShown reads the versions of an answer about all keys.
func decodeShown(op wire.Opcode, payload []byte) (s shown, err error) {
	var items []byte
	if op == wire.OpMultiGet {
		_, _, items, err = wire.DecodeResult(payload)
	} else {
		var p wire.ScanPage
		err = wire.DecodeScanPage(payload, &p)
		items = p.Items
	}
	if err != nil {
		return s, err
	}
	var it wire.Item
	for k := 0; len(items) > 0; k++ {
		if items, err = wire.NextItem(items, &it); err != nil {
			return s, err
		}
		i := k
		if op == wire.OpScan {
			if i, err = indexOf(string(it.Key)); err != nil {
				return s, err
			}
		}
		if it.Status == wire.StatusNotFound {
			continue
		}
		t, v, _, err := wire.NextExt(it.Ext)
		if err != nil || t != wire.ExtMeta || len(v) < 8 || i >= monotonicKeys {
			return s, fmt.Errorf("item %d, %s, has no metadata: %w", k, it.Status, errors.Join(err))
		}
		s[i] = binary.LittleEndian.Uint64(v)
	}
	return s, nil
}

// ask sends one request without a key and waits for its answer, longer than any fault, or for the end of the connection.
func (f *framer) ask(h wire.Header, ext, payload []byte) (st wire.Status, answerExt, answer []byte, err error) {
	f.last++
	if err := f.c.SetDeadline(time.Now().Add(linearTimeout)); err != nil {
		return 0, nil, nil, err
	}
	h.ID = f.last
	if _, err := f.c.Write(wire.AppendFrame(nil, h, ext, nil, payload)); err != nil {
		return 0, nil, nil, err
	}
	for {
		h, body, err := f.next()
		if err != nil {
			return 0, nil, nil, err
		}
		if h.ID != f.last {
			continue // GOAWAY: what is under way is still answered
		}
		return h.Status(), body[:h.ExtLen], body[h.ExtLen:], nil
	}
}

func (l *monotonicLoad) verify(r *faultRun) {
	c := openAt(r.t, r.c.Addrs(), client.WithTimeout(loadTimeout))
	rng := r.stream("monotonic verify")
	for range 20 {
		if !l.read(c, rng) {
			r.t.Error("cannot read in the end")
		}
	}
	for _, n := range r.c.Nodes() {
		at := &monotonicNode{l: l, n: n}
		answers := 0
		for range 20 {
			if at.step(rng) {
				answers++
			}
		}
		if answers == 0 {
			r.anomaly("%s answers no read in the end, though every fault is mended", n.Addr())
		}
		at.hangUp()
	}
	r.note("monotonic: %d keys in answers checked, %.0f a second; %d stale answers with an age, of at most %v, %d without; %v", l.done.Load(),
		float64(l.done.Load())/r.since(), l.aged.Load(), (time.Duration(l.oldestAge.Load()) * time.Microsecond).Round(time.Millisecond), l.unaged.Load(), l.known.notes)
	if l.aged.Load() < 20 {
		r.t.Errorf("only %d stale answers had an age: it proves nothing", l.aged.Load())
	}
}

// TestMonotonicChecker_OneHarmEach_IsFoundOut is the control of the checks on versions and ages.
func TestMonotonicChecker_OneHarmEach_IsFoundOut(t *testing.T) {
	known := &oldest{notes: make(map[string]int)}
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for i := range monotonicMemory + 3 { // key 0: version n at the nth millisecond
		known.acknowledged(0, uint64(i+1), ms(i+1))
	}
	last := monotonicMemory + 3
	s := nothing()
	s[1] = 7
	known.reads(&s, "", 1)
	floor := known.floor()
	with := func(i int, version uint64) *shown {
		s := nothing()
		s[i] = version
		return &s
	}
	for _, err := range []error{
		noOlder(with(0, uint64(last)), &floor), noOlder(with(1, 8), &floor), noOlder(with(2, 0), &floor),
		trueAge(known, with(0, 200), ms(last), ms(last-200)), trueAge(known, with(0, 201), ms(last), ms(last-200)), trueAge(known, with(0, 200), ms(210), ms(10)),
		trueAge(known, with(0, 3), ms(10), ms(7)),                   // the last write that is forgotten
		trueAge(known, with(0, 0), ms(2), 0),                        // before it: nothing is claimed
		trueAge(known, with(0, 0), ms(last), ms(last)),              // everything may be missing
		trueAge(known, with(2, 0), ms(last), 0),                     // nobody wrote it
		trueAge(known, with(0, uint64(last)+1), ms(last), ms(last)), // newer than anything told: its answer is on its way
	} {
		if err != nil {
			t.Errorf("what is right: %v", err)
		}
	}
	for name, err := range map[string]error{
		"version that goes back":              noOlder(with(0, uint64(last)-1), &floor),
		"version below one that was read":     noOlder(with(1, 6), &floor),
		"key that is gone":                    noOlder(with(1, 0), &floor),
		"age too small by a millisecond":      trueAge(known, with(0, 199), ms(last), ms(last-200)),
		"age 0 of an old state":               trueAge(known, with(0, uint64(last)-1), ms(last), 0),
		"age too small for what is forgotten": trueAge(known, with(0, 2), ms(10), ms(7)),
	} {
		if err == nil {
			t.Errorf("a harm, %s, passes", name)
		}
	}
	if _, _, err := ageOf(nil); err == nil {
		t.Error("a stale answer without an age passes")
	}
	age, ok, err := ageOf(wire.AppendExtU64(nil, wire.ExtAge, 1500))
	if age != 1500*time.Microsecond || !ok || err != nil {
		t.Errorf("an age of 1.5 ms is read as %v, %v, %v", age, ok, err)
	}
	if _, ok, err := ageOf(wire.AppendExtU64(nil, wire.ExtAge, wire.AgeUnknown)); ok || err != nil {
		t.Errorf("an unknown age is read as known: %v", err)
	}
}
