package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/consensus"
	"kvstore/wire"
)

// A fourth node is taken in as a learner, becomes a voter by itself, and is removed again for good.
func TestCluster_FourthNode_JoinsIsPromotedAndRemoved(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	for i := range 50 {
		if r := put(t, leader, fmt.Sprint("k", i), strings.Repeat("v", 1000)); r.Status != wire.StatusOK {
			t.Fatal(r.Status)
		}
	}
	id := c.reserve("node-4")
	joining := func(o *Options) {
		o.InitialCluster = nil
		// The first address is nobody's, the second a follower's.
		o.Join = []string{"127.0.0.1:1", others[0].info.HTTP}
	}
	if _, err := c.open(id, joining); err != nil {
		t.Fatal(err)
	}
	c.ready(id)
	var d clusterDocument
	until(t, "node-4 is a voter", func() bool {
		d = mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"}))
		return roles(d) == "node-1:voter node-2:voter node-3:voter node-4:voter"
	})
	recorded(t, c.node(id))
	c.same()
	if r := do(t, c.node(id), wire.OpGet, nil, "k49", nil); len(r.Payload) != 1000 {
		t.Errorf("get on the new node: %s", r.Status)
	}
	until(t, "the promotion is counted", func() bool {
		var n uint64
		for _, m := range append(others, leader) {
			n += m.shard.group.Metrics().Promotions.Load()
		}
		return n == 1
	})

	// It comes back as the member that it is, whatever its options say.
	c.stop(id)
	if _, err := c.open(id, func(o *Options) { o.InitialCluster, o.Join = nil, []string{"127.0.0.1:1"} }); err != nil {
		t.Fatal(err)
	}
	c.ready(id)

	c.died = make(chan error, 1)
	removed := func() {
		t.Helper()
		select {
		case err := <-c.died:
			if !strings.Contains(err.Error(), "was removed from the cluster") || !strings.Contains(err.Error(), "--join") {
				t.Errorf("it ends with: %v", err)
			}
		case <-time.After(waitMax):
			t.Error("a removed node went on")
		}
		c.stop(id)
	}
	mustAdminister[clusterDocument](t, others[0], asJSON(t, adminRequest{Action: "remove", ID: id}))
	if d := mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"})); strings.Contains(roles(d), id) {
		t.Errorf("after its removal: %s", roles(d))
	}
	removed()
	mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "remove", ID: id})) // again: nothing changes
	until(t, "its record says so", func() bool {
		r, ok := leader.shard.engine.Member(id)
		return ok && r.Removed
	})

	// Its directory is good for nothing from now on; with an empty one it is a new node.
	if _, err := c.open(id, joining); err != nil {
		t.Fatal(err)
	}
	removed()
	c.places[id].dir = t.TempDir()
	if _, err := c.open(id, joining); err != nil {
		t.Fatal(err)
	}
	c.ready(id)
	c.same()
}

// A member that comes back with an empty directory is not let in under its old id, by either way, until the
// cluster is told that the old one is gone.
func TestCluster_WipedMember_IsRefusedWithTheWayBack(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	for _, n := range others {
		recorded(t, n)
	}
	id := others[1].info.NodeID
	c.stop(id)
	c.places[id].dir = t.TempDir()
	if _, err := c.open(id, nil); err == nil || !strings.Contains(err.Error(), "kvctl member remove "+id) {
		t.Errorf("as a founder: %v", err)
	}
	c.places[id].dir = t.TempDir()
	joining := func(o *Options) { o.InitialCluster, o.Join = nil, []string{leader.info.HTTP} }
	if _, err := c.open(id, joining); err == nil || !strings.Contains(err.Error(), "kvctl member remove "+id) || !strings.Contains(err.Error(), "--join") {
		t.Errorf("joining: %v", err)
	}
	mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "remove", ID: id}))
	if _, err := c.open(id, joining); err != nil {
		t.Fatal(err)
	}
	c.ready(id)
	until(t, id+" votes again", func() bool {
		return roles(mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"}))) == "node-1:voter node-2:voter node-3:voter"
	})
	c.same()
}

