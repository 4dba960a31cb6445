package engine

import (
	"sync/atomic"

	"kvstore/internal/hist"
)

// Stats is a momentary view for metrics. Counters count from Open, over all snapshots that were installed.
type Stats struct {
	// Records and RecordBytes count live records of all namespaces, those that are due but not removed yet
	// included: keys, kept elements and values as their writers sent them.
	Records, RecordBytes uint64
	// Sessions are those that are open.
	Sessions int
	// IdempotencyKeys are those whose answers are kept, IdempotencyBytes what these count against
	// wire.IdempotencyBytesMax.
	IdempotencyKeys  int
	IdempotencyBytes int64
	// CacheHits, CacheMisses, CacheFills and CacheEvicted count look-ups of records, what reads brought in,
	// and what made room. CacheEntries and CacheBytes are what is held.
	CacheHits, CacheMisses, CacheFills, CacheEvicted uint64
	CacheEntries                                     int
	CacheBytes                                       int64
	// PagePins are listings whose revision is held for their next page.
	PagePins int
	// Applies are durations of Apply, per entry.
	Applies *hist.Snapshot
	// Transfer is about snapshots.
	Transfer TransferStats
	// Store is the store below.
	Store StoreStats
}

// TransferStats counts what went from node to node as snapshots.
type TransferStats struct {
	// Opened, Received and Installed count snapshots: opened for sending, received whole and verified, and
	// put in place.
	Opened, Received, Installed uint64
	// Refused counts receptions that failed, for whatever reason.
	Refused uint64
	// BytesSent and BytesReceived are those of the streams, compressed as they are.
	BytesSent, BytesReceived uint64
	// Open are the snapshots that are being sent, Receiving is 1 while one is being received.
	Open, Receiving int
}

// transferMetrics counts; every field may be written and read by anyone.
type transferMetrics struct {
	opened, received, installed, refused atomic.Uint64
	bytesSent, bytesReceived             atomic.Uint64

	// reception is the snapshot that is being received; nil: none.
	reception atomic.Pointer[reception]
}

// counters are those of Stats that live in an instance: they are added up when one is replaced. The other
// counters of a store are handed on, see storeMetrics.
type counters struct {
	cacheHits, cacheMisses, cacheFills, cacheEvicted uint64
	bytesWritten                                     int64
}

// add adds what in has counted.
func (c *counters) add(in *instance) {
	t := in.cache.stats()
	c.cacheHits += t.hits + in.tailHits.Load()
	c.cacheMisses += t.misses
	c.cacheFills += t.fills
	c.cacheEvicted += t.evicted
	c.bytesWritten += in.store.bytesWritten.Load()
}

// Stats gathers Stats: for a scrape, not for a request. Errors: ErrClosed, or that of listing the files.
func (e *Engine) Stats() (Stats, error) {
	// Both under mu: an instance counts as itself or among those of the past.
	e.mu.Lock()
	in, sum, receiving := e.live.Load(), e.past, e.receiving
	e.mu.Unlock()
	store, err := in.store.stats()
	if err != nil {
		if e.replaced(in) {
			return e.Stats()
		}
		return Stats{}, err
	}
	sum.add(in)
	store.BytesWritten = sum.bytesWritten
	c := in.cache.stats()
	in.mu.Lock()
	newest, sizes := in.newest, in.sizes
	in.mu.Unlock()
	t := &e.transferred
	st := Stats{
		Records:     newest.records,
		RecordBytes: newest.bytes,
		Sessions:    sizes.sessions,

		IdempotencyKeys:  sizes.idempotencyKeys,
		IdempotencyBytes: sizes.idempotencyBytes,

		CacheHits:    sum.cacheHits,
		CacheMisses:  sum.cacheMisses,
		CacheFills:   sum.cacheFills,
		CacheEvicted: sum.cacheEvicted,
		CacheEntries: c.entries,
		CacheBytes:   c.bytes,
		PagePins:     in.pages.count(),
		Applies:      e.applyTime.Snapshot(),
		Transfer: TransferStats{
			Opened:        t.opened.Load(),
			Received:      t.received.Load(),
			Installed:     t.installed.Load(),
			Refused:       t.refused.Load(),
			BytesSent:     t.bytesSent.Load(),
			BytesReceived: t.bytesReceived.Load(),
			Open:          in.store.snapshotsOpen(),
		},
		Store: store,
	}
	if receiving {
		st.Transfer.Receiving = 1
	}
	return st, nil
}
