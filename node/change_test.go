package node

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/internal/diskguard"
	"kvstore/wire"
)

func ptr[T any](v T) *T { return &v }

// asked executes one admin action on n alone, as the binary protocol's door does: nobody passes it on.
func asked(t *testing.T, n *Node, q adminRequest) wire.Response {
	t.Helper()
	b, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	return once(t, n, &wire.Request{Op: wire.OpAdmin, Group: wire.GroupDefault, ID: 1, Payload: b})
}

// A voter that an operator demotes stays a learner until he promotes it, whatever it catches up with.
func TestDemote_StaysALearnerUntilPromoted(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	for _, n := range others {
		recorded(t, n)
	}
	id := others[0].info.NodeID
	for range 2 { // the second changes nothing
		if d := mustAdminister[clusterDocument](t, others[1], asJSON(t, adminRequest{Action: "demote", ID: id})); !strings.Contains(roles(d), id+":learner") {
			t.Fatalf("after its demotion: %s", roles(d))
		}
	}
	// A learner that nobody keeps is promoted within seconds: this one sees others come by.
	fourth := c.reserve("node-4")
	if _, err := c.open(fourth, func(o *Options) { o.InitialCluster, o.Join = nil, []string{leader.info.HTTP} }); err != nil {
		t.Fatal(err)
	}
	var d clusterDocument
	until(t, "node-4 is a voter", func() bool {
		d = mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"}))
		return strings.Contains(roles(d), fourth+":voter")
	})
	if !strings.Contains(roles(d), id+":learner") {
		t.Errorf("a demoted voter became a voter by itself: %s", roles(d))
	}
	for _, m := range d.Members {
		if m.KeptLearner != (m.ID == id) {
			t.Errorf("%s: kept as a learner: %v", m.ID, m.KeptLearner)
		}
	}
	if d := mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "promote", ID: id})); !strings.Contains(roles(d), id+":voter") {
		t.Errorf("after its promotion: %s", roles(d))
	}
	c.same()
	// What the leader thinks of them is there for all to see.
	until(t, "the leader finds all members well", func() bool {
		d = mustAdminister[clusterDocument](t, others[0], asJSON(t, adminRequest{Action: "list"}))
		return d.Autopilot != nil && d.Autopilot.Healthy && d.Autopilot.FailureTolerance == 1 && len(d.Autopilot.Servers) == 4
	})
	if len(d.Current) != 4 || d.Pending != nil {
		t.Errorf("current %v, pending %v", d.Current, d.Pending)
	}
}

// A demotion that a crash cut short is finished by whoever leads, also when that is the one to be demoted.
func TestKeeper_DemotionCutShort_IsFinished(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	recorded(t, leader)
	for _, id := range []string{others[0].info.NodeID, leader.info.NodeID} {
		m, ok := leader.shard.engine.Member(id)
		if !ok {
			t.Fatal("no record")
		}
		m.NoPromote = true
		if err := leader.shard.proposeMember(t.Context(), &m); err != nil {
			t.Fatal(err)
		}
		until(t, id+" is a learner", func() bool {
			for _, n := range []*Node{leader, others[0], others[1]} {
				if _, r := administer[clusterDocument](t, n, asJSON(t, adminRequest{Action: "list"})); r.Status == wire.StatusOK && strings.Contains(string(r.Payload), `"role":"learner"`) {
					var d clusterDocument
					if err := json.Unmarshal(r.Payload, &d); err != nil {
						t.Fatal(err)
					}
					return strings.Contains(roles(d), id+":learner")
				}
			}
			return false
		})
		leader, others = c.leader()
	}
}

