package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"kvstore/wire"
)

// instance is one generation with all that belongs to its state. An engine has one at a time; installing a
// snapshot replaces it as a whole. A reader loads it once and finishes on what it has loaded, or is turned
// away by its store's gate (ErrClosed) and begins again on the next one.
type instance struct {
	// Immutable after loadInstance; each provides its own synchronisation.
	store     *store
	cache     *cache
	sink      EffectSink
	group     uint32
	pages     *pages
	deadlines deadlines

	// Owned by the applier.
	applier *applier

	// Written by the applier, read by anyone.
	identity   atomic.Pointer[identity]
	members    atomic.Pointer[[]wire.Member]
	namespaces atomic.Pointer[namespaceTable]

	tailHits atomic.Uint64 // records that the tail had

	mu sync.Mutex
	// Guarded by mu: what the newest published entry left.
	newest  marker
	sizes   tableSizes
	digests digestRing
	scrub   *partialSum // of the scrub under way, or nil
}

// tableSizes is how full the tables beside the records are.
type tableSizes struct {
	sessions         int
	idempotencyKeys  int
	idempotencyBytes int64
}

// loadInstance builds the state machine from what s shows.
func loadInstance(s *store) (*instance, error) {
	in := &instance{store: s, cache: newCache(s.o.CacheBytes), sink: s.o.Sink, group: s.o.Group, pages: newPages(s)}
	var last marker
	var id identity
	var members []wire.Member
	table, once := newSessions(), newIdempotency()
	spaces := newNamespaces()
	if s.current().ts > 0 {
		err := s.read(0, func(r *reader) (err error) {
			if err = readMarker(r, &last); err != nil {
				return err
			}
			if id, err = loadIdentity(r); err != nil {
				return err
			}
			if last.ts != id.base+last.index {
				return fmt.Errorf("%w: the marker's ts %d is not the base %d and its index %d", ErrRecordDamaged, last.ts, id.base, last.index)
			}
			if members, err = loadMembers(r); err != nil {
				return err
			}
			if spaces, err = loadNamespaces(r, id.level, &last); err != nil {
				return err
			}
			if table, err = loadSessions(r); err != nil {
				return err
			}
			once, err = loadIdempotency(r)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	var err error
	if in.deadlines.next, err = earliestDeadline(s, 0); err != nil {
		return nil, err
	}
	if in.cache != nil {
		s.onDrained = in.drained
	}
	in.applier = newApplier(in, table, once, last, id, members, spaces)
	in.setIdentity(id)
	in.setMembers(members)
	in.showNamespaces(0, spaces)
	in.note(&last, tableSizes{len(table.byID), len(once.byKey), once.bytes})
	return in, nil
}

// drained shows the cache what a layer has brought to Badger.
func (in *instance) drained(hash uint64, key []byte, ts uint64, value []byte) {
	if key[0] != familyRecord {
		return
	}
	if value != nil {
		var r storedRecord
		if err := decodeRecordHead(value, &r); err != nil {
			panic("BUG: a layer holds what is no record: " + err.Error())
		}
		if r.chunks > 0 {
			in.cache.drop(hash, key, ts)
			return
		}
	}
	in.cache.update(hash, key, ts, value)
}

// hot looks for the newest record under key without reading Badger: in the tail, then in the cache. As cache.view otherwise;
// a record that is long or chunked is a miss. REQUIRES: p was published before the call.
func (in *instance) hot(hash uint64, key []byte, p *point, fn func(r *storedRecord)) cacheAnswer {
	r := hotRecords.Get().(*storedRecord)
	defer hotRecords.Put(r)
	answer, inTail := in.hotIn(in.store.tail.Load(), hash, key, p, r, fn)
	*r = storedRecord{}
	if inTail {
		in.tailHits.Add(1)
	}
	return answer
}

// hotIn is hot with a tail that was loaded after p was published. r is room for what is shown; inTail tells that the tail had it.
func (in *instance) hotIn(t *tail, hash uint64, key []byte, p *point, r *storedRecord, fn func(r *storedRecord)) (answer cacheAnswer, inTail bool) {
	stored, known := t.get(hash, key, p.ts)
	switch {
	case !known:
		return in.cache.view(hash, key, p.ts, fn), false
	case stored == nil:
		return cacheAbsent, false
	case len(stored) > cachedBytesMax:
		return cacheMiss, false
	}
	if err := decodeRecordHead(stored, r); err != nil {
		panic("BUG: a layer holds what is no record: " + err.Error())
	}
	if r.chunks > 0 {
		return cacheMiss, false
	}
	fn(r)
	return cacheHit, true
}

// hotRecords are what hot hands out: on the stack they would escape.
var hotRecords = sync.Pool{New: func() any { return new(storedRecord) }}

// checkIdentity reports, by an error, that the state has lost the cluster's identity. A state without one is whole only
// before OpInit, when it is small: then its digest tells. A node with a lost one would wait for ever to learn
// its cluster.
func (in *instance) checkIdentity() error {
	if in.identity.Load().level != levelNone || in.newest.digest == (digest{}) {
		return nil
	}
	if err := in.verify(context.Background()); err != nil {
		return fmt.Errorf("the identity of the cluster is not there: %w", err)
	}
	return nil
}

// publish shows the entry that the applier has stored, and notes what it left. Under mu, so that who holds it
// sees the point, the marker and a scrub's sum of one state. REQUIRES: caller is the applier.
func (in *instance) publish(m *marker, stored []byte, sizes tableSizes, changed *overlay) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.scrub != nil {
		in.scrub.note(changed)
	}
	in.store.publish(m.point(), stored)
	in.note(m, sizes)
}

// note notes what the newest entry left. REQUIRES: mu held, or in is not shared yet.
func (in *instance) note(m *marker, sizes tableSizes) {
	in.newest, in.sizes = *m, sizes
	in.digests.add(m)
}

// setIdentity publishes what the system records say. REQUIRES: caller is the applier.
func (in *instance) setIdentity(id identity) { in.identity.Store(&id) }

// close ends the instance in order, with a last checkpoint.
func (in *instance) close() error {
	in.pages.close()
	return in.store.close()
}

// discard ends the instance without a checkpoint and removes its generation. It waits for its readers.
func (in *instance) discard() error {
	in.pages.close()
	return in.store.discard()
}

// replaced reports whether in is no longer the instance that serves: what failed on it because it was
// closed is to be repeated.
func (e *Engine) replaced(in *instance) bool { return e.live.Load() != in }

// waiting runs fn, which waits for something of a store, on the store that serves, and again on the next
// one when that was replaced meanwhile.
func (e *Engine) waiting(fn func(s *store) error) error {
	for {
		in := e.live.Load()
		if err := fn(in.store); !errors.Is(err, ErrClosed) || !e.replaced(in) {
			return err
		}
	}
}
