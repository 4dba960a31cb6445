package peer

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// pair opens two members; b's raft is what handle is.
func pair(t *testing.T, change func(a, b *Options), handle func(raft.RPC)) (a, b *Transport) {
	t.Helper()
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	if change != nil {
		change(&oa, &ob)
	}
	a, b = open(t, oa), open(t, ob)
	serve(t, b, handle)
	return a, b
}

func askVote(a, b *Transport, term uint64, transfer bool) (granted bool, err error) {
	var resp raft.RequestVoteResponse
	req := &raft.RequestVoteRequest{RPCHeader: a.header(), Term: term, LeadershipTransfer: transfer}
	err = a.RequestVote("node-2", b.LocalAddr(), req, &resp)
	return resp.Granted, err
}

func askPreVote(a, b *Transport, term uint64) (granted bool, err error) {
	var resp raft.RequestPreVoteResponse
	err = a.RequestPreVote("node-2", b.LocalAddr(), &raft.RequestPreVoteRequest{RPCHeader: a.header(), Term: term}, &resp)
	return resp.Granted, err
}

func TestVotes_AfterARestart_AreHeldBackThenGranted(t *testing.T) {
	a, b := pair(t, func(_, b *Options) { b.HoldVotes = time.Hour }, agree)
	for name, ask := range map[string]func() (bool, error){
		"vote":     func() (bool, error) { return askVote(a, b, 5, false) },
		"pre-vote": func() (bool, error) { return askPreVote(a, b, 5) },
		"transfer": func() (bool, error) { a.ordered.Store(4); return askVote(a, b, 5, true) },
	} {
		if granted, err := ask(); granted || err == nil {
			t.Errorf("%s before Bind: granted %v, %v", name, granted, err)
		}
	}
	b.Bind(newFakeNode(4))
	if granted, err := askVote(a, b, 5, false); granted || err != nil {
		t.Errorf("held vote: granted %v, %v", granted, err)
	}
	if granted, err := askVote(a, b, 5, true); granted || err != nil {
		t.Errorf("held vote of a transfer: granted %v, %v", granted, err)
	}
	if granted, err := askPreVote(a, b, 5); granted || err != nil {
		t.Errorf("held pre-vote: granted %v, %v", granted, err)
	}
	if err := beat(a, b, 5); err != nil {
		t.Errorf("heartbeat while votes are held: %v", err)
	}

	a2, b2 := pair(t, func(_, b *Options) { b.HoldVotes = 50 * time.Millisecond }, agree)
	b2.Bind(newFakeNode(4))
	eventually(t, "granted", func() bool { granted, err := askVote(a2, b2, 5, false); return granted && err == nil })
	if granted, err := askPreVote(a2, b2, 5); !granted || err != nil {
		t.Errorf("pre-vote afterwards: granted %v, %v", granted, err)
	}
}

func TestTimeoutNow_OfAnotherTerm_IsDropped(t *testing.T) {
	var refuse error
	got := make(chan string, 1)
	a, b := pair(t, func(_, b *Options) { b.MayCampaign = func() error { return refuse } }, func(rpc raft.RPC) {
		if req, ok := rpc.Command.(*raft.TimeoutNowRequest); ok {
			got <- string(req.Addr)
		}
		agree(rpc)
	})
	send := func() error {
		var resp raft.TimeoutNowResponse
		req := &raft.TimeoutNowRequest{RPCHeader: a.header()}
		err := a.TimeoutNow("node-2", b.LocalAddr(), req, &resp)
		if string(req.Addr) != string(a.LocalAddr()) {
			t.Errorf("the caller's request was changed: %q", req.Addr)
		}
		return err
	}
	if err := send(); err == nil || !strings.Contains(err.Error(), "never led") {
		t.Fatalf("from one that never led: %v", err)
	}
	n := newFakeNode(4)
	if err := beat(a, b, 4); err != nil {
		t.Fatal(err)
	}
	if err := send(); err == nil {
		t.Error("obeyed before Bind")
	}
	b.Bind(n)
	for _, term := range []uint64{3, 5} {
		n.term.Store(term)
		if err := send(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("of term 4, this node is in term %d", term)) {
			t.Errorf("at term %d: %v", term, err)
		}
	}
	n.term.Store(4)
	refuse = errors.New("disk is full")
	if err := send(); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("one that may not stand obeyed: %v", err)
	}
	refuse = nil
	select {
	case addr := <-got:
		t.Fatalf("raft got a message that was to be dropped: %q", addr)
	default:
	}
	if err := send(); err != nil {
		t.Fatal(err)
	}
	if addr := <-got; addr != string(a.LocalAddr()) {
		t.Errorf("raft sees the address %q", addr)
	}
	if b.ordered.Load() != 4 {
		t.Errorf("ordered = %d", b.ordered.Load())
	}
	// Without a stamp.
	var resp raft.TimeoutNowResponse
	if err := a.call("node-2", b.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: a.header()}, &resp); err == nil || !strings.Contains(err.Error(), "no term") {
		t.Errorf("without a stamp: %v", err)
	}
}

