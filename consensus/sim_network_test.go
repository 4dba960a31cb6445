package consensus

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// simNetwork is the network of a simulation: connections in memory whose bytes take time, and wait while a
// link is cut, as those of TCP do until it gives up. Nothing in it waits for anything but channels and timers.
type simNetwork struct {
	// Immutable.
	seed      uint64
	heartbeat time.Duration

	mu sync.Mutex
	// Guarded by mu.
	rnds      map[[2]string]*rand.Rand // per link, so that what happens on one says nothing about another
	min, max  time.Duration            // delay of a chunk of bytes
	spike     float64                  // how often it takes up to one and a half heartbeat timeouts
	listeners map[string]*simListener
	cuts      map[[2]string]int // source, target: how many faults hold it
	conns     []*simConn        // in the order of their creation
	changed   chan struct{}     // closed and replaced when cuts change
}

func newSimNetwork(seed uint64, heartbeat time.Duration) *simNetwork {
	return &simNetwork{
		seed: seed, heartbeat: heartbeat, min: 100 * time.Microsecond, max: 2 * time.Millisecond,
		rnds: map[[2]string]*rand.Rand{}, listeners: map[string]*simListener{}, cuts: map[[2]string]int{},
		changed: make(chan struct{}),
	}
}

// weather sets how long bytes take from now on.
func (n *simNetwork) weather(min, max time.Duration, spike float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.min, n.max, n.spike = min, max, spike
}

// linkLocked returns the dice of a link. REQUIRES: mu held.
func (n *simNetwork) linkLocked(source, target string) *rand.Rand {
	r := n.rnds[[2]string{source, target}]
	if r == nil {
		h := fnv.New64()
		fmt.Fprintf(h, "%s %s", source, target)
		r = rand.New(rand.NewPCG(n.seed, h.Sum64()))
		n.rnds[[2]string{source, target}] = r
	}
	return r
}

// delay draws one.
func (n *simNetwork) delay(source, target string) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.linkLocked(source, target)
	d := n.min + time.Duration(r.Int64N(int64(n.max-n.min)+1))
	if r.Float64() < n.spike {
		d += time.Duration(r.Int64N(int64(n.heartbeat) * 3 / 2))
	}
	return d
}

// cut stops what flows from source to target, or lets it flow again. Cuts of several faults add up. A
// connection that was cut for long may break when the link is back.
func (n *simNetwork) cut(source, target string, on bool) {
	n.mu.Lock()
	link := [2]string{source, target}
	if on {
		n.cuts[link]++
	} else if n.cuts[link]--; n.cuts[link] < 0 {
		panic("BUG: a link was mended twice")
	}
	close(n.changed)
	n.changed = make(chan struct{})
	n.mu.Unlock()
	n.wakeAll()
}

func (n *simNetwork) wakeAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.in.signal()
	}
}

// broken resets the connections between two nodes.
func (n *simNetwork) broken(a, b string) {
	n.mu.Lock()
	var victims []*simConn
	for _, c := range n.conns {
		if c.local == a && c.remote == b || c.local == b && c.remote == a {
			victims = append(victims, c)
		}
	}
	n.mu.Unlock()
	for _, c := range victims {
		c.in.reset()
		c.out.reset()
	}
}

// blocked tells whether a link is cut, and returns what is closed when that may have changed.
func (n *simNetwork) blocked(source, target string) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts[[2]string{source, target}] > 0, n.changed
}

// silence ends a life at once: nothing that it writes from now on leaves it, what is on its way arrives. Its
// connections then break, or stay as they are until somebody finds out.
func (n *simNetwork) silence(life *simLife) {
	n.mu.Lock()
	var conns []*simConn
	for _, c := range n.conns {
		if c.owner == life {
			conns = append(conns, c)
		}
	}
	if l := n.listeners[life.node.address]; l != nil && l.owner == life {
		delete(n.listeners, life.node.address)
	}
	quiet := n.linkLocked(life.node.id, "").IntN(3) == 0
	n.mu.Unlock()
	for _, c := range conns {
		c.out.silence(quiet)
		c.in.reset()
	}
}

