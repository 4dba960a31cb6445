package engine

import (
	"fmt"
	"time"

	"kvstore/internal/failpoint"
	"kvstore/wire"
)

// applier evaluates entries: the state machine. Its result is a pure function of the state and the log. It
// knows no clock, no randomness, no option, and no order of a map; what its histograms measure never flows
// back.
//
// Owned by the goroutine that calls Apply.
type applier struct {
	in       *instance
	sessions *sessions
	once     *idempotency

	// The state at the last entry. identity and members are what system records say; members is sorted by id
	// and immutable: a change makes a new slice.
	last       marker
	identity   identity
	members    []wire.Member
	namespaces *namespaces

	// The entry at hand.
	index, term, ts uint64
	now             int64 // log time T
	operation       int   // its place in the entry
	positions       int   // given out so far
	rewritten       int   // bytes of values that were read to be written again; see rewriteBytesMax
	rewrittenBefore int   // before the operation at hand
	mem             arena
	overlay         overlay
	effects         []Effect
	deadlines       deadlineChanges
	packer          packer
	ahead           CachedGets // of readAhead
	fetcher         fetcher

	// space is the namespace of the write at hand. While undoing, every change of a record is noted in undo.
	space   *namespaceState
	undoing bool
	undo    []undone

	markerBytes []byte

	// The arguments of read, and its callbacks, made once: a closure per read would allocate.
	loading    *staged
	loadsValue bool
	onCached   func(r *storedRecord)
	onStored   func(stored []byte) error
}

func newApplier(in *instance, s *sessions, once *idempotency, last marker, id identity, members []wire.Member, ns *namespaces) *applier {
	a := &applier{in: in, sessions: s, once: once, last: last, identity: id, members: members, namespaces: ns}
	a.packer.level = in.store.o.CompressLevel
	a.onCached, a.onStored = a.loaded, a.loadedStored
	a.deadlines.reset()
	return a
}

// Apply evaluates one committed entry of the log, stores what it changes, shows it to readers and hands
// its effects to Options.Sink (see EffectSink). The results, one per operation, are fresh memory and belong to the caller,
// but for their payloads, which the engine may keep to answer retries: don't change them. An entry at or
// below Applied().Index has been applied before: the result is nil.
//
// When the entry can't be decoded, when the store can't take it, or when what is stored is damaged
// (ErrDamaged), Options.Fatal is called and the result is nil: to go on would make this replica differ from the
// others, so no further entry is applied either. Nobody may be told that such an entry was done, nor that it
// was not. Calls come from one goroutine at a time, in log order, never beside Close.
func (e *Engine) Apply(index, term uint64, entry []byte) (results []wire.Result) {
	a := e.live.Load().applier
	if index <= a.last.index || a.in.store.failed.Load() != nil {
		return nil
	}
	defer func() {
		if v := recover(); v != nil {
			if !a.stopped(v) {
				panic(v)
			}
			results = nil
		}
	}()
	failpoint.Hit(failpoint.ApplyBefore)
	start := time.Now()
	results = a.apply(index, term, entry)
	failpoint.Hit(failpoint.ApplyAfter)
	e.waiters.wake(index)
	e.applyTime.Observe(time.Since(start))
	return results
}

// ApplyConfiguration notes the cluster's configuration that the log holds at index: the next checkpoint
// carries it. It takes ownership of the slice. As Apply otherwise.
func (e *Engine) ApplyConfiguration(index, term uint64, configuration []byte) {
	a := e.live.Load().applier
	if index <= a.last.index || a.in.store.failed.Load() != nil {
		return
	}
	defer func() {
		if v := recover(); v != nil && !a.stopped(v) {
			panic(v)
		}
	}()
	failpoint.Hit(failpoint.ApplyBefore)
	a.in.store.setConfiguration(index, configuration)
	a.begin(index, term, a.last.time)
	a.finish()
	failpoint.Hit(failpoint.ApplyAfter)
	e.waiters.wake(index)
}

func (a *applier) apply(index, term uint64, entry []byte) []wire.Result {
	var h wire.EntryHeader
	ops, err := wire.DecodeEntry(entry, &h)
	a.begin(index, term, h.Time)
	if err != nil {
		a.failApply(err)
	}
	if h.Group != a.in.group {
		a.failApply(fmt.Errorf("it belongs to group %d, this is group %d", h.Group, a.in.group))
	}
	a.sessions.expire(a.now)
	a.once.forget(a.now)
	a.readAhead(ops, h.Count)
	results := make([]wire.Result, h.Count)
	var op wire.Op
	for i := range results {
		if ops, err = wire.NextOp(ops, &op); err != nil {
			a.failApply(fmt.Errorf("operation %d: %w", i, err))
		}
		a.operation = i
		results[i] = a.execute(&op)
	}
	a.finish()
	return results
}