func TestTimeoutNow_BeforeItIsSent_TheLeaseIsRevoked(t *testing.T) {
	var events []string
	a, b := pair(t, func(a, _ *Options) { a.OnTimeoutNow = func() { events = append(events, "revoked") } }, func(rpc raft.RPC) {
		if _, ok := rpc.Command.(*raft.TimeoutNowRequest); ok {
			events = append(events, "received")
		}
		agree(rpc)
	})
	b.Bind(newFakeNode(4))
	if err := beat(a, b, 4); err != nil {
		t.Fatal(err)
	}
	var resp raft.TimeoutNowResponse
	if err := a.TimeoutNow("node-2", b.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: a.header()}, &resp); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(events, " "); got != "revoked received" {
		t.Errorf("events = %s", got)
	}
}

func TestRequestVote_TransferFlag_CountsOnlyFromTheLeaderOfTheVotersTerm(t *testing.T) {
	flags := make(chan bool, 1)
	a, b := pair(t, nil, func(rpc raft.RPC) {
		if req, ok := rpc.Command.(*raft.RequestVoteRequest); ok {
			flags <- req.LeadershipTransfer
		}
		agree(rpc)
	})
	n := newFakeNode(0)
	b.Bind(n)
	for _, c := range []struct {
		name                   string
		ordered, term, current uint64
		flag, want             bool
	}{
		{"as it should be", 4, 5, 4, true, true},
		{"not asked for", 4, 5, 4, false, false},
		{"candidate was ordered in an older term", 3, 5, 4, true, false},
		{"candidate was never ordered: Campaign", 0, 5, 4, true, false},
		{"voter is in a newer term", 4, 5, 5, true, false},
		{"voter is in an older term", 4, 5, 3, true, false},
	} {
		a.ordered.Store(c.ordered)
		n.term.Store(c.current)
		if _, err := askVote(a, b, c.term, c.flag); err != nil {
			t.Fatal(err)
		}
		if got := <-flags; got != c.want {
			t.Errorf("%s: flag = %v", c.name, got)
		}
	}
}

