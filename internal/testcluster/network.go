package testcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// Network stands between the nodes of a cluster: what one node sends to another goes through it, so that
// single directions can be cut, delayed or slowed down. Clients of the nodes are not concerned.
//
// A direction that is cut is silent, as a real one is: nothing is refused or reset. Bytes on their way are
// held, new connections come to nothing, and the end of one side is not told to the other. When it heals,
// what a connection held arrives late, as it does when TCP repeats it, or is lost with its connection.
//
// All methods are safe for concurrent use.
type Network struct {
	// Immutable.
	t    testing.TB
	stop context.CancelFunc
	ctx  context.Context
	work sync.WaitGroup // all goroutines

	mu sync.Mutex
	// Guarded by mu.
	gates   map[string]*gate
	paths   map[direction]*path
	changed chan struct{}      // closed when a path changes
	links   map[*link]struct{} // live connections
}

// direction is one way between two nodes.
type direction struct{ from, to string }

// path is the state of one direction.
type path struct {
	cut   bool
	delay time.Duration
	rate  int64 // bytes per second; 0: unbounded
	held  int64 // pieces and connections that a cut has stopped so far
	sent  int64 // bytes that went through so far
}

// gate is where the others find a node.
type gate struct {
	// Immutable.
	id       string
	listener net.Listener

	// Guarded by Network.mu.
	target string
	pid    func() int
}

// NewNetwork makes a network without nodes; it ends with the test.
func NewNetwork(t testing.TB) *Network {
	n := &Network{t: t, gates: make(map[string]*gate), paths: make(map[direction]*path),
		changed: make(chan struct{}), links: make(map[*link]struct{})}
	n.ctx, n.stop = context.WithCancel(context.Background())
	t.Cleanup(n.close)
	return n
}

func (n *Network) close() {
	n.stop()
	n.mu.Lock()
	for _, g := range n.gates {
		if err := g.listener.Close(); err != nil {
			n.t.Errorf("cannot close the gate of %s: %v", g.id, err)
		}
	}
	for l := range n.links {
		l.reset()
	}
	n.mu.Unlock()
	n.work.Wait()
}

// Add gives a node its address in the network. Connect tells where it really listens.
func (n *Network) Add(id string) (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("cannot open the gate of %s: %w", id, err)
	}
	g := &gate{id: id, listener: l}
	n.mu.Lock()
	n.gates[id] = g
	n.mu.Unlock()
	n.work.Go(func() { n.accept(g) }) // ends when close closes the listener
	return l.Addr().String(), nil
}

// Connect tells where the node id listens, and its process: connections are told apart by who made them.
func (n *Network) Connect(id, target string, pid func() int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := n.gates[id]
	g.target, g.pid = target, pid
}

// Cut stops everything that from sends to to. The other direction stays as it is.
func (n *Network) Cut(from, to string) {
	n.change(func(p *path) { p.cut = true }, direction{from, to})
}

// Isolate cuts a node off from all others, in both directions.
func (n *Network) Isolate(id string) {
	n.change(func(p *path) { p.cut = true }, n.around(id)...)
}

// Delay makes everything that from sends to to arrive so much later.
func (n *Network) Delay(from, to string, by time.Duration) {
	n.change(func(p *path) { p.delay = by }, direction{from, to})
}

// Rate bounds what each connection carries from from to to, in bytes per second; 0 takes the bound away.
func (n *Network) Rate(from, to string, bytesPerSecond int64) {
	n.change(func(p *path) { p.rate = bytesPerSecond }, direction{from, to})
}

// around lists the directions to and from a node.
func (n *Network) around(id string) []direction {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ways []direction
	for other := range n.gates {
		if other != id {
			ways = append(ways, direction{id, other}, direction{other, id})
		}
	}
	return ways
}

func (n *Network) change(f func(*path), ways ...direction) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range ways {
		f(n.path(d))
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

// path gives the state of a direction. REQUIRES: mu held.
func (n *Network) path(d direction) *path {
	p := n.paths[d]
	if p == nil {
		p = new(path)
		n.paths[d] = p
	}
	return p
}

// Heal undoes all cuts, delays and bounds. What connections held arrives now, late.
func (n *Network) Heal() { n.heal(false) }

// HealLosing is Heal, but connections that held something are reset and it is lost, as after a cut that
// outlives the patience of TCP.
func (n *Network) HealLosing() { n.heal(true) }

func (n *Network) heal(losing bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if losing {
		for l := range n.links {
			if l.holding > 0 {
				l.reset()
			}
		}
	}
	for _, p := range n.paths {
		p.cut, p.delay, p.rate = false, 0, 0
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

// Held counts the pieces and connections from from to to that cuts have stopped so far: 0 means that no cut
// ever struck.
func (n *Network) Held(from, to string) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.path(direction{from, to}).held
}

// Sent counts the bytes that went from from to to so far.
func (n *Network) Sent(from, to string) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.path(direction{from, to}).sent
}

// HeldAround counts what cuts have stopped to and from a node so far.
func (n *Network) HeldAround(id string) (held int64) {
	for _, d := range n.around(id) {
		held += n.Held(d.from, d.to)
	}
	return held
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

// link is one connection between two nodes.
type link struct {
	// Immutable.
	ctx  context.Context
	stop context.CancelFunc
	near *net.TCPConn // to the node that made the connection

	// Guarded by Network.mu.
	far     *net.TCPConn // to the node that it asked for; nil before
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
	// A connection comes about only when both directions carry.
	if !n.pass(l, there, back) {
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
		n.mu.Unlock()
		wait := time.Until(p.at.Add(delay))
		if rate > 0 {
			wait = max(wait, time.Duration(float64(len(p.bytes))/float64(rate)*float64(time.Second)))
		}
		if wait > 0 && !sleep(l.ctx, wait) {
			return
		}
		if !n.pass(l, way) {
			return
		}
		if len(p.bytes) > 0 {
			if _, err := dst.Write(p.bytes); err != nil {
				// The other side has ended: this one learns it, if news gets through.
				if n.pass(l, back) {
					n.end(l)
				}
				return
			}
			n.mu.Lock()
			n.path(way).sent += int64(len(p.bytes))
			n.mu.Unlock()
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

// sleep waits for d, or until ctx ends, which gives false.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
