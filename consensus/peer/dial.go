package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// dialError is a failure to get a connection. A call that fails so was never sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

func refusedBy(id, address, text string) error {
	return fmt.Errorf("%w by node %q at %s: %s", ErrRefused, id, address, text)
}

func rejectedAt(id, address, text string) error {
	return fmt.Errorf("%w: what answers for node %q at %s is not trusted by this node: %s", ErrRefused, id, address, text)
}

// dial connects to a node and shakes hands. impatient fails at once while the node's last definite
// refusal is fresh, so that whoever calls in a loop does not hammer it.
func (t *Transport) dial(ctx context.Context, id, address string, purpose Purpose, impatient bool) (*conn, error) {
	c, err := t.dialConn(ctx, id, address, purpose, impatient)
	if err != nil {
		return nil, &dialError{err}
	}
	return c, nil
}

func (t *Transport) dialConn(ctx context.Context, id, address string, purpose Purpose, impatient bool) (*conn, error) {
	if impatient {
		if err := t.paused(id, address); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, t.o.Timeout)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	raw, err := t.o.Dial(ctx, address)
	if err != nil {
		if t.ctx.Err() != nil {
			err = ErrClosed
		}
		return nil, fmt.Errorf("cannot reach node %q at %s: %w", id, address, err)
	}
	c := &conn{Conn: raw, t: t}
	if !t.conns.add(c) {
		return nil, errors.Join(ErrClosed, raw.Close())
	}
	if err := t.greet(ctx, c, id, address, purpose); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// greet is the dialling side of a handshake.
func (t *Transport) greet(ctx context.Context, c *conn, id, address string, purpose Purpose) error {
	defer context.AfterFunc(ctx, func() { c.Close() })() //nolint:errcheck // it only ends the handshake
	if err := tune(c.Conn, t.userTimeout()); err != nil {
		return fmt.Errorf("cannot set up a connection to node %q at %s: %w", id, address, err)
	}
	hello := t.hello(purpose, id)
	frame, err := appendHello(nil, &hello)
	if err != nil {
		return err
	}
	a, err := t.ask(c, frame)
	switch {
	case err != nil:
		return fmt.Errorf("cannot shake hands with node %q at %s: %w", id, address, err)
	case a.refusal != nil && a.refusal.final():
		t.noteRefused(id, address, a.refusal)
		return refusedBy(id, address, a.refusal.text)
	case a.refusal != nil:
		t.notePassing(id, address, a.refusal)
		return fmt.Errorf("node %q at %s can't talk to this node yet: %s", id, address, a.refusal.text)
	}
	r := t.admitAnswer(&a.hello, id)
	switch {
	case r != nil && r.final():
		t.noteRejected(id, address, r, true)
		return rejectedAt(id, address, r.text)
	case r != nil:
		return fmt.Errorf("this node can't talk to node %q at %s yet: %s", id, address, r.text)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("cannot set up a connection to node %q at %s: %w", id, address, err)
	}
	if !t.settleIn(c, &a.hello, purpose) {
		return fmt.Errorf("node %q at %s is another process already", id, address)
	}
	t.noteAccepted(id, address, true)
	t.o.OnCard(id, a.hello.Incarnation, a.hello.Card)
	return nil
}

// settleIn makes a connection whose handshake is over one of h's sender; false if another process of that
// node was let in meanwhile. Connections with earlier processes are closed.
func (t *Transport) settleIn(c *conn, h *Hello, purpose Purpose) bool {
	step := t.o.Timeout
	if purpose != PurposeRaft {
		step = 0
	}
	p := h.process()
	t.conns.accepted(c, h.Source, p, purpose == PurposePulse, step, t.o.Clock.Boot())
	if purpose == PurposeFetch {
		return true // the book is not told of it
	}
	// Of two processes that come at once the book names the later, and only then are the connections closed
	// that are not with it: none with the earlier one is left, whichever is faster from here on.
	if now := t.book.read().entries[h.Source]; now.incarnation != p.incarnation || now.nonce != p.nonce {
		return false
	}
	t.conns.close(func(other *conn) bool {
		return other.peer == h.Source && (other.process.incarnation != p.incarnation || other.process.nonce != p.nonce)
	}, false)
	t.lookAgain()
	return true
}

// ask sends the first frame and waits for the second.
func (t *Transport) ask(c *conn, frame []byte) (answer, error) {
	if err := c.SetDeadline(time.Now().Add(t.o.Timeout)); err != nil {
		return answer{}, err
	}
	if _, err := c.Write(frame); err != nil {
		return answer{}, err
	}
	return readAnswer(c)
}

// admitAnswer judges whoever answered at the address of node id.
func (t *Transport) admitAnswer(h *Hello, id string) *refusal {
	if h.Source != id {
		return refuse(codeWrongTarget, "it is node %q: an address in the configuration leads to the wrong node", h.Source)
	}
	return t.admit(h)
}

// admit judges h and remembers its sender.
func (t *Transport) admit(h *Hello) *refusal {
	v := trust{id: t.o.NodeID, incarnation: t.o.Incarnation, nonce: t.o.Nonce, group: t.o.Group, level: t.o.Level, heartbeat: t.o.HeartbeatTimeout.Truncate(time.Microsecond), named: t.named.Load()}
	if cluster, history, ok := t.o.Cluster(); ok {
		v.cluster, v.history = cluster, history
	}
	v.record, v.recordRemoved, v.recordThere = t.o.Record(h.Source)
	v.alive = func(p process) bool { return t.conns.heard(h.Source, p, t.o.Clock.Boot()-t.silence()) }
	v.held, v.heldTerm = t.mustHold(h)
	r, err := t.book.admit(h, v)
	if err != nil {
		t.log.Error("cannot bind another node to its data directory", "peer", h.Source, "error", err)
	}
	return r
}

// hello says who this node is.
func (t *Transport) hello(purpose Purpose, to string) Hello {
	known := t.book.read()
	h := Hello{
		Purpose: purpose, Group: t.o.Group, Target: to, Source: t.o.NodeID,
		Incarnation: t.o.Incarnation, Starts: t.o.Starts, Nonce: t.o.Nonce, Lineage: t.o.Lineage, Address: string(t.o.Address),
		Cluster: known.cluster, History: known.history, Founders: known.certainHash(t.named.Load()),
		Level: t.o.Level, StateLevel: t.o.StateLevel(), Heartbeat: t.o.HeartbeatTimeout.Truncate(time.Microsecond), Card: t.o.Card,
	}
	if cluster, history, ok := t.o.Cluster(); ok {
		h.Cluster, h.History = cluster, history
	}
	if t.o.LogEnd != nil {
		h.LastIndex, h.LastTerm, h.LogTold = t.o.LogEnd()
	}
	return h
}

func (t *Transport) userTimeout() time.Duration {
	return min(max(3*t.o.HeartbeatTimeout, 2*time.Second), 10*time.Second)
}

// stale tells whether err is how a pooled connection fails whose other end has gone since it was last
// used, and not how a new one does.
func stale(err error) bool {
	var dial *dialError
	if err == nil || errors.As(err, &dial) {
		return false
	}
	for _, sign := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, io.ErrClosedPipe, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, sign) {
			return true
		}
	}
	return false
}
