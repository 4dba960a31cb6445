package consensus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// resolved is a future of raft's that was answered.
type resolved struct {
	err   error
	index uint64
}

func (r resolved) Error() error  { return r.err }
func (r resolved) Index() uint64 { return r.index }
func (r resolved) Response() any { return nil }

// TestOutcome_EveryAnswerOfTheLibrary is the table of what hashicorp/raft v1.8.0 answers and what that says.
func TestOutcome_EveryAnswerOfTheLibrary(t *testing.T) {
	storeErr := errors.New("write /x: no space left on device")
	for _, c := range []struct {
		name             string
		answer           resolved
		proposal, change error // nil: done
		differs          bool  // for changes
	}{
		{name: "done", answer: resolved{nil, 7}},
		{name: "the queue was full", answer: resolved{raft.ErrEnqueueTimeout, 0}, proposal: ErrNotProposed},
		{name: "not the leader", answer: resolved{raft.ErrNotLeader, 0}, proposal: ErrNotLeader},
		{name: "leadership is being handed over", answer: resolved{raft.ErrLeadershipTransferInProgress, 0}, proposal: ErrNotProposed},
		{name: "shut down before it was queued", answer: resolved{raft.ErrRaftShutdown, 0}, proposal: ErrNotProposed},
		{name: "shut down after it was committed", answer: resolved{raft.ErrRaftShutdown, 7}, proposal: ErrUnknown},
		{name: "leadership lost", answer: resolved{raft.ErrLeadershipLost, 7}, proposal: ErrUnknown},
		{name: "the log could not be written", answer: resolved{storeErr, 7}, proposal: ErrUnknown},
		{name: "superseded by a restore", answer: resolved{raft.ErrAbortedByRestore, 7}, proposal: ErrUnknown},
		// raft decides upon a change before it gives it an index, so that an error without one is a refusal. A
		// proposal is never refused for its content.
		{name: "the configuration has changed since", answer: resolved{errors.New("configuration changed since 3 (latest is 5)"), 0}, proposal: ErrUnknown, differs: true, change: ErrNotProposed},
	} {
		check := func(kind string, got, want error) {
			other := ErrUnknown
			if errors.Is(want, ErrNotProposed) {
				other = ErrNotProposed
			}
			switch {
			case want == nil && got != nil, want != nil && !errors.Is(got, want):
				t.Errorf("%s, %s: %v, want %v", c.name, kind, got, want)
			case want != nil && errors.Is(got, ErrNotProposed) == errors.Is(got, ErrUnknown):
				t.Errorf("%s, %s: %v does not match exactly one of the outcomes", c.name, kind, got)
			case want != nil && !errors.Is(got, other):
				t.Errorf("%s, %s: %v does not match %v", c.name, kind, got, other)
			}
		}
		check("proposal", outcome(c.answer.err, c.answer), c.proposal)
		want := c.proposal
		if c.differs {
			want = c.change
		}
		check("change", (&Group{}).sorted(c.answer, nil), want)
	}
}

// submitRaw proposes past the check of who leads, as happens when leadership is lost right behind it.
func submitRaw(g *Group, data string) chan error {
	answers := make(chan error, 2)
	err := g.proposals.submit(int64(len(data)), func(_ any, err error) { answers <- err }, func() raft.ApplyFuture {
		return g.raft.ApplyLog(raft.Log{Data: []byte(data)}, enqueueTimeout)
	})
	if err != nil {
		answers <- err
	}
	return answers
}

func receive(t *testing.T, what string, answers chan error) error {
	t.Helper()
	select {
	case err := <-answers:
		return err
	case <-time.After(testWait):
		t.Fatalf("%s was never answered", what)
		return nil
	}
}

func TestPropose_OnAFollower_SurelyNotProposed(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	follower := c.others(c.leader())[0]
	if err := receive(t, "a proposal", submitRaw(follower.g, "never")); !errors.Is(err, ErrNotLeader) {
		t.Error(err)
	}
	c.write("after")
	c.converge("after")
	if slices.Contains(follower.m.commands(), "never") {
		t.Error("it was committed nevertheless")
	}
}

func TestPropose_WhileLeadershipIsHandedOver_SurelyNotProposed(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.ElectionTimeout = 2 * time.Second })
	c.start()
	leader := c.leader()
	target := c.others(leader)[0]
	c.network.cut(target.id, true)
	c.write("which the target has not")
	transfer := make(chan error, 1)
	go func() { transfer <- leader.g.Transfer(testContext(t), target.id) }() // ends when raft gives up
	var err error
	for i := 0; ; i++ {
		if err = receive(t, "a proposal", submitRaw(leader.g, fmt.Sprintf("p-%d", i))); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrNotProposed) || !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		t.Errorf("a proposal: %v", err)
	}
	if err := leader.g.AddLearner(testContext(t), "node-9", "127.0.0.1:9"); !errors.Is(err, ErrNotProposed) {
		t.Errorf("a change: %v", err)
	}
	if err := receive(t, "the transfer", transfer); err == nil {
		t.Error("leadership went to a node that is out of reach")
	}
}

