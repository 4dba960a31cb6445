package peer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/hashicorp/raft"
)

// A snapshot travels on a connection of its own (purpose "install"): a frame with the request, the
// snapshot, which delimits itself, and a frame with the answer, which may come at any moment. The library
// would put it into a call with a deadline of days, and after a snapshot that was not read to its end it
// would take the rest for messages.

// installRequest is raft's request as JSON. Size is about how much the state takes up, not the length of the
// stream, which nobody knows beforehand.
type installRequest struct {
	ProtocolVersion    raft.ProtocolVersion `json:"protocol_version"`
	ID                 []byte               `json:"id"`
	Addr               []byte               `json:"addr"`
	SnapshotVersion    raft.SnapshotVersion `json:"snapshot_version"`
	Term               uint64               `json:"term"`
	Leader             []byte               `json:"leader"`
	LastLogIndex       uint64               `json:"last_log_index"`
	LastLogTerm        uint64               `json:"last_log_term"`
	Configuration      []byte               `json:"configuration"`
	ConfigurationIndex uint64               `json:"configuration_index"`
	Size               int64                `json:"size"`
}

func newInstallRequest(r *raft.InstallSnapshotRequest) *installRequest {
	return &installRequest{
		ProtocolVersion: r.ProtocolVersion, ID: r.ID, Addr: r.Addr,
		SnapshotVersion: r.SnapshotVersion, Term: r.Term, Leader: r.Leader,
		LastLogIndex: r.LastLogIndex, LastLogTerm: r.LastLogTerm,
		Configuration: r.Configuration, ConfigurationIndex: r.ConfigurationIndex, Size: r.Size,
	}
}

func (r *installRequest) raft() *raft.InstallSnapshotRequest {
	return &raft.InstallSnapshotRequest{
		RPCHeader:       raft.RPCHeader{ProtocolVersion: r.ProtocolVersion, ID: r.ID, Addr: r.Addr},
		SnapshotVersion: r.SnapshotVersion, Term: r.Term, Leader: r.Leader,
		LastLogIndex: r.LastLogIndex, LastLogTerm: r.LastLogTerm,
		Configuration: r.Configuration, ConfigurationIndex: r.ConfigurationIndex, Size: max(r.Size, 0),
	}
}

// installAnswer is raft's answer as JSON.
type installAnswer struct {
	Error   string `json:"error,omitempty"`
	Term    uint64 `json:"term"`
	Success bool   `json:"success"`
}

var (
	errStale    = errors.New("the snapshot comes from a leader of an older term")
	errLeftOver = errors.New("the snapshot is longer than it says")
	errStalled  = errors.New("the snapshot's stream stalled")
)

// InstallSnapshot implements raft.Transport. data delimits itself; args.Size tells the receiver about how much
// the state takes up.
func (t *Transport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	*resp = raft.InstallSnapshotResponse{}
	c, err := t.dial(t.ctx, string(id), string(to), PurposeInstall, true)
	if err != nil {
		return err
	}
	defer closeQuietly(t, c)

	got := make(chan installed, 1)
	go func() { got <- readInstalled(c) }() // owned by this call; ends when c is closed

	a, err := t.sendSnapshot(c, args, data, got)
	switch {
	case err != nil:
		return fmt.Errorf("cannot send a snapshot to node %q: %w", id, err)
	case a.Error != "":
		return fmt.Errorf("node %q did not install the snapshot: %s", id, a.Error)
	}
	resp.RPCHeader = raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(to)}
	resp.Term, resp.Success = a.Term, a.Success
	return nil
}

// installed is the answer, or why there is none.
type installed struct {
	answer installAnswer
	err    error
}

func readInstalled(c *conn) (in installed) {
	in.err = readFrame(c, kindInstalled, helloBytesMax, &in.answer)
	return in
}

