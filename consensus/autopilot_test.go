package consensus

import (
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"kvstore/internal/clock"
)

// fastPilot is quick at everything.
func fastPilot() AutopilotOptions {
	return AutopilotOptions{Interval: 20 * time.Millisecond, StableAfter: 200 * time.Millisecond, DeadAfter: 2 * time.Second}
}

// startPilots starts the autopilot on all running nodes.
func (c *testCluster) startPilots(o AutopilotOptions) {
	c.tb.Helper()
	for _, n := range c.others(nil) {
		if err := n.g.StartAutopilot(o); err != nil {
			c.tb.Fatal(err)
		}
	}
}

// voters returns the ids of the voters as the leader has them, sorted and joined.
func (c *testCluster) voters() string {
	var ids []string
	for _, m := range c.leader().g.members() {
		if m.Voter {
			ids = append(ids, m.ID)
		}
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

func TestAutopilot_LearnerThatKeepsUp_GetsAVoteOncePermitted(t *testing.T) {
	c := newTestCluster(t, 1)
	c.start()
	leader := c.leader()
	c.writeMany("a", 3)
	if _, ok := leader.g.Autopilot(); ok {
		t.Error("there is a state before the start")
	}
	var permitted, busy atomic.Bool
	var asked atomic.Int32
	o := fastPilot()
	o.Permit = func(id string) bool {
		if id != "node-2" {
			t.Errorf("asked about %s", id)
		}
		asked.Add(1)
		return permitted.Load()
	}
	o.BeginChange = func() (func(), bool) { return func() {}, !busy.Load() }
	busy.Store(true)
	c.startPilots(o)
	if err := leader.g.StartAutopilot(o); err == nil {
		t.Error("started twice")
	}
	n := c.add("node-2")
	n.joined = &Joined{Cluster: testClusterID, History: testHistoryID, Peers: []Peer{{ID: leader.id, Address: leader.address, Incarnation: leader.incarnation}}}
	n.start()
	if err := leader.g.AddLearner(testContext(t), n.id, n.address); err != nil {
		t.Fatal(err)
	}
	added := time.Now()
	eventually(t, "the learner keeps up", func() bool { return asked.Load() > 3 })
	if stable := time.Since(added); stable < o.StableAfter {
		t.Errorf("a vote was considered after %v", stable)
	}
	if got := c.voters(); got != "node-1" {
		t.Errorf("voters without permission: %s", got)
	}
	permitted.Store(true)
	seen := asked.Load()
	eventually(t, "the learner is considered again", func() bool { return asked.Load() > seen+3 })
	if got := c.voters(); got != "node-1" {
		t.Errorf("voters while somebody else changes the configuration: %s", got)
	}
	busy.Store(false)
	eventually(t, "the learner has a vote", func() bool { return c.voters() == "node-1 node-2" })
	eventually(t, "all is well", func() bool {
		s, ok := c.leader().g.Autopilot()
		return ok && s.Healthy && len(s.Servers) == 2 && s.Servers[1].Voter
	})
	if got := leader.g.Metrics().Promotions.Load(); got != 1 {
		t.Errorf("%d promotions were counted", got)
	}
	s, _ := c.leader().g.Autopilot()
	if s.FailureTolerance != 0 || s.Servers[1].ID != "node-2" || !s.Servers[1].Healthy ||
		s.Servers[1].LastContact < 0 || s.Servers[1].Lag > o.withDefaults().LagMax || s.Servers[1].StableSince.IsZero() {
		t.Errorf("%+v", s)
	}
	for _, other := range c.others(c.leader()) {
		if _, ok := other.g.Autopilot(); ok {
			t.Error("a follower judges the group")
		}
	}
}

func TestAutopilot_DeadVoterOfFour_LosesItsVoteAndGetsItBack(t *testing.T) {
	c := newTestCluster(t, 4)
	c.start()
	o := fastPilot()
	var mu sync.Mutex
	var dead []string
	o.OnDead = func(id string) {
		mu.Lock()
		defer mu.Unlock()
		dead = append(dead, id)
	}
	c.startPilots(o)
	c.writeMany("a", 3)
	c.converge()
	leader := c.leader()
	down := c.others(leader)[0]
	killed := time.Now()
	down.kill()
	eventually(t, "the dead voter has no vote", func() bool { return !strings.Contains(c.voters(), down.id) })
	if took := time.Since(killed); took < o.DeadAfter {
		t.Errorf("its vote was taken after %v", took)
	}
	if s := c.leader().g.Status(); s.Voters != 3 || len(s.Configuration) != 4 {
		t.Errorf("%+v", s.Configuration)
	}
	mu.Lock()
	if len(dead) == 0 || slices.ContainsFunc(dead, func(id string) bool { return id != down.id }) {
		t.Errorf("dead: %v", dead)
	}
	mu.Unlock()
	c.write("b")
	down.start()
	if err := down.g.StartAutopilot(o); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has its vote back", func() bool { return strings.Contains(c.voters(), down.id) })
	c.converge("a-0", "b")
}

func TestAutopilot_DeadVoterOfThree_KeepsItsVote(t *testing.T) {
	c := newTestCluster(t, 3)
	c.start()
	o := fastPilot()
	o.DeadAfter = 300 * time.Millisecond
	calls := make(chan string, 100)
	o.OnDead = func(id string) { calls <- id }
	c.startPilots(o)
	c.write("a")
	down := c.others(c.leader())[0]
	down.kill()
	select {
	case id := <-calls:
		if id != down.id {
			t.Errorf("%s is dead", id)
		}
	case <-time.After(testWait):
		t.Fatal("nobody noticed")
	}
	// It is dead now. A demotion would come with the next looks.
	eventually(t, "the state says so", func() bool {
		s, ok := c.leader().g.Autopilot()
		return ok && !s.Healthy && s.FailureTolerance == 0
	})
	time.Sleep(10 * o.Interval)
	if s := c.leader().g.Status(); s.Voters != 3 {
		t.Errorf("%+v", s.Configuration)
	}
	if len(calls) != 0 {
		t.Errorf("OnDead was called %d times more", len(calls))
	}
}

// testFlight judges a group of the given voters, node-1 being the leader, which heard from those in alive.
func testFlight(o AutopilotOptions, voters int, alive ...string) (*flight, []Member) {
	var members []Member
	var ids []raft.ServerID
	for i := range voters {
		id := "node-" + string(rune('1'+i))
		members = append(members, Member{ID: id, Voter: true})
		ids = append(ids, raft.ServerID(id))
	}
	g := &Group{o: Options{NodeID: "node-1", HeartbeatTimeout: time.Second, clock: clock.System{}}.withDefaults()}
	g.book = newAckBook("node-1", fixedVoters(ids...))
	for _, id := range alive {
		g.book.record(ack{peer: raft.ServerID(id), term: 5, sentAt: math.MaxInt64 / 2, match: 1})
	}
	return &flight{g: g, o: o.withDefaults(), term: 5, silent: map[string]time.Duration{}, told: map[string]bool{}}, members
}

func TestAutopilot_Expendable_OnlyADeadVoterThatIsNotNeeded(t *testing.T) {
	for _, c := range []struct {
		name   string
		voters int
		alive  []string
		dead   string
		want   bool
	}{
		{"the only dead one of four", 4, []string{"node-2", "node-3"}, "node-4", true},
		{"one of three", 3, []string{"node-2"}, "node-3", false},
		{"one of two", 2, nil, "node-2", false},
		{"first of two dead of five", 5, []string{"node-2", "node-3"}, "node-5", true},
		{"of the other four only half is alive", 5, []string{"node-2"}, "node-5", false},
		{"of the other three only one is alive", 4, nil, "node-4", false},
		{"of the other three two are alive", 4, []string{"node-2"}, "node-4", true},
		{"alive", 4, []string{"node-2", "node-3", "node-4"}, "node-4", false},
		{"the leader", 4, []string{"node-2", "node-3", "node-4"}, "node-1", false},
	} {
		f, members := testFlight(AutopilotOptions{}, c.voters, c.alive...)
		f.silent[c.dead] = f.o.DeadAfter
		if err := f.expendable(c.dead, members); (err == nil) != c.want {
			t.Errorf("%s: %v", c.name, err)
		} else if err != nil && !errors.Is(err, ErrNotProposed) {
			t.Errorf("%s: %v does not match ErrNotProposed", c.name, err)
		}
	}
	f, members := testFlight(AutopilotOptions{}, 4, "node-2", "node-3")
	f.silent["node-4"] = f.o.DeadAfter - 1
	if f.expendable("node-4", members) == nil {
		t.Error("not silent for long enough, and yet expendable")
	}
	f, members = testFlight(AutopilotOptions{Permit: func(string) bool { return false }}, 4, "node-2", "node-3")
	f.silent["node-4"] = f.o.DeadAfter
	if f.expendable("node-4", members) == nil {
		t.Error("not permitted, and yet expendable")
	}
	f, members = testFlight(AutopilotOptions{DeadAfter: -1}, 4, "node-2", "node-3")
	f.silent["node-4"] = math.MaxInt64
	if f.expendable("node-4", members) == nil {
		t.Error("demotions are off, and yet it is expendable")
	}
}

func TestAutopilot_LeaderWasStopped_NobodyIsDeadForThat(t *testing.T) {
	var dead []string
	f, members := testFlight(AutopilotOptions{DeadAfter: time.Minute, Interval: time.Second, OnDead: func(id string) { dead = append(dead, id) }}, 4, "node-2")
	f.g.log = testOptions("").Logger
	now := time.Now()
	f.look(members, now)
	f.look(members, now.Add(time.Hour)) // the process stood still, or the machine slept
	if len(dead) != 0 || f.silent["node-3"] != 2*time.Second {
		t.Errorf("silent %v, dead %v", f.silent, dead)
	}
	for i := range 60 {
		f.look(members, now.Add(time.Hour+time.Duration(i+1)*time.Second))
	}
	slices.Sort(dead)
	if !slices.Equal(dead, []string{"node-3", "node-4"}) {
		t.Errorf("dead %v, silent %v", dead, f.silent)
	}
}

func TestAutopilot_LeadershipMovesAndTheGroupCloses_NothingIsLeft(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	// raft may never answer the barrier of a term that ends with the process: watchLeadership says so.
	barrier := goleak.IgnoreAnyFunction("kvstore/consensus.(*Group).termBarrier")
	t.Cleanup(func() { goleak.VerifyNone(t, ignore, barrier) }) // after the cluster's own
	c := newTestCluster(t, 3)
	c.start()
	c.startPilots(fastPilot())
	for range 3 {
		eventually(t, "the leader judges", func() bool { _, ok := c.leader().g.Autopilot(); return ok })
		if err := c.leader().g.Transfer(testContext(t), ""); err != nil {
			t.Log(err)
		}
	}
}

func TestAutopilot_InvalidOptions_Refused(t *testing.T) {
	dir := t.TempDir()
	g := openGroup(t, testOptions(dir), openMachine(t, dir))
	defer closeGroup(t, g)
	for _, o := range []AutopilotOptions{{Interval: time.Millisecond}, {Interval: time.Hour}, {StableAfter: -1}} {
		if g.StartAutopilot(o) == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
