package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/wire"
)

// fakeCluster is fake servers over one state. Each has a view of who leads, which tests change; only the
// true leader executes.
type fakeCluster struct {
	t     testing.TB
	store *fakeStore

	// Guarded by mu.
	mu      sync.Mutex
	servers []*fakeServer
	leader  int // index; -1: none
	term    uint64
	views   []view
	asked   []atomic.Int64 // requests that only a leader serves, per server
}

// view is what a server believes.
type view struct {
	leader int // index; -1: none known
	term   uint64
}

// newCluster makes n servers, of which the first leads term 5.
func newCluster(t testing.TB, n int) *fakeCluster {
	fc := &fakeCluster{t: t, store: newFakeStore(), term: 5, asked: make([]atomic.Int64, n), views: make([]view, n)}
	fc.store.applied = map[string]int{}
	for i := range n {
		fc.servers = append(fc.servers, newFake(t, fc.store))
		fc.views[i] = view{leader: 0, term: 5}
		fc.serve(i)
	}
	fc.publish()
	return fc
}

func (fc *fakeCluster) serve(i int) {
	fc.servers[i].on(func(_ *fakeConn, r *wire.Request) fault {
		if r.Op == wire.OpPing || r.Op == wire.OpStatus || r.Op == wire.OpCancel {
			return fault{}
		}
		fc.asked[i].Add(1)
		fc.mu.Lock()
		defer fc.mu.Unlock()
		v := fc.views[i]
		switch {
		case fc.leader == i && v.leader == i:
			return fault{}
		case v.leader < 0 || v.leader == i:
			return fault{status: wire.StatusNoLeader, ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 50)}
		}
		return hint(fc.servers[v.leader].addr(), v.term)
	})
}

// publish sets what HELLO tells. REQUIRES: mu held, or nobody connects yet.
func (fc *fakeCluster) publish() {
	for i, s := range fc.servers {
		v := fc.views[i]
		var members []wire.MemberInfo
		for k, m := range fc.servers {
			members = append(members, wire.MemberInfo{ID: fmt.Sprint("node-", k), Address: m.addr(), Voter: true, Leader: v.leader == k})
		}
		s.mu.Lock()
		s.ack.NodeID, s.ack.Term, s.ack.Members = fmt.Sprint("node-", i), v.term, members
		s.mu.Unlock()
	}
}

// elect makes server i the leader of the next term; all others know it, or only those in told.
func (fc *fakeCluster) elect(i int, told ...int) {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	fc.term++
	fc.leader = i
	for k := range fc.views {
		if len(told) == 0 {
			fc.views[k] = view{leader: i, term: fc.term}
		}
	}
	for _, k := range told {
		fc.views[k] = view{leader: i, term: fc.term}
	}
	fc.publish()
}

// depose leaves the cluster without a leader; the servers do not know that yet.
func (fc *fakeCluster) depose() {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	fc.leader = -1
}

// see sets the views of some servers.
func (fc *fakeCluster) see(v view, servers ...int) {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	for _, k := range servers {
		fc.views[k] = v
	}
	fc.publish()
}

// restart listens again on the address of a server that was stopped.
func (fc *fakeCluster) restart(i int) {
	fc.t.Helper()
	fc.mu.Lock()
	defer fc.mu.Unlock()
	old := fc.servers[i]
	ln, err := net.Listen("tcp", old.addr())
	if err != nil {
		fc.t.Fatal(err)
	}
	s := serveFake(fc.t, ln, fc.store)
	old.mu.Lock()
	ack := old.ack
	old.mu.Unlock()
	s.mu.Lock()
	s.ack = ack
	s.mu.Unlock()
	fc.servers[i] = s
	fc.serve(i)
}

func (fc *fakeCluster) requests() (n int64) {
	for i := range fc.asked {
		n += fc.asked[i].Load()
	}
	return n
}

