package peer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"kvstore/internal/clock"
)

func TestAppendEntries_SlowPeer_AckCarriesTheTimeBeforeSending(t *testing.T) {
	clk := clock.NewManual(time.Time{})
	clk.Advance(time.Hour)
	acks := make(chan Ack, 1)
	a, b := pair(t, func(a, _ *Options) { a.Clock, a.OnAck = clk, func(k Ack) { acks <- k } }, func(rpc raft.RPC) {
		clk.Advance(time.Second) // on the way, and until the answer
		agree(rpc)
	})
	if err := beat(a, b, 7); err != nil {
		t.Fatal(err)
	}
	if got, want := <-acks, (Ack{Peer: "node-2", Term: 7, SentAt: int64(time.Hour)}); got != want {
		t.Errorf("heartbeat: %+v, want %+v", got, want)
	}
	for _, c := range []struct {
		entries []*raft.Log
		match   uint64
	}{{nil, 10}, {entries(11, 1, 1, 1), 13}} {
		sent := clk.Boot()
		var resp raft.AppendEntriesResponse
		if err := a.AppendEntries("node-2", b.LocalAddr(), &raft.AppendEntriesRequest{RPCHeader: a.header(), Term: 7, PrevLogEntry: 10, Entries: c.entries}, &resp); err != nil {
			t.Fatal(err)
		}
		if got, want := <-acks, (Ack{Peer: "node-2", Term: 7, SentAt: int64(sent), Match: c.match}); got != want {
			t.Errorf("%d entries: %+v, want %+v", len(c.entries), got, want)
		}
	}
}

func TestAppendEntries_AnswerThatIsNoSuccessInTheTerm_IsNoAck(t *testing.T) {
	var answer atomic.Pointer[raft.RPCResponse]
	a, b := pair(t, func(a, _ *Options) { a.OnAck = func(k Ack) { t.Errorf("acked: %+v", k) } }, func(rpc raft.RPC) {
		rpc.RespChan <- *answer.Load()
	})
	for name, r := range map[string]raft.RPCResponse{
		"no success":   {Response: &raft.AppendEntriesResponse{Term: 7}},
		"another term": {Response: &raft.AppendEntriesResponse{Term: 8, Success: true}},
		"error":        {Response: &raft.AppendEntriesResponse{Term: 7, Success: true}, Error: errors.New("no")},
	} {
		answer.Store(&r)
		resp := raft.AppendEntriesResponse{Success: true, LastLog: 99, NoRetryBackoff: true} // what an earlier call left
		err := a.AppendEntries("node-2", b.LocalAddr(), heartbeat(a, 7), &resp)
		want := r.Response.(*raft.AppendEntriesResponse)
		if (err != nil) != (r.Error != nil) || resp.Success != want.Success || resp.Term != want.Term || resp.LastLog != 0 || resp.NoRetryBackoff {
			t.Errorf("%s: %+v, %v", name, resp, err)
		}
	}
}

func TestAppendEntries_LargeRequest_GoesOutInPieces(t *testing.T) {
	type piece struct {
		prev, prevTerm uint64
		n              int
	}
	got := make(chan piece, 10)
	var fail atomic.Uint64
	var acks []uint64
	a, b := pair(t, func(a, _ *Options) {
		a.AppendBytes = 100
		a.OnAck = func(k Ack) { acks = append(acks, k.Match) }
	}, func(rpc raft.RPC) {
		req := rpc.Command.(*raft.AppendEntriesRequest)
		got <- piece{req.PrevLogEntry, req.PrevLogTerm, len(req.Entries)}
		rpc.Respond(&raft.AppendEntriesResponse{Term: req.Term, Success: req.PrevLogEntry != fail.Load(), LastLog: 5}, nil)
	})
	send := func() (raft.AppendEntriesResponse, []piece) {
		acks = nil
		var resp raft.AppendEntriesResponse
		req := &raft.AppendEntriesRequest{RPCHeader: a.header(), Term: 7, PrevLogEntry: 10, PrevLogTerm: 6, Entries: entries(11, 50, 50, 200, 1, 99, 1)}
		if err := a.AppendEntries("node-2", b.LocalAddr(), req, &resp); err != nil {
			t.Fatal(err)
		}
		if len(req.Entries) != 6 || req.PrevLogEntry != 10 {
			t.Errorf("the caller's request was changed: %+v", req)
		}
		var all []piece
		for len(got) > 0 {
			all = append(all, <-got)
		}
		return resp, all
	}
	resp, all := send()
	if want := []piece{{10, 6, 2}, {12, 1, 1}, {13, 1, 2}, {15, 1, 1}}; !slices.Equal(all, want) || !resp.Success {
		t.Errorf("pieces %+v, want %+v; %+v", all, want, resp)
	}
	if want := []uint64{12, 13, 15, 16}; !slices.Equal(acks, want) {
		t.Errorf("acks up to %v, want %v", acks, want)
	}
	fail.Store(12)
	resp, all = send()
	if len(all) != 2 || resp.Success || resp.LastLog != 5 || !slices.Equal(acks, []uint64{12}) {
		t.Errorf("second piece failed: %+v, %+v, acks %v", all, resp, acks)
	}
}

