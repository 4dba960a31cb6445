package engine

import (
	"fmt"
	"time"

	"kvstore/internal/failpoint"
	"kvstore/wire"
)

// Behaviour levels. A level is state: OpInit sets the first, and a later entry may raise it, so that all
// replicas change their behaviour at the same index whatever build they run. execute is the one place
// that looks at it.
const (
	// levelNone is the state before OpInit.
	levelNone = 0
	// LevelNewest is the newest behaviour level that this build knows.
	LevelNewest = 1
)

// applier evaluates entries: the state machine. Its result is a pure function of the state and the log. It
// knows no clock, no randomness, no option, and no order of a map; what its histograms measure never flows
// back.
//
// Owned by the goroutine that calls Apply.
type applier struct {
	in       *instance
	sessions *sessions

	// The state at the last entry. identity and members are what system records say; members is sorted by id
	// and immutable: a change makes a new slice.
	last     marker
	identity identity
	members  []wire.Member

	// The entry at hand.
	index, term, ts uint64
	now             int64 // log time T
	operation       int   // its place in the entry
	positions       int   // given out so far
	mem             arena
	overlay         overlay
	effects         []Effect
	deadlines       deadlineChanges
	markerBytes     []byte

	// The arguments of read, and its callbacks, made once: a closure per read would allocate.
	loading    *staged
	loadsValue bool
	onCached   func(r *storedRecord)
	onStored   func(stored []byte) error
}

func newApplier(in *instance, s *sessions, last marker, id identity, members []wire.Member) *applier {
	a := &applier{in: in, sessions: s, last: last, identity: id, members: members}
	a.onCached, a.onStored = a.loaded, a.loadedStored
	a.deadlines.reset()
	return a
}

// Apply evaluates one committed entry of the log, stores what it changes, shows it to readers and hands
// its effects to Options.Sink. The results, one per operation, are fresh memory and belong to the caller,
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
	a.positions = 0
}

// execute evaluates one operation at the behaviour level that the state has.
func (a *applier) execute(op *wire.Op) wire.Result {
	if need := positionsOf(op); need > 1<<wire.PositionBits-a.positions {
		// The batcher's bound on entries keeps them far below this. Surely not applied; another entry has room.
		return wire.Result{Status: wire.StatusRetryLater}
	}
	first := len(a.effects)
	var res wire.Result
	switch a.identity.level {
	case levelNone:
		res = a.executeNone(op)
	case 1:
		res = a.execute1(op)
	default:
		panic(fmt.Sprintf("BUG: behaviour level %d is unknown; newest is %d", a.identity.level, LevelNewest))
	}
	a.endTransaction(first)
	return res
}

// executeNone is the behaviour before OpInit: there is nothing yet that an operation could act on.
func (a *applier) executeNone(op *wire.Op) wire.Result {
	if op.Op != wire.OpInit {
		return wire.Result{Status: wire.StatusNotReady}
	}
	return a.initialise(op)
}

// execute1 is behaviour level 1.
func (a *applier) execute1(op *wire.Op) wire.Result {
	switch op.Op {
	case wire.OpPut, wire.OpDelete, wire.OpBatch, wire.OpTxn:
		if op.Namespace != wire.NamespaceDefault {
			return wire.Result{Status: wire.StatusNoNamespace}
		}
		return a.once(op)
	case wire.OpSessionOpen:
		return a.openSession()
	case wire.OpSessionClose:
		return a.closeSession(op)
	case wire.OpExpire:
		n, err := wire.DecodeExpire(op.Payload)
		if err != nil {
			return wire.Result{Status: wire.StatusBadRequest}
		}
		return a.expire(n)
	case wire.OpInit:
		return wire.Result{Status: wire.StatusBadRequest} // there is a cluster already
	case wire.OpMember:
		return a.member(op)
	case wire.OpRecover:
		return a.recover(op)
	default:
		return wire.Result{Status: wire.StatusUnknownOp}
	}
}

// once evaluates a write; one that belongs to a session is evaluated at most once.
func (a *applier) once(op *wire.Op) wire.Result {
	if op.Session == 0 {
		return a.mutate(op)
	}
	if op.Seq <= op.Floor {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	s, res, answered := a.sessions.begin(op.Session, op.Seq, op.Floor, a.now)
	if answered {
		return res
	}
	res = a.mutate(op)
	a.sessions.keep(s, op.Seq, a.ts, &res)
	return res
}

func (a *applier) mutate(op *wire.Op) wire.Result {
	if op.Op == wire.OpBatch || op.Op == wire.OpTxn {
		return a.group(op)
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

// positionsOf bounds the positions that an operation may take: each write may meet an expired record, which
// takes one of its own.
func positionsOf(op *wire.Op) int {
	switch op.Op {
	case wire.OpBatch, wire.OpTxn:
		_, n, _, err := wire.DecodeGroup(op.Payload)
		if err != nil || n > wire.BatchOpsMax {
			return 0 // refused later
		}
		return 2 * n
	case wire.OpExpire:
		n, err := wire.DecodeExpire(op.Payload)
		if err != nil {
			return 0 // refused later
		}
		return int(min(n, expireMax))
	default:
		return systemRecords
	}
}

// nextRevision gives out a position of the entry.
func (a *applier) nextRevision() wire.Revision {
	rev := wire.MakeRevision(a.ts, a.positions)
	a.positions++
	return rev
}

// finish stores and publishes the entry. The order is what readers rely on: store, cache, point; see cache.
func (a *applier) finish() {
	w := a.in.store.begin(a.ts)
	m := &a.last
	for i := range a.overlay.all {
		if st := &a.overlay.all[i]; st.dirty {
			a.flush(w, m, st)
		}
	}
	a.sessions.flush(w, &a.mem, &m.digest)
	m.index, m.term, m.ts, m.time, m.positions = a.index, a.term, a.ts, a.now, uint32(a.positions)
	a.markerBytes = appendMarker(a.markerBytes[:0], m)
	if err := w.commit(a.markerBytes); err != nil {
		a.failApply(err)
	}
	a.updateCache()
	a.in.publish(m, a.markerBytes, len(a.sessions.byID), &a.overlay)
	a.in.deadlines.publish(&a.deadlines)
	a.in.setMembers(a.members)
	a.deliver()
	a.reset()
}

// deliver hands the entry's effects to the sink.
func (a *applier) deliver() {
	if len(a.effects) > 0 {
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