// sendSnapshot sends until the end or until the receiver has answered, whichever comes first.
func (t *Transport) sendSnapshot(c *conn, args *raft.InstallSnapshotRequest, data io.Reader, got <-chan installed) (installAnswer, error) {
	frame, err := appendFrame(nil, kindInstall, newInstallRequest(args))
	if err != nil {
		return installAnswer{}, err
	}
	if len(frame) > frameHeader+installRequestBytesMax {
		return installAnswer{}, fmt.Errorf("BUG: request of %d bytes", len(frame))
	}
	broken := t.writeStep(c, frame)
	if broken == nil {
		var in installed
		var answered bool
		if in, answered, broken, err = t.pour(c, data, got); answered {
			return in.answer, in.err
		} else if err != nil {
			return installAnswer{}, err
		}
	}
	wait := t.o.InstallTimeout
	if broken != nil {
		// The receiver may have said why it went away.
		wait = min(t.o.Timeout, time.Second)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case in := <-got:
		if in.err != nil && broken != nil {
			return in.answer, broken
		}
		return in.answer, in.err
	case <-timer.C:
		if broken != nil {
			return installAnswer{}, broken
		}
		return installAnswer{}, fmt.Errorf("it was not installed within %v", wait)
	case <-t.ctx.Done():
		return installAnswer{}, ErrClosed
	}
}

// writeStep writes b, which must be taken within StallTimeout.
func (t *Transport) writeStep(c *conn, b []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(t.o.StallTimeout)); err != nil {
		return err
	}
	_, err := c.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: the receiver took nothing for %v", errStalled, t.o.StallTimeout)
	}
	return err
}