func TestPropose_LeadershipLost_Unknown(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	leader := c.leader()
	c.write("a")
	c.network.cut(leader.id, true)
	answers := submitRaw(leader.g, "maybe")
	change := make(chan error, 1)
	go func() { change <- leader.g.AddLearner(testContext(t), "node-9", "127.0.0.1:9") }() // ends when leadership is lost
	if err := receive(t, "a proposal", answers); !errors.Is(err, ErrUnknown) {
		t.Errorf("a proposal: %v", err)
	}
	// The change may have come behind the end of the leadership.
	if err := receive(t, "a change", change); !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNotLeader) || errors.Is(err, ErrUnknown) == errors.Is(err, ErrNotProposed) {
		t.Errorf("a change: %v", err)
	}
}

func TestPropose_RaftShutDownUnderneath_EveryoneIsAnswered(t *testing.T) {
	dir := t.TempDir()
	m := openMachine(t, dir)
	o := testOptions(dir)
	o.ProposalsMax = proposalsCap
	g := openGroup(t, o, m)
	gate := make(chan struct{})
	m.mu.Lock()
	m.gate = gate
	m.mu.Unlock()
	var answers []chan error
	for i := range 20 { // some are being applied, some wait in raft's queues
		answers = append(answers, submitRaw(g, fmt.Sprintf("p-%d", i)))
	}
	eventually(t, "they are committed", func() bool { return g.raft.CommitIndex() == g.raft.LastIndex() })
	g.raft.Shutdown()
	refused := submitRaw(g, "late")
	close(gate)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := g.Close(ctx); err != nil {
		t.Log(err) // raft may have forgotten some of them: then Close gives up at its deadline
	}
	done := 0
	for i, a := range answers {
		err := receive(t, fmt.Sprintf("proposal %d", i), a)
		switch {
		case err == nil:
			done++
		case errors.Is(err, ErrUnknown) == errors.Is(err, ErrNotProposed):
			t.Errorf("proposal %d: %v", i, err)
		case errors.Is(err, ErrNotProposed):
			t.Errorf("proposal %d was committed, and is answered with %v", i, err)
		}
	}
	// The late one may have got into raft's queue, which is then forgotten.
	if err := receive(t, "the late proposal", refused); err == nil {
		t.Error("a proposal was done after the shutdown")
	}
	if got := len(m.commands()); got < done {
		t.Errorf("%d are done, %d applied", done, got)
	}
}

func TestChange_ConfigurationIsNotTheOneDecidedUpon_SurelyNotProposed(t *testing.T) {
	dir := t.TempDir()
	g := openGroup(t, testOptions(dir), openMachine(t, dir))
	defer closeGroup(t, g)
	base := g.committed.Load()
	// What another leader might have done meanwhile.
	if err := g.raft.AddNonvoter("node-2", "127.0.0.1:2", 0, time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	g.committed.Store(base)
	if err := g.AddLearner(testContext(t), "node-3", "127.0.0.1:3"); !errors.Is(err, ErrNotProposed) || errors.Is(err, ErrUnknown) {
		t.Errorf("AddLearner = %v", err)
	}
	if got := len(g.members()); got != 2 {
		t.Errorf("%d members", got)
	}
}

// A follower that answers and stores nothing keeps a leader in its place: the change has to end by itself.
func TestChange_NeverCommitted_UnknownAtTheDeadlineAndTheNextOneWaits(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.HeartbeatTimeout, o.ElectionTimeout = 3*time.Second, 3*time.Second })
	c.start()
	leader := c.leader()
	for _, n := range c.others(leader) {
		c.network.hold(n.id, leader.id, true)
	}
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if err := leader.g.AddLearner(short(), "node-8", "127.0.0.1:8"); !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotProposed) {
		t.Errorf("the first: %v", err)
	}
	if err := leader.g.AddLearner(short(), "node-9", "127.0.0.1:9"); !errors.Is(err, ErrNotProposed) || errors.Is(err, ErrUnknown) {
		t.Errorf("the second: %v", err)
	}
	for _, n := range c.others(leader) {
		c.network.hold(n.id, leader.id, false)
	}
}

