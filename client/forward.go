package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"kvstore/wire"
)

// Bounds of a Forwarder.
const (
	// forwardIdle is how long an unused connection is kept: long enough for the pauses of a busy node's
	// clients, short enough that a former leader's connections are gone soon.
	forwardIdle = time.Minute
	// forwardRetryAfterMs is the pause that an answer suggests when the server could not be reached.
	forwardRetryAfterMs = 50
	// forwardTries bounds how often one request meets a connection that is just being closed and has sent
	// nothing of it.
	forwardTries = 3
)

// ForwarderOptions are the settings of a Forwarder; the zero value means the defaults.
type ForwarderOptions struct {
	// Logger takes connections' comings and goings. Default: nothing is logged.
	Logger *slog.Logger
	// ConnsPerNode is the connections per address, 1 to 64. Default 1.
	ConnsPerNode int
	// DialTimeout bounds one attempt to connect and to say HELLO. Default 1 s.
	DialTimeout time.Duration
	// Name tells the servers who forwards, printable ASCII of at most wire.ClientNameBytesMax bytes.
	Name string
	// Cluster gives the id of the cluster that the servers must belong to, once it is known; ok is false before.
	// Default: that of the first server that says one.
	Cluster func() (id [16]byte, ok bool)

	// Changed by tests alone.
	limits func(*options)
	idle   time.Duration
}

// Forwarder sends requests of others as they are, to the address that each call names: a node passes on to the
// leader what it may not serve itself. It has no sessions, follows no hints, and repeats nothing that may have
// been executed. Safe for any number of goroutines.
type Forwarder struct {
	// Immutable after NewForwarder. c has no nodes of its own: its connections, their bounds and their watch
	// over silent peers are what is used of it.
	c    *Client
	idle time.Duration

	// Guarded by mu.
	mu    sync.Mutex
	nodes map[string]*target
}

// target is one address with its use.
type target struct {
	node *node
	// Guarded by Forwarder.mu.
	users int
	used  time.Duration // of Client.now, when the last user left
}

// NewForwarder makes a forwarder that has no connection yet. Options out of their bounds take the nearest
// value within. Close ends it.
func NewForwarder(o ForwarderOptions) *Forwarder {
	co := defaultOptions()
	co.dialTimeout = time.Second
	if o.DialTimeout > 0 {
		co.dialTimeout = o.DialTimeout
	}
	co.conns = min(max(o.ConnsPerNode, 1), 64)
	co.name = o.Name[:min(len(o.Name), wire.ClientNameBytesMax)]
	// One connection carries the requests of many: what a server grants is the bound.
	co.maxInflight = slotsMax
	if o.Logger != nil {
		co.logger = o.Logger
	}
	co.cluster = o.Cluster
	if o.limits != nil {
		o.limits(&co)
	}
	f := &Forwarder{c: newClient(co, nil), idle: forwardIdle, nodes: make(map[string]*target)}
	if o.idle > 0 {
		f.idle = o.idle
	}
	// tidy: owned by the forwarder; ends with it.
	f.c.spawn(f.tidy)
	return f
}

// Close ends all connections. Requests under way end at once, with their outcome. Closing twice does nothing.
// The error is always nil.
func (f *Forwarder) Close() error {
	f.c.mu.Lock()
	f.c.closed = true
	f.c.mu.Unlock()
	f.c.cancel()
	f.c.wg.Wait()
	return nil
}

// Do sends r to the server at addr and gives its answer as it is, refusals with their elements included (the
// leader, a pause). Sent are operation, group, extension block, key and payload as they stand in r.Ext, r.Key
// and r.Payload; the fields that were decoded from Ext are not looked at. FlagQuiet is not passed on: there is
// always an answer. Nothing of r is read after Do returns; the answer's slices belong to the caller.
//
// The request's time is r.Timeout(), or the context's where that ends earlier. Without an answer:
//
//	surely not sent: no connection      StatusNoLeader, or the class-retry status that HELLO was refused with
//	surely not sent: the time is up     StatusTooLate
//	surely not sent: ctx was cancelled  StatusCancelled
//	surely not sent: Close              StatusDraining
//	surely not sent: too large          StatusTooLarge
//	sent, a read                        StatusRetryLater
//	sent, otherwise: the time is up     StatusTimeout
//	sent, otherwise: connection lost    StatusLeadershipLost
func (f *Forwarder) Do(ctx context.Context, addr string, r *wire.Request) wire.Response {
	a, _ := f.Pass(ctx, addr, r)
	return a
}

