package engine

import (
	"errors"
	"fmt"
	"sync"

	"kvstore/wire"
)

// ReadOptions says what a read reads.
type ReadOptions struct {
	// Namespace is the numeric id of the namespace; wire.NamespaceDefault for users' keys.
	Namespace uint32
	// AtRevision asks for the past as it was at that revision; 0 for the newest state. It must be kept
	// (StatusCompacted) and applied here (StatusFutureRevision). Within the entry of a revision, a read that
	// can't tell what came first gets StatusCompacted too.
	AtRevision wire.Revision
	// Due has Get and Exists find a record also when its deadline had passed at AtRevision and it was not removed yet: what
	// an EffectExpire ends. REQUIRES: AtRevision.
	Due bool
	// MinRevision asks for a state that reflects at least this revision: StatusFutureRevision when it is not
	// applied here yet, StatusCompacted when a recovery has given it up.
	MinRevision wire.Revision
	// ReplyBytesMax bounds the payload of a MultiGet; 0 for wire.FrameBodyBytesMax.
	ReplyBytesMax int
}

// Get reads a record. rec's slices are views into out, which is buf, grown if need be: hand it to the next
// Get. st is StatusOK, StatusNotFound, StatusFutureRevision, StatusCompacted, StatusDamaged,
// StatusDraining, or StatusRetryLater; err tells a log more about the last three.
func (e *Engine) Get(o ReadOptions, key, buf []byte) (rec wire.Record, out []byte, st wire.Status, err error) {
	l := lookups.Get().(*lookup)
	l.buf = buf
	for {
		in := e.live.Load()
		if st, err = l.do(in, &o, key); st != wire.StatusDraining || !e.replaced(in) {
			break
		}
	}
	rec, out = l.record(), l.buf
	l.release()
	return rec, out, st, err
}

// Exists reads a record's Meta alone. The outcomes are those of Get.
func (e *Engine) Exists(o ReadOptions, key []byte) (meta wire.Meta, st wire.Status, err error) {
	l := lookups.Get().(*lookup)
	l.headOnly, l.buf = true, l.scratch
	for {
		in := e.live.Load()
		if st, err = l.do(in, &o, key); st != wire.StatusDraining || !e.replaced(in) {
			break
		}
	}
	meta, l.scratch = l.rec.Meta, l.buf[:0]
	l.release()
	return meta, st, err
}

// lookup is one read of one key. It is pooled, with its callbacks: a closure per read would allocate.
type lookup struct {
	in       *instance
	r        *reader
	at       wire.Revision
	due      bool // see ReadOptions
	headOnly bool

	key  []byte // record key
	hash uint64

	// What was found. buf begins with the stored record, unless it is headOnly; the value of one that is chunked or
	// compressed stands behind it.
	buf    []byte
	stored int // length of the stored record
	rec    storedRecord
	p      point
	found  bool
	exact  bool // see check

	scratch  []byte
	onRead   func(r *reader) error
	onStored func(stored []byte) error
}

var lookups = sync.Pool{New: func() any {
	l := new(lookup)
	l.onRead, l.onStored = l.read, l.take
	return l
}}

// lookupKeptMax bounds the scratch that a pooled lookup keeps.
const lookupKeptMax = 64 << 10

func (l *lookup) release() {
	if cap(l.scratch) > lookupKeptMax {
		l.scratch = nil
	}
	l.in, l.r, l.buf, l.rec = nil, nil, nil, storedRecord{}
	l.headOnly = false
	lookups.Put(l)
}

// do reads key as o says.
func (l *lookup) do(in *instance, o *ReadOptions, key []byte) (wire.Status, error) {
	at, st := in.place(o)
	if st != wire.StatusOK {
		return st, nil
	}
	l.in, l.at, l.due = in, o.AtRevision, o.Due
	l.key = appendRecordKey(l.key[:0], o.Namespace, key)
	l.hash = hashKey(l.key)
	if at == 0 {
		if st, hit, err := l.cached(); err != nil {
			l.rec = storedRecord{}
			return in.refused(err)
		} else if hit {
			return st, nil
		}
	}
	if err := in.store.read(at, l.onRead); err != nil {
		l.rec = storedRecord{}
		return in.refused(err)
	}
	if at == 0 {
		l.fill()
	}
	switch {
	case !l.exact:
		l.rec = storedRecord{}
		return wire.StatusCompacted, nil
	case l.absent():
		l.rec = storedRecord{}
		return wire.StatusNotFound, nil
	}
	return wire.StatusOK, nil
}

// place decides at which ts to read: 0 for the newest.
func (in *instance) place(o *ReadOptions) (at uint64, st wire.Status) {
	if o.MinRevision|o.AtRevision != 0 {
		if id := in.identity.Load(); id.forgotten(o.MinRevision) || id.forgotten(o.AtRevision) {
			return 0, wire.StatusCompacted
		}
	}
	if wire.RevisionTS(o.MinRevision) > in.store.current().ts {
		return 0, wire.StatusFutureRevision
	}
	if o.AtRevision == 0 {
		return 0, wire.StatusOK
	}
	if at = wire.RevisionTS(o.AtRevision); at == 0 {
		return 0, wire.StatusCompacted // before the first entry there was no state
	}
	return at, wire.StatusOK
}

