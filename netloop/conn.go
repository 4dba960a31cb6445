package netloop

import (
	"net"
	"sync/atomic"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"
)

// conn drives a Session on a socket that belongs to a gnet event loop.
//
// gnet only reads. Writing goes straight to the socket, and what the kernel does not take stays in the
// session's buffers: gnet's own out buffer has no bound, no signal when it empties, and costs a copy.
type conn struct {
	// Immutable after newConn.
	srv      *Server
	remote   net.Addr
	agreed   agreed
	leftover []byte // what arrived behind HELLO; dropped in open

	// Immutable after open.
	loop *loop
	s    *Session
	gc   gnet.Conn
	fd   int

	opened atomic.Bool
	killed atomic.Bool

	// Owned by the event loop.
	isClosed  bool
	waiting   bool // for the socket to take more; see writeWatch
	watched   bool // the socket is known to writeWatch
	watchID   uint64
	halfShut  bool // the sending side is shut
	writeFail bool
}

// open runs in OnOpen: the session starts, with what arrived behind HELLO.
func (c *conn) open(gc gnet.Conn) gnet.Action {
	c.loop = c.srv.loopOf(gc.EventLoop())
	c.gc, c.fd = gc, gc.Fd()
	c.s = newSession(c.srv.core, c.loop.shard, &c.loop.scratch, c, c.remote, c.agreed)
	c.opened.Store(true)
	c.srv.core.register(c.s)
	b := c.leftover
	c.leftover = nil
	if len(b) == 0 {
		return gnet.None
	}
	return c.feed(b)
}

// feed runs on the loop with what one read brought.
func (c *conn) feed(b []byte) (action gnet.Action) {
	defer c.srv.core.survive("feed", func() {
		c.s.abandon()
		action = gnet.Close
	})
	if c.isClosed {
		return gnet.None
	}
	_, act := c.s.Feed(b)
	if act == ActionFlush {
		c.flush()
	}
	if act == ActionClose || c.writeFail || c.killed.Load() {
		return gnet.Close
	}
	return gnet.None
}

// resume runs on the loop when the connection was marked: answers wait, the socket takes more, or it
// is to be closed.
func (c *conn) resume() {
	defer c.srv.core.survive("flush", func() { c.s.abort(closedPanic) })
	if c.isClosed {
		return
	}
	c.waiting = false
	if !c.killed.Load() {
		c.flush()
	}
	if c.writeFail || c.killed.Load() {
		if err := c.gc.EventLoop().Close(c.gc); err != nil {
			c.srv.core.log.Debug("cannot close a connection", "error", err)
		}
	}
}

// flush writes what waits, at most flushSliceBytes before other connections have their turn. Loop only.
func (c *conn) flush() {
	if c.waiting || c.halfShut || c.writeFail || c.isClosed {
		return
	}
	progress := false
	for quota := flushSliceBytes; ; {
		b := c.s.next()
		if len(b) == 0 {
			if c.s.finished() {
				c.halfShut = true
				// It fails only if the peer is gone, which the loop will learn by itself.
				_ = unix.Shutdown(c.fd, unix.SHUT_WR)
			}
			return
		}
		if quota == 0 {
			c.await(progress)
			return
		}
		b = b[:min(len(b), quota)]
		n, err := unix.Write(c.fd, b)
		if n > 0 {
			progress = true
			c.s.sent(n)
			quota -= n
		}
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN, err == nil && n < len(b):
			c.await(progress)
			return
		case err != nil:
			c.writeFail = true
			return
		}
	}
}

// await lets the connection rest until its socket takes more.
func (c *conn) await(progress bool) {
	c.s.stalled(progress)
	if err := c.srv.watch.arm(c); err != nil {
		c.srv.core.log.Error("cannot wait for a socket to take more; closing its connection", "error", err)
		c.writeFail = true
		return
	}
	c.waiting = true
}

// close runs in OnClose.
func (c *conn) close() {
	if c.isClosed || c.s == nil {
		return
	}
	c.isClosed = true
	c.srv.watch.forget(c)
	c.s.closed()
	c.srv.connGone()
}

// wake implements driver.
func (c *conn) wake() { c.loop.mark(c) }

// flushNow implements driver: Feed runs on the loop.
func (c *conn) flushNow() { c.flush() }

// kill implements driver.
func (c *conn) kill() {
	if !c.killed.Swap(true) {
		c.loop.mark(c)
		c.loop.release() // even while answers are held back
	}
}
