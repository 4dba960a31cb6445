package client

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/wire"
)

// readers are fake servers of which any may answer a read that allows it. The first leads.
type readers struct {
	*fakeCluster
	// reads counts, per server, reads that came with a consistency; plain those without.
	reads, plain []atomic.Int64
	// answer, when set, is what a server that does not lead does with a read; it is set before there are clients.
	answer func(i int, r *wire.Request) fault
}

func newReaders(t *testing.T, n int) *readers {
	rs := &readers{fakeCluster: newCluster(t, n), reads: make([]atomic.Int64, n), plain: make([]atomic.Int64, n)}
	for i, s := range rs.servers {
		s.on(func(_ *fakeConn, r *wire.Request) fault {
			rs.mu.Lock()
			leads := rs.leader == i
			rs.mu.Unlock()
			switch {
			case r.Op.IsRead() && (r.Stale || r.AnyNode):
				rs.reads[i].Add(1)
				if !leads && rs.answer != nil {
					return rs.answer(i, r)
				}
			case r.Op == wire.OpPing || r.Op == wire.OpCancel:
			case !leads:
				return hint(rs.servers[0].addr(), 5)
			case r.Op.IsRead():
				rs.plain[i].Add(1)
			}
			return fault{}
		})
	}
	return rs
}

func TestGetOptions_ThatContradict_AreRefusedBeforeTheyAreSent(t *testing.T) {
	s, c := fake(t)
	for _, opts := range [][]GetOption{
		{MaxAge(0)}, {MaxAge(-time.Second)}, {MaxAge(time.Millisecond - 1)}, {Stale(), AnyNode()}, {AnyNode(), Stale()}, {AnyNode(), MaxAge(time.Second)}, {MaxAge(time.Second), AnyNode()},
	} {
		_, err := c.Get(bg, "k", opts...)
		matches(t, err, ErrBadRequest)
		_, err = c.BatchGet(bg, []string{"k"}, opts...)
		matches(t, err, ErrBadRequest)
		_, err = c.ListPage(bg, ListOptions{Read: opts}, nil)
		matches(t, err, ErrBadRequest)
	}
	if n := s.reqs.Load(); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
	mustPut(t, c, "k", "v")
	for _, opts := range [][]GetOption{
		nil, {Stale()}, {Stale(), Stale()}, {MaxAge(time.Millisecond)}, {MaxAge(1500 * time.Microsecond), Stale()}, {Stale(), MaxAge(time.Hour), AtLeast(1)}, {AnyNode(), AnyNode(), AtLeast(1)},
	} {
		if v, err := c.Get(bg, "k", opts...); err != nil || string(v.Data) != "v" {
			t.Errorf("%v: %v", opts, err)
		}
	}
}

func TestGet_AnyNodeOrStale_GoesRoundTheNodes(t *testing.T) {
	rs := newReaders(t, 3)
	c := open(t, rs.servers[1:2])
	mustPut(t, c, "k", "v")
	for name, opt := range map[string]GetOption{"any": AnyNode(), "stale": Stale(), "bounded": MaxAge(time.Second)} {
		get := func() {
			if v, err := c.Get(bg, "k", opt); err != nil || string(v.Data) != "v" {
				t.Fatalf("%s: %v", name, err)
			}
		}
		eventually(t, "all nodes are asked", func() bool {
			get()
			return rs.reads[0].Load() > 0 && rs.reads[1].Load() > 0 && rs.reads[2].Load() > 0
		})
		var before [3]int64
		for i := range before {
			before[i] = rs.reads[i].Load()
		}
		for range 300 {
			get()
		}
		for i := range before {
			if n := rs.reads[i].Load() - before[i]; n != 100 {
				t.Errorf("%s: server %d got %d of 300 reads", name, i, n)
			}
			rs.reads[i].Store(0)
		}
	}
	if v, err := c.Get(bg, "k"); err != nil || string(v.Data) != "v" || rs.plain[0].Load() != 1 {
		t.Errorf("a plain read: %v, the leader got %d", err, rs.plain[0].Load())
	}
}