// listen opens the address of a life.
func (n *simNetwork) listen(life *simLife) net.Listener {
	l := &simListener{n: n, owner: life, conns: make(chan net.Conn, 256), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[life.node.address] = l
	return l
}

// dial connects a life to an address.
func (n *simNetwork) dial(ctx context.Context, life *simLife, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	target := simNodeAt(address)
	source := life.node.id
	for range 2 { // there and back
		if err := simWait(ctx, n.delay(source, target)); err != nil {
			return nil, err
		}
		source, target = target, source
		for {
			blocked, changed := n.blocked(target, source)
			if !blocked {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	if l == nil || life.dead.Load() {
		return nil, &net.OpError{Op: "dial", Net: "sim", Err: syscall.ECONNREFUSED}
	}
	there, back := newSimPipe(n, source, target), newSimPipe(n, target, source)
	ours := &simConn{n: n, owner: life, local: source, remote: target, in: back, out: there}
	theirs := &simConn{n: n, owner: l.owner, local: target, remote: source, in: there, out: back}
	n.mu.Lock()
	refused := n.listeners[address] != l || life.dead.Load()
	if !refused {
		n.conns = append(n.conns, ours, theirs)
	}
	n.mu.Unlock()
	if refused {
		return nil, &net.OpError{Op: "dial", Net: "sim", Err: syscall.ECONNREFUSED}
	}
	select {
	case l.conns <- theirs:
		return ours, nil
	default:
		return nil, errors.New("the listener's queue is full")
	}
}

func simWait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// simListener is one life's open address.
type simListener struct {
	n      *simNetwork
	owner  *simLife
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *simListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *simListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.n.mu.Lock()
		defer l.n.mu.Unlock()
		if l.n.listeners[l.owner.node.address] == l {
			delete(l.n.listeners, l.owner.node.address)
		}
	})
	return nil
}

func (l *simListener) Addr() net.Addr { return simAddr(l.owner.node.address) }

type simAddr string

func (simAddr) Network() string  { return "sim" }
func (a simAddr) String() string { return string(a) }

// simChunk is what one Write brought.
type simChunk struct {
	at   time.Time
	data []byte
}

// simPipe is one direction of a connection.
type simPipe struct {
	// Immutable.
	n              *simNetwork
	source, target string
	wake           chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	queue    []simChunk
	last     time.Time // when the newest chunk arrives
	deadline time.Time // of the reader
	ended    bool      // the writer is gone: end of file behind the queue
	quiet    bool      // the writer is gone, and nobody tells
	err      error     // the reader's end, at once
}

func newSimPipe(n *simNetwork, source, target string) *simPipe {
	return &simPipe{n: n, source: source, target: target, wake: make(chan struct{}, 1)}
}

func (p *simPipe) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *simPipe) set(f func()) {
	p.mu.Lock()
	f()
	p.mu.Unlock()
	p.signal()
}

func (p *simPipe) reset() {
	p.set(func() {
		if p.err == nil {
			p.err = syscall.ECONNRESET
		}
	})
}

// silence ends the writer.
func (p *simPipe) silence(quiet bool) { p.set(func() { p.ended, p.quiet = true, quiet }) }

func (p *simPipe) write(b []byte) (int, error) {
	d := p.n.delay(p.source, p.target)
	var err error
	p.set(func() {
		if err = p.err; err == nil && p.ended {
			err = net.ErrClosed
		}
		if err != nil {
			return
		}
		at := time.Now().Add(d)
		if at.Before(p.last) {
			at = p.last // bytes stay in order
		}
		p.last = at
		p.queue = append(p.queue, simChunk{at, append([]byte(nil), b...)})
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

func (p *simPipe) read(b []byte) (int, error) {
	for {
		blocked, _ := p.n.blocked(p.source, p.target)
		now := time.Now()
		p.mu.Lock()
		var until time.Time // of the next thing that can happen by itself
		switch {
		case p.err != nil:
			err := p.err
			p.mu.Unlock()
			return 0, err
		case !p.deadline.IsZero() && !now.Before(p.deadline):
			p.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case !blocked && len(p.queue) > 0 && !p.queue[0].at.After(now):
			k := copy(b, p.queue[0].data)
			if p.queue[0].data = p.queue[0].data[k:]; len(p.queue[0].data) == 0 {
				p.queue = p.queue[1:]
			}
			p.mu.Unlock()
			return k, nil
		case !blocked && len(p.queue) == 0 && p.ended && !p.quiet:
			p.mu.Unlock()
			return 0, io.EOF
		case !blocked && len(p.queue) > 0:
			until = p.queue[0].at
		}
		if d := p.deadline; !d.IsZero() && (until.IsZero() || d.Before(until)) {
			until = d
		}
		p.mu.Unlock()
		if until.IsZero() {
			<-p.wake
			continue
		}
		timer := time.NewTimer(until.Sub(now))
		select {
		case <-p.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// simConn is one end of a connection.
type simConn struct {
	n             *simNetwork
	owner         *simLife
	local, remote string
	in, out       *simPipe
}

func (c *simConn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *simConn) Write(b []byte) (int, error) { return c.out.write(b) }

func (c *simConn) Close() error {
	c.in.set(func() {
		if c.in.err == nil {
			c.in.err = net.ErrClosed
		}
	})
	c.out.set(func() { c.out.ended = true })
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.n.conns = slices.DeleteFunc(c.n.conns, func(o *simConn) bool { return o == c })
	return nil
}

func (c *simConn) LocalAddr() net.Addr  { return simAddr(c.local) }
func (c *simConn) RemoteAddr() net.Addr { return simAddr(c.remote) }

func (c *simConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func (c *simConn) SetReadDeadline(t time.Time) error {
	c.in.set(func() { c.in.deadline = t })
	return nil
}

// SetWriteDeadline has nothing to do: a write never waits.
func (c *simConn) SetWriteDeadline(time.Time) error { return nil }

// simAddress and simNodeAt translate between ids and addresses.
func simAddress(id string) string { return id + ":1" }

func simNodeAt(address string) string {
	var id string
	if _, err := fmt.Sscanf(address, "%s", &id); err != nil || len(id) < 3 {
		return ""
	}
	return id[:len(id)-2]
}
