package peer

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"kvstore/internal/failpoint"
)

var errUnbound = errors.New("this node is only just starting")

// deliver gives the call of another node to raft, or answers it. It waits until raft takes it; once the transport is
// closed the call is dropped.
func (t *Transport) deliver(rpc raft.RPC) {
	t.pass(func() { t.filter(rpc) })
}

// pass calls f with the gate held; false if the transport was closed meanwhile.
func (t *Transport) pass(f func()) bool {
	select {
	case t.gate <- struct{}{}:
		f()
		<-t.gate
		return true
	case <-t.ctx.Done():
		return false
	}
}

// feed gives raft what comes neither as a call of another node nor from raft itself.
func (t *Transport) feed() {
	defer t.wg.Done()
	for {
		select {
		case <-t.ctx.Done():
			return
		case rpc := <-t.self:
			t.pass(func() { t.forward(rpc) })
		case job := <-t.installs:
			if !t.pass(func() { t.finish(job) }) {
				job.done <- installDone{err: ErrClosed}
			}
		}
	}
}

// forward gives a message to raft; false if the transport was closed meanwhile. REQUIRES: gate held.
func (t *Transport) forward(rpc raft.RPC) bool {
	select {
	case t.out <- rpc:
		return true
	case <-t.ctx.Done():
		return false
	}
}

// settle waits until raft has done everything that it was given before; false if the transport was
// closed meanwhile. raft works on one message at a time, so it is enough to wait for the answer to one
// more: an AppendEntries of term 0, which it rejects without a trace because its term is older. (In term
// 0 itself it would be accepted as a heartbeat of nobody: nothing has happened yet that this could undo.)
func (t *Transport) settle() bool {
	answered := make(chan raft.RPCResponse, 1)
	probe := raft.RPC{
		Command:  &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}},
		RespChan: answered,
	}
	if !t.forward(probe) {
		return false
	}
	select {
	case <-answered:
		return true
	case <-t.ctx.Done():
		return false
	}
}

// filter passes a message of another node on, answers it itself, or changes it. REQUIRES: gate held.
func (t *Transport) filter(rpc raft.RPC) {
	switch req := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		t.filterAppend(rpc, req)
		return
	case *raft.RequestVoteRequest:
		n, err := t.mayVote()
		switch {
		case err != nil:
			rpc.Respond(&raft.RequestVoteResponse{RPCHeader: t.header()}, err)
			return
		case n == nil:
			rpc.Respond(&raft.RequestVoteResponse{RPCHeader: t.header()}, nil)
			return
		}
		// The flag makes raft break its promise to wait for its leader. That leader has given its lease up
		// if the candidate stands in the very next term; another one has not.
		req.LeadershipTransfer = req.LeadershipTransfer && req.Term == n.CurrentTerm()+1
	case *raft.RequestPreVoteRequest:
		n, err := t.mayVote()
		switch {
		case err != nil:
			rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: t.header()}, err)
			return
		case n == nil:
			rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: t.header()}, nil)
			return
		}
	case *raft.TimeoutNowRequest:
		if err := t.heed(req); err != nil {
			rpc.Respond(&raft.TimeoutNowResponse{RPCHeader: t.header()}, err)
			return
		}
	}
	t.forward(rpc)
}

// mayVote returns this node's raft if it may vote. While votes are held back it returns neither: the
// answer is then a plain "not granted", of term 0, which changes nothing at the candidate.
func (t *Transport) mayVote() (Node, error) {
	n := t.bound()
	if n == nil {
		return nil, errUnbound
	}
	if time.Now().Before(t.holdUntil) {
		return nil, nil
	}
	return n, nil
}

// heed decides on a TimeoutNow. Its sender's lease is revoked only in the sender's own term.
func (t *Transport) heed(req *raft.TimeoutNowRequest) error {
	plain, term, ok := unstamp(req.Addr)
	n := t.bound()
	switch {
	case n == nil:
		return errUnbound
	case !ok:
		return fmt.Errorf("the request to take over carries no term: %.300q", req.Addr)
	}
	if err := t.o.MayCampaign(); err != nil {
		return fmt.Errorf("this node does not stand for election: %w", err)
	}
	if current := n.CurrentTerm(); term != current {
		return fmt.Errorf("the request to take over is of term %d, this node is in term %d", term, current)
	}
	// raft may still move to another term before it sees the message. RequestVote compares with this.
	t.ordered.Store(term)
	t.orders++
	t.standing.Store(t.orders)
	req.Addr = plain
	return nil
}

// noRoom begins the error with which entries are refused while Options.Storing does not allow them.
const noRoom = "this node stores no entries now"

// storing asks Options.Storing.
func (t *Transport) storing(size int64) error {
	if err := t.o.Storing(size); err != nil {
		return fmt.Errorf("%s: %w", noRoom, err)
	}
	return nil
}

