package test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/wire"
)

// Times to live. The store decides what has expired by its log time, which is that of each entry of the log: the
// cluster's clock, but never less than before. So whatever clocks do, four things hold, and are checked by all that
// anybody was told: a record expires exactly its time to live after it was written; log time never goes back; a record
// is there while log time is below its deadline; and once log time has reached the deadline, nobody sees it again.
// Nobody is told the log time itself, but each record tells when it was written, and a record that is gone tells that
// its deadline has passed. How long each record lived is compared with the clock of the test too; where no clock is wrong,
// log time itself is as well.

func init() { workloads["ttl"] = func() workload { return new(ttlLoad) } }

const (
	// wallSlack is what the cluster's clock may be off that of the test, which all nodes have: half of the time that a
	// pulse took there and back when it began, or when a new leader learned it. On a busy machine that is long.
	wallSlack = time.Second
	// ttlLateMax is far more than a fault lasts after which the leader looks for what has expired, ten times a second.
	ttlLateMax = time.Minute
	// ttlOwned bounds the records that one caller takes care of, ttlLasting those that were made to last.
	ttlOwned   = 12
	ttlLasting = 300
	// ttlWrongClocks is what a record may lack of its time where boot clocks run wrong and jump: more than the 5 s that one
	// such clock may take (internal/clustertime/DESIGN.md), and far less than steps of the time of day.
	ttlWrongClocks = 10 * time.Second
	// ttlLeaves: this much of a record's time is left when it is renewed, more or less.
	ttlLeaves = 400 * time.Millisecond
)

// ttlClock is what is known of the log time: nothing that began later may contradict it.
type ttlClock struct {
	mu sync.Mutex
	// Guarded by mu.
	least int64  // log time has reached this, Unix µs
	why   string // who told so
}

// ttlMark is what was known when an operation began.
type ttlMark struct {
	least int64
	why   string
}

func (k *ttlClock) mark() ttlMark {
	k.mu.Lock()
	defer k.mu.Unlock()
	return ttlMark{k.least, k.why}
}

// reached enters that log time has reached at.
func (k *ttlClock) reached(at int64, why func() string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if at > k.least {
		k.least, k.why = at, why()
	}
}

// ttlSeen is a record that somebody was shown.
type ttlSeen struct {
	key              string
	version          uint64
	updated, expires int64 // Unix µs; expires 0: never
	ttl              time.Duration
}

// saw judges a record that was shown by an operation that began at from. written: the record was written after that
// moment too.
func (k *ttlClock) saw(from ttlMark, s ttlSeen, written bool) error {
	switch {
	case s.ttl == 0 && s.expires != 0, s.ttl != 0 && s.expires != s.updated+s.ttl.Microseconds():
		return fmt.Errorf("%s, version %d: written at %d to live %v, and expires at %d", s.key, s.version, s.updated, s.ttl, s.expires)
	case s.expires != 0 && s.expires <= from.least:
		return fmt.Errorf("%s, version %d, is shown, and expired at %d: log time had reached %d before (%s)", s.key, s.version, s.expires, from.least, from.why)
	case written && s.updated < from.least:
		return fmt.Errorf("%s, version %d, was written at %d: log time had reached %d before (%s)", s.key, s.version, s.updated, from.least, from.why)
	}
	k.reached(s.updated, func() string { return fmt.Sprintf("%s was written then", s.key) })
	return nil
}

// gone enters that a record is there no more, whose only reason can be its deadline.
func (k *ttlClock) gone(s ttlSeen) {
	k.reached(s.expires, func() string {
		return fmt.Sprintf("%s, version %d, had expired then", s.key, s.version)
	})
}

// goneEarly tells whether a record was gone before its time by the clock of the test, at an answer that came at now.
func goneEarly(s ttlSeen, now time.Time) error {
	if left := time.UnixMicro(s.expires).Sub(now); left > wallSlack {
		return fmt.Errorf("%s, version %d, is gone %v before its deadline", s.key, s.version, left)
	}
	return nil
}

// livedShort tells whether a record that was asked for at call was gone before its time, at an answer that came at now:
// whatever clocks show, and at most a fiftieth earlier than after its whole time but for slack.
func livedShort(s ttlSeen, call, now time.Time, slack time.Duration) error {
	if lived := now.Sub(call); lived < s.ttl-s.ttl/50-slack {
		return fmt.Errorf("%s, version %d, was to live %v, and is gone %v after its write at most", s.key, s.version, s.ttl, lived)
	}
	return nil
}