// The leader may be removed, and demoted: it hands over first, says who leads, and the next one does it. Callers that
// follow the leadership notice nothing.
func TestChange_OfTheLeader_IsDoneByTheNext(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, _ := c.leader()
	recorded(t, leader)
	id := leader.info.NodeID
	r := asked(t, leader, adminRequest{Action: "demote", ID: id})
	next, others := c.leader()
	if r.Status != wire.StatusNotLeader || leaderHint(r.Ext) == "" || leaderHint(r.Ext) == leader.info.Listen || next == leader {
		t.Fatalf("%s, hint %q, %s leads", r.Status, leaderHint(r.Ext), next.info.NodeID)
	}
	if d := mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"})); strings.Contains(roles(d), "learner") {
		t.Errorf("something was changed: %s", roles(d))
	}
	// By a door that passes requests on, in one call each.
	id = next.info.NodeID
	if d := mustAdminister[clusterDocument](t, others[0], asJSON(t, adminRequest{Action: "demote", ID: id})); !strings.Contains(roles(d), id+":learner") || d.LeaderID == id {
		t.Errorf("%s leads, after the demotion of %s: %s", d.LeaderID, id, roles(d))
	}
	mustAdminister[clusterDocument](t, others[0], asJSON(t, adminRequest{Action: "promote", ID: id}))
	next, _ = c.leader()
	id = next.info.NodeID
	c.died = make(chan error, 1)
	if d := mustAdminister[clusterDocument](t, next, asJSON(t, adminRequest{Action: "remove", ID: id})); strings.Contains(roles(d), id) || len(d.Members) != 2 {
		t.Errorf("after the removal of the leader %s: %s", id, roles(d))
	}
	select {
	case err := <-c.died:
		if !strings.Contains(err.Error(), "was removed") {
			t.Error(err)
		}
	case <-time.After(waitMax):
		t.Error("a removed leader went on")
	}
	c.stop(id)
	leader, others = c.leader()
	// Two are left. The last change: of two voters one goes, and learns it.
	id = leader.info.NodeID
	if d := mustAdminister[clusterDocument](t, others[0], asJSON(t, adminRequest{Action: "remove", ID: id})); len(d.Members) != 1 {
		t.Errorf("after the removal of %s: %s", id, roles(d))
	}
	select {
	case <-c.died:
	case <-time.After(waitMax):
		t.Error("the second of two went on after its removal")
	}
	c.stop(id)
	last := others[0]
	if r := put(t, last, "alone", "x"); r.Status != wire.StatusOK {
		t.Errorf("the last node: %s", r.Status)
	}
	for _, action := range []string{"remove", "demote"} {
		if _, r := administer[clusterDocument](t, last, asJSON(t, adminRequest{Action: action, ID: last.info.NodeID})); r.Status != wire.StatusDenied || !strings.Contains(string(r.Payload), "only") {
			t.Errorf("%s of the only member: %s %s", action, r.Status, r.Payload)
		}
	}
}

// A crash of the leader in the middle of the removal of one of two voters must leave a cluster that can go on: the
// record says removed, the other has stopped because it read that, the configuration still holds it.
func TestRemove_OneOfTwoVoters_CrashAfterTheRecord_TheOtherGoesOn(t *testing.T) {
	slow(t)
	c := newCluster(t, 2, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	recorded(t, leader)
	id := others[0].info.NodeID
	c.died = make(chan error, 1)
	if !leader.shard.tryChange() { // the keeper must not finish it
		t.Fatal("a change is under way")
	}
	// The steps of admin.remove up to the crash.
	a := leader.service.admin
	if err := a.disenfranchise(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	m, _ := leader.shard.roster.member(id)
	m.Removed = true
	if err := leader.shard.proposeMember(t.Context(), &m); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.died:
	case <-time.After(waitMax):
		t.Fatal("the removed node went on")
	}
	c.stop(id)
	leader.shard.endChange()
	c.stop(leader.info.NodeID)
	if _, err := c.open(leader.info.NodeID, nil); err != nil {
		t.Fatal(err)
	}
	c.ready(leader.info.NodeID)
	again := c.node(leader.info.NodeID)
	until(t, "the removal is finished", func() bool { return len(again.shard.group.Status().Configuration) == 1 })
	if r := put(t, again, "k", "v"); r.Status != wire.StatusOK {
		t.Error(r.Status)
	}
}

// A member takes the place of another without ever fewer voters than before; one that is not ready takes no place,
// and nothing is changed.
func TestReplace_WithAnotherMember_OnlyWhenItIsReady(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	recorded(t, leader)
	for i := range 20 {
		if r := put(t, leader, fmt.Sprint("k", i), strings.Repeat("v", 1000)); r.Status != wire.StatusOK {
			t.Fatal(r.Status)
		}
	}
	id := c.reserve("node-4")
	if _, err := c.open(id, func(o *Options) { o.InitialCluster, o.Join = nil, []string{leader.info.HTTP} }); err != nil {
		t.Fatal(err)
	}
	c.ready(id)
	mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "demote", ID: id})) // so that it waits
	c.stop(id)
	until(t, "the leader misses it", func() bool {
		for _, m := range mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"})).Members {
			if m.ID == id {
				return m.State == stateUnreachable
			}
		}
		return false
	})
	// The leader itself is to go: in spite of that it is not handed over for nothing.
	old := leader.info.NodeID
	before := roles(mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"})))
	if _, r := administer[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "replace", ID: old, With: id})); r.Status != wire.StatusRetryLater || !strings.Contains(string(r.Payload), id+" has not caught up") {
		t.Errorf("%s %s", r.Status, r.Payload)
	}
	if after := roles(mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"}))); after != before || !leader.shard.leading() {
		t.Errorf("%s became %s", before, after)
	}
	if _, err := c.open(id, func(o *Options) { o.InitialCluster = nil }); err != nil {
		t.Fatal(err)
	}
	c.ready(id)
	c.died = make(chan error, 1)
	var d clusterDocument
	until(t, "it has taken the place", func() bool {
		got, r := administer[clusterDocument](t, others[0], asJSON(t, adminRequest{Action: "replace", ID: old, With: id}))
		if r.Status != wire.StatusOK && r.Status != wire.StatusRetryLater {
			t.Fatalf("%s %s", r.Status, r.Payload)
		}
		d = got
		return r.Status == wire.StatusOK
	})
	if strings.Contains(roles(d), old) || strings.Count(roles(d), "voter") != 3 || !strings.Contains(roles(d), id+":voter") {
		t.Errorf("after the replacement of %s: %s", old, roles(d))
	}
	<-c.died
	c.stop(old)
	mustAdminister[clusterDocument](t, others[0], asJSON(t, adminRequest{Action: "replace", ID: old, With: id})) // again: nothing is left to do
	c.same()
}