// load runs writers until stop, and checks afterwards that every write was acknowledged, and executed once.
type load struct {
	t     *testing.T
	fc    *fakeCluster
	acked atomic.Int64
	stop  chan struct{}
	wg    sync.WaitGroup
}

func (fc *fakeCluster) load(t *testing.T, c *Client, writers int) *load {
	l := &load{t: t, fc: fc, stop: make(chan struct{})}
	for w := range writers {
		l.wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				key := fmt.Sprintf("%d/%d", w, i)
				if i%3 == 0 {
					done := make(chan error)
					c.PutAsync(key, nil, func(_ Version, err error) { done <- err })
					if err := <-done; err != nil {
						t.Error(err)
						return
					}
				} else if _, err := c.Put(bg, key, nil); err != nil {
					t.Error(err)
					return
				}
				if n := fc.store.count(func(st *fakeStore) int { return st.applied[key] }); n != 1 {
					t.Errorf("%s is acknowledged and was applied %d times", key, n)
				}
				if i%4 == 0 {
					if v, err := c.Get(bg, key); err != nil || v.Version == 0 {
						t.Error(err)
						return
					}
				}
				l.acked.Add(1)
			}
		})
	}
	return l
}

// more waits until another n writes are acknowledged.
func (l *load) more(n int64) {
	l.t.Helper()
	from := l.acked.Load()
	eventually(l.t, "more writes", func() bool { return l.t.Failed() || l.acked.Load() >= from+n })
}

func (l *load) end() {
	l.t.Helper()
	close(l.stop)
	l.wg.Wait()
	l.fc.store.mu.Lock()
	defer l.fc.store.mu.Unlock()
	for key, n := range l.fc.store.applied {
		if n > 1 {
			l.t.Errorf("%s was applied %d times", key, n)
		}
	}
}

// quick shortens the times of detection, for tests that wait for them.
func quick(o *options) {
	o.sweepEvery, o.pingAfter, o.suspectAfter = 5*time.Millisecond, 40*time.Millisecond, 80*time.Millisecond
	o.patience, o.shunFor, o.dialTimeout = 50*time.Millisecond, 100*time.Millisecond, time.Second
}

// The leader dies, its followers name it for a while, then one of them leads: nobody notices an error, each
// write is executed once, and the dead address is asked a few times only.
func TestFailover_LeaderDies_WritesGoOn(t *testing.T) {
	fc := newCluster(t, 3)
	var dead atomic.Int64
	addr := fc.servers[0].addr()
	c := open(t, fc.servers[:1], WithHooks(Hooks{OnConnect: func(a string, _ time.Duration, err error) {
		if a == addr && err != nil {
			dead.Add(1)
		}
	}}))
	l := fc.load(t, c, 8)
	l.more(50)
	fc.depose()
	fc.servers[0].stop()
	eventually(t, "a follower is asked", func() bool { return fc.asked[1].Load()+fc.asked[2].Load() > 2 })
	time.Sleep(100 * time.Millisecond) // the followers' election timeout, which is the case under test
	fc.see(view{-1, 5}, 1, 2)
	time.Sleep(50 * time.Millisecond)
	fc.elect(2, 1, 2)
	l.more(50)
	// Once at the loss, and at most once more for each time that it was shunned.
	if n := dead.Load(); n < 1 || n > 4 {
		t.Errorf("the dead leader was dialled %d times", n)
	}
	// It comes back as a follower that believes what it knew.
	fc.restart(0)
	fc.depose()
	fc.servers[2].stop()
	fc.see(view{-1, 6}, 0, 1)
	fc.elect(0, 0, 1)
	l.more(50)
	l.end()
}

