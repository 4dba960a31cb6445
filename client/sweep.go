package client

import (
	"context"

	"kvstore/wire"
)

// startSweep begins the watch over deadlines and over a silent peer; it runs only while something is
// unanswered. cl is what is to be watched first. REQUIRES: mu held.
func (c *conn) startSweep(cl *call) {
	if c.sweeping || c.err != nil {
		return
	}
	c.sweeping, c.pinged = true, false
	c.lastActive = cl.time(c.client)
	c.timer.Reset(c.client.o.sweepEvery)
}

// sweep gives up calls whose deadline has passed, asks a silent peer for a sign of life, and ends a
// connection whose peer gives none. A clock reading per sweep replaces a timer per call.
func (c *conn) sweep() {
	now := c.client.now()
	var expired []*call
	dead := false

	c.mu.Lock()
	if c.err != nil || c.inflight == 0 && c.waiters.head == nil {
		c.sweeping = false
		c.mu.Unlock()
		return
	}
	// Bytes that went out prove nothing of the peer, except that a large payload may take long.
	p := c.reads.Load()
	if c.writing != nil {
		p += c.writes.Load() << 32
	}
	if p != c.lastProgress {
		c.lastProgress, c.lastActive, c.pinged = p, now, false
	}
	silent := now - c.lastActive
	dead = silent > c.client.o.deadAfter
	if silent > c.client.o.pingAfter && !c.pinged {
		c.pinged = true
		c.appendControl(wire.OpPing, nil)
	}
	for i := range c.slots {
		s := &c.slots[i]
		if cl := s.call; cl != nil && s.enqueued && s.deadline < now {
			c.cancel(uint32(i))
			cl.res.stop, cl.res.sent = context.DeadlineExceeded, true
			expired = append(expired, cl)
		}
	}
	for cl := c.waiters.head; cl != nil; {
		next := cl.next
		if cl.deadline < now {
			c.waiters.remove(cl)
			cl.res.stop = context.DeadlineExceeded
			cl.signal()
		}
		cl = next
	}
	lead := false
	if len(c.buf) > 0 {
		lead, _ = c.lead()
	}
	c.timer.Reset(c.client.o.sweepEvery)
	c.mu.Unlock()

	if lead {
		c.flush(false)
	}
	for _, cl := range expired {
		cl.complete()
	}
	if dead {
		c.kill(errSilent)
	}
}