func TestAdmin_WhatCannotBe_IsRefusedAndChangesNothing(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	recorded(t, leader)
	before := roles(mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"})))
	other := others[0].info.NodeID
	incarnation := strings.Repeat("ab", 16)
	add := func(change func(*adminRequest)) adminRequest {
		q := adminRequest{Action: "add", ID: "node-9", RaftAddress: "127.0.0.1:1", Address: "127.0.0.1:2", Incarnation: incarnation}
		change(&q)
		return q
	}
	for name, x := range map[string]struct {
		q    adminRequest
		want wire.Status
		text string
	}{
		"unknown action":       {adminRequest{Action: "eject"}, wire.StatusBadRequest, "unknown action"},
		"remove a stranger":    {adminRequest{Action: "remove", ID: "node-9"}, wire.StatusNotFound, "no member"},
		"demote a stranger":    {adminRequest{Action: "demote", ID: "node-9"}, wire.StatusNotFound, "no member"},
		"replace a stranger":   {adminRequest{Action: "replace", ID: "node-9", With: other}, wire.StatusNotFound, "no member"},
		"replace by itself":    {adminRequest{Action: "replace", ID: other, With: other}, wire.StatusBadRequest, "its own place"},
		"replace by stranger":  {adminRequest{Action: "replace", ID: other, With: "node-9"}, wire.StatusDenied, "node-9 is no member"},
		"replace a well one":   {adminRequest{Action: "replace", ID: other}, wire.StatusDenied, "nothing to replace"},
		"no priority":          {adminRequest{Action: "priority", ID: other}, wire.StatusBadRequest, "0 to 100"},
		"priority too high":    {adminRequest{Action: "priority", ID: other, Priority: ptr(101)}, wire.StatusBadRequest, "0 to 100"},
		"negative priority":    {adminRequest{Action: "priority", ID: other, Priority: ptr(-1)}, wire.StatusBadRequest, "0 to 100"},
		"priority, stranger":   {adminRequest{Action: "priority", ID: "node-9", Priority: ptr(1)}, wire.StatusNotFound, "no member"},
		"promote a stranger":   {adminRequest{Action: "promote", ID: "node-9"}, wire.StatusNotFound, "no member"},
		"promote a voter":      {adminRequest{Action: "promote", ID: other}, wire.StatusOK, ""},
		"transfer to stranger": {adminRequest{Action: "transfer", ID: "node-9"}, wire.StatusNotFound, "no member"},
		"transfer to itself":   {adminRequest{Action: "transfer", ID: leader.info.NodeID}, wire.StatusOK, ""},
		"add by hand":          {adminRequest{Action: "add", ID: "node-9", RaftAddress: "127.0.0.1:1"}, wire.StatusBadRequest, "--join"},
		"add, bad id":          {add(func(q *adminRequest) { q.ID = "a b" }), wire.StatusBadRequest, "node id"},
		"add, bad address":     {add(func(q *adminRequest) { q.Address = "nowhere" }), wire.StatusBadRequest, "HOST:PORT"},
		"add, no address":      {add(func(q *adminRequest) { q.Address = "" }), wire.StatusBadRequest, "HOST:PORT"},
		"add, address taken":   {add(func(q *adminRequest) { q.RaftAddress = c.places[other].raft }), wire.StatusDenied, other + " has the raft address"},
		"add, id taken":        {add(func(q *adminRequest) { q.ID = other }), wire.StatusDenied, "kvctl member remove " + other},
	} {
		if _, r := administer[clusterDocument](t, leader, asJSON(t, x.q)); r.Status != x.want || !strings.Contains(string(r.Payload), x.text) {
			t.Errorf("%s: %s %s, want %s with %q", name, r.Status, r.Payload, x.want, x.text)
		}
	}
	for name, payload := range map[string]string{"no JSON": "list", "another field": `{"action":"list","force":true}`, "two documents": `{"action":"list"}{}`} {
		if r := do(t, leader, wire.OpAdmin, nil, "", []byte(payload)); r.Status != wire.StatusBadRequest {
			t.Errorf("%s: %s", name, r.Status)
		}
	}
	if after := roles(mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"}))); after != before {
		t.Errorf("%s, was %s", after, before)
	}
	// With one node gone, the removal of the other would leave a leader without a majority.
	c.stop(others[1].info.NodeID)
	until(t, "the leader misses the stopped node", func() bool {
		for _, m := range mustAdminister[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "list"})).Members {
			if m.ID == others[1].info.NodeID {
				return m.State == stateUnreachable
			}
		}
		return false
	})
	if _, r := administer[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "remove", ID: other})); r.Status != wire.StatusDenied || !strings.Contains(string(r.Payload), "no majority") {
		t.Errorf("removal of the last follower: %s %s", r.Status, r.Payload)
	}
}

