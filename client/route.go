package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

// route knows the nodes, and which of them to ask: the leader as far as known, else the one that last
// worked.
//
// What is believed of the leader comes from HELLO's answers and from NOT_LEADER, each with a term. A lower
// term than the newest is old news. The same term may name a node that has failed since: followers need a
// while to notice that. So a node that has failed is followed again only on the word of a higher term, which
// it can't have won dead, or after a while.
type route struct {
	client *Client
	// fixed: the nodes are chosen by others (see Forwarder); nothing is learned but the cluster.
	fixed bool

	cur atomic.Pointer[node]
	ack atomic.Pointer[wire.HelloAck] // newest

	// The hunt for a leader, see hunt.go.
	hunting atomic.Bool
	baton   chan struct{}

	// Guarded by mu.
	mu      sync.Mutex
	nodes   []*node       // in the order in which they are tried
	turn    uint          // of share
	term    uint64        // of the newest word about the leader
	cluster []byte        // id of the cluster, once known
	err     error         // of the last attempt to connect, nil after a success
	found   chan struct{} // closed when a leader has answered; nil: nobody waits for that
}

func newRoute(c *Client, addrs []string) *route {
	r := &route{client: c, fixed: len(addrs) == 0, baton: make(chan struct{}, 1)}
	r.baton <- struct{}{}
	for _, a := range addrs {
		if !slices.ContainsFunc(r.nodes, func(n *node) bool { return n.addr == a }) {
			r.nodes = append(r.nodes, newNode(c, a, true))
		}
	}
	if !r.fixed {
		r.cur.Store(r.nodes[0])
	}
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
		r.forget(func(*node) bool { return false })
	}
	if len(r.nodes) >= nodesMax {
		return nil
	}
	n := newNode(r.client, addr, false)
	r.nodes = append(r.nodes, n)
	return n
}

// forget drops the nodes that the caller did not give, that keep does not name, and that are not in use: in a
// cluster whose nodes get new addresses the list would be full one day. REQUIRES: mu held.
func (r *route) forget(keep func(*node) bool) {
	cur := r.cur.Load()
	r.nodes = slices.DeleteFunc(r.nodes, func(n *node) bool {
		return !n.given && n != cur && !keep(n) && !n.alive() && !n.flying()
	})
}

// failing reports whether n has failed a short while ago. REQUIRES: mu held.
func (r *route) failing(n *node) bool { return n.until > r.client.now() }

// at gives the node to ask for the server at addr: another address of the same server when that one is
// connected, or has not failed. Servers may advertise addresses that this client can't reach. nil: there are
// too many nodes. REQUIRES: mu held.
func (r *route) at(addr string) *node {
	n := r.node(addr)
	if n == nil || n.id == "" || n.alive() {
		return n
	}
	best := n
	for _, o := range r.nodes {
		switch {
		case o.id != n.id:
		case o.alive():
			return o
		case r.failing(best) && !r.failing(o):
			best = o
		}
	}
	return best
}

// same reports whether two nodes are known to be addresses of one server. REQUIRES: mu held.
func same(a, b *node) bool { return a == b || a.id != "" && a.id == b.id }

// next gives the node to turn to after from: the next one that has not failed, or just the next one.
// Other addresses of the same server are passed over. REQUIRES: mu held.
func (r *route) next(from *node) *node {
	at := slices.Index(r.nodes, from)
	other := from
	for k := range r.nodes {
		n := r.nodes[(at+1+k)%len(r.nodes)]
		if same(n, from) || r.doubled(n) {
			continue
		}
		if !r.failing(n) {
			return n
		}
		if other == from {
			other = n
		}
	}
	if other == from && len(r.nodes) > 1 {
		// Nothing but addresses of the same server is left.
		other = r.nodes[(at+1)%len(r.nodes)]
	}
	return other
}

// doubled reports whether n's server is connected by another of its addresses. REQUIRES: mu held.
func (r *route) doubled(n *node) bool {
	return n.id != "" && !n.alive() && slices.ContainsFunc(r.nodes, func(o *node) bool { return o.id == n.id && o.alive() })
}

// ready gives the link to use and, if there is one, its connection: the path of nearly every operation.
func (r *route) ready() (*link, *conn) {
	l := r.cur.Load().pick()
	if cn := l.cn.Load(); cn != nil && !cn.gone.Load() {
		return l, cn
	}
	return l, nil
}

// share gives a connection for a call that any node may answer: to the connected nodes in turn. To those that are
// not, it begins to connect. nil: there is none.
func (r *route) share() *conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	var room [nodesMax]*conn
	ready := room[:0]
	for _, n := range r.nodes {
		if r.failing(n) || r.doubled(n) {
			continue
		}
		l := n.pick()
		if cn := l.cn.Load(); cn != nil && !cn.gone.Load() {
			ready = append(ready, cn)
		} else {
			l.board()
		}
	}
	if len(ready) == 0 {
		return nil
	}
	r.turn++
	return ready[r.turn%uint(len(ready))]
}