// Contact is what a request that was passed on met of its server, whatever its answer says: the same status may come
// from a server that is well and from this side.
type Contact uint8

// The kinds of contact.
const (
	// ContactNone: nothing was learnt of the server. The request was cancelled or refused on this side, or an attempt to
	// connect had just failed and the next was not due.
	ContactNone Contact = iota
	// ContactAnswered: the server answered, if only to refuse.
	ContactAnswered
	// ContactLost: no connection could be made, or it was lost.
	ContactLost
	// ContactSilent: nothing came until the request's time was up.
	ContactSilent
)

// Pass is Do, and tells what it met of the server.
func (f *Forwarder) Pass(ctx context.Context, addr string, r *wire.Request) (wire.Response, Contact) {
	c := f.c
	cl := newCall(r.Op, "", wantRaw)
	defer cl.release()
	cl.write = r.Op.IsWrite() || r.Op == wire.OpAdmin
	cl.once, cl.single, cl.group = true, true, r.Group
	cl.head = append(append(cl.head, r.Ext...), r.Key...)
	cl.keyLen = len(r.Key)
	cl.value = r.Payload
	cl.started = c.now()
	cl.deadline = cl.started + r.Timeout()
	if err := ctx.Err(); err != nil {
		cl.res.stop = err
		return f.answer(cl), ContactNone
	}
	if d, ok := ctx.Deadline(); ok {
		cl.deadline = min(cl.deadline, cl.started+time.Until(d))
	}
	t := f.enter(addr)
	if t == nil {
		return refusal(wire.StatusNoLeader, fmt.Sprintf("not forwarded: more than %d servers are in use at once", nodesMax)), ContactNone
	}
	defer f.exit(t)
	for range forwardTries {
		cl.res = result{}
		cn, tried, err := t.node.pick().getNow(ctx, cl)
		if err != nil {
			cl.res.err = err
			if !tried {
				return f.answer(cl), ContactNone
			}
			break
		}
		cl.cn = cn
		if c.send(ctx, cl, cn) {
			c.await(ctx, cl)
			break
		}
		if cl.res.stop != nil {
			break
		}
		// The connection is just ending: another one takes the request.
	}
	return f.answer(cl), cl.contact()
}

// contact tells what a call met of its server, once it has its result.
func (cl *call) contact() Contact {
	r := &cl.res
	var e *Error
	switch {
	case r.answered:
		return ContactAnswered
	case errors.Is(r.stop, ErrClosed), errors.Is(r.err, ErrClosed), errors.Is(r.stop, context.Canceled):
		return ContactNone
	case !r.sent && errors.As(r.err, &e): // of HELLO
		return ContactAnswered
	case !r.sent && errors.As(r.stop, &e): // refused on this side, by what HELLO said
		return ContactNone
	case r.stop != nil:
		return ContactSilent
	}
	return ContactLost
}

// getNow is get without patience for a server that has just refused: waiting is for those who ask. tried is false when
// it did not even look.
func (l *link) getNow(ctx context.Context, cl *call) (cn *conn, tried bool, err error) {
	l.mu.Lock()
	err = l.err
	early := l.flight == nil && l.cn.Load() == nil && err != nil && l.notBefore > l.client.now()
	l.mu.Unlock()
	if early {
		return nil, false, err
	}
	cn, err = l.get(ctx, cl, forever)
	return cn, true, err
}

