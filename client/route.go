package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

// node is one server.
type node struct {
	// Immutable.
	addr  string
	links []*link

	turn atomic.Uint32
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
}

// flight is one attempt to connect that everyone who needs the connection waits for.
type flight struct {
	done chan struct{} // closed when cn and err are set
	cn   *conn
	err  error
}

// route knows the nodes, and which of them to ask: the leader as far as known, else the one that last
// worked.
type route struct {
	client *Client

	cur atomic.Pointer[node]
	ack atomic.Pointer[wire.HelloAck] // newest

	// Guarded by mu.
	mu      sync.Mutex
	nodes   []*node // given addresses first, then learned ones
	term    uint64  // of the newest leader hint
	cluster []byte  // id of the cluster, once known
	err     error   // of the last attempt to connect, nil after a success
}

func newRoute(c *Client, addrs []string) *route {
	r := &route{client: c}
	for _, a := range addrs {
		r.node(a)
	}
	r.cur.Store(r.nodes[0])
	return r
}

// node finds or adds the node at addr; nil when there are too many already. REQUIRES: mu held.
func (r *route) node(addr string) *node {
	for _, n := range r.nodes {
		if n.addr == addr {
			return n
		}
	}
	if len(r.nodes) >= nodesMax {
		return nil
	}
	n := &node{addr: addr}
	for range r.client.o.conns {
		n.links = append(n.links, &link{client: r.client, node: n})
	}
	r.nodes = append(r.nodes, n)
	return n
}

// ready gives the link to use and, if there is one, its connection: the path of nearly every operation.
func (r *route) ready() (*link, *conn) {
	l := r.cur.Load().pick()
	if cn := l.cn.Load(); cn != nil && !cn.gone.Load() {
		return l, cn
	}
	return l, nil
}

func (n *node) pick() *link {
	if len(n.links) == 1 {
		return n.links[0]
	}
	return n.links[int(n.turn.Add(1))%len(n.links)]
}

// connect gives the link's connection, or one to another node, making it where needed, until the call's
// time is up. It gives nil then; cl.res says why.
func (r *route) connect(ctx context.Context, cl *call, l *link) *conn {
	for {
		cn, err := l.get(ctx, cl)
		if err == nil {
			return cn
		}
		if cl.res.stop != nil {
			if cl.res.err == nil {
				cl.res.err = r.trouble()
			}
			return nil
		}
		cl.res.err = err
		var refusal *Error
		if errors.As(err, &refusal) && refusal.Status.Class() == wire.ClassRefused {
			// Another attempt would be refused too.
			cl.res.stop = err
			return nil
		}
		r.leave(l.node)
		l = r.cur.Load().pick()
	}
}

// get waits for the link's connection. When the call's time is up first, cl.res.stop says so, and the
// error is that of the last attempt, if any.
func (l *link) get(ctx context.Context, cl *call) (*conn, error) {
	l.mu.Lock()
	if cn := l.cn.Load(); cn != nil && !cn.gone.Load() {
		l.mu.Unlock()
		return cn, nil
	}
	f := l.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		wait := l.notBefore - l.client.now()
		// fly: owned by the client; ends after one attempt to connect.
		if !l.client.spawn(func() { l.fly(f, wait) }) {
			l.mu.Unlock()
			cl.res.stop = ErrClosed
			return nil, ErrClosed
		}
		l.flight = f
	}
	l.mu.Unlock()
	if err := l.client.wait(ctx, cl, f.done); err != nil {
		cl.res.stop = err
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
		c.route.told(f.err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flight = nil
	if f.err == nil {
		cn := f.cn
		// read: owned by the connection; ends with it. write: ends after read.
		if !c.spawn(cn.read) {
			f.err = ErrClosed
		} else if !c.spawn(cn.write) {
			// read is running: it ends the connection as soon as the socket is closed.
			f.err = ErrClosed
		} else {
			l.failures, l.notBefore = 0, 0
			l.cn.Store(cn)
			if c.ctx.Err() != nil {
				cn.kill(ErrClosed)
			}
			return
		}
	}
	if f.cn != nil {
		f.cn.kill(f.err)
		f.cn = nil
	}
	l.notBefore = c.now() + backoff(l.failures)
	l.failures++
}

// lost forgets a connection that has ended.
func (l *link) lost(cn *conn) {
	l.cn.CompareAndSwap(cn, nil)
	cn.mu.Lock()
	err := cn.err
	cn.mu.Unlock()
	if f := l.client.o.hooks.OnDisconnect; f != nil {
		f(l.node.addr, err)
	}
	l.client.o.logger.Debug("disconnected", "addr", l.node.addr, "err", err)
}

// leave turns to the next node, unless that happened already.
func (r *route) leave(from *node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cur.Load() != from {
		return
	}
	for i, n := range r.nodes {
		if n == from {
			r.cur.Store(r.nodes[(i+1)%len(r.nodes)])
			return
		}
	}
}

// redirect follows a leader hint that asked gave. It reports whether another node is current now, so that
// a retry needs no pause. Hints of a lower term than the newest are ignored.
func (r *route) redirect(asked *node, leader string, term uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if leader != "" && term >= r.term {
		r.term = term
		if n := r.node(leader); n != nil {
			r.cur.Store(n)
		}
	}
	return r.cur.Load() != asked
}

// learn takes what a HELLO's answer tells of the cluster.
func (r *route) learn(n *node, ack *wire.HelloAck) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ack.ClusterID != [16]byte{} {
		if r.cluster == nil {
			r.cluster = append([]byte(nil), ack.ClusterID[:]...)
		} else if !bytes.Equal(r.cluster, ack.ClusterID[:]) {
			return &Error{Op: "hello", Status: wire.StatusDenied, kind: ErrDenied,
				Message: fmt.Sprintf("%s belongs to cluster %x, not to %x", n.addr, ack.ClusterID, r.cluster)}
		}
	}
	if r.ack.Load() == nil {
		// The first that answers is asked first, unless it names a leader.
		r.cur.Store(n)
	}
	a := *ack
	r.ack.Store(&a)
	for _, m := range ack.Members {
		if m.ID == ack.NodeID || m.Address == "" {
			// This very node: it may be known here by another name than it advertises.
			if m.Leader && ack.Term >= r.term {
				r.term = ack.Term
				r.cur.Store(n)
			}
			continue
		}
		known := r.node(m.Address)
		// A strictly newer term: the same hint again must not lead back to a leader that has just failed.
		if m.Leader && known != nil && ack.Term > r.term {
			r.term = ack.Term
			r.cur.Store(known)
		}
	}
	return nil
}

// clusterID gives the id that servers must have, nil while none is known.
func (r *route) clusterID() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cluster
}

// told keeps how the last attempt to connect ended.
func (r *route) told(err error) {
	r.mu.Lock()
	r.err = err
	r.mu.Unlock()
}

// trouble gives why no connection could be made, nil when the last attempt succeeded.
func (r *route) trouble() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// each calls f with every live connection.
func (r *route) each(f func(*conn)) {
	r.mu.Lock()
	nodes := append([]*node(nil), r.nodes...)
	r.mu.Unlock()
	for _, n := range nodes {
		for _, l := range n.links {
			if cn := l.cn.Load(); cn != nil {
				f(cn)
			}
		}
	}
}
