package netloop

import (
	"context"
	"sync"

	"github.com/panjf2000/gnet/v2"
)

// loop is what this package adds to one event loop of gnet: the connections whose answers wait for it.
type loop struct {
	// Immutable after newLoop.
	srv   *Server
	el    gnet.EventLoop
	shard *shard

	// Owned by the event loop.
	scratch scratch
	ready   []*conn // the list that Run works through

	// Guarded by mu.
	mu      sync.Mutex
	dirty   []*conn
	woken   bool // Run is queued
	stopped bool // gnet is stopping: its wake-up descriptor may be closed and reused at any moment
}

// mark puts c on the dirty list. Any goroutine. The first one on the list wakes the loop, unless answers
// are held back by HoldFlush.
func (l *loop) mark(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return
	}
	l.dirty = append(l.dirty, c)
	// Read under mu: ReleaseFlush lowers holds before it takes mu, so either it sees the entry or this
	// sees its release.
	if !l.woken && l.srv.holds.Load() == 0 {
		l.wakeLocked()
	}
}

// release wakes the loop for what was marked while answers were held back.
func (l *loop) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.dirty) > 0 && !l.woken && !l.stopped {
		l.wakeLocked()
	}
}

// wakeLocked queues Run. REQUIRES: mu held, not stopped. Execute is one eventfd write at most; the task
// carries no data, since gnet keeps no order between tasks.
func (l *loop) wakeLocked() {
	l.woken = true
	l.shard.wakes.Add(1)
	if err := l.el.Execute(context.Background(), l); err != nil {
		l.woken = false
		l.srv.core.log.Error("cannot wake an event loop; its connections will stall", "error", err)
	}
}

// Run implements gnet.Runnable: it writes the answers of all dirty connections, one write each.
func (l *loop) Run(context.Context) error {
	l.mu.Lock()
	l.ready, l.dirty = l.dirty, l.ready[:0]
	l.woken = false
	l.mu.Unlock()
	for i, c := range l.ready {
		l.ready[i] = nil
		c.resume()
	}
	return nil // an error would only be dropped by gnet
}

// stop ends the use of the event loop from other goroutines.
func (l *loop) stop() {
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
}
