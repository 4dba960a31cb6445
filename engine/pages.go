package engine

import (
	"sync"
	"time"
)

const (
	// pagePinAge is how long a listing's revision is held for its next page. The history window keeps
	// revisions for as long anyway: the pin serves listings that take longer than that in all.
	pagePinAge = time.Minute

	// pagePinsMax bounds the revisions that listings hold. A listing beyond it lives as long as the history
	// window lets it.
	pagePinsMax = 1024
)

// pages holds the revisions of listings that have a next page. Each page renews the hold.
type pages struct {
	store *store

	mu sync.Mutex
	// Guarded by mu.
	pins   map[uint64]*pagePin // by ts
	swept  time.Time
	closed bool
}

type pagePin struct {
	release func()
	used    time.Time
}

func newPages(s *store) *pages { return &pages{store: s, pins: make(map[uint64]*pagePin)} }

// hold keeps ts readable for pagePinAge from now. It does what it can: a listing whose revision can't be
// held gets ErrCompacted one day, which it must be ready for.
func (p *pages) hold(ts uint64) {
	now := p.store.o.hooks.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sweep(now)
	if pin := p.pins[ts]; pin != nil {
		pin.used = now
		return
	}
	if p.closed || len(p.pins) >= pagePinsMax {
		return
	}
	if release, err := p.store.pin(ts); err == nil {
		p.pins[ts] = &pagePin{release: release, used: now}
	}
}

// sweep lets go of what no page has asked for in pagePinAge, at most once per second. Between listings
// nobody sweeps; the store itself bounds the age of pins. REQUIRES: mu held.
func (p *pages) sweep(now time.Time) {
	if now.Sub(p.swept) < time.Second {
		return
	}
	p.swept = now
	for ts, pin := range p.pins {
		if now.Sub(pin.used) > pagePinAge {
			pin.release()
			delete(p.pins, ts)
		}
	}
}

func (p *pages) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pins)
}

// close lets go of all.
func (p *pages) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for ts, pin := range p.pins {
		pin.release()
		delete(p.pins, ts)
	}
}
