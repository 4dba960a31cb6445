package test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
)

// A ledger notes what clients were told about each key that they wrote, and checks a store against it.
//
// Every key has one writer, so that its states are known. A write has three outcomes: acknowledged (the
// key has this version and this value), surely not applied (nothing changed), unknown (either). A key
// whose last write is unknown is not written again: its states stay the two that are possible.
type ledger struct {
	t    *testing.T
	seed uint64

	acked, refused, unknown, reads atomic.Int64
	// ackedBytes counts the values that were acknowledged.
	ackedBytes atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	surfaced  []string  // errors that reached callers with a session and patience
	lastAck   time.Time // of any write
	gapStart  time.Time // the longest time without an acknowledgement since quiet was called
	gapEnd    time.Time
	claims    map[string]*claim
	groups    [][]string      // keys of atomic batches: all or none
	expiring  map[string]bool // written with a short time to live: gone in the end
	counters  map[string]*counterClaim
	anomalies []string
	present   int // keys found by verify
}

// claim lists the states that a key may be in. Owned by the key's writer until the ledger is closed.
type claim struct {
	key    string
	states []state
}

// state is one possible state of a key.
type state struct {
	absent  bool
	version client.Version // 0: the write's version was never told
	gen     int            // which of the key's values
	size    int
	expires bool
}

// counterClaim is a counter that transactions increment.
type counterClaim struct{ acked, unknown int }

func newLedger(t *testing.T, seed uint64) *ledger {
	return &ledger{t: t, seed: seed, claims: make(map[string]*claim), expiring: make(map[string]bool), counters: make(map[string]*counterClaim)}
}

// anomaly notes a broken promise. The first few tell all.
func (l *ledger) anomaly(format string, a ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.anomalies) < 20 {
		l.anomalies = append(l.anomalies, fmt.Sprintf(format, a...))
	}
}

var contentSeed = maphash.MakeSeed()

// content makes the value of a key: a function of its arguments, so that it need not be remembered.
func content(key string, gen, size int) []byte {
	head := key + "#" + strconv.Itoa(gen) + "#"
	b := append(make([]byte, 0, size+8), head...)
	r := rand.NewPCG(maphash.String(contentSeed, head), uint64(size))
	for len(b) < size {
		b = binary.LittleEndian.AppendUint64(b, r.Uint64())
	}
	return b[:size]
}

// differs tells how what a read found differs from s; empty: not at all.
func (s *state) differs(key string, v *client.Value) string {
	switch {
	case s.absent && v == nil:
		return ""
	case s.absent:
		return fmt.Sprintf("there are %d bytes of version %d, want none", len(v.Data), v.Version)
	case v == nil:
		return fmt.Sprintf("it is missing, want version %d", s.version)
	case s.version != 0 && v.Version != s.version:
		return fmt.Sprintf("it has version %d, want %d", v.Version, s.version)
	case !bytes.Equal(v.Data, content(key, s.gen, s.size)):
		return fmt.Sprintf("version %d has %d bytes that are not the %d written", v.Version, len(v.Data), s.size)
	case v.ExpiresAt.IsZero() == s.expires:
		return fmt.Sprintf("version %d expires at %v, want a time: %v", v.Version, v.ExpiresAt, s.expires)
	}
	return ""
}

// check compares a read with the claim; v is nil for a key that was not found.
func (c *claim) check(v *client.Value) error {
	var why []error
	for i := range c.states {
		d := c.states[i].differs(c.key, v)
		if d == "" {
			return nil
		}
		why = append(why, errors.New(d))
	}
	return fmt.Errorf("%s: %w", c.key, errors.Join(why...))
}

// outcome of a write.
type outcome int

const (
	acked outcome = iota
	refused
	unknown
)

// outcomeOf sorts an error of a write, and counts it.
func (l *ledger) outcomeOf(err error) outcome {
	switch {
	case err == nil:
		l.acked.Add(1)
		l.tick()
		return acked
	case errors.Is(err, client.ErrMaybeApplied):
		l.unknown.Add(1)
		return unknown
	case errors.Is(err, client.ErrNotApplied):
		l.refused.Add(1)
		return refused
	}
	l.anomaly("an error of a write that is neither ErrNotApplied nor ErrMaybeApplied: %v", err)
	return unknown
}

// tick notes the moment of an acknowledgement.
func (l *ledger) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.lastAck) > l.gapEnd.Sub(l.gapStart) {
		l.gapStart, l.gapEnd = l.lastAck, now
	}
	l.lastAck = now
}

// quiet begins to look for the longest time without an acknowledgement anew.
func (l *ledger) quiet() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastAck = time.Now()
	l.gapStart, l.gapEnd = time.Time{}, time.Time{}
}