// commandBytes returns the bytes of the commands among entries. The others, of raft's own, are small and few:
// a leader needs them to lead and to change the membership, which may be what ends the want of room.
func commandBytes(entries []*raft.Log) (size int64) {
	for _, e := range entries {
		if e.Type == raft.LogCommand {
			size += int64(len(e.Data) + len(e.Extensions))
		}
	}
	return size
}

// filterAppend answers a question about room, refuses what there is no room for, clamps the commit index, and holds the answer back while too much waits to be applied.
func (t *Transport) filterAppend(rpc raft.RPC, req *raft.AppendEntriesRequest) {
	if size, ok := asksForRoom(req); ok {
		rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: t.header()}, t.storing(size))
		return
	}
	leaderCommit := req.LeaderCommitIndex
	// raft commits up to the smaller of this and its own last index, also where that lies behind the
	// entries that this message has compared: a tail that an older leader left there would be committed.
	if verified := req.PrevLogEntry + uint64(len(req.Entries)); req.LeaderCommitIndex > verified {
		req.LeaderCommitIndex = verified
	}
	n := t.bound()
	if n == nil || req.Term < n.CurrentTerm() {
		t.forward(rpc)
		return
	}
	if req.PrevLogEntry > 0 && t.o.Covers(req.PrevLogEntry, req.PrevLogTerm) {
		req.PrevLogEntry, req.PrevLogTerm = 0, 0 // raft compares nothing then; after the clamp, which counts on it
	}
	// A leader has stored what it has committed.
	if leader := string(req.ID); leaderCommit > 0 {
		if p, ok := t.counted(leader); ok {
			t.noteHeld(leader, p, leaderCommit)
		}
	}
	if size := commandBytes(req.Entries); size > 0 {
		if err := t.storing(size); err != nil {
			rpc.Respond(&raft.AppendEntriesResponse{RPCHeader: t.header()}, err)
			return
		}
	}
	h := heldAnswer{n: n, term: req.Term, to: rpc.RespChan, standing: t.standing.Load()}
	over := false
	if len(req.Entries) > 0 {
		t.waiting.note(req, n.Applied())
		h.until, over = t.waiting.over(t.o.HoldBytes, heldAppendsMax)
	}
	h.stored = failpoint.Enabled && len(req.Entries) > 0
	if !over && h.standing == 0 && !h.stored {
		t.forward(rpc)
		return
	}
	own := make(chan raft.RPCResponse, 1)
	h.from, h.deadline = own, time.Now().Add(t.o.Timeout/2)
	held := rpc
	held.RespChan = own
	t.wg.Add(1)
	go t.hold(&h) // owned by Transport; ends with the answer or Close
	t.forward(held)
}

// heldAnswer is the answer to an AppendEntries on its way. Immutable.
type heldAnswer struct {
	n    Node
	from <-chan raft.RPCResponse
	to   chan<- raft.RPCResponse
	// until is what must be applied before a success may go, at the latest at deadline; 0: nothing. Otherwise
	// raft's main goroutine, which answers heartbeats too, would stop in the end if the leader went on.
	until    uint64
	deadline time.Time
	// term is that of the request. standing: raft may still stand in the election that the TimeoutNow of this
	// number asked for; 0: in none.
	term     uint64
	standing uint64
	// stored: the answer passes a failpoint.
	stored bool
}

var errStanding = errors.New("this node stands for election and promises nothing")

// hold passes an answer on once this node has applied what it must have, or at the deadline.
//
// A candidate by order stays one when the leader of its own term writes to it, unlike any other: it answers
// with success, and stands again whenever its time is over, although the leader takes the answer for the
// promise to wait. Such an answer becomes an error.
func (t *Transport) hold(h *heldAnswer) {
	defer t.wg.Done()
	var answer raft.RPCResponse
	select {
	case answer = <-h.from:
	case <-t.ctx.Done():
		return
	}
	if r, ok := answer.Response.(*raft.AppendEntriesResponse); ok && r.Success {
		for h.n.Applied() < h.until && time.Now().Before(h.deadline) {
			if !pause(t.ctx, holdPoll) {
				return
			}
		}
		if h.standing != 0 {
			if h.n.Follows() && h.n.CurrentTerm() == h.term {
				// That is over: the request was given to raft after the order.
				t.standing.CompareAndSwap(h.standing, 0)
			} else {
				answer = raft.RPCResponse{Response: &raft.AppendEntriesResponse{RPCHeader: t.header()}, Error: errStanding}
			}
		}
		if h.stored && answer.Error == nil {
			if err := failpoint.Err(failpoint.AckBefore); err != nil {
				answer = raft.RPCResponse{Response: &raft.AppendEntriesResponse{RPCHeader: t.header()}, Error: err}
			}
		}
	}
	h.to <- answer // one answer per message, and the channel holds one
}
