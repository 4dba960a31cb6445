package node

import (
	"net"
	"sync"
)

// Connections that the HTTP ports keep open at most. Each is a file descriptor, and when Badger cannot
// open a table for lack of one, a compaction loses data; so they have a share and no more. Further
// clients wait in the kernel's queue.
const (
	restConnsMax = 4096
	grpcConnsMax = 4096
	opsConnsMax  = 256
)

// limitListener hands out at most a number of open connections.
type limitListener struct {
	net.Listener
	room   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newLimitListener(l net.Listener, n int) *limitListener {
	return &limitListener{Listener: l, room: make(chan struct{}, n), closed: make(chan struct{})}
}

// Accept waits until there is room, then for a connection.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.room })}, nil
}

// Close ends a waiting Accept too.
func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// limitedConn gives its room back when it is closed.
type limitedConn struct {
	net.Conn
	release func()
}

// CloseWrite ends the answer and leaves the other direction open: net/http does this after a refusal, so
// that a reset for unread bytes does not destroy the answer on its way.
func (c *limitedConn) CloseWrite() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}

// Close closes the connection.
func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