// begin opens an entry.
func (a *applier) begin(index, term uint64, t int64) {
	a.index, a.term, a.ts = index, term, a.identity.base+index
	a.now = max(a.last.time, t)
	a.positions, a.rewritten = 0, 0
}

// inSession evaluates a write; one that belongs to a session is evaluated at most once.
func (a *applier) inSession(op *wire.Op) wire.Result {
	if op.Session == 0 {
		return a.mutate(op, wire.FrameBodyBytesMax)
	}
	if op.Seq <= op.Floor {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	s, res, answered := a.sessions.begin(op.Session, op.Seq, op.Floor, a.now)
	if answered {
		return res
	}
	res = a.mutate(op, wire.FrameBodyBytesMax)
	a.sessions.keep(s, op.Seq, a.ts, &res)
	return res
}

// mutate evaluates a write whose answer has at most answerMax bytes.
func (a *applier) mutate(op *wire.Op, answerMax int) wire.Result {
	if a.space = a.namespaces.writable(op.Namespace); a.space == nil {
		return wire.Result{Status: wire.StatusNoNamespace}
	}
	a.rewrittenBefore = a.rewritten
	if op.Op == wire.OpBatch || op.Op == wire.OpTxn {
		return a.group(op, answerMax)
	}
	return a.single(op)
}

// openSession executes OpSessionOpen. A session's id is a revision, so it is never given twice.
func (a *applier) openSession() wire.Result {
	id := a.nextRevision()
	if !a.sessions.open(id, a.now) {
		return wire.Result{Status: wire.StatusSessionsTooMany}
	}
	grant := wire.SessionGrant{Session: id, TTLMs: uint64(wire.SessionTTL / time.Millisecond)}
	return wire.Result{Status: wire.StatusOK, Payload: wire.AppendSessionGrant(nil, grant)}
}

// closeSession executes OpSessionClose.
func (a *applier) closeSession(op *wire.Op) wire.Result {
	if !a.sessions.close(op.Session) {
		return wire.Result{Status: wire.StatusSessionExpired}
	}
	return wire.Result{Status: wire.StatusOK}
}

// nextRevision gives out a position of the entry.
func (a *applier) nextRevision() wire.Revision {
	rev := wire.MakeRevision(a.ts, a.positions)
	a.positions++
	return rev
}

// finish stores and publishes the entry. The order is what readers rely on: store, then point.
func (a *applier) finish() {
	w := a.in.store.begin(a.ts)
	m := &a.last
	for i := range a.overlay.all {
		if st := &a.overlay.all[i]; st.dirty {
			a.flush(w, m, st)
		}
	}
	a.flushUsage(w)
	a.sessions.flush(w, &a.mem, &m.digest)
	a.once.flush(w, &a.mem, &m.digest)
	m.index, m.term, m.ts, m.time, m.positions = a.index, a.term, a.ts, a.now, uint32(a.positions)
	a.markerBytes = appendMarker(a.markerBytes[:0], m)
	if err := w.commit(a.markerBytes); err != nil {
		a.failApply(err)
	}
	a.in.showNamespaces(a.index, a.namespaces)
	a.deliver()
	a.in.publish(m, a.markerBytes, tableSizes{len(a.sessions.byID), len(a.once.byKey), a.once.bytes}, &a.overlay)
	a.in.deadlines.publish(&a.deadlines)
	a.in.setMembers(a.members)
	if a.in.sink != nil {
		a.in.sink.Published(pointOf(m.point()))
	}
	a.reset()
}

// deliver hands the entry's effects to the sink, before anyone sees the entry: who has seen it finds its events there.
func (a *applier) deliver() {
	if a.in.sink != nil {
		a.in.sink.Effects(pointOf(a.last.point()), a.effects)
	}
}

// effectsKeptMax bounds the effects whose memory is kept from entry to entry.
const effectsKeptMax = 4096

// reset lets go of the entry's memory.
func (a *applier) reset() {
	a.overlay.reset()
	a.mem.reset()
	clear(a.effects)
	if a.effects = a.effects[:0]; cap(a.effects) > effectsKeptMax {
		a.effects = nil
	}
	a.deadlines.reset()
}
