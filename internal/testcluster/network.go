package testcluster

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Network stands between the nodes of a cluster: what one node sends to another goes through it, so that
// single directions can be cut, made lossy, delayed or slowed down. Clients of the nodes are not concerned.
//
// A direction that is cut is silent, as a real one is: nothing is refused or reset. Bytes on their way are
// held, new connections come to nothing, and the end of one side is not told to the other. When it heals,
// what a connection held arrives late, as it does when TCP repeats it, or is lost with its connection.
//
// It is made of proxies on loopback, or of network namespaces that a bridge joins (ClusterOptions.Namespaces).
// There the kernel's own TCP meets packets that are dropped; nothing can be delayed or slowed down.
//
// All methods are safe for concurrent use.
type Network struct {
	// Immutable.
	t      testing.TB
	stop   context.CancelFunc
	ctx    context.Context
	work   sync.WaitGroup // all goroutines
	fabric *fabric        // nil: proxies

	mu sync.Mutex
	// Guarded by mu.
	gates   map[string]*gate
	paths   map[direction]*path
	changed chan struct{}      // closed when a path changes
	links   map[*link]struct{} // live connections
}

// direction is one way between two nodes.
type direction struct{ from, to string }

func (d direction) back() direction { return direction{d.to, d.from} }

// path is the state of one direction.
type path struct {
	state

	// What happened so far; the kernel counts for namespaces.
	held int64 // pieces and connections that cuts and losses have stopped
	late int64 // pieces that were delayed
	sent int64 // bytes that went through
}

// state is what is done to a direction. The zero value is an open one.
type state struct {
	cut   bool
	loss  int // in percent
	delay time.Duration
	rate  int64 // bytes per second; 0: unbounded
}

// NewNetwork makes a network of proxies without nodes; it ends with the test.
func NewNetwork(t testing.TB) *Network { return newNetwork(t, nil) }

// newNetwork makes a network of namespaces, or of proxies if f is nil.
func newNetwork(t testing.TB, f *fabric) *Network {
	n := &Network{t: t, fabric: f, gates: make(map[string]*gate), paths: make(map[direction]*path),
		changed: make(chan struct{}), links: make(map[*link]struct{})}
	n.ctx, n.stop = context.WithCancel(context.Background())
	t.Cleanup(n.close)
	return n
}

func (n *Network) close() {
	n.stop()
	n.mu.Lock()
	if n.fabric != nil {
		if err := n.fabric.close(); err != nil {
			n.t.Errorf("cannot remove the network of namespaces: %v", err)
		}
	}
	for _, g := range n.gates {
		if g.listener == nil {
			continue
		}
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

// Add gives a node its address in the network. With proxies Connect tells where it really listens.
func (n *Network) Add(id string) (addr string, err error) {
	g := &gate{id: id}
	if n.fabric != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		s, err := n.fabric.add(id)
		if err != nil {
			return "", err
		}
		n.gates[id] = g
		return s.raftAddr(), nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("cannot open the gate of %s: %w", id, err)
	}
	g.listener = l
	n.mu.Lock()
	n.gates[id] = g
	n.mu.Unlock()
	n.work.Go(func() { n.accept(g) }) // ends when close closes the listener
	return l.Addr().String(), nil
}

// addAll adds the first nodes of a cluster.
func (n *Network) addAll(nodes int) (addrs []string, err error) {
	for i := range nodes {
		addr, err := n.Add(nodeID(i))
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// space is the namespace of a node; nil: it has none.
func (n *Network) space(id string) *space {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fabric == nil {
		return nil
	}
	return n.fabric.spaces[id]
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

// Loss loses so many of a hundred packets that from sends to to. A proxy has no packets: it does what TCP makes of
// losses, stalls of 200 ms to a second, and now and then resets a connection.
func (n *Network) Loss(from, to string, percent int) {
	n.change(func(p *path) { p.loss = percent }, direction{from, to})
}

// CanDelay tells whether Delay and Rate do anything: a network of namespaces can neither delay nor slow down.
func (n *Network) CanDelay() bool { return n.fabric == nil }

// Delay makes everything that from sends to to arrive so much later, where CanDelay.
func (n *Network) Delay(from, to string, by time.Duration) {
	if n.CanDelay() {
		n.change(func(p *path) { p.delay = by }, direction{from, to})
	}
}

// Rate bounds what each connection carries from from to to, in bytes per second, where CanDelay; 0 takes the
// bound away.
func (n *Network) Rate(from, to string, bytesPerSecond int64) {
	if n.CanDelay() {
		n.change(func(p *path) { p.rate = bytesPerSecond }, direction{from, to})
	}
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
	n.changeLocked(f, ways)
}

// changeLocked is change. REQUIRES: mu held.
func (n *Network) changeLocked(f func(*path), ways []direction) {
	for _, d := range ways {
		f(n.path(d))
	}
	if n.fabric != nil {
		if err := n.fabric.apply(n.paths); err != nil {
			n.t.Errorf("the rules of the network can't be changed: %v", err)
		}
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

// Open undoes all that is done to the direction from from to to. What connections held arrives now, late.
func (n *Network) Open(from, to string) { n.open(false, direction{from, to}) }

// OpenLosing is Open, but connections between the two that held something are reset and it is lost, as after a cut
// that outlives the patience of TCP.
func (n *Network) OpenLosing(from, to string) { n.open(true, direction{from, to}) }

// Heal is Open of all directions.
func (n *Network) Heal() { n.open(false) }

// HealLosing is OpenLosing of all directions.
func (n *Network) HealLosing() { n.open(true) }

// open opens directions, all of them if none is given.
func (n *Network) open(losing bool, ways ...direction) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(ways) == 0 {
		ways = slices.Collect(maps.Keys(n.paths))
	}
	if losing && n.fabric != nil {
		if err := n.fabric.lose(n.paths, ways); err != nil {
			n.t.Errorf("connections that hold something can't be reset: %v", err)
		}
	}
	if losing {
		for l := range n.links {
			if l.holding > 0 && (slices.Contains(ways, l.there) || slices.Contains(ways, l.there.back())) {
				l.reset()
			}
		}
	}
	n.changeLocked(func(p *path) { p.state = state{} }, ways)
}

// Held counts what cuts and losses have stopped from from to to so far: pieces and connections with proxies,
// packets with namespaces. 0 means that none ever struck.
func (n *Network) Held(from, to string) int64 {
	return n.count(direction{from, to}, func(p *path) int64 { return p.held }, heldCounter)
}

// Sent counts the bytes that went from from to to so far. With namespaces the headers of packets count, too.
func (n *Network) Sent(from, to string) int64 {
	return n.count(direction{from, to}, func(p *path) int64 { return p.sent }, sentCounter)
}

// Late counts the pieces from from to to that were delayed so far.
func (n *Network) Late(from, to string) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.path(direction{from, to}).late
}

func (n *Network) count(d direction, own func(*path) int64, kernel counter) int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fabric == nil {
		return own(n.path(d))
	}
	k, err := n.fabric.count(d, kernel)
	if err != nil {
		n.t.Errorf("a counter of the network can't be read: %v", err)
	}
	return k
}

// HeldAround counts what cuts and losses have stopped to and from a node so far.
func (n *Network) HeldAround(id string) (held int64) {
	for _, d := range n.around(id) {
		held += n.Held(d.from, d.to)
	}
	return held
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
