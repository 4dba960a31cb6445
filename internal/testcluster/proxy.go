package testcluster

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// gate is where the others find a node.
type gate struct {
	// Immutable.
	id       string
	listener net.Listener // nil in a network of namespaces

	// Guarded by Network.mu.
	target string
	pid    func() int
}

// pass waits until all the directions are open. It reports false when the network or the link ends before.
func (n *Network) pass(l *link, ways ...direction) bool {
	counted := false
	for {
		n.mu.Lock()
		open := true
		for _, d := range ways {
			if p := n.path(d); p.cut {
				if open = false; !counted {
					p.held++
				}
			}
		}
		if !open && !counted {
			l.holding++
		}
		if open && counted {
			l.holding--
		}
		counted = !open
		changed := n.changed
		n.mu.Unlock()
		if open {
			return l.ctx.Err() == nil
		}
		select {
		case <-changed:
		case <-l.ctx.Done():
			return false
		}
	}
}

// resetShare: one of so many losses is of the kind that ends a connection.
const resetShare = 20

// stall is what a loss on the way makes of one piece. It reports false when the link ends.
func (n *Network) stall(l *link, way direction) bool {
	n.mu.Lock()
	p := n.path(way)
	lost := rand.IntN(100) < p.loss
	if lost {
		p.held++
		if rand.IntN(resetShare) == 0 {
			l.reset()
		}
	}
	n.mu.Unlock()
	if !lost {
		return true
	}
	// 200 ms is the least after which TCP repeats a packet; it waits twice as long each further time.
	return sleep(l.ctx, 200*time.Millisecond+rand.N(800*time.Millisecond))
}

// link is one connection between two nodes.
type link struct {
	// Immutable.
	ctx  context.Context
	stop context.CancelFunc
	near *net.TCPConn // to the node that made the connection

	// Guarded by Network.mu.
	far     *net.TCPConn // to the node that it asked for; nil before
	there   direction    // from near to far; zero before it is known
	holding int          // goroutines that hold something because of a cut
}

// reset ends both sides at once. REQUIRES: Network.mu held.
func (l *link) reset() {
	l.stop()
	for _, c := range []*net.TCPConn{l.near, l.far} {
		if c != nil {
			abort(c)
		}
	}
}

// close ends both sides in order, unless that happened already. REQUIRES: Network.mu held.
func (l *link) close() {
	l.stop()
	for _, c := range []*net.TCPConn{l.near, l.far} {
		if c != nil {
			_ = c.Close() // the error says that it is closed already
		}
	}
}

// abort closes c with a reset instead of an orderly end. A connection that is closed already stays so.
func abort(c *net.TCPConn) {
	// Errors: it has ended by itself.
	_ = c.SetLinger(0)
	_ = c.Close()
}

// accept takes the connections to one node.
func (n *Network) accept(g *gate) {
	for {
		c, err := g.listener.Accept()
		if err != nil {
			if n.ctx.Err() == nil {
				n.t.Errorf("the gate of %s fails: %v", g.id, err)
			}
			return
		}
		near := c.(*net.TCPConn)
		l := &link{near: near}
		l.ctx, l.stop = context.WithCancel(n.ctx)
		n.mu.Lock()
		if n.ctx.Err() != nil {
			l.reset()
		}
		n.links[l] = struct{}{}
		n.mu.Unlock()
		n.work.Go(func() { // ends with the connection
			n.serve(g, l)
			n.mu.Lock()
			l.close()
			delete(n.links, l)
			n.mu.Unlock()
		})
	}
}

// source finds the node that made a connection.
func (n *Network) source(c *net.TCPConn) (string, error) {
	remote, local := c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort()
	var pids []int
	ids := make(map[int]string)
	n.mu.Lock()
	for id, g := range n.gates {
		if g.pid != nil {
			if pid := g.pid(); pid != 0 {
				pids, ids[pid] = append(pids, pid), id
			}
		}
	}
	n.mu.Unlock()
	pid, err := socketOwner(unmapped(remote), unmapped(local), pids)
	return ids[pid], err
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// serve carries one connection.
func (n *Network) serve(g *gate, l *link) {
	from, err := n.source(l.near)
	if err != nil {
		n.t.Errorf("the network cannot tell who connects to %s: %v", g.id, err)
		return
	}
	if from == "" {
		return // who made the connection is gone
	}
	there, back := direction{from, g.id}, direction{g.id, from}
	n.mu.Lock()
	l.there = there
	n.mu.Unlock()
	// A connection comes about only when both directions carry. One that is lost is asked for again.
	if !n.pass(l, there, back) || !n.stall(l, there) || !n.stall(l, back) {
		return
	}
	n.mu.Lock()
	target := g.target
	n.mu.Unlock()
	c, err := (&net.Dialer{}).DialContext(l.ctx, "tcp", target)
	if err != nil {
		n.pass(l, back) // the refusal, too, takes its way
		return
	}
	far := c.(*net.TCPConn)
	n.mu.Lock()
	l.far = far
	if l.ctx.Err() != nil {
		l.reset()
	}
	n.mu.Unlock()
	for _, c := range []*net.TCPConn{l.near, far} {
		if err := errors.Join(c.SetReadBuffer(socketBytes), c.SetWriteBuffer(socketBytes)); err != nil {
			return // it is closed already
		}
	}
	var both sync.WaitGroup
	both.Go(func() { n.carry(l, there, back, l.near, far) }) // both end with the connection
	both.Go(func() { n.carry(l, back, there, far, l.near) })
	both.Wait()
}

// piece is what was read at once.
type piece struct {
	bytes []byte
	at    time.Time
	err   error // how the source ended
}

const (
	pieceBytes = 64 << 10
	// piecesMax and socketBytes bound what one direction of a connection may have on its way here, so that a
	// sender that is slowed down or killed has not sent it all already.
	piecesMax   = 16
	socketBytes = 256 << 10
)

// carry moves bytes from src to dst along the direction way; back is the opposite one.
func (n *Network) carry(l *link, way, back direction, src, dst *net.TCPConn) {
	pieces := make(chan piece, piecesMax)
	n.work.Go(func() { // ends when src ends, at the latest by reset
		defer close(pieces)
		for {
			b := make([]byte, pieceBytes)
			k, err := src.Read(b)
			select {
			case pieces <- piece{b[:k], time.Now(), err}:
			case <-l.ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	for p := range pieces {
		n.mu.Lock()
		delay, rate := n.path(way).delay, n.path(way).rate
		if delay > 0 {
			n.path(way).late++
		}
		n.mu.Unlock()
		wait := time.Until(p.at.Add(delay))
		if rate > 0 {
			wait = max(wait, time.Duration(float64(len(p.bytes))/float64(rate)*float64(time.Second)))
		}
		if wait > 0 && !sleep(l.ctx, wait) {
			return
		}
		if !n.pass(l, way) || !n.stall(l, way) {
			return
		}
		if len(p.bytes) > 0 {
			// Counted first: who has heard it finds it counted.
			n.mu.Lock()
			n.path(way).sent += int64(len(p.bytes))
			n.mu.Unlock()
			if _, err := dst.Write(p.bytes); err != nil {
				// The other side has ended: this one learns it, if news gets through.
				if n.pass(l, back) {
					n.end(l)
				}
				return
			}
		}
		switch {
		case p.err == nil:
		case errors.Is(p.err, io.EOF):
			if err := dst.CloseWrite(); err != nil {
				return // it has ended by itself
			}
		default:
			n.end(l)
		}
	}
}

func (n *Network) end(l *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l.reset()
}