// shownLate tells whether a record was shown long after its time by the clock of the test, to what was asked for at call.
func shownLate(s ttlSeen, call time.Time) error {
	if late := call.Sub(time.UnixMicro(s.expires)); s.expires != 0 && late > ttlLateMax {
		return fmt.Errorf("%s, version %d, is shown %v after its deadline", s.key, s.version, late)
	}
	return nil
}

// stampedWrong tells whether a record was stamped with a time outside its operation, by the clock of the test.
func stampedWrong(s ttlSeen, call, back time.Time) error {
	if at := time.UnixMicro(s.updated); at.Before(call.Add(-wallSlack)) || at.After(back.Add(wallSlack)) {
		return fmt.Errorf("%s, version %d: the write from %v to %v is stamped %v", s.key, s.version, call, back, at)
	}
	return nil
}

// ttlLoad is the workload.
type ttlLoad struct {
	r     *faultRun // set by drive
	clock ttlClock

	done, unknown   atomic.Int64
	keys            atomic.Int64
	expired, late   atomic.Int64 // records seen to be gone; shown after their deadline by the clock of the test
	latest          atomic.Int64 // the longest of that, µs
	renewed, reborn atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	born    map[uint64]time.Time // by version: when the write was asked for
	pool    []ttlSeen            // records that nobody changes any more, and that may be read by all
	lasting []ttlSeen            // made to last
}

func (l *ttlLoad) name() string { return "ttl" }

func (l *ttlLoad) figures() figures {
	return figures{done: l.done.Load(), unknown: l.unknown.Load(), least: 50}
}

// trueClocks: all nodes have the clock of the test.
func (l *ttlLoad) trueClocks() bool { return l.r.scene.needs&needClocks == 0 }

func (l *ttlLoad) drive(r *faultRun) {
	l.r, l.born = r, make(map[uint64]time.Time)
	for i := range 3 {
		o := []client.Option{client.WithTimeout(loadTimeout), client.WithName("ttl")}
		if i == 0 {
			o = []client.Option{client.WithTimeout(hastyTimeout), client.WithoutSession(), client.WithName("ttl, hasty")}
		}
		c := openAt(r.t, r.c.Addrs(), o...)
		w := &ttlWriter{l: l, c: c}
		r.callAs(fmt.Sprintf("ttl writer %d", i), 3*time.Millisecond, 12*time.Millisecond, w.step)
		r.callAs(fmt.Sprintf("ttl reader %d", i), 3*time.Millisecond, 12*time.Millisecond, func(rng *rand.Rand) bool { return l.read(c, rng) })
	}
}

// seen reads what a record says of itself; its value is its time to live in milliseconds.
func (l *ttlLoad) seen(key string, v *client.Value) (ttlSeen, bool) {
	ms, err := strconv.ParseInt(string(v.Data), 10, 64)
	if err != nil {
		l.r.anomaly("%s holds %q, which nobody wrote", key, v.Data)
		return ttlSeen{}, false
	}
	s := ttlSeen{key: key, version: uint64(v.Version), updated: v.UpdatedAt.UnixMicro(), ttl: time.Duration(ms) * time.Millisecond}
	if !v.ExpiresAt.IsZero() {
		s.expires = v.ExpiresAt.UnixMicro()
	}
	return s, true
}

// present judges a record that was shown by a linearizable operation.
func (l *ttlLoad) present(from ttlMark, call time.Time, s ttlSeen, written bool) {
	err := l.clock.saw(from, s, written)
	if err == nil && l.trueClocks() {
		err = shownLate(s, call)
	}
	if err != nil {
		l.r.anomaly("%v", err)
	}
	if late := call.Sub(time.UnixMicro(s.expires)).Microseconds(); s.expires != 0 && late > 0 {
		l.late.Add(1)
		for old := l.latest.Load(); late > old && !l.latest.CompareAndSwap(old, late); old = l.latest.Load() {
		}
	}
}

// absent judges a record that was acknowledged, and is not there in a linearizable answer that came at now.
func (l *ttlLoad) absent(s ttlSeen, now time.Time) {
	l.expired.Add(1)
	if s.expires == 0 {
		l.r.anomaly("%s, version %d, never expires, and it is not there", s.key, s.version)
		return
	}
	if err := goneEarly(s, now); err != nil && l.trueClocks() {
		l.r.anomaly("%v", err)
	}
	l.mu.Lock()
	call, ok := l.born[s.version]
	l.mu.Unlock()
	slack := ttlWrongClocks
	if l.trueClocks() {
		slack = wallSlack
	}
	if ok {
		if err := livedShort(s, call, now, slack); err != nil {
			l.r.anomaly("%v", err)
		}
	}
	l.clock.gone(s)
}