// A node that came back empty is let in again under its name after replace, as its answer says.
func TestReplace_DirectoryLost_SameNameComesBack(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	recorded(t, leader)
	id := others[1].info.NodeID
	mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "priority", ID: id, Priority: ptr(3)}))
	c.stop(id)
	c.places[id].dir = t.TempDir()
	until(t, "the leader misses it", func() bool {
		_, r := administer[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "replace", ID: id}))
		return r.Status == wire.StatusOK
	})
	if _, err := c.open(id, func(o *Options) { o.InitialCluster, o.Join = nil, []string{leader.info.HTTP} }); err != nil {
		t.Fatal(err)
	}
	c.ready(id)
	var d clusterDocument
	until(t, id+" votes again", func() bool {
		d = mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"}))
		return strings.Contains(roles(d), id+":voter")
	})
	for _, m := range d.Members {
		if want := map[bool]uint8{true: 3}[m.ID == id]; m.Priority != want {
			t.Errorf("%s has priority %d, want %d", m.ID, m.Priority, want)
		}
		if m.State != stateOK {
			t.Errorf("%s is %s", m.ID, m.State)
		}
	}
	c.same()
}

// The leadership goes to the voter with the highest priority once it has been well for long enough, and not before.
// What a node says of itself at its start stands against what is set.
func TestPriority_LeadershipGoesToTheHighest(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, func(o *Options) { o.PriorityAfter = 2 * time.Second })
	c.start(c.ids...)
	leader, others := c.leader()
	for _, n := range others {
		recorded(t, n)
	}
	began := time.Now()
	first, second := others[0].info.NodeID, others[1].info.NodeID
	mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "priority", ID: leader.info.NodeID, Priority: ptr(5)}))
	mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "priority", ID: second, Priority: ptr(4)}))
	mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "priority", ID: first, Priority: ptr(10)}))
	until(t, first+" leads", func() bool { return others[0].shard.leading() })
	if d := time.Since(began); d < time.Second {
		t.Errorf("the leadership moved after %v", d)
	}
	c.stop(second)
	if _, err := c.open(second, func(o *Options) { o.LeaderPriority = 20 }); err != nil {
		t.Fatal(err)
	}
	c.ready(second)
	until(t, second+" has the priority of its start", func() bool {
		m, _ := others[0].shard.engine.Member(second)
		return m.Priority == 20
	})
	if _, r := administer[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "priority", ID: second, Priority: ptr(1)})); r.Status != wire.StatusDenied || !strings.Contains(string(r.Payload), "--leader-priority 20") {
		t.Errorf("%s %s", r.Status, r.Payload)
	}
	until(t, second+" leads", func() bool { return c.node(second).shard.leading() })
}

