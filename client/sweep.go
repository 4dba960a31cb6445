package client

import (
	"context"
	"fmt"
	"time"

	"kvstore/wire"
)

// startSweep begins the watch over deadlines and over a silent peer; it runs only while something is
// unanswered. cl is what is to be watched first. REQUIRES: mu held.
func (c *conn) startSweep(cl *call) {
	if c.sweeping || c.err != nil {
		return
	}
	c.sweeping, c.pinged = true, false
	c.swept, c.silence = cl.time(c.client), 0
	c.timer.Reset(c.client.o.sweepEvery)
}

// sweep gives up calls whose deadline has passed, asks a silent peer for a sign of life, turns to other nodes
// when it gives none, and at last ends the connection. A clock reading per sweep replaces a timer per call.
func (c *conn) sweep() {
	o := &c.client.o
	now := c.client.now()
	var expired, saved []*call
	dead := false

	c.mu.Lock()
	if c.err != nil || c.inflight == 0 && c.waiters.head == nil {
		c.sweeping = false
		if c.err == nil {
			c.endShared() // else drain does, when it has ended the calls
		}
		c.mu.Unlock()
		return
	}
	// Bytes that went out prove nothing of the peer, except that a large payload may take long.
	p := c.reads.Load()
	if c.writing != nil {
		p += c.writes.Load() << 32
	}
	if p != c.lastProgress {
		c.lastProgress, c.silence, c.pinged = p, 0, false
	} else {
		// A client that was held up itself, its reader included, must not take that for the peer's silence.
		c.silence += min(now-c.swept, 2*o.sweepEvery)
	}
	c.swept = now
	if c.silence > o.pingAfter && !c.pinged {
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
	c.unshare()
	grace := time.Duration(c.inflightBytes) * time.Second / silenceBytesPerSecond
	suspected := c.silence > o.suspectAfter+grace && !c.suspected
	if suspected {
		saved, dead = c.suspect()
	}
	dead = dead || c.silence > o.deadAfter+grace
	lead := false
	if len(c.buf) > 0 {
		lead, _ = c.lead()
	}
	c.timer.Reset(o.sweepEvery)
	c.mu.Unlock()

	if suspected {
		c.client.o.logger.Warn("a server is silent: asking others", "addr", c.link.node.addr)
		c.client.route.shun(c.link.node)
	}
	if dead {
		c.kill(errSilent)
	}
	if lead {
		c.flush(false)
	}
	for _, cl := range expired {
		cl.complete()
	}
	for _, cl := range saved {
		cl.complete()
	}
}

// suspect gives up a silent peer: no new requests, and whatever may be sent twice goes elsewhere at once. The
// connection lives on for the other requests, whose answers may still come; idle reports that there are none.
// REQUIRES: mu held; err == nil.
func (c *conn) suspect() (saved []*call, idle bool) {
	c.suspected, c.goingAway = true, true
	c.gone.Store(true)
	err := fmt.Errorf("connection to %s: %w", c.link.node.addr, errSilent)
	c.failWaiters(err)
	idle = true
	for i := range c.slots {
		s := &c.slots[i]
		cl := s.call
		switch {
		// A call that is admitted and not enqueued finds goingAway by itself.
		case cl == nil || !s.enqueued:
		case cl.write && cl.sess == nil:
			idle = false
		default:
			// Sent, even if it is still in the buffer: the connection lives on.
			if s.stream != nil {
				c.cancel(uint32(i)) // its answer would never come, and the connection never be let go
			}
			s.call = nil
			cl.res.err, cl.res.sent = err, true
			saved = append(saved, cl)
		}
	}
	return saved, idle
}