// look reads one record whose only possible change is its end. There: it was shown.
func (l *ttlLoad) look(c *client.Client, rng *rand.Rand, s ttlSeen) (there, ok bool) {
	var opts []client.GetOption
	if rng.IntN(2) == 0 {
		opts = append(opts, client.AnyNode())
	}
	from, call := l.clock.mark(), time.Now()
	v, err := c.Get(context.Background(), s.key, opts...)
	switch {
	case errors.Is(err, client.ErrNotFound):
		l.done.Add(1)
		l.absent(s, time.Now())
		return false, true
	case err != nil:
		l.r.readError(s.key, err)
		return false, false
	}
	now, ok := l.seen(s.key, &v)
	if !ok {
		return false, false
	}
	if now != s {
		l.r.anomaly("%+v was acknowledged and changed by nobody, and now it is %+v", s, now)
	}
	l.done.Add(1)
	l.present(from, call, now, false)
	return true, true
}

// read reads records of all callers, one or all of them.
func (l *ttlLoad) read(c *client.Client, rng *rand.Rand) bool {
	if rng.IntN(8) == 0 {
		return l.list(c, rng)
	}
	l.mu.Lock()
	if len(l.pool) == 0 {
		l.mu.Unlock()
		return true
	}
	i := rng.IntN(len(l.pool))
	s := l.pool[i]
	l.mu.Unlock()
	there, ok := l.look(c, rng, s)
	if ok && !there && rng.IntN(3) == 0 { // it is looked for a while longer: it may not come back
		l.mu.Lock()
		defer l.mu.Unlock()
		if i < len(l.pool) && l.pool[i] == s {
			l.pool[i] = l.pool[len(l.pool)-1]
			l.pool = l.pool[:len(l.pool)-1]
		}
	}
	return ok
}

// list goes through all records.
func (l *ttlLoad) list(c *client.Client, rng *rand.Rand) bool {
	o := client.ListOptions{Prefix: "ttl/", PageSize: 5 + rng.IntN(400)}
	if rng.IntN(2) == 0 {
		o.Read = []client.GetOption{client.AnyNode()}
	}
	from, call := l.clock.mark(), time.Now()
	for e, err := range c.List(context.Background(), o) {
		if err != nil {
			l.r.readError("listing of ttl/", err)
			return false
		}
		s, ok := l.seen(e.Key, &e.Value)
		if !ok {
			return false
		}
		l.present(from, call, s, false)
	}
	l.done.Add(1)
	return true
}

// ttlWriter writes records of its own. Owned by one caller.
type ttlWriter struct {
	l   *ttlLoad
	c   *client.Client
	own []ttlSeen
}

// step writes or renews a record, or looks at one.
func (w *ttlWriter) step(rng *rand.Rand) bool {
	if len(w.own) < ttlOwned && rng.IntN(3) == 0 {
		key := fmt.Sprintf("ttl/%07d", w.l.keys.Add(1))
		_, ok := w.write(rng, key, nil, client.IfAbsent())
		return ok
	}
	if len(w.own) == 0 {
		return true
	}
	// The next one to expire is looked at most.
	i := 0
	for k := range w.own {
		if w.own[k].expires < w.own[i].expires {
			i = k
		}
	}
	if rng.IntN(2) == 0 {
		i = rng.IntN(len(w.own))
	}
	s := w.own[i]
	left := time.Until(time.UnixMicro(s.expires))
	if left < ttlLeaves && rng.IntN(8) == 0 {
		w.drop(i)
		return w.renew(rng, s)
	}
	there, ok := w.l.look(w.c, rng, s)
	if !ok || there {
		return ok
	}
	w.drop(i)
	if rng.IntN(2) == 0 {
		w.share(s)
		return true
	}
	// What has expired does not exist, whether or not it has been removed yet.
	failed, ok := w.write(rng, s.key, &s, client.IfAbsent())
	if failed {
		w.l.r.anomaly("%s, version %d, has expired, and a write that wants it absent is refused", s.key, s.version)
	}
	w.l.reborn.Add(1)
	return ok
}

func (w *ttlWriter) drop(i int) {
	w.own[i] = w.own[len(w.own)-1]
	w.own = w.own[:len(w.own)-1]
}

// share gives a record to all: it is not changed any more.
func (w *ttlWriter) share(s ttlSeen) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	if len(w.l.pool) < 100 {
		w.l.pool = append(w.l.pool, s)
	}
}