// A leader that could hand over again and again waits longer each time, and begins anew after a long time of peace.
func TestBalance_Attempts_BackOff(t *testing.T) {
	var b balance
	now := time.Now()
	var pauses []time.Duration
	for range 9 {
		b.attempt(now)
		pauses = append(pauses, b.notBefore.Sub(now).Round(time.Second))
		now = b.notBefore
	}
	if want := "[10s 20s 40s 1m20s 2m40s 5m20s 10m0s 10m0s 10m0s]"; fmt.Sprint(pauses) != want {
		t.Errorf("%v, want %s", pauses, want)
	}
	now = now.Add(2*balancePauseMax + 1)
	b.attempt(now)
	if p := b.notBefore.Sub(now); p != balancePauseMin {
		t.Errorf("after a long time of peace: %v", p)
	}
}

// A slow connection of an earlier start shows an older card: it never wins over the newer one.
func TestRoster_OlderCardOfTheSameDirectory_IsPassedOver(t *testing.T) {
	r := newRoster(wire.Member{ID: "node-1"})
	m := wire.Member{ID: "node-2", Incarnation: [16]byte{1}, RaftAddress: "new:1", Address: "new:2"}
	old := m
	old.RaftAddress, old.Address = "old:1", "old:2"
	r.onCard(m.ID, m.Incarnation, encodeCard(&m, 2))
	r.onCard(m.ID, m.Incarnation, encodeCard(&old, 1))
	if got, _ := r.card(m.ID); got.RaftAddress != "new:1" {
		t.Errorf("an older card won: %+v", got)
	}
	r.onCard(m.ID, m.Incarnation, encodeCard(&old, 3)) // it moved back
	if got, _ := r.card(m.ID); got.RaftAddress != "old:1" {
		t.Errorf("the newest card lost: %+v", got)
	}
	// Another directory is another matter: whether it may be here the handshake has decided.
	m.Incarnation = [16]byte{2}
	r.onCard(m.ID, m.Incarnation, encodeCard(&m, 1))
	if got, _ := r.card(m.ID); got.RaftAddress != "new:1" {
		t.Errorf("the card of the new directory lost: %+v", got)
	}
}

// A leader whose disk has no space gives its place to a voter that has some; where none has, it stays.
func TestBalance_LeaderWithoutSpace_HandsOverToWhoHasSome(t *testing.T) {
	var full sync.Map // ids of nodes without space
	c := newCluster(t, 3, func(o *Options) {
		id := o.NodeID
		o.Disk.Interval = 10 * time.Millisecond
		o.Disk.Stat = func(dir string) (uint64, error) {
			if _, yes := full.Load(id); yes {
				return 0, nil
			}
			return diskguard.Free(dir)
		}
	})
	c.start(c.ids...)
	leader, others := c.leader()
	recorded(t, leader)
	first, second := others[0].info.NodeID, others[1].info.NodeID
	full.Store(first, true)
	until(t, "the leader knows that "+first+" has no space", func() bool { return !leader.shard.diskOK(first) })
	full.Store(leader.info.NodeID, true)
	until(t, second+", which has space, leads", func() bool { return others[1].shard.leading() })
	full.Store(second, true)
	until(t, "the leader knows that nobody has space", func() bool {
		return !others[1].shard.diskOK(second) && !others[1].shard.diskOK(first) && !others[1].shard.diskOK(leader.info.NodeID)
	})
	term := others[1].shard.group.Status().Term
	b := balance{}
	b.look(t.Context(), others[1].shard) // as the keeper does each second
	if !others[1].shard.leading() || others[1].shard.group.Status().Term != term || !b.notBefore.IsZero() {
		t.Error("a leader gave its place to one that is no better off")
	}
}

// A voter that died a moment ago has been heard of lately. A change that counts on it, made at once, would leave no
// majority, and no way to take it back; and a leader that hands over to it would take no write meanwhile.
func TestDemote_AnotherVoterJustDied_IsRefused(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	for _, n := range others {
		recorded(t, n)
	}
	dead, alive := others[0].info.NodeID, others[1].info.NodeID
	c.stop(dead)
	for _, q := range []adminRequest{
		{Action: "demote", ID: alive}, {Action: "remove", ID: alive}, {Action: "demote", ID: leader.info.NodeID}, {Action: "transfer", ID: dead},
	} {
		if r := asked(t, leader, q); r.Status != wire.StatusDenied || !strings.Contains(string(r.Payload), "nothing was changed") {
			t.Errorf("%s %s: %v %s", q.Action, q.ID, r.Status, r.Payload)
		}
	}
	if d := mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "demote", ID: dead})); !strings.Contains(roles(d), dead+":learner") {
		t.Errorf("the dead voter could not be demoted: %s", roles(d))
	}
}