// resumed gives the end of the longest time without an acknowledgement since quiet.
func (l *ledger) resumed() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gapEnd
}

// surface notes an error that a caller should not have seen: one with a session, whose writes may be sent
// again, and with more patience than a fail-over takes. What a condition or a key's absence says is no error.
func (w *writer) surface(op string, err error) {
	if err == nil || !w.patient || errors.Is(err, client.ErrConditionFailed) || errors.Is(err, client.ErrNotFound) {
		return
	}
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	w.l.surfaced = append(w.l.surfaced, fmt.Sprintf("%s by %s: %v", op, w.name, err))
}

// writer writes its own keys, one operation at a time, and keeps the books.
type writer struct {
	l    *ledger
	name string
	c    *client.Client
	rng  *rand.Rand
	// patient: its client has a session and a long timeout.
	patient bool

	keys int
	live []*claim // present for sure: may be overwritten, deleted, read
	last client.Version
}

// write works until stop.
func (w *writer) write(stop func() bool) {
	for !stop() {
		refused := w.l.refused.Load()
		w.step()
		if w.l.refused.Load() != refused {
			time.Sleep(5 * time.Millisecond) // nobody is there to answer: asking in a tight loop tests nothing
		}
	}
}

// step does one operation. The share of each kind is chosen so that each one happens between two kills.
func (w *writer) step() {
	switch p := w.rng.IntN(1000); {
	case p < 480:
		w.put(w.newKey(), 16+w.rng.IntN(1000), 0)
	case p < 540:
		w.put(w.newKey(), 4<<10+w.rng.IntN(60<<10), 0)
	case p < 545:
		w.put(w.newKey(), 512<<10+w.rng.IntN(700<<10), 0) // stored in chunks
	case p < 600:
		w.put(w.newKey(), 16+w.rng.IntN(300), time.Hour)
	case p < 630:
		w.put(w.newKey(), 16+w.rng.IntN(300), 100*time.Millisecond+time.Duration(w.rng.IntN(1000))*time.Millisecond)
	case p < 690:
		w.overwrite()
	case p < 750:
		w.delete()
	case p < 800:
		w.batch(true)
	case p < 820:
		w.batch(false)
	case p < 890:
		w.increment()
	default:
		w.read()
	}
}

func (w *writer) newKey() string {
	w.keys++
	return fmt.Sprintf("%s/%07d", w.name, w.keys)
}

// claim enters a key with its first state.
func (w *writer) claim(key string) *claim {
	c := &claim{key: key, states: []state{{absent: true}}}
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	w.l.claims[key] = c
	return c
}

// settle enters the outcome of a write that would bring the key into the state next.
func (w *writer) settle(c *claim, o outcome, next state) {
	switch o {
	case acked:
		c.states = []state{next}
		if !next.absent {
			w.l.ackedBytes.Add(int64(next.size))
			w.order(c.key, next.version)
		}
	case unknown:
		next.version = 0
		c.states = append(c.states, next)
	}
}

// order checks that versions grow: each operation of a writer begins after the one before has ended.
func (w *writer) order(key string, v client.Version) {
	if v == 0 {
		return
	}
	if v <= w.last {
		w.l.anomaly("%s got version %d after version %d was acknowledged to the same caller", key, v, w.last)
	}
	w.last = max(w.last, v)
}

func (w *writer) put(key string, size int, ttl time.Duration) {
	var opts []client.PutOption
	if ttl > 0 {
		opts = append(opts, client.WithTTL(ttl))
	}
	short := ttl > 0 && ttl < time.Minute
	if short {
		w.l.mu.Lock()
		w.l.expiring[key] = true
		w.l.mu.Unlock()
	}
	v, err := w.c.Put(context.Background(), key, content(key, 0, size), opts...)
	w.surface("put", err)
	o := w.l.outcomeOf(err)
	if short {
		return
	}
	c := w.claim(key)
	w.settle(c, o, state{version: v, size: size, expires: ttl > 0})
	if o == acked {
		w.live = append(w.live, c)
	}
}

// pick takes a live key out of the list: whoever succeeds puts it back.
func (w *writer) pick() *claim {
	if len(w.live) == 0 {
		return nil
	}
	i := w.rng.IntN(len(w.live))
	c := w.live[i]
	w.live[i] = w.live[len(w.live)-1]
	w.live = w.live[:len(w.live)-1]
	return c
}