type denyAdmin struct{ AllowAll }

func (denyAdmin) Open() bool { return false }

func (denyAdmin) Authorize(_ *Principal, a *Access) bool { return a.Op != wire.OpAdmin }

func TestAdmin_Authorizer_IsAsked(t *testing.T) {
	n := openNode(t, t.TempDir(), func(o *Options) { o.Service.Authorizer = denyAdmin{} })
	defer closeNode(t, n)
	if _, r := administer[clusterDocument](t, n, asJSON(t, adminRequest{Action: "list"})); r.Status != wire.StatusDenied {
		t.Errorf("%s", r.Status)
	}
}

// A removal that a crash cut short is finished by whoever leads.
func TestKeeper_RemovalCutShort_IsFinished(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	recorded(t, leader)
	m, ok := leader.shard.engine.Member(others[1].info.NodeID)
	if !ok {
		t.Fatal("no record")
	}
	m.Removed = true
	c.died = make(chan error, 1)
	if err := leader.shard.proposeMember(t.Context(), &m); err != nil {
		t.Fatal(err)
	}
	until(t, "the configuration has two members", func() bool { return len(leader.shard.group.Status().Configuration) == 2 })
}

// A member whose process hangs keeps its connections for long: to a leader that it has never answered it must not
// count as one that could make up a majority. One that answers does, though another directory came under its name and
// was refused.
func TestStateOf_ConnectedAndSilent_IsNotOKToTheLeader(t *testing.T) {
	for name, x := range map[string]struct {
		p     consensus.PeerStatus
		leads bool
		want  string
	}{
		"answers":            {consensus.PeerStatus{Acked: true, LastAck: time.Millisecond, Connected: true}, true, stateOK},
		"never answered":     {consensus.PeerStatus{Connected: true}, true, stateUnreachable},
		"answered once":      {consensus.PeerStatus{Acked: true, LastAck: contactMax, Connected: true}, true, stateUnreachable},
		"seen by a follower": {consensus.PeerStatus{Connected: true}, false, stateOK},
		"gone":               {consensus.PeerStatus{}, false, stateUnreachable},
		"refused":            {consensus.PeerStatus{Connected: true, Refused: "why"}, true, "refused: why"},
		"an impostor":        {consensus.PeerStatus{Acked: true, Connected: true, Refused: "why"}, true, stateOK},
		"one, to a follower": {consensus.PeerStatus{Connected: true, Refused: "why"}, false, stateOK},
	} {
		if got := stateOf(&x.p, x.leads); got != x.want {
			t.Errorf("%s: %s, want %s", name, got, x.want)
		}
	}
}

// Once the record says that a member is removed, the leader will take it out: an error of that last step may look
// as certain as it likes, nobody may be told that nothing was changed.
func TestAdmin_RemovalRecordedAndNotFinished_IsNotToldAsUndone(t *testing.T) {
	for _, err := range []error{consensus.ErrNotLeader, consensus.ErrClosed, fmt.Errorf("cannot: %w", consensus.ErrNotProposed), consensus.ErrUnknown, context.DeadlineExceeded} {
		var e *statusError
		if got := begun("removal", "node-3", err); !errors.As(got, &e) || e.status.Class() != wire.ClassUnknown || !strings.Contains(e.text, err.Error()) {
			t.Errorf("%v: %v", err, got)
		}
	}
	if err := begun("removal", "node-3", nil); err != nil {
		t.Error(err)
	}
}

// A node that moves keeps its data directory and is found again at its new address.
func TestCluster_MemberMoves_IsFollowed(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	for _, n := range others {
		recorded(t, n)
	}
	id := others[0].info.NodeID
	c.stop(id)
	dir := c.places[id].dir
	c.reserve(id)
	c.places[id].dir = dir
	if _, err := c.open(id, nil); err != nil {
		t.Fatal(err)
	}
	c.ready(id)
	until(t, "the leader knows the new addresses", func() bool {
		m, _ := leader.shard.engine.Member(id)
		return m.RaftAddress == c.places[id].raft && m.Address == c.places[id].native
	})
	c.same()
}