// What another node can't answer, whatever it says or fails to say, the leader is asked, and at once.
func TestGet_AnyNodeThatFails_IsAnsweredByTheLeader(t *testing.T) {
	for name, f := range map[string]fault{
		"RETRY_LATER": {status: wire.StatusRetryLater, ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 60_000)},
		"NO_LEADER":   {status: wire.StatusNoLeader, ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 60_000)},
		"NOT_LEADER":  {status: wire.StatusNotLeader}, "NOT_READY": {status: wire.StatusNotReady}, "BUSY": {status: wire.StatusBusy},
		"TOO_LATE": {status: wire.StatusTooLate}, "DRAINING": {status: wire.StatusDraining}, "COMPACTED": {status: wire.StatusCompacted}, "cut": {cutBefore: true},
	} {
		t.Run(name, func(t *testing.T) {
			rs := newReaders(t, 3)
			rs.answer = func(int, *wire.Request) fault { return f }
			c := open(t, rs.servers[1:2])
			mustPut(t, c, "k", "v")
			for _, opt := range []GetOption{AnyNode(), MaxAge(time.Second)} {
				for range 10 {
					if v, err := c.Get(bg, "k", opt); err != nil || string(v.Data) != "v" {
						t.Fatal(err)
					}
				}
				if res, err := c.BatchGet(bg, []string{"k"}, opt); err != nil || res.Items[0].Value == nil {
					t.Fatal(err)
				}
			}
			if rs.reads[1].Load()+rs.reads[2].Load() == 0 {
				t.Error("only the leader was ever asked")
			}
		})
	}
}

// A node that falls silent holds reads up once, for as long as it takes to notice.
func TestGet_AnyNodeThatFallsSilent_IsLeftAlone(t *testing.T) {
	rs := newReaders(t, 3)
	c := open(t, rs.servers[1:2], withLimits(func(o *options) { o.pingAfter, o.suspectAfter = 100*time.Millisecond, 200*time.Millisecond }))
	mustPut(t, c, "k", "v")
	eventually(t, "all nodes are asked", func() bool {
		if _, err := c.Get(bg, "k", AnyNode()); err != nil {
			t.Fatal(err)
		}
		return rs.reads[0].Load() > 0 && rs.reads[1].Load() > 0 && rs.reads[2].Load() > 0
	})
	rs.servers[1].freeze()
	for range 50 {
		if v, err := c.Get(bg, "k", AnyNode()); err != nil || string(v.Data) != "v" {
			t.Fatal(err)
		}
	}
}

// While there is no leader, stale reads go on.
func TestGet_StaleWithoutALeader_IsAnsweredByWhoeverLives(t *testing.T) {
	rs := newReaders(t, 3)
	c := open(t, rs.servers)
	mustPut(t, c, "k", "v")
	rs.depose()
	rs.servers[0].stop()
	for range 50 {
		if v, err := c.Get(bg, "k", Stale()); err != nil || string(v.Data) != "v" {
			t.Fatal(err)
		}
	}
}