func (w *writer) overwrite() {
	c := w.pick()
	if c == nil {
		return
	}
	was := c.states[0]
	next := state{gen: was.gen + 1, size: 16 + w.rng.IntN(1000)}
	var opts []client.PutOption
	if w.rng.IntN(2) == 0 {
		opts = append(opts, client.IfVersion(was.version))
	}
	v, err := w.c.Put(context.Background(), c.key, content(c.key, next.gen, next.size), opts...)
	w.surface("overwrite", err)
	if errors.Is(err, client.ErrConditionFailed) {
		w.l.anomaly("%s: version %d was acknowledged and nobody else writes, but it is said to be another: %v", c.key, was.version, err)
	}
	next.version = v
	o := w.l.outcomeOf(err)
	w.settle(c, o, next)
	if o != unknown {
		w.live = append(w.live, c)
	}
}

func (w *writer) delete() {
	c := w.pick()
	if c == nil {
		return
	}
	deleted, _, err := w.c.Delete(context.Background(), c.key)
	w.surface("delete", err)
	o := w.l.outcomeOf(err)
	if o == acked && !deleted {
		w.l.anomaly("%s: version %d was acknowledged, but the delete found nothing", c.key, c.states[0].version)
	}
	w.settle(c, o, state{absent: true})
	if o == refused {
		w.live = append(w.live, c)
	}
}

// batch writes several new keys. An atomic one whose outcome is unknown is checked by the group.
func (w *writer) batch(atomic bool) {
	n := 2 + w.rng.IntN(8)
	items := make([]client.KV, n)
	sizes := make([]int, n)
	for i := range items {
		items[i].Key, sizes[i] = w.newKey(), 16+w.rng.IntN(500)
		if i == 0 && w.rng.IntN(20) == 0 {
			sizes[i] = 600 << 10
		}
		items[i].Value = content(items[i].Key, 0, sizes[i])
	}
	res, err := w.c.BatchPut(context.Background(), items, atomic)
	w.surface("batch", err)
	o := w.l.outcomeOf(err)
	for i := range items {
		c, io, s := w.claim(items[i].Key), o, state{size: sizes[i]}
		if o == acked {
			s.version = res.Items[i].Version
			if e := res.Items[i].Err; e != nil {
				w.l.anomaly("%s: an item of a batch without conditions fails: %v", c.key, e)
				io = unknown
			}
		}
		w.settle(c, io, s)
		if io == acked && s.version != 0 {
			w.live = append(w.live, c)
		}
	}
	if atomic {
		w.l.mu.Lock()
		w.l.groups = append(w.l.groups, keysOf(items))
		w.l.mu.Unlock()
	}
}

func keysOf(items []client.KV) []string {
	keys := make([]string, len(items))
	for i := range items {
		keys[i] = items[i].Key
	}
	return keys
}

// counterCount is how many counters all writers share.
const counterCount = 3

// increment adds one to a shared counter and leaves a marker of it, both or none.
func (w *writer) increment() {
	counter := "counter/" + strconv.Itoa(w.rng.IntN(counterCount))
	cond, n := client.IfAbsent(), uint64(0)
	v, err := w.c.Get(context.Background(), counter)
	w.surface("get", err)
	switch {
	case err == nil && len(v.Data) == 8:
		cond, n = client.IfVersion(v.Version), binary.LittleEndian.Uint64(v.Data)
	case err == nil:
		w.l.anomaly("%s has %d bytes", counter, len(v.Data))
		return
	case !errors.Is(err, client.ErrNotFound):
		return // a read that failed says nothing
	}
	marker := w.newKey() + "/" + counter
	size := 16 + w.rng.IntN(100)
	res, err := w.c.Txn().
		Put(counter, binary.LittleEndian.AppendUint64(nil, n+1), cond).
		Put(marker, content(marker, 0, size)).
		Commit(context.Background())
	w.surface("transaction", err)
	o := w.l.outcomeOf(err)
	s := state{size: size}
	if o == acked && !res.Truncated {
		s.version = res.Results[1].Version
	}
	w.settle(w.claim(marker), o, s)
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	c := w.l.counters[counter]
	if c == nil {
		c = new(counterClaim)
		w.l.counters[counter] = c
	}
	switch o {
	case acked:
		c.acked++
	case unknown:
		c.unknown++
	}
}

// read reads a live key back at once: an acknowledged write is seen by every later read.
func (w *writer) read() {
	if len(w.live) == 0 {
		return
	}
	c := w.live[w.rng.IntN(len(w.live))]
	v, err := w.c.Get(context.Background(), c.key)
	w.surface("get", err)
	switch {
	case err == nil:
		err = c.check(&v)
	case errors.Is(err, client.ErrNotFound):
		err = c.check(nil)
	default:
		return // a read that failed says nothing
	}
	w.l.reads.Add(1)
	if err != nil {
		w.l.anomaly("while the writers run, %v", err)
	}
}