func TestDemote_VoterAndItsLimits(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	leader := c.leader()
	c.write("a")
	target := c.others(leader)[0]
	ctx := testContext(t)
	for _, bad := range []struct{ id, what string }{{"node-9", "nobody"}, {leader.id, "the leader itself"}} {
		if err := leader.g.Demote(ctx, bad.id); !errors.Is(err, ErrNotProposed) || errors.Is(err, ErrUnknown) {
			t.Errorf("demoting %s: %v", bad.what, err)
		}
	}
	if err := target.g.Demote(ctx, leader.id); !errors.Is(err, ErrNotLeader) {
		t.Errorf("a follower demotes: %v", err)
	}
	for range 2 { // the second time there is nothing to do
		if err := leader.g.Demote(ctx, target.id); err != nil {
			t.Fatal(err)
		}
	}
	if s := leader.g.Status(); s.Voters != 2 || len(s.Configuration) != 3 {
		t.Errorf("%+v", s.Configuration)
	}
	c.write("b")
	c.converge("a", "b") // the learner too
	if err := leader.g.Transfer(ctx, target.id); !errors.Is(err, ErrNotProposed) {
		t.Errorf("leadership to a learner: %v", err)
	}
	other := c.others(leader)
	last := other[slices.IndexFunc(other, func(n *testNode) bool { return n != target })]
	if err := leader.g.Demote(ctx, last.id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the only voter reads by itself", leader.g.Lease)
	if err := leader.g.Demote(ctx, leader.id); !errors.Is(err, ErrNotProposed) {
		t.Errorf("demoting the last voter: %v", err)
	}
	if err := leader.g.Promote(ctx, target.id); err != nil {
		t.Fatal(err)
	}
	c.converge("a", "b")
}

// TestPropose_LeadersComeAndGo_EachIsAnsweredOnceAndTruly lets leaders be cut off, deposed, closed and handed
// over while others propose, and compares every answer with what was applied in the end.
func TestPropose_LeadersComeAndGo_EachIsAnsweredOnceAndTruly(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	c := newTestCluster(t, 3, func(o *Options) { o.ProposalTimeout = time.Second })
	c.start()
	type fate struct {
		answers atomic.Int32
		err     atomic.Pointer[error]
	}
	var mu sync.Mutex
	fates := map[string]*fate{} // guarded by mu
	var groups sync.Map         // id to *Group
	for _, n := range c.others(nil) {
		groups.Store(n.id, n.g)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() { // ends with ctx
			for i := 0; ctx.Err() == nil; i++ {
				groups.Range(func(id, g any) bool {
					data := fmt.Sprintf("%d-%d-%s", w, i, id)
					f := &fate{}
					mu.Lock()
					fates[data] = f
					mu.Unlock()
					err := g.(*Group).Propose([]byte(data), func(_ any, err error) {
						f.answers.Add(1)
						f.err.Store(&err)
					})
					if err != nil {
						f.answers.Add(1)
						f.err.Store(&err)
						if !errors.Is(err, ErrNotProposed) {
							t.Errorf("refused with %v", err)
						}
					}
					return true
				})
				time.Sleep(time.Millisecond)
			}
		})
	}
	rounds := 6
	if testing.Short() {
		rounds = 3
	}
	for range rounds {
		leader := c.leader()
		switch rnd.IntN(3) {
		case 0:
			c.network.cut(leader.id, true)
			eventually(t, "another node leads", func() bool { l := c.leader(); return l != leader })
			c.network.cut(leader.id, false)
		case 1:
			if err := leader.g.Transfer(testContext(t), ""); err != nil {
				t.Log(err)
			}
		case 2:
			groups.Delete(leader.id)
			leader.kill()
			leader.start()
			groups.Store(leader.id, leader.g)
		}
		c.leader()
	}
	stop()
	wg.Wait()
	c.write("the end")
	c.converge("the end")
	for _, n := range c.others(nil) {
		n.kill() // what is unanswered is answered now
	}
	applied := map[string]int{}
	for _, a := range c.nodes["node-1"].m.commands() {
		applied[a]++
	}
	counts := map[string]int{}
	for data, f := range fates {
		if got := f.answers.Load(); got != 1 {
			t.Fatalf("%s was answered %d times", data, got)
		}
		err := *f.err.Load()
		switch {
		case err == nil && applied[data] != 1:
			t.Errorf("%s is done, and was applied %d times", data, applied[data])
		case errors.Is(err, ErrNotProposed) && applied[data] != 0:
			t.Errorf("%s: %v, and yet it was applied", data, err)
		case err != nil && errors.Is(err, ErrNotProposed) == errors.Is(err, ErrUnknown):
			t.Errorf("%s: %v", data, err)
		case err == nil:
			counts["done"]++
		case errors.Is(err, ErrUnknown):
			counts["unknown"]++
		default:
			counts["not proposed"]++
		}
	}
	t.Log(counts)
	if counts["done"] == 0 || counts["not proposed"] == 0 {
		t.Error("the case did not arise")
	}
}