// connect gives the link's connection, or one to another node, making it where needed, until the call's
// time is up, or a server refuses and no other one takes the client. It gives nil then; cl.res says why.
func (r *route) connect(ctx context.Context, cl *call, l *link) *conn {
	var refusal error
	tried, hops := 0, 0
	for {
		cn, err := l.get(ctx, cl, r.patience())
		if err == nil {
			// The answer to HELLO may have named the leader.
			next, other := r.ready()
			if hops++; next.node == l.node || hops > redirectsMax {
				return cn
			}
			if other != nil {
				return other
			}
			l = next
			continue
		}
		if cl.res.stop != nil {
			if cl.res.err == nil {
				cl.res.err = r.trouble()
			}
			return nil
		}
		cl.res.err = err
		var e *Error
		if errors.As(err, &e) && e.Status.Class() == wire.ClassRefused {
			refusal = err
		}
		if tried++; refusal != nil && tried >= r.count() {
			// No node is left that might say something else.
			cl.res.err, cl.res.stop = refusal, refusal
			return nil
		}
		r.failed(l.node, err == errSlow)
		l, _ = r.ready()
	}
}

// patience is how long a caller waits for one attempt to connect: while there are others to ask, not long.
func (r *route) patience() time.Duration {
	if r.count() == 1 {
		return forever
	}
	return r.client.o.patience
}

func (r *route) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.nodes)
}

// failed tells that no connection to n could be made, and turns to another node. slow: the attempt is still
// under way; a success ends the suspicion.
func (r *route) failed(n *node, slow bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n.alive() {
		// Made by another caller meanwhile.
		return
	}
	r.suspect(n, slow)
	r.leaveLocked(n)
}

// shun is failed for a node that is silent or about to stop, connected or not.
func (r *route) shun(n *node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.suspect(n, false)
	r.leaveLocked(n)
}

// suspect keeps n from being chosen for a while. REQUIRES: mu held.
func (r *route) suspect(n *node, slow bool) {
	d := r.client.o.shunFor
	if slow {
		d = max(d, r.client.o.dialTimeout)
	}
	n.until = max(n.until, r.client.now()+d)
}

// leave turns to the next node, unless that happened already.
func (r *route) leave(from *node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaveLocked(from)
}

func (r *route) leaveLocked(from *node) {
	if r.cur.Load() == from {
		r.cur.Store(r.next(from))
	}
}

// redirect follows a leader hint that asked gave. It reports whether another node is current now, so that
// a retry needs no pause.
func (r *route) redirect(asked *node, leader string, term uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if leader != "" && term >= r.term {
		if n := r.at(leader); n != nil && !same(n, asked) {
			r.follow(n, term)
		}
	}
	return r.cur.Load() != asked
}

// follow takes n for the leader of term, unless it has failed since it became that. REQUIRES: mu held;
// term ≥ r.term.
func (r *route) follow(n *node, term uint64) {
	if term > r.term {
		n.until = 0
	}
	r.term = term
	if !r.failing(n) {
		r.cur.Store(n)
	}
}

// learn takes what a HELLO's answer tells of the cluster.
func (r *route) learn(n *node, ack *wire.HelloAck) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ack.ClusterID != [16]byte{} {
		if id := r.expected(); id != nil {
			r.cluster = id
		}
		if r.cluster == nil {
			r.cluster = append([]byte(nil), ack.ClusterID[:]...)
		} else if !bytes.Equal(r.cluster, ack.ClusterID[:]) {
			return &Error{Op: "hello", Status: wire.StatusDenied, kind: ErrDenied,
				Message: fmt.Sprintf("%s belongs to cluster %x, not to %x", n.addr, ack.ClusterID, r.cluster)}
		}
	}
	if r.fixed {
		return nil
	}
	n.id, n.until = ack.NodeID, 0
	if r.ack.Load() == nil {
		// The first that answers is asked first, unless it names a leader.
		r.cur.Store(n)
	}
	a := *ack
	r.ack.Store(&a)
	var leader *node
	members := make(map[string]bool, len(ack.Members))
	for _, m := range ack.Members {
		if m.Address == "" {
			continue
		}
		members[m.Address] = true
		known := r.node(m.Address)
		if known != nil && known != n && !known.alive() {
			known.id = m.ID
		}
		if !m.Leader {
			continue
		}
		if leader = n; m.ID != ack.NodeID {
			leader = r.at(m.Address)
		}
	}
	if leader != nil && ack.Term >= r.term {
		r.follow(leader, ack.Term)
	}
	if len(members) > 0 && ack.Term >= r.term {
		r.forget(func(o *node) bool { return o == n || members[o.addr] })
	}
	return nil
}

// clusterID gives the id that servers must have, nil while none is known.
func (r *route) clusterID() []byte {
	if id := r.expected(); id != nil {
		return id
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cluster
}

// expected gives the id that servers must have by the word of the client's owner, nil while there is none.
func (r *route) expected() []byte {
	if f := r.client.o.cluster; f != nil {
		if id, ok := f(); ok {
			return id[:]
		}
	}
	return nil
}

// told keeps how the last attempt to connect ended; it was one to n.
func (r *route) told(n *node, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	if err != nil && !n.alive() {
		// Not longer than this: the attempt is no longer slow.
		n.until = r.client.now() + r.client.o.shunFor
	}
}

// trouble gives why no connection could be made, nil when the last attempt succeeded.
func (r *route) trouble() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