func TestCampaign_Alone_ReachesRaftPastTheFilters(t *testing.T) {
	o := testOptions(t, 1)
	o.HoldVotes = time.Hour
	tr := open(t, o)
	if err := tr.Campaign(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a third one is refused while raft does not look", func() bool { return tr.Campaign() != nil })
	rpc := <-tr.Consumer()
	if req, ok := rpc.Command.(*raft.TimeoutNowRequest); !ok || string(req.Addr) != string(o.Address) {
		t.Errorf("%+v", rpc.Command)
	}
	rpc.Respond(&raft.TimeoutNowResponse{}, nil) // nobody reads it: must not block
}

func entries(first uint64, sizes ...int) []*raft.Log {
	var out []*raft.Log
	for i, n := range sizes {
		out = append(out, &raft.Log{Index: first + uint64(i), Term: 1, Data: make([]byte, n)})
	}
	return out
}

func TestAppendEntries_CommitBeyondWhatWasVerified_IsClamped(t *testing.T) {
	got := make(chan uint64, 1)
	a, b := pair(t, nil, func(rpc raft.RPC) {
		got <- rpc.Command.(*raft.AppendEntriesRequest).LeaderCommitIndex
		agree(rpc)
	})
	for _, bind := range []bool{false, true} {
		if bind {
			b.Bind(newFakeNode(1))
		}
		for _, c := range []struct {
			prev, commit uint64
			entries      []*raft.Log
			want         uint64
		}{
			{10, 100, nil, 10},
			{10, 100, entries(11, 1, 1), 12},
			{10, 9, entries(11, 1, 1), 9},
			{0, 100, entries(1, 1), 1},
			{0, 0, nil, 0},
		} {
			var resp raft.AppendEntriesResponse
			req := &raft.AppendEntriesRequest{RPCHeader: a.header(), Term: 1, PrevLogEntry: c.prev, Entries: c.entries, LeaderCommitIndex: c.commit}
			if err := a.AppendEntries("node-2", b.LocalAddr(), req, &resp); err != nil {
				t.Fatal(err)
			}
			if commit := <-got; commit != c.want {
				t.Errorf("prev %d, %d entries, commit %d: raft sees %d, want %d", c.prev, len(c.entries), c.commit, commit, c.want)
			}
		}
	}
}

// appendTo sends one entry of size bytes at index; everything up to commit is committed.
func appendTo(a, b *Transport, index uint64, size int, commit uint64) error {
	var resp raft.AppendEntriesResponse
	return a.AppendEntries("node-2", b.LocalAddr(), &raft.AppendEntriesRequest{
		RPCHeader: a.header(), Term: 1, PrevLogEntry: index - 1, PrevLogTerm: 1,
		Entries: entries(index, size), LeaderCommitIndex: commit,
	}, &resp)
}

func TestHoldBack_TooMuchUnapplied_AnswersWaitAndHeartbeatsDoNot(t *testing.T) {
	a, b := pair(t, func(a, b *Options) {
		b.HoldBytes = 1000
		a.Timeout, b.Timeout = time.Hour, time.Hour
	}, agree)
	n := newFakeNode(1)
	b.Bind(n)
	// Uncommitted bytes do not count, committed ones below the bound neither.
	for i, c := range []struct {
		size   int
		commit uint64
	}{{600, 0}, {600, 1}, {300, 1}} {
		if err := appendTo(a, b, uint64(i+1), c.size, c.commit); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- appendTo(a, b, 4, 10, 4) }() // 1510 bytes committed; owned by the test, ends when applied
	select {
	case err := <-done:
		t.Fatalf("answered at once: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := beat(a, b, 1); err != nil {
		t.Errorf("heartbeat beside a held answer: %v", err)
	}
	n.applied.Store(1) // 910 left
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := appendTo(a, b, 5, 10, 4); err != nil {
		t.Fatal(err)
	}
}

func TestHoldBack_NothingIsEverApplied_AnswersComeAfterHalfTheTimeout(t *testing.T) {
	a, b := pair(t, func(_, b *Options) { b.HoldBytes, b.Timeout = 10, 100*time.Millisecond }, agree)
	b.Bind(newFakeNode(1))
	start := time.Now()
	if err := appendTo(a, b, 1, 100, 1); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("answered after %v", took)
	}
}

func TestHoldBack_AnswersWithoutSuccess_DoNotWait(t *testing.T) {
	a, b := pair(t, func(a, b *Options) { b.HoldBytes, b.Timeout, a.Timeout = 10, time.Hour, time.Hour }, func(rpc raft.RPC) {
		rpc.Respond(&raft.AppendEntriesResponse{Term: 1}, nil)
	})
	b.Bind(newFakeNode(1))
	if err := appendTo(a, b, 1, 100, 1); err != nil {
		t.Fatal(err)
	}
}

func TestBacklog_RandomHistory_AgreesWithASlowCount(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := newRandom(seed)
	for range 200 {
		var b backlog
		sizes := map[uint64]int{} // commands by index
		appends := map[uint64]uint64{}
		var last, commit, applied uint64
		for range 100 {
			if random.IntN(4) == 0 && commit > applied {
				applied += random.Uint64N(commit-applied) + 1
			}
			// Entries are appended whole appends at a time; an overwrite begins at an append's border.
			first := last + 1
			if random.IntN(5) == 0 && last > commit {
				first = appends[last]
			}
			var es []*raft.Log
			for i := range 1 + random.IntN(3) {
				n := random.IntN(50)
				es = append(es, &raft.Log{Index: first + uint64(i), Data: make([]byte, n)})
				sizes[first+uint64(i)] = n
			}
			last = first + uint64(len(es)) - 1
			appends[last] = first
			if random.IntN(2) == 0 {
				commit = last // at a border
			}
			b.note(&raft.AppendEntriesRequest{Entries: es, LeaderCommitIndex: commit}, applied)
			var want int64
			for at := last; at > 0; at = appends[at] - 1 {
				if at > commit || at <= applied {
					continue
				}
				for i := appends[at]; i <= at; i++ {
					want += int64(sizes[i])
				}
			}
			// An append that is applied in part counts as whole or as what was left when it came.
			if b.bytes > want || b.bytes < want-150 {
				t.Fatalf("first %d last %d commit %d applied %d: %d bytes, want %d", first, last, commit, applied, b.bytes, want)
			}
			if limit := int64(random.IntN(200)); b.bytes > limit {
				until, over := b.over(limit, 1<<30)
				if !over || until <= applied || until > commit {
					t.Fatalf("until %d, over %v; applied %d, commit %d", until, over, applied, commit)
				}
				b.prune(until)
				if b.bytes > limit {
					t.Fatalf("%d bytes are left after %d was applied, limit %d", b.bytes, until, limit)
				}
				applied = until
			}
		}
	}
}

func TestBacklog_ManySmallAppends_CountByNumberAndStayBounded(t *testing.T) {
	var b backlog
	for i := uint64(1); i <= backlogMax+100; i++ {
		b.note(&raft.AppendEntriesRequest{Entries: entries(i, 1), LeaderCommitIndex: min(i, 100)}, 0)
	}
	if len(b.items) != backlogMax {
		t.Errorf("%d items", len(b.items))
	}
	if until, over := b.over(1<<30, 64); !over || until != 36 {
		t.Errorf("until %d, %v", until, over)
	}
	ahead := backlog{} // applied overtakes the commit index that was seen
	ahead.note(&raft.AppendEntriesRequest{Entries: entries(1, 10)}, 0)
	ahead.note(&raft.AppendEntriesRequest{Entries: entries(2, 20), LeaderCommitIndex: 2}, 1)
	if ahead.bytes != 20 || ahead.committed != 1 || len(ahead.items) != 1 {
		t.Errorf("%+v", ahead)
	}
	noops := backlog{}
	for i := uint64(1); i <= 100; i++ {
		noops.note(&raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: i, Type: raft.LogNoop}}, LeaderCommitIndex: i}, 0)
	}
	if _, over := noops.over(0, 0); over || len(noops.items) != 0 {
		t.Error("entries that the state machine never sees count")
	}
}

