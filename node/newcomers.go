package node

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/wire"
)

const (
	// newcomersMax bounds the namespaces that are being created for writes at a time.
	newcomersMax = 16
	// heldWritesMax and heldBytesMax bound the writes that wait for them, and the bytes of these. The bytes hold at
	// least one largest request.
	heldWritesMax = 4096
	heldBytesMax  = 32 << 20
	// heldTick is how often the deadlines of writes that wait are looked at.
	heldTick = 50 * time.Millisecond
)

const _ = uint(heldBytesMax - wire.FrameBodyBytesMax)

// newcomers creates the namespaces that writes name and that don't exist, where --auto-create-namespaces is set. The
// writes wait meanwhile, copied off their event loops, and are then submitted in the order of their arrival. As long as
// any waits for a name, all later ones of that name wait behind it, so that the writes of a connection in a namespace
// keep their order. A write that waits has not been submitted: whatever becomes of the namespace, it is surely not
// applied when it is refused.
type newcomers struct {
	// Immutable.
	s      *Service
	ctx    context.Context // ends when close begins
	cancel context.CancelFunc

	// creating is len(names): it spares other writes the lock.
	creating atomic.Int32

	mu sync.Mutex
	// Guarded by mu.
	names  map[string]*newcomer
	writes int // that wait
	bytes  int // of their bodies
	closed bool

	running sync.WaitGroup
}

// newcomer is one namespace that is being created.
type newcomer struct {
	name   []byte
	writes []heldWrite // guarded by newcomers.mu
}

// heldWrite is a write that waits.
type heldWrite struct {
	to       wire.Completer
	p        *Principal
	r        wire.Request // its slices are its own
	deadline int64
}

