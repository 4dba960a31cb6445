package peer

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// connChunk is how much is written under one deadline: progress counts, not the size of a message.
	connChunk = 256 << 10
	// answerBytesPerSecond is what a follower surely takes to disk: the wait for an answer grows with
	// what was sent.
	answerBytesPerSecond = 8 << 20
)

// conn is a connection between two nodes. The transport knows all of them, so that Close silences the
// node at once.
type conn struct {
	net.Conn

	// Immutable after the handshake.
	t       *Transport
	inbound bool
	peer    string
	process process       // of the peer
	pulse   bool          // somebody always waits for the next byte: the connection's end is seen at once
	step    time.Duration // bound of one step; 0 before the handshake and for snapshots: deadlines are the caller's

	// Owned by whoever has the connection: one call at a time.
	sent int64 // since the last byte came in

	heard atomic.Int64 // boot time at which a frame came in last on a connection for pulses, in nanoseconds

	once sync.Once
}

// Write bounds each step instead of the whole: under one deadline per call, whatever its size, a large append over a
// slow link would fail for ever.
func (c *conn) Write(b []byte) (n int, err error) {
	if c.step == 0 {
		return c.Conn.Write(b)
	}
	for len(b) > 0 {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(c.step)); err != nil {
			return n, err
		}
		k, err := c.Conn.Write(b[:min(len(b), connChunk)])
		n += k
		c.sent += int64(k)
		if err != nil {
			return n, err
		}
		b = b[k:]
	}
	return n, nil
}

// Read bounds the wait for an answer. An inbound connection may be idle for ever: the kernel's keepalive
// finds out when its other end is gone.
func (c *conn) Read(b []byte) (int, error) {
	if c.step != 0 && !c.inbound {
		wait := c.step + time.Duration(c.sent)*time.Second/answerBytesPerSecond
		if err := c.Conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.sent = 0
	}
	return n, err
}

// Close closes the connection; twice is once.
func (c *conn) Close() (err error) {
	c.once.Do(func() {
		err = c.Conn.Close()
		c.t.conns.remove(c)
	})
	return err
}

// tune lets the kernel notice a dead peer: keepalive when nothing is sent, TCP_USER_TIMEOUT when
// something is.
func tune(c net.Conn, userTimeout time.Duration) error {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil // no socket: Options.Dial and Options.Listener are not TCP
	}
	if err := tcp.SetNoDelay(true); err != nil {
		return err
	}
	if err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: userTimeout, Interval: time.Second, Count: 5}); err != nil {
		return err
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	}); err != nil {
		return err
	}
	return set
}

// connections is the set of all open connections.
type connections struct {
	mu sync.Mutex
	// Guarded by mu.
	open    map[*conn]struct{}
	inbound int
	closed  bool
}

// add registers a connection; false if it must be closed because the transport is, or because there are
// too many inbound ones.
func (s *connections) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || c.inbound && s.inbound >= inboundMax {
		return false
	}
	s.open[c] = struct{}{}
	if c.inbound {
		s.inbound++
	}
	return true
}

func (s *connections) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.open[c]; !there {
		return
	}
	delete(s.open, c)
	if c.inbound {
		s.inbound--
	}
}

// accepted notes with which process c, whose handshake is over, is a connection. now is the boot time.
func (s *connections) accepted(c *conn, peer string, p process, pulse bool, step, now time.Duration) {
	c.heard.Store(int64(now))
	s.mu.Lock()
	defer s.mu.Unlock()
	c.peer, c.process, c.pulse, c.step = peer, p, pulse, step
}

// heard tells whether an open connection with a process has carried a pulse since a boot time.
func (s *connections) heard(peer string, p process, since time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		if c.pulse && c.peer == peer && c.process.incarnation == p.incarnation && c.process.nonce == p.nonce && c.heard.Load() > int64(since) {
			return true
		}
	}
	return false
}

// connected returns the peers to or from which a connection that passed its handshake is open.
func (s *connections) connected() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	peers := map[string]bool{}
	for c := range s.open {
		if c.peer != "" {
			peers[c.peer] = true
		}
	}
	return peers
}

// close closes those connections that which selects; with last also all that come later.
func (s *connections) close(which func(*conn) bool, last bool) {
	s.mu.Lock()
	var victims []*conn
	for c := range s.open {
		if which(c) {
			victims = append(victims, c)
		}
	}
	s.closed = s.closed || last
	s.mu.Unlock()
	for _, c := range victims {
		c.Close() //nolint:errcheck // nobody waits for a word from it any more
	}
}