func TestOpen_EndedWhileFounding_StopsCleanly(t *testing.T) {
	c := newCluster(t, 3, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := c.options("node-1")
	o.MetricsListen = c.places["node-2"].http // any port that is known beforehand
	var checked sync.Once
	o.Progress = func(text string) {
		if text == "waiting for node-2, node-3" {
			checked.Do(func() {
				resp, err := http.Get("http://" + o.MetricsListen + "/readyz?verbose")
				if err != nil {
					t.Error(err)
				} else {
					var body [1000]byte
					k, _ := resp.Body.Read(body[:])
					resp.Body.Close()
					if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body[:k]), text) {
						t.Errorf("readyz: %s %s", resp.Status, body[:k])
					}
				}
				cancel()
			})
		}
	}
	if _, err := Open(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	// Nothing was founded: the same directory founds the cluster with the others.
	c.start(c.ids...)
	c.leader()
}

func TestOpen_NobodyTakesItIn_GivesUpAndSaysWhy(t *testing.T) {
	c := newCluster(t, 1, nil)
	_, err := c.open("node-1", func(o *Options) {
		o.InitialCluster, o.Join, o.StartTimeout = nil, []string{"127.0.0.1:1"}, 300*time.Millisecond
	})
	if err == nil || !strings.Contains(err.Error(), "--start-timeout") || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("%v", err)
	}
}

// The facts that a member told are kept before the log is started, and are not asked for again.
func TestOpen_JoinCutShort_GoesOnWithoutAsking(t *testing.T) {
	slow(t)
	c := newCluster(t, 1, nil)
	c.start("node-1")
	leader, _ := c.leader()
	id := c.reserve("node-2")
	o := c.options(id)
	me, _, err := loadIdentity(o.DataDir, id)
	if err != nil {
		t.Fatal(err)
	}
	bits, err := me.bits()
	if err != nil {
		t.Fatal(err)
	}
	p := c.places[id]
	self := wire.Member{ID: id, Incarnation: bits, RaftAddress: p.raft, Address: p.native, HTTPAddress: p.http}
	for range 2 { // the second time it is a member already
		if me.Joined, err = join(t.Context(), []string{leader.info.HTTP}, &self, func(string) {}); err != nil {
			t.Fatal(err)
		}
	}
	if err := me.write(o.DataDir); err != nil {
		t.Fatal(err)
	}
	if _, err := c.open(id, func(o *Options) { o.InitialCluster, o.Join = nil, []string{"127.0.0.1:1"} }); err != nil {
		t.Fatal(err)
	}
	c.ready(id)
	until(t, "node-2 votes", func() bool { return leader.shard.group.Status().Voters == 2 })
	c.same()
}

func TestOpen_JoinsWithAnotherNodesId_IsRefusedAtOnce(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.start("node-1")
	leader, _ := c.leader()
	recorded(t, leader)
	o := c.options("node-1")
	c.reserve("node-2")
	p := c.places["node-2"]
	o.DataDir, o.Listen, o.HTTPListen, o.RaftListen = p.dir, p.native, p.http, p.raft
	o.InitialCluster, o.Join = nil, []string{leader.info.HTTP}
	if _, err := Open(t.Context(), o); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "another data directory") {
		t.Errorf("%v", err)
	}
}

func TestHasCluster_OnlyOnceThereIsOne(t *testing.T) {
	c := newCluster(t, 1, nil)
	dir := c.places["node-1"].dir
	if has, err := HasCluster(dir); has || err != nil {
		t.Errorf("empty: %v, %v", has, err)
	}
	if _, _, err := loadIdentity(dir, "node-1"); err != nil {
		t.Fatal(err)
	}
	if has, err := HasCluster(dir); has || err != nil {
		t.Errorf("before the start: %v, %v", has, err)
	}
	c.start("node-1")
	if has, err := HasCluster(dir); !has || err != nil {
		t.Errorf("running: %v, %v", has, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "identity"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := HasCluster(dir); err == nil {
		t.Error("a damaged identity was read")
	}
}
