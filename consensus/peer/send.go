package peer

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"
)

// call makes one call of raft's, again with another connection if the pool held one whose other end
// has gone: without this a candidate would lose a vote, and a whole election timeout, to a node that was
// restarted since they last talked. All calls may be delivered twice.
func (t *Transport) call(id raft.ServerID, to raft.ServerAddress, args, resp any) error {
	for attempt := 0; ; attempt++ {
		err := t.exchange(callee{id, to}, args, resp)
		if attempt == poolMax || !stale(err) {
			return err
		}
		if t.ctx.Err() != nil {
			return ErrClosed
		}
	}
}

// AppendEntriesPipeline implements raft.Transport. There is no pipeline: as raft drives one, one answer
// without success can stop replication to a follower for ever (hashicorp/raft #612).
func (t *Transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries implements raft.Transport. Large requests go out in pieces, one after the other.
func (t *Transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	for led := t.led.Load(); led < args.Term && !t.led.CompareAndSwap(led, args.Term); led = t.led.Load() {
	}
	rest := args.Entries
	for first := true; ; first = false {
		n := t.pieceLen(rest)
		if first && n == len(rest) {
			return t.appendPiece(id, to, args, resp)
		}
		piece := *args
		piece.Entries = rest[:n]
		if !first {
			last := args.Entries[len(args.Entries)-len(rest)-1]
			piece.PrevLogEntry, piece.PrevLogTerm = last.Index, last.Term
		}
		if err := t.appendPiece(id, to, &piece, resp); err != nil {
			return err
		}
		if rest = rest[n:]; len(rest) == 0 || !resp.Success || resp.Term != args.Term {
			return nil
		}
	}
}

// pieceLen returns how many of the entries go into one message.
func (t *Transport) pieceLen(entries []*raft.Log) int {
	var size int64
	for i, e := range entries {
		size += int64(len(e.Data) + len(e.Extensions))
		if i > 0 && size > t.o.AppendBytes {
			return i
		}
	}
	return len(entries)
}

func (t *Transport) appendPiece(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	size := commandBytes(args.Entries)
	if size > 0 && t.isFull(id) {
		if err := t.askForRoom(id, to, size); err != nil {
			return err
		}
	}
	// raft's heartbeat loop reuses one response, and looks at it after a call that failed.
	*resp = raft.AppendEntriesResponse{}
	sentAt := int64(t.o.Clock.Boot()) // before the first attempt: what a later one allows is more
	if err := t.call(id, to, args, resp); err != nil {
		if size > 0 && strings.HasPrefix(err.Error(), noRoom) {
			t.setFull(id, true)
		}
		return err
	}
	if resp.Success && resp.Term == args.Term {
		ack := Ack{Peer: id, Term: args.Term, SentAt: sentAt, Match: args.PrevLogEntry}
		if n := len(args.Entries); n > 0 {
			ack.Match = args.Entries[n-1].Index
		}
		t.noteAck(&ack)
		t.o.OnAck(ack)
	}
	return nil
}

// A node that has no room refuses entries (Options.Storing). Before it is sent some again it is asked whether
// it would take them: the caller tries many times a second, and they may be megabytes. The question is an
// AppendEntries of term 0 with a mark behind the address; feed answers it, and raft never sees it.

const roomMark = stampSeparator + "room?"

// asksForRoom tells whether a request is that question, and for how many bytes.
func asksForRoom(req *raft.AppendEntriesRequest) (size int64, ok bool) {
	if req.Term != 0 || len(req.Entries) != 0 {
		return 0, false
	}
	_, after, ok := strings.Cut(string(req.Addr), roomMark)
	if !ok {
		return 0, false
	}
	size, err := strconv.ParseInt(after, 10, 64)
	return size, err == nil
}

// askForRoom returns an error unless the node would store entries of size bytes.
func (t *Transport) askForRoom(id raft.ServerID, to raft.ServerAddress, size int64) error {
	h := t.header()
	h.Addr = strconv.AppendInt(append(h.Addr, roomMark...), size, 10)
	var resp raft.AppendEntriesResponse
	err := t.call(id, to, &raft.AppendEntriesRequest{RPCHeader: h}, &resp)
	if err == nil {
		t.setFull(id, false)
	}
	return err
}

func (t *Transport) isFull(id raft.ServerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.contacts[string(id)]
	return c != nil && c.full
}

func (t *Transport) setFull(id raft.ServerID, full bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.contactLocked(string(id)); c != nil {
		c.full = full
	}
}

// RequestVote implements raft.Transport. A candidate claims to stand in the leader's stead only in the
// election that a TimeoutNow from that leader asked for: voters then break the promise to wait for it.
func (t *Transport) RequestVote(id raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := t.o.MayCampaign(); err != nil {
		return fmt.Errorf("this node does not stand for election: %w", err)
	}
	if args.LeadershipTransfer && args.Term != t.ordered.Load()+1 {
		plain := *args
		plain.LeadershipTransfer = false
		args = &plain
	}
	*resp = raft.RequestVoteResponse{}
	return t.call(id, to, args, resp)
}

// libraryUnknown is the text that the library takes for "this peer is too old for pre-votes", and then
// counts as a vote, wherever in an error it stands.
const libraryUnknown = "unexpected command"

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := t.o.MayCampaign(); err != nil {
		return notUnknown(fmt.Errorf("this node does not stand for election: %w", err))
	}
	*resp = raft.RequestPreVoteResponse{}
	return notUnknown(t.call(id, to, args, resp))
}

// notUnknown keeps an error from being taken for a vote.
func notUnknown(err error) error {
	if err == nil || !strings.Contains(err.Error(), libraryUnknown) {
		return err
	}
	return errors.New(strings.ReplaceAll(err.Error(), libraryUnknown, "unknown command"))
}

// TimeoutNow implements raft.Transport. The message carries the term that this node led, because the
// library's carries none: delivered late, it would otherwise break a later leader's lease.
func (t *Transport) TimeoutNow(id raft.ServerID, to raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	// The term is that in which raft last sent as leader, not the current one: raft's goroutine may be
	// late, and this node deposed. It is read before the lease is revoked. If this node leads a newer
	// term by now, its voters are in that one too and will not heed the older stamp.
	term := t.led.Load()
	if term == 0 {
		return errors.New("cannot hand over the leadership: this node never led")
	}
	t.o.OnTimeoutNow()
	stamped := *args
	stamped.Addr = []byte(string(args.Addr) + stampSeparator + strconv.FormatUint(term, 10))
	*resp = raft.TimeoutNowResponse{}
	return t.call(id, to, &stamped, resp)
}

// unstamp splits what TimeoutNow joined.
func unstamp(addr []byte) (plain []byte, term uint64, ok bool) {
	before, after, ok := strings.Cut(string(addr), stampSeparator)
	if !ok {
		return nil, 0, false
	}
	term, err := strconv.ParseUint(after, 10, 64)
	return []byte(before), term, err == nil
}
