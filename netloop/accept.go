package netloop

import (
	"errors"
	"io"
	"net"
	"time"

	"kvstore/wire"
)

// accept takes connections until the listener is closed. Running out of files or memory only makes it
// pause: those who are connected go on being served, those who are not wait in the kernel's queue.
func (s *Server) accept() {
	defer s.tasks.Done()
	const pauseMin, pauseMax = 5 * time.Millisecond, time.Second
	var pause time.Duration
	for {
		c, err := s.ln.Accept()
		if err != nil {
			select {
			case <-s.stop:
				return
			default:
			}
			if errors.Is(err, net.ErrClosed) {
				return // Drain
			}
			s.core.counters.acceptErrors.Add(1)
			if pause == 0 { // once per streak of failures
				s.core.log.Warn("cannot accept connections for now", "error", err)
			}
			pause = min(max(2*pause, pauseMin), pauseMax)
			select {
			case <-time.After(pause):
			case <-s.stop:
				return
			}
			continue
		}
		pause = 0
		s.admit(c)
	}
}

// admit starts the handshake of a connection, or refuses it.
func (s *Server) admit(c net.Conn) {
	if s.core.draining.Load() {
		s.turnAway(c, refusedDraining, wire.StatusDraining)
		return
	}
	if s.conns.Load() >= int64(s.core.o.MaxConns) {
		s.turnAway(c, refusedConns, wire.StatusBusy)
		return
	}
	select {
	case s.handshakes <- struct{}{}:
	default:
		// A burst after a restart passes within this time; those who only occupy places do not.
		t := time.NewTimer(100 * time.Millisecond)
		defer t.Stop()
		select {
		case s.handshakes <- struct{}{}:
		case <-s.stop:
			_ = c.Close()
			return
		case <-t.C:
			s.turnAway(c, refusedHandshakes, wire.StatusBusy)
			return
		}
	}
	if !s.track(c) {
		<-s.handshakes
		_ = c.Close()
		return
	}
	s.conns.Add(1)
	go func() { // owned by Server (tasks); ends by HandshakeTimeout or with the plain connection
		defer s.tasks.Done()
		s.greet(c, func() { <-s.handshakes })
	}()
}

// track counts a task that owns c and lets Close close c; false: the server is closed.
func (s *Server) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.early[c] = struct{}{}
	s.tasks.Add(1)
	return true
}

func (s *Server) untrack(c net.Conn) {
	s.mu.Lock()
	delete(s.early, c)
	s.mu.Unlock()
}

// greet runs the handshake on a tracked connection and gives the connection to its driver. It returns
// when the connection is handed on or, with the plain driver, gone. greeted is called when the handshake
// is over.
func (s *Server) greet(c net.Conn, greeted func()) {
	defer s.untrack(c)
	s.core.counters.handshakes.Add(1)
	a, leftover, ok := s.handshake(c)
	s.core.counters.handshakes.Add(-1)
	greeted()
	if !ok {
		_ = c.Close()
		s.connGone()
		return
	}
	if tcp, isTCP := c.(*net.TCPConn); isTCP {
		s.enroll(tcp, a, leftover)
		return
	}
	s.servePlain(c, a, leftover)
	s.connGone()
}

// enroll hands a socket to an event loop. gnet duplicates the descriptor and closes tcp in any case.
func (s *Server) enroll(tcp *net.TCPConn, a agreed, leftover []byte) {
	c := &conn{srv: s, remote: tcp.RemoteAddr(), agreed: a, leftover: leftover}
	_, err := s.client.EnrollContext(tcp, c)
	// gnet reports success even when its loop could not register the socket; then it never opened.
	if err == nil && !c.opened.Load() {
		err = errors.New("the event loop did not take the socket")
	}
	if err != nil {
		s.core.counters.refused[refusedEnroll].Add(1)
		s.core.log.Warn("cannot hand a connection to an event loop", "remote", c.remote.String(), "error", err)
		s.connGone()
		return
	}
}

// turnAway refuses a connection that gets no handshake, with a reason that the client can read.
func (s *Server) turnAway(c net.Conn, why refuseReason, st wire.Status) {
	s.core.counters.refused[why].Add(1)
	select {
	case s.refusals <- struct{}{}:
	default: // too many at once: the bare close must do
		_ = c.Close()
		return
	}
	if !s.track(c) {
		<-s.refusals
		_ = c.Close()
		return
	}
	go func() { // owned by Server (tasks); ends within the two deadlines below
		defer s.tasks.Done()
		defer func() { <-s.refusals }()
		defer s.untrack(c)
		b := wire.AppendPreface(nil, wire.Version, 0)
		b = s.appendRefusal(b, &wire.Refusal{Status: st, Text: st.Info().Message})
		s.sayAndLeave(c, b)
	}()
}

// appendRefusal appends the answer to a HELLO that is refused.
func (s *Server) appendRefusal(dst []byte, ref *wire.Refusal) []byte {
	r := wire.ErrorResponse(ref, nil)
	if ref.Status == wire.StatusBusy && ref.RetryAfterMs == 0 {
		r.Ext = append(r.Ext, s.core.busyExt...)
	}
	return wire.AppendResponse(dst, wire.Token{Op: wire.OpHello}, &r, true, 0)
}

// sayAndLeave writes b and closes, in a way that lets the peer read it: a socket that is closed while
// bytes wait in it resets the connection, and the reset overtakes what was written.
func (s *Server) sayAndLeave(c net.Conn, b []byte) {
	defer func() { _ = c.Close() }()
	linger := min(s.core.o.Linger, 250*time.Millisecond)
	if c.SetDeadline(time.Now().Add(linger)) != nil {
		return
	}
	if _, err := c.Write(b); err != nil {
		return
	}
	if w, ok := c.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, c, 64<<10) // ends at the peer's close, the deadline, or the bound
	}
}