// renew writes a record again while it is there, to live longer or for ever.
func (w *ttlWriter) renew(rng *rand.Rand, s ttlSeen) bool {
	failed, ok := w.write(rng, s.key, &s, client.IfVersion(client.Version(s.version)))
	if failed {
		w.l.absent(s, time.Now())
	} else if ok {
		w.l.renewed.Add(1)
	}
	return ok
}

// write stores a record and reads what it was stamped with. before: what the key held, if it ever held anything.
func (w *ttlWriter) write(rng *rand.Rand, key string, before *ttlSeen, cond client.Condition) (failed, ok bool) {
	l := w.l
	ttl := between(rng, 500*time.Millisecond, 4*time.Second).Truncate(time.Millisecond)
	long := !l.trueClocks() && rng.IntN(20) == 0
	if long {
		ttl = between(rng, ttlWrongClocks, 3*ttlWrongClocks).Truncate(time.Millisecond)
	}
	l.mu.Lock()
	if before != nil && rng.IntN(10) == 0 && len(l.lasting) < ttlLasting {
		ttl = 0
	}
	l.mu.Unlock()
	opts := []client.PutOption{cond}
	if ttl > 0 {
		opts = append(opts, client.WithTTL(ttl))
	}
	value := strconv.AppendInt(nil, ttl.Milliseconds(), 10)
	from, call := l.clock.mark(), time.Now()
	var v client.Value
	var err error
	apart := rng.IntN(3) == 0
	if apart {
		v.Version, err = w.c.Put(context.Background(), key, value, opts...)
	} else {
		var res client.TxnResult
		res, err = w.c.Txn().Put(key, value, opts...).Get(key).Commit(context.Background())
		if err == nil && res.Results[1].Value != nil {
			v = *res.Results[1].Value
		} else if err == nil {
			l.r.anomaly("%s: a transaction does not see what it wrote itself: %v", key, res.Results[1].Err)
			return false, false
		}
	}
	back := time.Now()
	o, failed := l.r.wrote(key, err)
	if o == unknown {
		l.unknown.Add(1)
	}
	if o != acked {
		return failed, failed
	}
	if apart {
		version := v.Version
		if v, err = w.c.Get(context.Background(), key); err != nil {
			// Gone already, perhaps: nobody knows when it was written, so it says nothing.
			l.r.readError(key, err)
			return false, errors.Is(err, client.ErrNotFound)
		}
		if v.Version != version {
			l.r.anomaly("%s: version %d was acknowledged, and nobody else writes it: it has version %d", key, version, v.Version)
		}
	}
	s, ok := l.seen(key, &v)
	if !ok {
		return false, false
	}
	if before != nil && s.version <= before.version {
		l.r.anomaly("%s has version %d after version %d", key, s.version, before.version)
	}
	if s.ttl != ttl {
		l.r.anomaly("%s was written to live %v, and says %v", key, ttl, s.ttl)
	}
	if err := stampedWrong(s, call, back); err != nil && l.trueClocks() {
		l.r.anomaly("%v", err)
	}
	l.done.Add(1)
	l.mu.Lock()
	l.born[s.version] = call
	l.mu.Unlock()
	l.present(from, call, s, true)
	switch {
	case ttl == 0:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lasting = append(l.lasting, s)
	case long, rng.IntN(3) == 0:
		w.share(s)
	default:
		w.own = append(w.own, s)
	}
	return false, true
}

func (l *ttlLoad) verify(r *faultRun) {
	c := openAt(r.t, r.c.Addrs(), client.WithTimeout(loadTimeout))
	rng := r.stream("ttl verify")
	for _, s := range l.lasting {
		if _, ok := l.look(c, rng, s); !ok {
			r.t.Errorf("cannot read %s in the end", s.key)
		}
	}
	r.note("ttl: %d records written, %d renewed, %d written anew after their end, %d looks at expired ones; %d shown after their deadline by the test's clock, the latest by %v",
		l.keys.Load(), l.renewed.Load(), l.reborn.Load(), l.expired.Load(), l.late.Load(), (time.Duration(l.latest.Load()) * time.Microsecond).Round(time.Millisecond))
	if l.expired.Load() < 3 {
		r.t.Errorf("only %d looks found an expired record: it proves nothing", l.expired.Load())
	}
	f := openForwarder(r.t, "ttl")
	for i, n := range r.c.Nodes() {
		left := 0
		eventually(r.t, r.c.ID(i)+" lists nothing that has expired", func() (bool, error) {
			var err error
			left, err = expiringOn(f, n.Addr())
			return err == nil && left == 0, fmt.Errorf("%d are left, %w", left, err)
		})
	}
}