func TestFailover_LeaderGoesSilent_WritesGoOnAndLateCopiesCountOnce(t *testing.T) {
	fc := newCluster(t, 3)
	c := open(t, fc.servers, withLimits(quick))
	l := fc.load(t, c, 8)
	l.more(50)
	before := fc.asked[0].Load()
	fc.servers[0].freeze()
	eventually(t, "others are asked", func() bool { return fc.asked[1].Load()+fc.asked[2].Load() > 0 })
	fc.elect(1, 1, 2)
	l.more(50)
	// What lay in its socket is executed now, as if it had been in the log: the session makes nothing of it.
	fc.servers[0].on(nil)
	fc.servers[0].thaw()
	l.more(50)
	l.end()
	if fc.servers[0].reqs.Load() <= before {
		t.Error("nothing lay in the silent leader's socket: the test is idle")
	}
}

// A leader that was silent for a moment only still leads: the client finds its way back.
func TestFailover_LeaderSilentForAMoment_StillServes(t *testing.T) {
	fc := newCluster(t, 3)
	c := open(t, fc.servers, withLimits(quick))
	l := fc.load(t, c, 8)
	l.more(50)
	fc.servers[0].freeze()
	eventually(t, "others are asked", func() bool { return fc.asked[1].Load()+fc.asked[2].Load() > 0 })
	fc.servers[0].thaw()
	l.more(50)
	l.end()
}

// Without a session a write waits for the silent leader: its answer may come, or its outcome stays unknown. It
// is never sent twice.
func TestFailover_SilentLeaderWithoutSession_WaitsThenUnknown(t *testing.T) {
	for _, thaws := range []bool{true, false} {
		t.Run(fmt.Sprint("thaws=", thaws), func(t *testing.T) {
			fc := newCluster(t, 2)
			c := open(t, fc.servers, WithoutSession(), withLimits(quick), withLimits(func(o *options) { o.deadAfter = 400 * time.Millisecond }))
			mustPut(t, c, "a", "1")
			if thaws {
				c.o.deadAfter = time.Hour
			}
			fc.servers[0].freeze()
			done := make(chan error)
			go func() { _, err := c.Put(bg, "k", nil); done <- err }()
			// A read leaves the silent leader.
			fc.mu.Lock()
			fc.leader, fc.views[1] = 1, view{1, 6}
			fc.mu.Unlock()
			if _, err := c.Get(bg, "a"); err != nil {
				t.Fatal(err)
			}
			if thaws {
				fc.servers[0].on(nil)
				fc.servers[0].thaw()
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			} else {
				matches(t, <-done, ErrMaybeApplied)
			}
			if n := fc.store.count(func(st *fakeStore) int { return st.applied["k"] }); n > 1 || thaws && n != 1 {
				t.Fatalf("applied %d times", n)
			}
		})
	}
}

// A client that was stopped itself must not take that for the server's silence.
func TestFailover_ClientWasHeldUp_ServerIsNotSuspected(t *testing.T) {
	s, c := fake(t)
	mustPut(t, c, "k", "v")
	release, held := make(chan struct{}), make(chan struct{})
	s.onOp(wire.OpGet, func(int, *wire.Request) fault { close(held); return fault{hold: release} })
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := c.Get(bg, "k"); err != nil {
			t.Error(err)
		}
	})
	<-held
	_, cn := c.route.ready()
	for range 4 {
		cn.mu.Lock()
		cn.swept -= time.Hour
		cn.mu.Unlock()
		cn.sweep()
	}
	cn.mu.Lock()
	suspected, silence := cn.suspected, cn.silence
	cn.mu.Unlock()
	if suspected || silence == 0 {
		t.Errorf("suspected %v after a silence of %v", suspected, silence)
	}
	close(release)
	wg.Wait()
}