func TestValueAge_IsWhatTheServerSaid(t *testing.T) {
	s, c := fake(t)
	mustPut(t, c, "k", "v", WithTag("a", "b"), WithContentType("text/plain"))
	told := func(us uint64) []byte { return wire.AppendExtU64(nil, wire.ExtAge, us) }
	for _, test := range []struct {
		tail []byte
		opt  []GetOption
		want time.Duration
	}{
		{nil, nil, 0}, {told(5), nil, 0}, {told(5), []GetOption{AnyNode()}, 0},
		{told(0), []GetOption{Stale()}, 0}, {told(1500), []GetOption{Stale()}, 1500 * time.Microsecond}, {told(7), []GetOption{MaxAge(time.Second)}, 7 * time.Microsecond},
		{nil, []GetOption{Stale()}, AgeUnknown}, {told(wire.AgeUnknown), []GetOption{Stale()}, AgeUnknown}, {told(1 << 62), []GetOption{Stale()}, AgeUnknown},
		{wire.AppendExtU32(nil, wire.ExtAge, 1), []GetOption{Stale()}, AgeUnknown},
	} {
		s.on(func(_ *fakeConn, r *wire.Request) fault { return fault{tail: test.tail} })
		v, err := c.Get(bg, "k", test.opt...)
		if err != nil || v.Age() != test.want || v.ContentType != "text/plain" || v.Tags()["a"] != "b" || len(v.Tags()) != 1 {
			t.Errorf("% x with %v: age %v, want %v; %+v, %v", test.tail, test.opt, v.Age(), test.want, v, err)
		}
		res, err := c.BatchGet(bg, []string{"k", "absent"}, test.opt...)
		if err != nil || res.Age != test.want || res.Items[0].Value.Age() != test.want {
			t.Errorf("% x with %v: batch of age %v, want %v; %v", test.tail, test.opt, res.Age, test.want, err)
		}
		p, err := c.ListPage(bg, ListOptions{Read: test.opt}, nil)
		if err != nil || p.Age != test.want || p.Entries[0].Age() != test.want {
			t.Errorf("% x with %v: page of age %v, want %v; %v", test.tail, test.opt, p.Age, test.want, err)
		}
	}
}

// A listing's pages come from one node, since each node holds revisions of its own; when that is gone, the leader
// is asked for the rest.
func TestList_AnyNodeOrStale_StaysWithOneNode(t *testing.T) {
	rs := newReaders(t, 3)
	var broken atomic.Bool
	rs.answer = func(_ int, r *wire.Request) fault { return fault{cutBefore: broken.Load()} }
	c := open(t, rs.servers[1:2])
	for i := range 20 {
		mustPut(t, c, fmt.Sprint("k", 100+i), "v")
	}
	eventually(t, "all nodes are connected", func() bool {
		if _, err := c.Get(bg, "k100", Stale()); err != nil {
			t.Fatal(err)
		}
		return rs.reads[0].Load() > 0 && rs.reads[1].Load() > 0 && rs.reads[2].Load() > 0
	})
	for _, opt := range []GetOption{AnyNode(), Stale(), MaxAge(time.Second)} {
		for range 6 {
			for i := range rs.reads {
				rs.reads[i].Store(0)
			}
			n := 0
			for _, err := range c.List(bg, ListOptions{PageSize: 3, Read: []GetOption{opt}}) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
			a, b, c := rs.reads[0].Load(), rs.reads[1].Load(), rs.reads[2].Load()
			if n != 20 || max(a, b, c) != a+b+c {
				t.Errorf("%d entries, from the nodes %d, %d and %d pages", n, a, b, c)
			}
		}
	}
	for _, opt := range []GetOption{AnyNode(), Stale()} {
		n := 0
		for _, err := range c.List(bg, ListOptions{PageSize: 3, Read: []GetOption{opt}}) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			broken.Store(n > 10)
		}
		broken.Store(false)
		if n != 20 {
			t.Errorf("%d entries", n)
		}
	}
}

// A node that took the address of another cluster's is not spoken to, also before any server has said an id.
func TestForwarder_ServerOfAnotherCluster_GetsNothing(t *testing.T) {
	s := newFake(t, nil)
	var id atomic.Pointer[[16]byte]
	f := forwarder(t, ForwarderOptions{Cluster: func() ([16]byte, bool) {
		p := id.Load()
		if p == nil {
			return [16]byte{}, false
		}
		return *p, true
	}})
	id.Store(&[16]byte{9})
	if r := f.Do(bg, s.addr(), parsed(t, wire.OpReadIndex, nil, "", nil)); r.Status != wire.StatusNoLeader {
		t.Errorf("%s %s", r.Status, r.Payload)
	}
	if n := s.reqs.Load(); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
	own := s.ack.ClusterID
	id.Store(&own)
	eventually(t, "its own cluster's server is used", func() bool {
		return f.Do(bg, s.addr(), parsed(t, wire.OpStatus, nil, "", nil)).Status == wire.StatusOK
	})
}