func TestCall_PeerRestarted_IsNotLostToPooledConnections(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	a := open(t, oa)
	for round := range 3 {
		if round > 0 {
			ob.Listener = relisten(t, ob.Address)
		}
		b := open(t, ob)
		b.Bind(newFakeNode(1))
		if round > 0 {
			serve(t, b, agree)
			if granted, err := askVote(a, b, 2, false); !granted || err != nil {
				t.Fatalf("round %d: the first vote after a restart: %v, %v", round, granted, err)
			}
		}
		// Fill the pool: poolMax calls at once.
		release, arrived := make(chan struct{}), make(chan struct{}, poolMax)
		if round == 0 {
			serve(t, b, func(rpc raft.RPC) {
				arrived <- struct{}{}
				go func() { <-release; agree(rpc) }() // owned by the test; ends with release
			})
			done := make(chan error, poolMax)
			for range poolMax {
				go func() { done <- beat(a, b, 1) }() // owned by the test; ends with release
			}
			for range poolMax {
				select {
				case <-arrived:
				case err := <-done:
					t.Fatal(err)
				}
			}
			close(release)
			for range poolMax {
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	resp := raft.AppendEntriesResponse{Success: true, Term: 2} // what an earlier call left
	if err := a.AppendEntries("node-2", ob.Address, heartbeat(a, 2), &resp); err == nil || resp.Success {
		t.Errorf("peer is down: %v, %+v", err, resp)
	}
	if _, err := askVote(a, &Transport{o: ob}, 2, false); err == nil || !strings.Contains(err.Error(), "cannot reach node") {
		t.Errorf("peer is down: %v", err)
	}
}

func TestCall_PeerMoved_ConnectionsToItsOldAddressAreGivenUp(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	a := open(t, oa)
	var addresses []raft.ServerAddress
	for round := range 2 {
		if round > 0 {
			ob.Listener = newListener(t)
			ob.Address = raft.ServerAddress(ob.Listener.Addr().String())
		}
		b := open(t, ob)
		b.Bind(newFakeNode(1))
		serve(t, b, agree)
		if err := beat(a, b, 1); err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, b.LocalAddr())
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	a.callers.mu.Lock()
	defer a.callers.mu.Unlock()
	if len(a.callers.idle[callee{"node-2", addresses[1]}]) != 1 || len(a.callers.idle) != 1 {
		t.Errorf("it keeps %v", a.callers.idle)
	}
}

func TestVotes_NodeMayNotCampaign_AsksNobody(t *testing.T) {
	a, b := pair(t, func(a, _ *Options) { a.MayCampaign = func() error { return errors.New("disk: unexpected command") } }, func(raft.RPC) {
		t.Error("a message came through")
	})
	b.Bind(newFakeNode(1))
	if granted, err := askVote(a, b, 2, false); granted || err == nil {
		t.Errorf("vote: %v, %v", granted, err)
	}
	if granted, err := askPreVote(a, b, 2); granted || err == nil || strings.Contains(err.Error(), libraryUnknown) {
		t.Errorf("pre-vote: %v, %v", granted, err)
	}
}

// The library counts an error with these words as a granted pre-vote, whoever wrote them.
func TestRequestPreVote_ErrorWithTheLibrarysWords_IsNoVote(t *testing.T) {
	a, b := pair(t, nil, func(rpc raft.RPC) {
		rpc.Respond(&raft.RequestPreVoteResponse{}, fmt.Errorf("an %s", libraryUnknown))
	})
	b.Bind(newFakeNode(1))
	if granted, err := askPreVote(a, b, 2); granted || err == nil || strings.Contains(err.Error(), libraryUnknown) {
		t.Errorf("%v, %v", granted, err)
	}
}
