package peer

import (
	"bufio"
	"errors"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// callee is whom a call goes to.
type callee struct {
	id      raft.ServerID
	address raft.ServerAddress
}

// caller is a connection for calls: one at a time.
type caller struct {
	c *conn
	r *bufio.Reader
	w messageWriter
}

// callers keeps the connections that no call uses now.
type callers struct {
	mu sync.Mutex
	// Guarded by mu.
	idle map[callee][]*caller
}

// take gives the connection that was used last, or nil.
func (p *callers) take(to callee) *caller {
	p.mu.Lock()
	defer p.mu.Unlock()
	idle := p.idle[to]
	if len(idle) == 0 {
		return nil
	}
	c := idle[len(idle)-1]
	idle[len(idle)-1] = nil
	p.idle[to] = idle[:len(idle)-1]
	return c
}

// moved takes out the connections to a node at other addresses than this one, where it is no more.
func (p *callers) moved(to callee) (old []*caller) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, idle := range p.idle {
		if c.id == to.id && c.address != to.address {
			old = append(old, idle...)
			delete(p.idle, c)
		}
	}
	return old
}

// put keeps a connection; false if there are enough.
func (p *callers) put(to callee, c *caller) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle[to]) >= poolMax {
		return false
	}
	p.idle[to] = append(p.idle[to], c)
	return true
}

// exchange sends one of raft's calls and waits for the answer. After an error that is not a remoteError the call may
// have been delivered or not, unless it is a dialError.
func (t *Transport) exchange(to callee, args, resp any) error {
	c := t.callers.take(to)
	if c == nil {
		dialled, err := t.dial(t.ctx, string(to.id), string(to.address), PurposeRaft, true)
		if err != nil {
			return err
		}
		for _, old := range t.callers.moved(to) {
			closeQuietly(t, old.c)
		}
		c = &caller{c: dialled, r: bufio.NewReaderSize(dialled, 4<<10), w: messageWriter{w: dialled}}
	}
	err := c.exchange(args, resp)
	var remote remoteError
	if err != nil && !errors.As(err, &remote) || !t.callers.put(to, c) {
		closeQuietly(t, c.c)
	}
	return err
}

func (c *caller) exchange(args, resp any) error {
	if err := c.w.call(args); err != nil {
		return err
	}
	kind, body, err := readMessage(c.r, answerBytesMax)
	if err != nil {
		return err
	}
	return decodeAnswer(kind, body, resp)
}

// serveCalls answers the calls that come on a connection, until it ends. The goroutine that reads a call hands it to
// raft itself and writes the answer: each switch of goroutines costs a lone write about as much as its message does.
func (t *Transport) serveCalls(c *conn) {
	defer closeQuietly(t, c)
	r := bufio.NewReaderSize(c, 64<<10)
	w := messageWriter{w: c}
	answers := make(chan raft.RPCResponse, 1) // raft gives each call one answer, and the next call waits for it
	for {
		err := t.serveCall(r, &w, answers)
		if err == nil {
			continue
		}
		switch {
		case t.ctx.Err() != nil, errors.Is(err, io.EOF):
		case errors.Is(err, errMessage):
			t.log.Warn("closing a connection of another node: what it sent cannot be read", "peer", c.peer, "error", err)
		default:
			t.log.Debug("a connection of another node has ended", "peer", c.peer, "error", err)
		}
		return
	}
}

func (t *Transport) serveCall(r *bufio.Reader, w *messageWriter, answers chan raft.RPCResponse) error {
	kind, body, err := readMessage(r, messageBytesMax)
	if err != nil {
		return err
	}
	args, err := decodeCall(kind, body)
	if err != nil {
		return err
	}
	t.deliver(raft.RPC{Command: args, RespChan: answers})
	select {
	case a := <-answers:
		return w.answer(&a)
	case <-t.ctx.Done():
		return ErrClosed
	}
}
