package netloop

import (
	"io"
	"net"
	"sync"
)

// plainConn drives a Session over any net.Conn with two goroutines: one reads and feeds, one writes. It
// serves what gnet can't, and is the reference that gnet's driver is tested against.
type plainConn struct {
	// Immutable after servePlain.
	c       net.Conn
	s       *Session
	signal  chan struct{} // room for one: the writer has something to do
	quit    chan struct{} // closed by the reader when the connection is closed
	written chan struct{} // closed by the writer at its end: all is sent, or nothing can be
}

// plainMemory is what a plain connection works with besides its session.
type plainMemory struct {
	scratch scratch
	read    [readBufferBytes]byte
}

var plainPool = sync.Pool{New: func() any { return new(plainMemory) }}

// ServeConn runs the handshake and serves one connection that the caller accepted, until it ends; then it
// closes c. It returns ErrClosed if the server is closed, nil otherwise: how a connection ended is
// counted, not reported. It counts against MaxConns but is not refused by it.
func (s *Server) ServeConn(c net.Conn) error {
	if !s.track(c) {
		_ = c.Close()
		return ErrClosed
	}
	defer s.tasks.Done()
	defer s.untrack(c)
	s.conns.Add(1)
	defer s.connGone()
	s.core.counters.handshakes.Add(1)
	a, leftover, ok := s.handshake(c)
	s.core.counters.handshakes.Add(-1)
	if !ok {
		_ = c.Close()
		return nil
	}
	s.servePlain(c, a, leftover)
	return nil
}

// servePlain serves a connection behind HELLO until it ends.
func (s *Server) servePlain(c net.Conn, a agreed, leftover []byte) {
	mem := plainPool.Get().(*plainMemory)
	defer plainPool.Put(mem)
	p := &plainConn{c: c, signal: make(chan struct{}, 1), quit: make(chan struct{}), written: make(chan struct{})}
	p.s = newSession(s.core, s.plainShard(), &mem.scratch, p, c.RemoteAddr(), a)
	go p.write() // owned by servePlain; ends when all is sent, writing fails, or quit is closed
	s.core.register(p.s)

	open := p.feed(leftover)
	for open {
		n, err := c.Read(mem.read[:])
		open = p.feed(mem.read[:n])
		if err == io.EOF && open {
			// The client sends no more; the answers that are ready still go out.
			p.s.finish(closedPeer)
			<-p.written
		}
		open = open && err == nil
	}
	_ = c.Close() // releases a writer that is stuck
	close(p.quit)
	<-p.written
	p.s.closed()
}

// feed reports whether to read on.
func (p *plainConn) feed(b []byte) (open bool) {
	defer p.s.core.survive("feed", func() {
		p.s.abandon()
		open = false
	})
	if len(b) == 0 {
		return true
	}
	_, action := p.s.Feed(b)
	if action == ActionFlush {
		p.wake()
	}
	return action != ActionClose
}

// write is the flusher.
func (p *plainConn) write() {
	defer close(p.written)
	for {
		select {
		case <-p.quit:
			return
		case <-p.signal:
		}
		for b := p.s.next(); len(b) > 0; b = p.s.next() {
			// Progress is seen per slice: a peer must take one within StallTimeout.
			p.s.stalled(true)
			n, err := p.c.Write(b[:min(len(b), flushSliceBytes)])
			p.s.sent(n)
			if err != nil {
				_ = p.c.Close() // the reader sees it and ends the connection
				return
			}
		}
		if p.s.finished() {
			if w, ok := p.c.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
				_ = p.c.Close()
			}
			return
		}
	}
}

// wake implements driver.
func (p *plainConn) wake() {
	select {
	case p.signal <- struct{}{}:
	default:
	}
}

// flushNow implements driver.
func (p *plainConn) flushNow() { p.wake() }

// kill implements driver.
func (p *plainConn) kill() { _ = p.c.Close() }
