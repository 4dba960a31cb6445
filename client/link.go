package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// errSlow: a node has not answered within the time that a caller spends on it while there are others.
var errSlow = errors.New("the server has not answered yet")

// node is one server, or one of its addresses.
type node struct {
	// Immutable.
	addr  string
	given bool // by the caller: never forgotten
	links []*link

	turn atomic.Uint32

	// Guarded by route.mu.
	id    string        // of the server, as it or another one said last; empty: unknown
	until time.Duration // it has failed: not to be chosen before, as long as there are others
}

// link is the place of one connection to a node: the connection, or the attempt to make one.
type link struct {
	// Immutable.
	client *Client
	node   *node

	cn atomic.Pointer[conn]

	// Guarded by mu.
	mu        sync.Mutex
	flight    *flight
	failures  int
	notBefore time.Duration
	err       error // of the last flight
	retired   bool  // a connection that comes about is closed at once
}

// flight is one attempt to connect that everyone who needs the connection waits for.
type flight struct {
	done chan struct{} // closed when cn and err are set
	cn   *conn
	err  error
}

func newNode(c *Client, addr string, given bool) *node {
	n := &node{addr: addr, given: given}
	for range c.o.conns {
		n.links = append(n.links, &link{client: c, node: n})
	}
	return n
}

func (n *node) pick() *link {
	if len(n.links) == 1 {
		return n.links[0]
	}
	return n.links[int(n.turn.Add(1))%len(n.links)]
}

// lane gives one of the links, always the same for the same number.
func (n *node) lane(i uint32) *link { return n.links[int(i)%len(n.links)] }

// alive reports whether a connection to the node takes requests.
func (n *node) alive() bool {
	for _, l := range n.links {
		if cn := l.cn.Load(); cn != nil && !cn.gone.Load() {
			return true
		}
	}
	return false
}

// flying reports whether an attempt to connect to the node is under way.
func (n *node) flying() bool {
	for _, l := range n.links {
		l.mu.Lock()
		f := l.flight
		l.mu.Unlock()
		if f != nil {
			return true
		}
	}
	return false
}

// board gives the link's connection or, without one, the flight that makes it. Both are nil once the client
// is closed.
func (l *link) board() (*conn, *flight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cn := l.cn.Load(); cn != nil && !cn.gone.Load() {
		return cn, nil
	}
	if l.flight == nil {
		f := &flight{done: make(chan struct{})}
		wait := l.notBefore - l.client.now()
		// fly: owned by the client; ends after one attempt to connect.
		if !l.client.spawn(func() { l.fly(f, wait) }) {
			return nil, nil
		}
		l.flight = f
	}
	return nil, l.flight
}

// get waits for the link's connection. It gives errSlow after patience; the attempt to connect goes on then.
// When the call's time is up, cl.res.stop says so.
func (l *link) get(ctx context.Context, cl *call, patience time.Duration) (*conn, error) {
	cn, f := l.board()
	switch {
	case cn != nil:
		return cn, nil
	case f == nil:
		cl.res.stop = ErrClosed
		return nil, ErrClosed
	}
	return l.land(ctx, cl, f, patience)
}

// land waits for f as get does.
func (l *link) land(ctx context.Context, cl *call, f *flight, patience time.Duration) (*conn, error) {
	if err := l.client.wait(ctx, cl, f.done, patience); err != nil {
		if err != errSlow {
			cl.res.stop = err
		}
		return nil, err
	}
	return f.cn, f.err
}

// fly makes one attempt to connect, after the pause that earlier failures ask for.
func (l *link) fly(f *flight, wait time.Duration) {
	c := l.client
	defer close(f.done)
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.ctx.Done():
		}
	}
	f.cn, f.err = c.connect(c.ctx, l)
	if f.err == nil {
		f.err = c.route.learn(l.node, &f.cn.ack)
	}
	if c.ctx.Err() == nil {
		c.route.told(l.node, f.err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flight = nil
	if f.err == nil {
		cn := f.cn
		cn.unwatch = context.AfterFunc(c.ctx, func() { cn.kill(ErrClosed) })
		// read: owned by the connection; ends with it. write: ends after read.
		if !c.spawn(cn.read) {
			f.err = ErrClosed
			cn.unwatch()
		} else if !c.spawn(cn.write) {
			// read is running: it ends the connection as soon as the socket is closed.
			f.err = ErrClosed
		} else {
			l.failures, l.notBefore, l.err = 0, 0, nil
			l.cn.Store(cn)
			if l.retired {
				cn.kill(errIdle)
			}
			return
		}
	}
	if f.cn != nil {
		f.cn.kill(f.err)
		f.cn = nil
	}
	l.notBefore, l.err = c.now()+backoff(l.failures, backoffMax), f.err
	l.failures++
}

// lost forgets a connection that has ended.
func (l *link) lost(cn *conn) {
	cn.unwatch()
	l.cn.CompareAndSwap(cn, nil)
	cn.mu.Lock()
	err := cn.err
	cn.mu.Unlock()
	if f := l.client.o.hooks.OnDisconnect; f != nil {
		f(l.node.addr, err)
	}
	l.client.o.logger.Debug("disconnected", "addr", l.node.addr, "err", err)
}
