package client

import "context"

// shared is the context that most calls of a connection have in common, watched by one goroutine for all of them.
//
// A call that waits for its answer or the end of its context waits for two channels at once, and where many goroutines share a
// context, as workers do, they meet at the lock of its channel: that was a tenth of the client's CPU time for a get of
// 256 callers. A call that is watched waits for its own channel alone. Calls with contexts of their own, as in a server that has
// one for each request, wait for both as ever.
type shared struct {
	ctx  context.Context
	done <-chan struct{}
	stop chan struct{} // closed when the watch is given up

	used bool // since the last sweep; guarded by conn.mu
}

// share decides, as cl is handed to the connection, whether it is watched. The second call in a row with the same context,
// while another one is under way, begins the watch: start is to be run by the caller, outside of mu. REQUIRES: mu held.
func (c *conn) share(cl *call) (start *shared) {
	cl.watched = false
	if cl.done == nil {
		return nil
	}
	if c.shared == nil && c.lastDone == cl.done && c.inflight > 1 {
		start = &shared{ctx: cl.ctx, done: cl.done, stop: make(chan struct{})}
		c.shared = start
	}
	c.lastDone = cl.done
	if c.shared != nil && c.shared.done == cl.done {
		cl.watched, c.shared.used = true, true
	}
	return start
}

// watch begins what share asked for.
func (c *conn) watch(w *shared) {
	if w == nil {
		return
	}
	// watchShared: owned by the connection; ends with it, with the context, or when nobody has used it for a while. If the client is
	// closed, the connection ends and with it every call.
	c.client.spawn(func() { c.watchShared(w) })
}

// watchShared ends the calls of a context when it is done.
func (c *conn) watchShared(w *shared) {
	select {
	case <-w.done:
	case <-w.stop:
		return
	}
	var ended []*call
	lead, gather := false, false
	c.mu.Lock()
	if c.shared == w {
		c.shared = nil
	}
	for i := range c.slots {
		s := &c.slots[i]
		cl := s.call
		if cl == nil || !s.enqueued || !cl.watched || cl.done != w.done {
			continue
		}
		if s.call = nil; c.err == nil {
			c.cancel(uint32(i))
		}
		cl.res.stop, cl.res.sent = w.ctx.Err(), true
		ended = append(ended, cl)
	}
	if c.err == nil && len(c.buf) > 0 {
		lead, gather = c.lead()
	}
	c.mu.Unlock()
	if lead {
		c.flush(gather)
	}
	for _, cl := range ended {
		cl.complete()
	}
}

// unshare gives up a watch that no call has used since the last sweep and none needs, so that another context can have it.
// REQUIRES: mu held.
func (c *conn) unshare() {
	w := c.shared
	if w == nil {
		return
	}
	if w.used {
		w.used = false
		return
	}
	for i := range c.slots {
		if cl := c.slots[i].call; cl != nil && cl.watched {
			return
		}
	}
	c.endShared()
}

// endShared gives up the watch. REQUIRES: mu held; no call needs it.
func (c *conn) endShared() {
	if c.shared != nil {
		close(c.shared.stop)
		c.shared = nil
	}
}