// A node that takes connections and says nothing costs little time, at Open and later.
func TestFailover_SilentNodes_ConnectingGoesOn(t *testing.T) {
	fc := newCluster(t, 4)
	fc.servers[1].freeze()
	c, err := Open(bg, []string{fc.servers[1].addr(), fc.servers[2].addr()}, withLimits(quick), withLimits(func(o *options) { o.dialTimeout = time.Hour }))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mustPut(t, c, "k", "1")
	fc.depose()
	fc.servers[0].freeze()
	done := make(chan error)
	go func() { _, err := c.Put(bg, "k", nil); done <- err }()
	eventually(t, "the others are asked", func() bool { return fc.asked[2].Load() > 0 && fc.asked[3].Load() > 0 })
	fc.elect(3, 2, 3)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// While there is no leader, the cluster is asked by one of many callers; all go on when there is one.
func TestFailover_ManyCallers_OneLooksForTheLeader(t *testing.T) {
	const callers = 300
	fc := newCluster(t, 3)
	c := open(t, fc.servers)
	mustPut(t, c, "k", "v")
	fc.depose()
	fc.see(view{-1, 5}, 0, 1, 2)
	from := fc.requests()
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			if _, err := c.Put(bg, fmt.Sprint(i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "everyone has asked once", func() bool { return fc.requests()-from >= callers })
	start := time.Now()
	time.Sleep(300 * time.Millisecond)
	waited := time.Since(start)
	// The pilot pauses for 50 ms on average; the others for half a second at least.
	if n := fc.requests() - from - callers; n > int64(waited/(2*time.Millisecond)) {
		t.Errorf("%d requests in %v without a leader", n, waited)
	}
	fc.elect(1)
	wg.Wait()
	if len(c.route.baton) != 1 {
		t.Error("the pilot did not give its place back")
	}
	if c.route.hunting.Load() {
		t.Error("still looking for a leader")
	}
}

func TestHunt_LeaderMet_AllWhoWaitAreTold(t *testing.T) {
	_, c := fake(t)
	r := c.route
	var pilot, a, b call
	for range 2 {
		if r.hunt(&pilot) != nil || !pilot.pilot {
			t.Fatal("the first is not the pilot, or does not stay it")
		}
	}
	waits := []<-chan struct{}{r.hunt(&a), r.hunt(&b)}
	for _, ch := range waits {
		select {
		case <-ch:
			t.Fatal("told too early, or not waiting")
		default:
		}
	}
	if !r.hunting.Load() {
		t.Fatal("not hunting")
	}
	r.met()
	for _, ch := range waits {
		<-ch
	}
	r.resign(&a) // has nothing to give up
	if r.hunting.Load() || len(r.baton) != 0 {
		t.Fatal(r.hunting.Load(), len(r.baton))
	}
	r.resign(&pilot)
	if len(r.baton) != 1 {
		t.Fatal("nobody can be the pilot any more")
	}
	if r.hunt(&b) != nil {
		t.Fatal("the place is not taken again")
	}
	r.resign(&b)
}

// The pilot leaves: another one takes its place.
func TestFailover_PilotGivesUp_AnotherFollows(t *testing.T) {
	fc := newCluster(t, 2)
	c := open(t, fc.servers)
	mustPut(t, c, "k", "v")
	fc.depose()
	fc.see(view{-1, 5}, 0, 1)
	ctx, cancel := context.WithCancel(bg)
	first := make(chan error)
	go func() { _, err := c.Put(ctx, "first", nil); first <- err }()
	eventually(t, "a pilot", func() bool { return len(c.route.baton) == 0 })
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if _, err := c.Put(bg, fmt.Sprint(i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	cancel()
	// Whether its last attempt was under way decides between "not applied" and "unknown".
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	n := fc.requests()
	eventually(t, "the next pilot asks", func() bool { return fc.requests() > n+20 })
	fc.elect(1)
	wg.Wait()
}

func TestRoute_TwoNodesNameEachOther_IsBounded(t *testing.T) {
	for _, rising := range []bool{false, true} {
		t.Run(fmt.Sprint("rising terms=", rising), func(t *testing.T) {
			store := newFakeStore()
			a, b := newFake(t, store), newFake(t, store)
			var term atomic.Uint64
			term.Store(7)
			next := func() uint64 {
				if rising {
					return term.Add(1)
				}
				return term.Load()
			}
			a.on(func(*fakeConn, *wire.Request) fault { return hint(b.addr(), next()) })
			b.on(func(*fakeConn, *wire.Request) fault { return hint(a.addr(), next()) })
			c := open(t, []*fakeServer{a, b}, WithoutSession())
			ctx, cancel := context.WithTimeout(bg, 400*time.Millisecond)
			defer cancel()
			if _, err := c.Put(ctx, "k", nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			// A few at once, then with pauses that grow to 50 ms on average.
			if n := a.reqs.Load() + b.reqs.Load(); n < redirectsMax || n > 100 {
				t.Errorf("%d requests", n)
			}
			a.on(nil)
			mustPut(t, c, "k", "v")
		})
	}
}

// deadAddr gives an address that nobody listens on.
func deadAddr(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	return addr
}

func TestRoute_HintToAnUnknownDeadAddress_OthersAreAsked(t *testing.T) {
	store := newFakeStore()
	a, b := newFake(t, store), newFake(t, store)
	dead := deadAddr(t)
	a.on(func(*fakeConn, *wire.Request) fault { return hint(dead, 9) })
	c := open(t, []*fakeServer{a, b})
	mustPut(t, c, "k", "v")
	if b.reqs.Load() == 0 {
		t.Error("b was not asked")
	}
}

// A node that answers that another one leads tells more than the silence of that one, even if that came last.
func TestRoute_LeaderUnreachableToTheEnd_AnswerOfTheOthersIsTold(t *testing.T) {
	a := newFake(t, newFakeStore())
	dead := deadAddr(t)
	var term atomic.Uint64
	a.on(func(*fakeConn, *wire.Request) fault { return hint(dead, term.Add(1)+9) })
	ctx, cancel := context.WithTimeout(bg, time.Minute)
	defer cancel()
	failures, ended := 0, make(chan struct{})
	c := open(t, []*fakeServer{a}, WithoutSession(), WithHooks(Hooks{OnConnect: func(_ string, _ time.Duration, err error) {
		if err == nil {
			return
		}
		if failures++; failures == 2 { // one attempt at a time: the dead address has one link
			cancel()
			<-ended // the call ends while it tries to connect
		}
	}}))
	_, err := c.Put(ctx, "k", nil)
	close(ended)
	var e *Error
	if !errors.As(err, &e) || e.Status != wire.StatusNotLeader || !errors.Is(err, ErrUnavailable) || !errors.Is(err, ErrNotApplied) || !strings.Contains(e.Message, dead) {
		t.Errorf("%v", err)
	}
}

// The advertised addresses lead nowhere from here, the given ones do: the leader is known by its id.
func TestRoute_AdvertisedAddressesUnreachable_GivenOnesAreUsed(t *testing.T) {
	fc := newCluster(t, 3)
	dead := []string{deadAddr(t), deadAddr(t), deadAddr(t)}
	advertise := func(leader int, term uint64) {
		for i, s := range fc.servers {
			s.mu.Lock()
			s.ack.Term, s.ack.Members = term, nil
			for k := range fc.servers {
				s.ack.Members = append(s.ack.Members, wire.MemberInfo{ID: fmt.Sprint("node-", k), Address: dead[k], Leader: k == leader})
			}
			s.mu.Unlock()
			if i != leader {
				s.on(func(*fakeConn, *wire.Request) fault { return hint(dead[leader], term) })
			} else {
				s.on(nil)
			}
		}
	}
	advertise(2, 5)
	var failed atomic.Int64
	c := open(t, fc.servers, WithHooks(Hooks{OnConnect: func(_ string, _ time.Duration, err error) {
		if err != nil {
			failed.Add(1)
		}
	}}))
	mustPut(t, c, "k", "1")
	advertise(0, 6)
	mustPut(t, c, "k", "2")
	advertise(1, 7)
	mustPut(t, c, "k", "3")
	// By now each server is known by its address that works: no detour is needed.
	advertise(2, 8)
	n := failed.Load()
	if n == 0 {
		t.Error("no advertised address was tried: the test is idle")
	}
	mustPut(t, c, "k", "4")
	if failed.Load() != n {
		t.Error("an advertised address was tried again")
	}
}

func TestRoute_AllDownThenBack_WritesGoOn(t *testing.T) {
	fc := newCluster(t, 3)
	c := open(t, fc.servers[:1])
	l := fc.load(t, c, 4)
	l.more(20)
	for _, s := range fc.servers {
		s.stop()
	}
	time.Sleep(100 * time.Millisecond) // long enough for every address to have been tried
	// The one that was given stays away.
	fc.restart(2)
	fc.restart(1)
	fc.elect(1, 1, 2)
	l.more(20)
	l.end()
}

// Servers come and go under ever new addresses: those that are gone are forgotten, the given one never.
func TestRoute_AddressesChange_OldOnesAreForgotten(t *testing.T) {
	s, c := fake(t)
	r := c.route
	for i := range 10 * nodesMax {
		ack := wire.HelloAck{NodeID: s.addr(), Term: uint64(i), Members: []wire.MemberInfo{
			{ID: s.addr(), Address: s.addr()}, {ID: "b", Address: fmt.Sprint("192.0.2.1:", i)}, {ID: "c", Address: fmt.Sprint("192.0.2.2:", i)},
		}}
		if err := r.learn(r.cur.Load(), &ack); err != nil {
			t.Fatal(err)
		}
		if n := r.count(); n != 3 {
			t.Fatalf("%d nodes are known", n)
		}
	}
	// Hints alone do not fill the list for ever either.
	for i := range 10 * nodesMax {
		r.mu.Lock()
		n := r.node(fmt.Sprint("192.0.2.3:", i))
		r.mu.Unlock()
		if n == nil {
			t.Fatal("no room after", i)
		}
	}
	if r.count() > nodesMax || r.nodes[0].addr != s.addr() {
		t.Fatal(r.count(), r.nodes[0].addr)
	}
	mustPut(t, c, "k", "v")
}

func TestRoute_OneNodeOfAnotherCluster_IsPassedOver(t *testing.T) {
	store := newFakeStore()
	a, b, other := newFake(t, store), newFake(t, store), newFake(t, nil)
	other.ack.ClusterID = [16]byte{9}
	c := open(t, []*fakeServer{a, other, b})
	a.stop()
	mustPut(t, c, "k", "v")
	if b.reqs.Load() == 0 || other.reqs.Load() != 0 {
		t.Error(b.reqs.Load(), other.reqs.Load())
	}
}

func TestAdmin_OutcomesAndRedirects(t *testing.T) {
	request := []byte(`{"action":"list"}`)
	fc := newCluster(t, 3)
	c := open(t, fc.servers[1:], withLimits(quick), withLimits(func(o *options) { o.deadAfter = 200 * time.Millisecond }))
	fc.elect(2)
	if b, err := c.Admin(bg, request); err != nil || string(b) != string(request) {
		t.Fatal(string(b), err)
	}
	if n := fc.store.count(func(st *fakeStore) int { return st.opened }); n != 0 {
		t.Error("a session was opened for it")
	}
	_, err := c.Admin(bg, make([]byte, wire.AdminBytesMax+1))
	matches(t, err, ErrTooLarge, ErrNotApplied)
	_, err = c.Admin(bg, nil)
	matches(t, err, ErrBadRequest, ErrNotApplied)
	for _, test := range []struct {
		name string
		f    fault
		want []error // nil: repeated
	}{
		{"busy", fault{status: wire.StatusBusy}, nil},
		{"no leader", fault{status: wire.StatusNoLeader}, nil},
		{"redirect", hint(fc.servers[2].addr(), 6), nil},
		{"refused", fault{status: wire.StatusBadRequest}, []error{ErrBadRequest, ErrNotApplied}},
		{"denied", fault{status: wire.StatusDenied}, []error{ErrDenied, ErrNotApplied}},
		{"leadership lost", fault{status: wire.StatusLeadershipLost}, []error{ErrMaybeApplied}},
		{"timeout", fault{status: wire.StatusTimeout}, []error{ErrMaybeApplied}},
		{"cut before", fault{cutBefore: true}, []error{ErrMaybeApplied}},
		{"cut after", fault{cutAfter: true}, []error{ErrMaybeApplied}},
		{"silence", fault{ignore: true}, []error{ErrMaybeApplied}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := 0
			for _, s := range fc.servers {
				s.on(func(fcn *fakeConn, r *wire.Request) fault {
					if r.Op == wire.OpPing && test.f.ignore {
						return test.f
					}
					if r.Op != wire.OpAdmin {
						return fault{}
					}
					fc.mu.Lock()
					defer fc.mu.Unlock()
					if n++; n == 1 {
						return test.f
					}
					return fault{}
				})
			}
			_, err := c.Admin(bg, request)
			fc.mu.Lock()
			defer fc.mu.Unlock()
			if test.want == nil {
				if err != nil || n != 2 {
					t.Error(n, err)
				}
				return
			}
			matches(t, err, test.want...)
			if n != 1 {
				t.Errorf("sent %d times", n)
			}
		})
	}
}

// Exactly once under random fail-overs: leaders die and come back, fall silent and wake up late with what lay in
// their sockets, and lose their office in the middle of it.
func TestProperty_RandomFailovers_EveryPutExactlyOnce(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	fc := newCluster(t, 3)
	c := open(t, fc.servers, withLimits(quick), WithTimeout(time.Minute))
	l := fc.load(t, c, 8)
	for round := range 12 {
		l.more(30)
		old, heir := fc.leader, (fc.leader+1+rnd.IntN(2))%3
		rest := []int{heir, 3 - old - heir}
		pause := time.Duration(rnd.IntN(200)) * time.Millisecond
		switch kind := rnd.IntN(3); kind {
		case 0:
			fc.depose()
			fc.servers[old].stop()
			time.Sleep(pause)
			fc.elect(heir, rest...)
			l.more(10)
			fc.restart(old)
		case 1:
			fc.servers[old].freeze()
			time.Sleep(pause)
			fc.elect(heir, rest...)
			if rnd.IntN(2) == 0 {
				l.more(10)
			}
			// Until it learns of the new term it goes on as before: what it took then is in the log before the
			// new leader's entries, or nowhere.
			var late atomic.Int64
			fc.servers[old].on(func(_ *fakeConn, r *wire.Request) fault {
				if late.Add(1)%2 == 0 {
					return fault{status: wire.StatusLeadershipLost, exec: true}
				}
				return fault{}
			})
			fc.servers[old].thaw()
			time.Sleep(pause / 4)
			fc.serve(old)
		case 2:
			fc.see(view{-1, fc.term}, 0, 1, 2)
			fc.depose()
			time.Sleep(pause)
			fc.elect(heir)
		}
		fc.see(view{heir, fc.term}, old)
		if t.Failed() {
			t.Fatal("round", round)
		}
	}
	l.more(30)
	l.end()
	t.Logf("%d writes, %d replays", l.acked.Load(), fc.store.replays)
}

func TestFailover_NoLeaderUntilTheDeadline_ReasonIsTold(t *testing.T) {
	fc := newCluster(t, 3)
	c := open(t, fc.servers)
	mustPut(t, c, "k", "v")
	fc.depose()
	fc.see(view{-1, 5}, 0, 1, 2)
	ctx, cancel := context.WithTimeout(bg, 150*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			_, err := c.Put(ctx, "k", nil)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			_, err = c.Get(ctx, "k")
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Any node tells its status.
	if _, err := c.Status(bg); err != nil {
		t.Error(err)
	}
}