// expiringOn counts the records with a deadline that a node has, by what it holds itself.
func expiringOn(f *client.Forwarder, addr string) (left int, err error) {
	q := wire.ScanRequest{Prefix: []byte("ttl/"), Limit: wire.ScanLimitMax}
	for {
		a := f.Do(context.Background(), addr, &wire.Request{Op: wire.OpScan, Ext: wire.AppendExtU8(nil, wire.ExtConsistency, wire.ConsistencyStale), Payload: wire.AppendScanRequest(nil, &q)})
		if a.Status != wire.StatusOK {
			return 0, fmt.Errorf("%s %s", a.Status, a.Payload)
		}
		var p wire.ScanPage
		if err := wire.DecodeScanPage(a.Payload, &p); err != nil {
			return 0, err
		}
		var it wire.Item
		for items := p.Items; len(items) > 0; {
			if items, err = wire.NextItem(items, &it); err != nil {
				return 0, err
			}
			t, v, _, err := wire.NextExt(it.Ext)
			var m wire.Meta
			if err == nil && t == wire.ExtMeta {
				err = wire.DecodeMeta(v, &m)
			}
			if err != nil {
				return 0, err
			}
			if m.ExpiresAt != 0 {
				left++
			}
		}
		if q.Cursor = p.Cursor; len(q.Cursor) == 0 {
			return left, nil
		}
	}
}

// TestTTLChecker_OneHarmEach_IsFoundOut is the control of the checks on times to live.
func TestTTLChecker_OneHarmEach_IsFoundOut(t *testing.T) {
	const ttl = 2 * time.Second
	at := func(key string, updated int64) ttlSeen {
		return ttlSeen{key: key, version: uint64(updated), updated: updated * 1e6, expires: updated*1e6 + ttl.Microseconds(), ttl: ttl}
	}
	// Seconds of log time: a lives from 10 to 12, b from 11 to 13, and at 12 a is gone.
	var k ttlClock
	start := k.mark()
	a, b := at("a", 10), at("b", 11)
	for _, err := range []error{k.saw(start, a, true), k.saw(k.mark(), a, false), k.saw(k.mark(), b, true), k.saw(k.mark(), a, false)} {
		if err != nil {
			t.Errorf("what is right: %v", err)
		}
	}
	before := k.mark()
	k.gone(a)
	for _, err := range []error{k.saw(k.mark(), b, false), k.saw(before, a, false), k.saw(k.mark(), at("c", 12), true), k.saw(k.mark(), ttlSeen{key: "d", updated: 14e6}, true)} {
		if err != nil {
			t.Errorf("what is right: %v", err)
		}
	}
	var early ttlClock
	early.gone(b)
	wrong := a
	wrong.expires++
	lasting := ttlSeen{key: "d", updated: 15e6, expires: 20e6}
	now := time.Now()
	s := ttlSeen{key: "e", updated: now.UnixMicro(), expires: now.Add(ttl).UnixMicro(), ttl: ttl}
	for name, err := range map[string]error{
		"seen again after its end":             k.saw(k.mark(), a, false),
		"seen after log time had passed it":    k.saw(k.mark(), b, false),
		"gone before its end":                  early.saw(early.mark(), at("c", 12), true),
		"log time that goes back":              k.saw(k.mark(), at("e", 13), true),
		"a deadline that is not its own":       k.saw(start, wrong, false),
		"a deadline of what never expires":     k.saw(start, lasting, false),
		"gone before its end, by the clock":    goneEarly(s, now.Add(ttl-2*wallSlack)),
		"gone after half of its time":          livedShort(s, now, now.Add(ttl/2), 0),
		"shown long after its end":             shownLate(s, now.Add(ttl+2*ttlLateMax)),
		"stamped before it was asked for":      stampedWrong(s, now.Add(2*wallSlack), now.Add(3*wallSlack)),
		"stamped after it was acknowledged":    stampedWrong(s, now.Add(-3*wallSlack), now.Add(-2*wallSlack)),
		"seen again, by a reader that came by": early.saw(early.mark(), b, false),
	} {
		if err == nil {
			t.Errorf("a harm, %s, passes", name)
		}
	}
	if err := errors.Join(goneEarly(s, now.Add(ttl)), livedShort(s, now, now.Add(ttl), 0), shownLate(s, now.Add(2*ttl)), shownLate(ttlSeen{}, now), stampedWrong(s, now, now.Add(time.Millisecond))); err != nil {
		t.Errorf("what is right: %v", err)
	}
}