// A candidate by order answers its term's leader with success and stays a candidate (raft spares it the way
// back to a follower): its answer is no promise to wait, and must not count for a lease.
func TestAppend_CandidateByOrder_AnswerIsNoPromise(t *testing.T) {
	var acks atomic.Int64
	a, b := pair(t, func(a, _ *Options) { a.OnAck = func(Ack) { acks.Add(1) } }, agree)
	n := newFakeNode(4)
	b.Bind(n)
	if err := beat(a, b, 4); err != nil || acks.Load() != 1 {
		t.Fatalf("%v, %d acks", err, acks.Load())
	}
	var resp raft.TimeoutNowResponse
	if err := a.TimeoutNow("node-2", b.LocalAddr(), &raft.TimeoutNowRequest{RPCHeader: a.header()}, &resp); err != nil {
		t.Fatal(err)
	}
	n.stands.Store(true)
	n.term.Store(5)
	for range 2 {
		if err := beat(a, b, 5); err == nil || acks.Load() != 1 {
			t.Errorf("%v, %d acks", err, acks.Load())
		}
	}
	// It followed for a moment, but has gone on to another term since.
	n.stands.Store(false)
	n.term.Store(4)
	if err := beat(a, b, 5); err == nil || acks.Load() != 1 {
		t.Errorf("%v, %d acks", err, acks.Load())
	}
	n.term.Store(5)
	for range 2 {
		if err := beat(a, b, 5); err != nil {
			t.Error(err)
		}
	}
	if acks.Load() != 3 || b.standing.Load() != 0 {
		t.Errorf("%d acks, order %d is still open", acks.Load(), b.standing.Load())
	}
}