func newNewcomers(s *Service) *newcomers {
	n := &newcomers{s: s, names: make(map[string]*newcomer)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// hold takes a write that names ns, which stands for r.Namespace at present, if it must wait; or refuses it. false: it
// may go on. It never blocks.
func (n *newcomers) hold(to wire.Completer, p *Principal, ns uint32, r *wire.Request, deadline int64) bool {
	if ns != wire.NamespaceNone && n.creating.Load() == 0 {
		return false
	}
	n.mu.Lock()
	c := n.names[string(r.Namespace)]
	if c == nil && ns != wire.NamespaceNone {
		n.mu.Unlock()
		return false
	}
	var refusal *wire.Refusal
	switch {
	case n.closed:
		refusal = &wire.Refusal{Status: wire.StatusDraining}
	case n.writes >= heldWritesMax, n.bytes+len(r.Body) > heldBytesMax, c == nil && len(n.names) >= newcomersMax:
		refusal = &wire.Refusal{Status: wire.StatusBusy, RetryAfterMs: leaderRetryMs, Text: "many namespaces are being created, or many writes wait for that; nothing was changed: try again after a pause"}
	default:
		if c == nil {
			c = &newcomer{name: bytes.Clone(r.Namespace)}
			n.names[string(c.name)] = c
			n.creating.Add(1)
			n.running.Go(func() { n.bring(c) }) // owned by n, whose close ends it; ends when none waits for it
		}
		w := heldWrite{to: to, p: p, r: *r, deadline: deadline}
		w.r.Body = bytes.Clone(r.Body)
		ext, key := len(r.Ext), len(r.Ext)+len(r.Key)
		w.r.Ext, w.r.Key, w.r.Payload, w.r.Namespace = w.r.Body[:ext:ext], w.r.Body[ext:key:key], w.r.Body[key:], c.name
		w.r.Idempotency = bytes.Clone(r.Idempotency)
		c.writes = append(c.writes, w)
		n.writes++
		n.bytes += len(r.Body)
	}
	n.mu.Unlock()
	if refusal != nil {
		refuse(to, r.Token(), refusal)
	}
	return true
}

// bring creates a namespace, and submits or refuses what has waited for it until nothing does any more.
func (n *newcomers) bring(c *newcomer) {
	refusal := n.create(c)
	for {
		n.mu.Lock()
		ws := c.writes
		c.writes = nil
		if len(ws) == 0 {
			delete(n.names, string(c.name))
			n.creating.Add(-1)
			n.mu.Unlock()
			return
		}
		n.leaveLocked(ws)
		n.mu.Unlock()
		for i := range ws {
			w := &ws[i]
			if refusal != nil {
				refuse(w.to, w.r.Token(), refusal)
				continue
			}
			n.s.submitHeld(w)
		}
	}
}

// leaveLocked counts writes out. REQUIRES: mu held.
func (n *newcomers) leaveLocked(ws []heldWrite) {
	n.writes -= len(ws)
	for i := range ws {
		n.bytes -= len(ws[i].r.Body)
	}
}

// create creates the namespace; nil: there is one of the name now. Writes whose deadlines pass meanwhile are refused.
func (n *newcomers) create(c *newcomer) *wire.Refusal {
	sh := n.s.shard
	change := wire.NamespaceChange{Action: wire.NamespaceCreate, Name: string(c.name)}
	answered := call{answer: make(chan wire.Response, 1)}
	op := wire.Op{Op: wire.OpNamespace}
	if st := sh.batcher.Submit(&op, wire.AppendNamespaceChange(nil, &change), 0, 0, &answered, wire.Token{Op: op.Op}, sh.now()+int64(wire.TimeoutDefault)); st != wire.StatusOK {
		return &wire.Refusal{Status: st, RetryAfterMs: retryAfterMs}
	}
	tick := time.NewTicker(heldTick)
	defer tick.Stop()
	for {
		select {
		case r := <-answered.answer:
			return n.created(c, &r)
		case <-tick.C:
			n.lapse(c)
		case <-n.ctx.Done():
			return &wire.Refusal{Status: wire.StatusDraining}
		}
	}
}

// created turns what came of the creation into what becomes of the writes.
func (n *newcomers) created(c *newcomer, r *wire.Response) *wire.Refusal {
	switch st := r.Status; {
	case st == wire.StatusOK, st == wire.StatusNamespaceExists:
		return nil
	case st == wire.StatusTooMany:
		return &wire.Refusal{Status: st, Limit: wire.NamespacesMax, Text: "the store holds as many namespaces as it may; nothing was changed: drop one that is not needed"}
	case st.Class() == wire.ClassRefused:
		return n.s.noNamespace(c.name)
	}
	// Whether the namespace was created is of no matter: the writes that wait were not submitted.
	if !n.s.shard.leading() {
		return n.s.shard.notLeading()
	}
	return &wire.Refusal{Status: wire.StatusRetryLater, RetryAfterMs: leaderRetryMs, Text: "the namespace could not be created; the write was not applied: try again"}
}

// lapse refuses the writes whose deadlines have passed.
func (n *newcomers) lapse(c *newcomer) {
	now := n.s.shard.now()
	var late []heldWrite
	n.mu.Lock()
	c.writes = slices.DeleteFunc(c.writes, func(w heldWrite) bool {
		if w.deadline > now {
			return false
		}
		late = append(late, w)
		return true
	})
	n.leaveLocked(late)
	n.mu.Unlock()
	for i := range late {
		refuse(late[i].to, late[i].r.Token(), &wire.Refusal{Status: wire.StatusTooLate})
	}
}

// close refuses what waits, and what comes later.
func (n *newcomers) close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.running.Wait()
}

// submitHeld goes on with a write that has waited for its namespace.
func (s *Service) submitHeld(w *heldWrite) {
	r := &w.r
	ns, ok := s.shard.namespace(r.Namespace)
	var refusal *wire.Refusal
	switch {
	case !ok:
		refusal = &wire.Refusal{Status: wire.StatusRetryLater, Text: "the namespace was dropped again at once; the write was not applied"}
	case !s.authorize(w.p, ns, r):
		refusal = &wire.Refusal{Status: wire.StatusDenied}
	default:
		refusal = s.admitWrite(ns, r)
	}
	if refusal != nil {
		refuse(w.to, r.Token(), refusal)
		return
	}
	s.submit(w.to, w.p, ns, r, w.deadline)
}