// enter finds or adds the server at addr and keeps it until exit; nil when there are too many.
func (f *Forwarder) enter(addr string) *target {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.nodes[addr]
	if t == nil {
		if len(f.nodes) >= nodesMax && !f.evict() {
			return nil
		}
		t = &target{node: newNode(f.c, addr, true)}
		f.nodes[addr] = t
	}
	t.users++
	return t
}

func (f *Forwarder) exit(t *target) {
	f.mu.Lock()
	t.users--
	t.used = f.c.now()
	f.mu.Unlock()
}

// evict makes room by dropping the server that has been idle for longest. REQUIRES: mu held.
func (f *Forwarder) evict() bool {
	var oldest *target
	for _, t := range f.nodes {
		if t.users == 0 && (oldest == nil || t.used < oldest.used) {
			oldest = t
		}
	}
	if oldest != nil {
		f.drop(oldest)
	}
	return oldest != nil
}

// drop forgets an idle server and closes its connections. REQUIRES: mu held; t has no users.
func (f *Forwarder) drop(t *target) {
	delete(f.nodes, t.node.addr)
	for _, l := range t.node.links {
		l.retire()
	}
}

// retire closes the link's connection, now or when it comes about. REQUIRES: nobody will use the link again.
func (l *link) retire() {
	l.mu.Lock()
	l.retired = true
	cn := l.cn.Load()
	l.mu.Unlock()
	if cn != nil {
		cn.kill(errIdle)
	}
}

// tidy closes what has been idle for long. It ends with the forwarder.
func (f *Forwarder) tidy() {
	t := time.NewTicker(f.idle / 2)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-f.c.ctx.Done():
			return
		}
		f.mu.Lock()
		now := f.c.now()
		for _, t := range f.nodes {
			if t.users == 0 && now-t.used >= f.idle {
				f.drop(t)
			}
		}
		f.mu.Unlock()
	}
}

// answer turns what became of the request into a response; see Do.
func (f *Forwarder) answer(cl *call) wire.Response {
	r := &cl.res
	if r.answered {
		return wire.Response{Status: r.status, Replayed: r.flags&wire.FlagReplayed != 0, Ext: r.ext, Payload: r.data}
	}
	closed := errors.Is(r.stop, ErrClosed) || errors.Is(r.err, ErrClosed)
	if r.sent {
		switch {
		case !cl.write:
			return refusal(wire.StatusRetryLater, "")
		case closed, r.stop == nil:
			return refusal(wire.StatusLeadershipLost, "the connection to the leader was lost while the request was under way; it may or may not be applied")
		}
		return refusal(wire.StatusTimeout, "")
	}
	var e *Error
	refused := errors.As(r.stop, &e) || errors.As(r.err, &e)
	switch {
	case closed:
		return refusal(wire.StatusDraining, "")
	case errors.Is(r.stop, context.Canceled):
		return refusal(wire.StatusCancelled, "")
	case r.stop != nil && !refused:
		return refusal(wire.StatusTooLate, "")
	case refused && e.Limit != 0 && errors.Is(e, ErrTooLarge):
		ref := wire.Refusal{Status: wire.StatusTooLarge, Text: e.Message, Limit: e.Limit}
		return wire.ErrorResponse(&ref, nil)
	case refused && e.Status.Class() == wire.ClassRetry:
		ref := wire.Refusal{Status: e.Status, Text: e.Message, RetryAfterMs: uint32(e.RetryAfter / time.Millisecond)}
		return wire.ErrorResponse(&ref, nil)
	}
	text := "the leader cannot be reached; nothing was changed: try again shortly"
	if r.err != nil {
		text = "the leader cannot be reached; nothing was changed: " + r.err.Error()
	}
	return refusal(wire.StatusNoLeader, text)
}

// refusal builds an answer of this side; an empty text stands for that of the status table.
func refusal(s wire.Status, text string) wire.Response {
	ref := wire.Refusal{Status: s, Text: text}
	if s.Class() == wire.ClassRetry && s != wire.StatusTooLate {
		ref.RetryAfterMs = forwardRetryAfterMs
	}
	return wire.ErrorResponse(&ref, nil)
}
