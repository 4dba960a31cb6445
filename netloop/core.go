package netloop

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

// core is what all sessions of a server share.
type core struct {
	// Immutable after newCore.
	o       Options
	handler Handler
	log     *slog.Logger
	start   time.Time
	codecs  *codecPool
	// busy holds the encoded extension block of every BUSY answer.
	busyExt []byte

	big      budget // incomplete and unpacked frames
	out      budget // out buffers, by capacity; see Options.OutTotalBytes
	draining atomic.Bool
	counters counters

	// Guarded by mu.
	mu       sync.Mutex
	sessions map[*Session]struct{}
	shards   []*shard
}

func newCore(o Options) *core {
	return &core{
		o:        o,
		handler:  o.Handler,
		log:      o.Logger,
		start:    time.Now(),
		codecs:   newCodecPool(o.CodecWorkers, o.CodecQueue),
		busyExt:  wire.AppendExtU32(nil, wire.ExtRetryAfter, uint32(o.RetryAfter.Milliseconds())),
		big:      budget{limit: int64(o.BigFrameBytes)},
		out:      budget{limit: int64(o.OutTotalBytes)},
		sessions: make(map[*Session]struct{}),
	}
}

// now is the door's monotonic clock, in nanoseconds since the server started.
func (c *core) now() int64 { return int64(time.Since(c.start)) }

// newShard adds the counters of one more loop.
func (c *core) newShard() *shard {
	sh := new(shard)
	c.mu.Lock()
	c.shards = append(c.shards, sh)
	c.mu.Unlock()
	return sh
}

func (c *core) register(s *Session) {
	c.mu.Lock()
	c.sessions[s] = struct{}{}
	c.mu.Unlock()
	// After the entry: a drain that began meanwhile either saw it or is seen here.
	if c.draining.Load() {
		s.startDrain()
	}
}

// unregister forgets s. Calling it again does nothing.
func (c *core) unregister(s *Session) {
	c.mu.Lock()
	delete(c.sessions, s)
	c.mu.Unlock()
}

// appendSessions appends the sessions that are open now.
func (c *core) appendSessions(dst []*Session) []*Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.sessions {
		dst = append(dst, s)
	}
	return dst
}

func (c *core) sessionCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions)
}

// survive is deferred around everything that runs a Handler or parses a peer's bytes: a panic there
// costs one connection, not the process. hurt says what to give up.
func (c *core) survive(what string, hurt func()) {
	if p := recover(); p != nil {
		c.counters.panics.Add(1)
		c.log.Error("panic on a connection", "where", what, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		hurt()
	}
}

// watch looks at every session's deadlines. Owned by the Server; ends when stop is closed.
func (c *core) watch(stop <-chan struct{}) {
	interval := time.Second
	for _, d := range []time.Duration{c.o.PartialTimeout, c.o.IdleTimeout, c.o.StallTimeout, c.o.Linger} {
		interval = min(interval, d/4)
	}
	t := time.NewTicker(max(interval, time.Millisecond))
	defer t.Stop()
	var all []*Session
	for {
		select {
		case <-stop:
			return
		case <-t.C:
		}
		all = c.appendSessions(all[:0])
		now := c.now()
		for _, s := range all {
			s.checkDeadlines(now)
		}
		clear(all) // keeps no closed session alive
	}
}
