package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"kvstore/internal/hist"
	"kvstore/wire"
)

// Engine is the state machine of one Raft group and the store below it. Apply and ApplyConfiguration belong
// to one goroutine, the applier; every other method may be called from any.
type Engine struct {
	// Immutable after Open; each provides its own synchronisation.
	store     *store
	cache     *cache
	sink      EffectSink
	group     uint32
	pages     *pages
	deadlines deadlines
	applyTime hist.Histogram

	// Owned by the applier.
	applier *applier

	// Written by the applier, read by anyone.
	identity atomic.Pointer[identity]

	mu sync.Mutex
	// Guarded by mu: what the newest published entry left.
	newest   marker
	sessions int
}

// Point is a state that readers see.
type Point struct {
	// Index and Term are those of the newest entry applied; 0 in a virgin engine.
	Index, Term uint64
	// Time is the log time, Unix µs: what has expired is decided by it.
	Time int64
	// Revision is that of the state: that of the entry's last mutation, or the entry's first revision when
	// it made none. A read at this revision shows this state.
	Revision wire.Revision
}

func pointOf(p point) Point {
	return Point{Index: p.index, Term: p.term, Time: p.time, Revision: p.revision}
}

// Open opens the group's state at the newest checkpoint, or creates it. The caller then applies the log from
// Applied().Index + 1 on. Errors: ErrDamaged when what is stored can't be trusted; others from the disk or
// the options.
func Open(o Options) (*Engine, error) {
	s, err := openStore(o)
	if err != nil {
		return nil, err
	}
	e, err := load(s)
	if errors.Is(err, ErrRecordDamaged) {
		err = damaged("cannot load the state machine", err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot load the state machine: %w", err), s.close())
	}
	return e, nil
}

// load builds the engine from what s shows.
func load(s *store) (*Engine, error) {
	e := &Engine{store: s, cache: newCache(s.o.CacheBytes), sink: s.o.Sink, group: s.o.Group, pages: newPages(s)}
	var last marker
	var id identity
	table := newSessions()
	if s.current().ts > 0 {
		err := s.read(0, func(r *reader) (err error) {
			if err = readMarker(r, &last); err != nil {
				return err
			}
			if id, err = loadIdentity(r); err != nil {
				return err
			}
			table, err = loadSessions(r)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	var err error
	if e.deadlines.next, err = earliestDeadline(s, 0); err != nil {
		return nil, err
	}
	e.applier = newApplier(e, table, last, id)
	e.setIdentity(id)
	e.note(&last, len(table.byID))
	return e, nil
}

// Close ends reads, writes a last checkpoint and closes the store. The applier must have stopped before.
func (e *Engine) Close() error {
	e.pages.close()
	return e.store.close()
}

// note publishes what the newest entry left, apart from its point. REQUIRES: caller is the applier.
func (e *Engine) note(m *marker, sessions int) {
	e.mu.Lock()
	e.newest, e.sessions = *m, sessions
	e.mu.Unlock()
}

// setIdentity publishes what the system records say. REQUIRES: caller is the applier.
func (e *Engine) setIdentity(id identity) { e.identity.Store(&id) }

// Applied gives the newest state that readers see.
func (e *Engine) Applied() Point { return pointOf(e.store.current()) }

// Digest gives the state's digest and the index that it belongs to: equal on all replicas at equal index.
func (e *Engine) Digest() (index uint64, digest [16]byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.newest.index, e.newest.digest.bytes()
}

// Identity gives the ids that OpInit has set; ok is false before it. The history id changes whenever the
// cluster forgets history; cursors of another history are refused.
func (e *Engine) Identity() (clusterID, historyID [16]byte, ok bool) {
	id := e.identity.Load()
	return id.clusterID, id.historyID, id.level != levelNone
}

// Level gives the behaviour level of the state; 0 before OpInit.
func (e *Engine) Level() uint16 { return e.identity.Load().level }

// Durable gives the newest checkpoint; ok is false while there is none.
func (e *Engine) Durable() (cp Checkpoint, ok bool) { return e.store.durable() }

// Recovered gives the checkpoint that Open started from; ok is false if it found none.
func (e *Engine) Recovered() (cp Checkpoint, ok bool) { return e.store.recovered() }

// CheckpointNow makes the newest state durable and returns when it is. Errors: ctx's, ErrClosed, or the
// failure that has stopped the engine.
func (e *Engine) CheckpointNow(ctx context.Context) error { return e.store.checkpointNow(ctx) }

// WaitDurable returns when the state is durable up to index. Errors as CheckpointNow.
func (e *Engine) WaitDurable(ctx context.Context, index uint64) error {
	return e.store.waitDurable(ctx, index)
}

// Witness records in the checkpoint that the state reaches the Raft snapshot of index and term, with the
// configuration that the snapshot holds, and returns when that is durable. Errors as CheckpointNow.
func (e *Engine) Witness(ctx context.Context, index, term uint64, configuration []byte, configurationIndex uint64) error {
	return e.store.witness(ctx, index, term, configuration, configurationIndex)
}

// Stats is a momentary view for metrics. Counters count from Open.
type Stats struct {
	// Records and RecordBytes count live records of all namespaces, those that are due but not removed yet
	// included: keys, kept elements and values as their writers sent them.
	Records, RecordBytes uint64
	// Sessions are those that are open.
	Sessions int
	// CacheHits, CacheMisses, CacheFills and CacheEvicted count look-ups of records, what reads brought in,
	// and what made room. CacheEntries and CacheBytes are what is held.
	CacheHits, CacheMisses, CacheFills, CacheEvicted uint64
	CacheEntries                                     int
	CacheBytes                                       int64
	// PagePins are listings whose revision is held for their next page.
	PagePins int
	// Applies are durations of Apply, per entry.
	Applies *hist.Snapshot
	// Store is the store below.
	Store StoreStats
}

// Stats gathers Stats: for a scrape, not for a request. Errors: ErrClosed, or that of listing the files.
func (e *Engine) Stats() (Stats, error) {
	store, err := e.store.stats()
	if err != nil {
		return Stats{}, err
	}
	c := e.cache.stats()
	e.mu.Lock()
	defer e.mu.Unlock()
	return Stats{
		Records:      e.newest.records,
		RecordBytes:  e.newest.bytes,
		Sessions:     e.sessions,
		CacheHits:    c.hits,
		CacheMisses:  c.misses,
		CacheFills:   c.fills,
		CacheEvicted: c.evicted,
		CacheEntries: c.entries,
		CacheBytes:   c.bytes,
		PagePins:     e.pages.count(),
		Applies:      e.applyTime.Snapshot(),
		Store:        store,
	}, nil
}