// cached looks for the key in the cache.
func (l *lookup) cached() (st wire.Status, hit bool, err error) {
	p := l.in.store.current()
	b, known := l.in.store.tail.Load().get(l.hash, l.key, p.ts)
	answer := cacheHit
	switch {
	case !known:
		b, answer = l.in.cache.appendTo(l.buf[:0], l.hash, l.key, p.ts)
		l.buf = b
	case b == nil:
		answer = cacheAbsent
	case len(b) > cachedBytesMax:
		answer = cacheMiss // the store has it as a view
	default:
		l.in.tailHits.Add(1)
		b = append(l.buf[:0], b...)
		l.buf = b
	}
	switch answer {
	case cacheMiss:
		return 0, false, nil
	case cacheAbsent:
		return wire.StatusNotFound, true, nil
	}
	if err := decodeRecordHead(b, &l.rec); err != nil {
		panic("BUG: the cache holds what is no record: " + err.Error())
	}
	if l.rec.chunks > 0 {
		l.rec = storedRecord{} // in the tail: its pieces are to be gathered
		return 0, false, nil
	}
	if l.rec.expired(p.time) {
		l.rec = storedRecord{}
		return wire.StatusNotFound, true, nil
	}
	l.stored = len(b)
	return wire.StatusOK, true, l.loadValue(nil) // it stands in one piece
}

// read reads the key from the store. It may run more than once.
func (l *lookup) read(r *reader) (err error) {
	l.r, l.p = r, r.point()
	l.buf, l.stored, l.rec = l.buf[:0], 0, storedRecord{}
	if l.found, err = r.get(l.key, l.onStored); err != nil {
		return err
	}
	l.exact = exactAt(l.at, l.p, l.found, l.rec.Meta.Version)
	if !l.exact || l.absent() {
		return nil
	}
	return l.loadValue(r)
}

// absent reports whether what was read in the store is no record for who asks.
func (l *lookup) absent() bool { return !l.found || !l.due && l.rec.expired(l.p.time) }

// loadValue appends the value of a record that is chunked or compressed to buf.
func (l *lookup) loadValue(g getter) (err error) {
	if l.headOnly || l.rec.inline() {
		return nil
	}
	if l.buf, err = appendValue(l.buf, g, l.key, &l.rec); err != nil {
		return err
	}
	// The buffer may have moved.
	if err := decodeRecordHead(l.buf[:l.stored], &l.rec); err != nil {
		panic("BUG: a checked record can't be decoded: " + err.Error())
	}
	l.rec.Value = l.buf[l.stored:]
	return nil
}

// take copies what the store holds.
func (l *lookup) take(stored []byte) error {
	if err := decodeRecord(l.key, stored, &l.rec); err != nil {
		return err
	}
	if l.headOnly && len(stored) > cachedBytesMax {
		l.rec.Ext, l.rec.Value, l.rec.packed = nil, nil, nil // views that end with this call
		return nil
	}
	l.buf = append(l.buf, stored...)
	l.stored = len(stored)
	return decodeRecordHead(l.buf, &l.rec)
}

// exactAt reports whether what a read at p found is what revision at shows. It always is but within an entry,
// where a later mutation of the same entry may hide it: then the key's own version may still tell.
func exactAt(at wire.Revision, p point, found bool, version wire.Revision) bool {
	within := at != 0 && at < p.revision && wire.RevisionTS(p.revision) == wire.RevisionTS(at)
	return !within || found && version <= at
}

// fill shows the cache what was read. REQUIRES: read at the newest point, and the fence didn't pass it.
func (l *lookup) fill() {
	switch {
	case !l.found:
		l.in.cache.fill(l.hash, l.key, l.p.ts, nil)
	case l.rec.chunks == 0 && l.stored > 0:
		l.in.cache.fill(l.hash, l.key, l.p.ts, l.buf[:l.stored])
	}
}

// record gives the record that was found, as views into buf.
func (l *lookup) record() wire.Record { return l.rec.Record }

// statusOf gives the status for a read that failed, and the error if a log should have it.
func statusOf(err error) (wire.Status, error) {
	switch {
	case errors.Is(err, ErrCompacted):
		return wire.StatusCompacted, nil
	case errors.Is(err, ErrFuture):
		return wire.StatusFutureRevision, nil
	case errors.Is(err, ErrRecordDamaged):
		return wire.StatusDamaged, fmt.Errorf("cannot read: %w", err)
	case errors.Is(err, ErrClosed):
		return wire.StatusDraining, fmt.Errorf("cannot read: %w", err)
	default:
		return wire.StatusRetryLater, fmt.Errorf("cannot read: %w", err)
	}
}
