package node

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/internal/rate"
	"kvstore/wire"
)

// limitsInterval is how often the doors look whether the settings of namespaces have changed.
const limitsInterval = 100 * time.Millisecond

// limits bounds what the requests of each namespace may take of this node: operations a second, and watches. The
// settings are state; this is their copy for the doors, at most limitsInterval behind, so that a request costs one
// atomic load while no namespace has a limit.
type limits struct {
	loop

	// limited holds the namespaces with a limit; nil: there is none. What it points at never changes, but for the
	// counters in it.
	limited atomic.Pointer[map[uint32]*limit]

	mu sync.Mutex
	// Guarded by mu.
	watches map[uint32]uint64 // open ones of each namespace that has some
	counts  map[uint32]*counts
}

// counts is what the doors count of one namespace.
type counts struct{ limited, quota, watches atomic.Uint64 }

// limit is what one namespace may take of this node.
type limit struct {
	// Immutable.
	name     string
	settings wire.NamespaceSettings
	counts   *counts

	// rate is of operations, on Shard.now.
	rate rate.Bucket
}

func newLimits() *limits {
	return &limits{watches: make(map[uint32]uint64), counts: make(map[uint32]*counts)}
}

// start begins to follow the settings.
func (l *limits) start(s *Shard) {
	l.refresh(s.namespaces())
	l.begin(func(ctx context.Context) {
		tick := time.NewTicker(limitsInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				l.refresh(s.namespaces())
			}
		}
	})
}

// refresh takes over the settings of all namespaces. What a namespace has spent stays spent. It is called by one
// goroutine at a time.
func (l *limits) refresh(all []namespace) {
	old := l.limited.Load()
	limited := make(map[uint32]*limit)
	same := true
	for i := range all {
		n := &all[i]
		if n.Dropping || n.Settings.OpsPerSecond == 0 && n.Settings.WatchesMax == 0 {
			continue
		}
		var before *limit
		if old != nil {
			before = (*old)[n.ID]
		}
		if before != nil && before.settings == n.Settings {
			limited[n.ID] = before
			continue
		}
		same = false
		now := &limit{name: n.Name, settings: n.Settings, counts: l.countsOf(n.ID)}
		now.rate.Set(n.Settings.OpsPerSecond)
		if before != nil {
			now.rate.Inherit(&before.rate)
		}
		limited[n.ID] = now
	}
	switch {
	case len(limited) == 0:
		l.limited.Store(nil)
	case !same || old == nil || len(*old) != len(limited):
		l.limited.Store(&limited)
	}
	l.forget(all)
}

// forget drops the counts of namespaces that are gone, so that there are no more than namespaces. all is sorted by id.
func (l *limits) forget(all []namespace) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.counts {
		if _, ok := slices.BinarySearchFunc(all, id, func(n namespace, id uint32) int { return cmp.Compare(n.ID, id) }); !ok {
			delete(l.counts, id)
		}
	}
}

// countsOf gives the counts of a namespace.
func (l *limits) countsOf(ns uint32) *counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.countsLocked(ns)
}

// countsLocked is countsOf. REQUIRES: mu held.
func (l *limits) countsLocked(ns uint32) *counts {
	c := l.counts[ns]
	if c == nil {
		c = new(counts)
		l.counts[ns] = c
	}
	return c
}

// overQuota counts a write that the state machine refused for its namespace's quota.
func (l *limits) overQuota(ns uint32) { l.countsOf(ns).quota.Add(1) }

// of gives the limit of a namespace, nil for none. It is lock-free.
func (l *limits) of(ns uint32) *limit {
	all := l.limited.Load()
	if all == nil {
		return nil
	}
	return (*all)[ns]
}

// allow takes items operations off the rate of a namespace, or refuses. It is lock-free.
func (l *limits) allow(s *Shard, ns uint32, items int) *wire.Refusal {
	lim := l.of(ns)
	if lim == nil || !lim.rate.Limited() {
		return nil
	}
	wait := lim.rate.Take(max(items, 1), s.now())
	if wait == 0 {
		return nil
	}
	lim.counts.limited.Add(1)
	return &wire.Refusal{
		Status: wire.StatusLimited, Limit: lim.settings.OpsPerSecond, RetryAfterMs: uint32(min((wait+int64(time.Millisecond)-1)/int64(time.Millisecond), math.MaxUint32)),
		Text: fmt.Sprintf("namespace %q may have %d operations a second at each node (ops_per_second); nothing was changed: try again after the pause that the answer names", lim.name, lim.settings.OpsPerSecond),
	}
}

// openWatch counts a watch of a namespace in, until release, or refuses it. release may be called once.
func (l *limits) openWatch(ns uint32) (release func(), refusal *wire.Refusal) {
	lim := l.of(ns)
	l.mu.Lock()
	defer l.mu.Unlock()
	if lim != nil && lim.settings.WatchesMax != 0 && l.watches[ns] >= lim.settings.WatchesMax {
		lim.counts.watches.Add(1)
		return nil, &wire.Refusal{
			Status: wire.StatusTooMany, Limit: lim.settings.WatchesMax,
			Text: fmt.Sprintf("namespace %q may have %d watches at each node (watches_max): end some first", lim.name, lim.settings.WatchesMax),
		}
	}
	l.watches[ns]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.watches[ns]--; l.watches[ns] == 0 {
			delete(l.watches, ns)
		}
	}, nil
}