// pour writes data to c, at no more than the rate, until its end, until an answer comes, until the connection
// is broken, or until data can't be read (err).
func (t *Transport) pour(c *conn, data io.Reader, got <-chan installed) (in installed, answered bool, broken, err error) {
	buf := make([]byte, t.sending.piece())
	for {
		select {
		case in := <-got:
			return in, true, nil, nil
		default:
		}
		n, err := data.Read(buf)
		if n > 0 {
			if err := t.sending.take(t.ctx, n); err != nil {
				return in, false, ErrClosed, nil
			}
			if broken := t.writeStep(c, buf[:n]); broken != nil {
				return in, false, broken, nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return in, false, nil, nil
		case err != nil:
			return in, false, nil, fmt.Errorf("cannot read it: %w", err)
		}
	}
}

// serveInstall is the receiving side. It runs in the goroutine of the connection, so raft goes on to
// answer heartbeats while the snapshot comes in.
func (t *Transport) serveInstall(c *conn, from string) {
	defer closeQuietly(t, c)
	// A read that waits for the next byte ends with Close, because that closes all connections.
	a, err := t.takeSnapshot(c, from)
	if err != nil {
		t.log.Warn("did not install a snapshot", "from", from, "error", err)
		text := err.Error()
		a.Error = text[:min(len(text), refusalBytesMax)]
	}
	frame, err := appendFrame(nil, kindInstalled, &a)
	if err == nil {
		if err = c.SetDeadline(time.Now().Add(t.o.Timeout)); err == nil {
			_, err = c.Write(frame)
		}
	}
	if err != nil {
		t.log.Debug("cannot answer a snapshot", "from", from, "error", err)
		return
	}
	linger(c)
}

// linger lets the answer arrive: closing a socket with unread bytes would reset the connection and could
// take the answer with it. It ends when the sender closes, or after a second.
func linger(c *conn) {
	if tcp, ok := c.Conn.(*net.TCPConn); ok && tcp.CloseWrite() != nil {
		return
	}
	if c.SetDeadline(time.Now().Add(time.Second)) != nil {
		return
	}
	io.Copy(io.Discard, c) //nolint:errcheck // whatever comes is not wanted any more
}

func (t *Transport) takeSnapshot(c *conn, from string) (installAnswer, error) {
	var wire installRequest
	if err := c.SetReadDeadline(time.Now().Add(t.o.StallTimeout)); err != nil {
		return installAnswer{}, err
	}
	if err := readFrame(c, kindInstall, installRequestBytesMax, &wire); err != nil {
		return installAnswer{}, fmt.Errorf("cannot read the request: %w", err)
	}
	req := wire.raft()
	if string(req.ID) != from {
		return installAnswer{}, fmt.Errorf("the request is from %.80q, the connection from %q", req.ID, from)
	}
	n := t.bound()
	if n == nil {
		return installAnswer{}, errUnbound
	}
	// What is true now stays true: there is no need to receive it all to find that out.
	if a, done := t.covered(n, req); done {
		return a, nil
	}
	if !t.installing.CompareAndSwap(false, true) {
		return installAnswer{}, errors.New("another snapshot is on its way already")
	}
	defer t.installing.Store(false)

	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	s := &snapshotStream{t: t, c: c, current: func() error {
		if n.CurrentTerm() > req.Term {
			return errStale
		}
		return nil
	}}
	r := bufio.NewReaderSize(s, connChunk)
	p, err := t.o.Receive(ctx, req, r)
	if err != nil {
		if n.CurrentTerm() > req.Term { // errStale, however it was wrapped
			return installAnswer{Term: n.CurrentTerm()}, nil
		}
		return installAnswer{}, err
	}
	// Discard runs unless raft took the snapshot, or still has the request when the transport closes.
	discard := true
	defer func() {
		if discard && p.Discard != nil {
			p.Discard()
		}
	}()
	switch {
	case r.Buffered() > 0:
		return installAnswer{}, errLeftOver
	case len(p.Descriptor) == 0 || len(p.Descriptor) > descriptorBytesMax:
		return installAnswer{}, fmt.Errorf("BUG: descriptor of %d bytes", len(p.Descriptor))
	}
	job := &installJob{req: req, descriptor: p.Descriptor, done: make(chan installDone, 1)}
	select {
	case t.installs <- job:
	case <-t.ctx.Done():
		return installAnswer{}, ErrClosed
	}
	d := <-job.done // finish always answers
	discard = !d.taken
	return d.answer, d.err
}

// covered tells whether the snapshot is not needed, with the answer to it: this node has all of it, or
// has learnt of a newer leader.
func (t *Transport) covered(n Node, req *raft.InstallSnapshotRequest) (installAnswer, bool) {
	current := n.CurrentTerm()
	if req.Term < current {
		return installAnswer{Term: current}, true
	}
	// The snapshot is committed state. If this node's state is past it, or its log holds the snapshot's
	// last entry, and with it all before, then installing could only lose entries that it has acknowledged.
	term, there := n.EntryTerm(req.LastLogIndex)
	if n.Applied() >= req.LastLogIndex || there && term == req.LastLogTerm {
		return installAnswer{Term: current, Success: true}, true
	}
	return installAnswer{}, false
}

// installJob is a received snapshot on its way through feed.
type installJob struct {
	req        *raft.InstallSnapshotRequest
	descriptor []byte
	done       chan installDone // capacity 1
}

type installDone struct {
	answer installAnswer
	err    error
	// taken: raft has the snapshot, or may still take it.
	taken bool
}

// finish gives a received snapshot to raft, unless raft has caught up by other ways meanwhile. Nothing
// else reaches raft before it has answered.
func (t *Transport) finish(job *installJob) {
	n := t.bound()
	if !t.settle() {
		job.done <- installDone{err: ErrClosed}
		return
	}
	if a, done := t.covered(n, job.req); done {
		job.done <- installDone{answer: a}
		return
	}
	req := *job.req
	req.Size = int64(len(job.descriptor))
	answered := make(chan raft.RPCResponse, 1)
	if !t.forward(raft.RPC{Command: &req, Reader: bytes.NewReader(job.descriptor), RespChan: answered}) {
		job.done <- installDone{err: ErrClosed}
		return
	}
	select {
	case r := <-answered:
		d := installDone{err: r.Error}
		if resp, ok := r.Response.(*raft.InstallSnapshotResponse); ok {
			d.answer = installAnswer{Term: resp.Term, Success: resp.Success}
			d.taken = resp.Success
		}
		job.done <- d
	case <-t.ctx.Done():
		job.done <- installDone{err: ErrClosed, taken: true}
	}
}

// snapshotStream is a snapshot as it arrives, at no more than the rate: it ends when nothing comes any more, and
// when nobody wants it any more, as when this node learns of a newer leader, which may want to send one of its own.
type snapshotStream struct {
	t       *Transport
	c       *conn
	current func() error
}

// Read implements io.Reader.
func (s *snapshotStream) Read(b []byte) (int, error) {
	if err := s.current(); err != nil {
		return 0, err
	}
	stall := s.t.o.StallTimeout
	if err := s.c.SetReadDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	n, err := s.c.Read(b[:min(len(b), s.t.receiving.piece())])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w: nothing came for %v", errStalled, stall)
	}
	if s.t.receiving.take(s.t.ctx, n) != nil {
		err = ErrClosed
	}
	return n, err
}
