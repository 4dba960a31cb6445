package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

func forwarder(t *testing.T, o ForwarderOptions) *Forwarder {
	f := NewForwarder(o)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// parsed builds a request as a door does: encoded, then parsed.
func parsed(t testing.TB, op wire.Opcode, ext []byte, key string, payload []byte) *wire.Request {
	t.Helper()
	body := append(append(bytes.Clone(ext), key...), payload...)
	h := wire.Header{Op: op, ID: 1, ExtLen: uint16(len(ext)), KeyLen: uint16(len(key))}
	var r wire.Request
	if ref := wire.ParseRequest(&h, body, &r); ref != nil {
		t.Fatal(ref)
	}
	return &r
}

func TestForwarder_Requests_ArriveAsTheyAre(t *testing.T) {
	s := newFake(t, nil)
	f := forwarder(t, ForwarderOptions{Name: "node-2", ConnsPerNode: 2})
	var seen *wire.Request
	s.on(func(_ *fakeConn, r *wire.Request) fault {
		c := *r
		c.Body, c.Ext, c.Key, c.Payload, c.Namespace = bytes.Clone(r.Body), bytes.Clone(r.Ext), bytes.Clone(r.Key), bytes.Clone(r.Payload), bytes.Clone(r.Namespace)
		s.mu.Lock()
		seen = &c
		s.mu.Unlock()
		return fault{}
	})
	last := func() *wire.Request {
		s.mu.Lock()
		defer s.mu.Unlock()
		return seen
	}
	ext := wire.AppendExtString(nil, wire.ExtNamespace, "other")
	ext = wire.AppendExtU64(ext, wire.ExtTTL, 60_000)
	ext = wire.AppendExtCondition(ext, wire.ConditionAbsent, nil)
	for _, size := range []int{0, 10, 100_000, wire.ValueBytesMax} {
		key := fmt.Sprint("k", size)
		value := bytes.Repeat([]byte{'x'}, size)
		put := parsed(t, wire.OpPut, ext, key, value)
		put.Group, put.TimeoutMs, put.Flags = 3, 2500, wire.FlagQuiet
		resp := f.Do(bg, s.addr(), put)
		if v, ok := wire.DecodeVersion(resp.Payload); resp.Status != wire.StatusOK || !ok || v == 0 {
			t.Fatalf("%+v", resp)
		}
		got := last()
		if !bytes.Equal(got.Body, put.Body) || got.Group != 3 || string(got.Namespace) != "other" || got.Flags&wire.FlagQuiet != 0 || got.Session != 0 ||
			got.TimeoutMs == 0 || got.TimeoutMs > 2500 {
			t.Fatalf("arrived: group %d, timeout %d, flags %x, %d bytes", got.Group, got.TimeoutMs, got.Flags, len(got.Body))
		}
		resp = f.Do(bg, s.addr(), put)
		if failed, err := wire.DecodeFailed(resp.Payload); resp.Status != wire.StatusConditionFailed || err != nil || len(failed) != 1 {
			t.Fatalf("%+v", resp)
		}
		get := parsed(t, wire.OpGet, nil, key, nil)
		resp = f.Do(bg, s.addr(), get)
		var m wire.Meta
		if _, err := splitMeta(resp.Ext, &m); resp.Status != wire.StatusOK || !bytes.Equal(resp.Payload, value) || err != nil || m.Version == 0 {
			t.Fatalf("%v, %d bytes, %v", resp.Status, len(resp.Payload), err)
		}
		if got := last(); got.TimeoutMs == 0 || got.TimeoutMs > 10_000 {
			t.Fatal("timeout", got.TimeoutMs)
		}
	}
	// A request that was not parsed, without key and elements.
	resp := f.Do(bg, s.addr(), &wire.Request{Op: wire.OpAdmin, Payload: []byte("{}")})
	if resp.Status != wire.StatusOK || string(resp.Payload) != "{}" {
		t.Fatalf("%+v", resp)
	}
	// A write that belongs to a session of its own sender keeps it, and its replay is told.
	grant := f.Do(bg, s.addr(), parsed(t, wire.OpSessionOpen, nil, "", nil))
	g, ok := wire.DecodeSessionGrant(grant.Payload)
	if !ok {
		t.Fatalf("%+v", grant)
	}
	put := parsed(t, wire.OpPut, wire.AppendExtSession(nil, g.Session, 1, 0), "s", []byte("v"))
	first, second := f.Do(bg, s.addr(), put), f.Do(bg, s.addr(), put)
	if first.Replayed || !second.Replayed || !bytes.Equal(first.Payload, second.Payload) {
		t.Fatalf("%+v, %+v", first, second)
	}
	if n := s.helloes.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

// Every way that a forwarded request can end without the result of its execution.
func TestForwarder_Outcomes(t *testing.T) {
	retryAfter := func(ext []byte) (ms uint32) {
		for len(ext) > 0 {
			kind, v, rest, err := wire.NextExt(ext)
			if err != nil {
				t.Fatal(err)
			}
			if ext = rest; kind == wire.ExtRetryAfter {
				ms = binary.LittleEndian.Uint32(v)
			}
		}
		return ms
	}
	hintExt := hint("127.0.0.1:7", 9).ext
	type outcome struct{ put, get, admin wire.Status }
	all := func(s wire.Status) outcome { return outcome{s, s, s} }
	lost := outcome{wire.StatusLeadershipLost, wire.StatusRetryLater, wire.StatusLeadershipLost}
	for _, test := range []struct {
		name  string
		f     fault
		setup func(s *fakeServer)
		// connected: over a connection that exists already.
		connected bool
		ctx       func() (context.Context, context.CancelFunc)
		want      outcome
		ext       []byte // of the answer, exactly
		retry     bool   // the answer names a pause
		contact   Contact
	}{
		{name: "not leader, with its hint", contact: ContactAnswered, f: fault{status: wire.StatusNotLeader, ext: hintExt, text: "over there"}, want: all(wire.StatusNotLeader), ext: hintExt},
		{name: "busy, with its pause", contact: ContactAnswered, f: fault{status: wire.StatusBusy, ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 5)}, want: all(wire.StatusBusy), retry: true},
		{name: "leadership lost", contact: ContactAnswered, f: fault{status: wire.StatusLeadershipLost}, want: all(wire.StatusLeadershipLost)},
		{name: "refused", contact: ContactAnswered, f: fault{status: wire.StatusDenied}, want: all(wire.StatusDenied)},
		{name: "a status of the future", contact: ContactAnswered, f: fault{status: 0x3f}, want: all(0x3f)},
		{name: "cut before execution", contact: ContactLost, f: fault{cutBefore: true}, want: lost},
		{name: "cut after execution", contact: ContactLost, f: fault{cutAfter: true}, want: lost},
		{name: "cut within the answer", contact: ContactLost, f: fault{half: true}, want: lost},
		{name: "silence", contact: ContactLost, connected: true, setup: func(s *fakeServer) { s.freeze() }, want: lost},
		{name: "nobody listens", contact: ContactLost, setup: func(s *fakeServer) { s.stop() }, want: all(wire.StatusNoLeader), retry: true},
		{name: "hello is refused", contact: ContactAnswered, setup: func(s *fakeServer) { s.hello = wire.StatusDenied }, want: all(wire.StatusNoLeader), retry: true},
		{name: "hello is put off", contact: ContactAnswered, setup: func(s *fakeServer) { s.hello = wire.StatusNotReady }, want: all(wire.StatusNotReady)},
		{name: "the time is up, sent", contact: ContactSilent, f: fault{ignore: true}, ctx: func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(bg, 30*time.Millisecond)
		}, want: outcome{wire.StatusTimeout, wire.StatusRetryLater, wire.StatusTimeout}},
		{name: "the time is up, not sent", ctx: func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(bg, -time.Second)
		}, want: all(wire.StatusTooLate)},
		{name: "cancelled before", ctx: func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(bg)
			cancel()
			return ctx, cancel
		}, want: all(wire.StatusCancelled)},
	} {
		t.Run(test.name, func(t *testing.T) {
			for op, want := range map[wire.Opcode]wire.Status{wire.OpPut: test.want.put, wire.OpGet: test.want.get, wire.OpAdmin: test.want.admin} {
				s := newFake(t, nil)
				f := forwarder(t, ForwarderOptions{limits: func(o *options) { quick(o); o.deadAfter = 200 * time.Millisecond }})
				if test.connected || op != wire.OpPut && test.setup == nil && test.ctx == nil {
					// Over a connection that exists already, too.
					if resp := f.Do(bg, s.addr(), parsed(t, wire.OpGet, nil, "k", nil)); resp.Status != wire.StatusNotFound {
						t.Fatalf("%+v", resp)
					}
				}
				if test.setup != nil {
					test.setup(s)
				}
				s.on(func(_ *fakeConn, r *wire.Request) fault {
					if r.Op != op {
						return fault{}
					}
					return test.f
				})
				ctx, cancel := bg, context.CancelFunc(func() {})
				if test.ctx != nil {
					ctx, cancel = test.ctx()
				}
				defer cancel()
				r := parsed(t, wire.OpGet, nil, "k", nil)
				switch op {
				case wire.OpPut:
					r = parsed(t, op, nil, "k", []byte("v"))
				case wire.OpAdmin:
					r = &wire.Request{Op: op, Payload: []byte("{}")}
				}
				resp, contact := f.Pass(ctx, s.addr(), r)
				if resp.Status != want || contact != test.contact {
					t.Errorf("%v: %v %q, contact %d, want %v, contact %d", op, resp.Status, resp.Payload, contact, want, test.contact)
				}
				if test.ext != nil && (!bytes.Equal(resp.Ext, test.ext) || string(resp.Payload) != test.f.text) {
					t.Errorf("%v: elements %x, text %q", op, resp.Ext, resp.Payload)
				}
				if (retryAfter(resp.Ext) != 0) != test.retry && resp.Status != wire.StatusRetryLater {
					t.Errorf("%v: pause of %d ms", op, retryAfter(resp.Ext))
				}
			}
		})
	}
}

func TestForwarder_RequestBeyondTheServersFrame_TooLarge(t *testing.T) {
	s := newFake(t, nil)
	s.ack.MaxFrame = 8 << 10
	f := forwarder(t, ForwarderOptions{})
	resp := f.Do(bg, s.addr(), parsed(t, wire.OpPut, nil, "k", make([]byte, 10_000)))
	if fail := decodeFailure(resp.Ext, resp.Payload); resp.Status != wire.StatusTooLarge || fail.limit != 8<<10 {
		t.Fatalf("%+v", resp)
	}
}

// A server that refuses connections is not dialled for each request.
func TestForwarder_DeadServer_FailsAtOnceAndIsDialledSeldom(t *testing.T) {
	dials := 0
	var mu sync.Mutex
	f := forwarder(t, ForwarderOptions{limits: func(o *options) {
		dial := o.dial
		o.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			dials++
			mu.Unlock()
			return dial(ctx, network, addr)
		}
	}})
	dead := deadAddr(t)
	n := 0
	lost := 0
	for end := time.Now().Add(150 * time.Millisecond); time.Now().Before(end); n++ {
		resp, contact := f.Pass(bg, dead, parsed(t, wire.OpPut, nil, "k", nil))
		switch {
		case contact == ContactLost:
			lost++
		case contact != ContactNone || n == 0:
			t.Fatalf("request %d: contact %d", n, contact)
		}
		if resp.Status != wire.StatusNoLeader || !strings.Contains(string(resp.Payload), "nothing was changed") {
			t.Fatalf("%+v", resp)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if dials > 40 || n < 2*dials {
		t.Errorf("%d dials for %d requests", dials, n)
	}
	if lost != dials {
		t.Errorf("%d dials, and %d requests tell of one", dials, lost)
	}
}

func TestForwarder_IdleAndManyServers_ConnectionsAreClosed(t *testing.T) {
	f := forwarder(t, ForwarderOptions{idle: 40 * time.Millisecond})
	s := newFake(t, nil)
	get := parsed(t, wire.OpGet, nil, "k", nil)
	conns := func(s *fakeServer) (n int) {
		s.each(func(*fakeConn) { n++ })
		return n
	}
	if resp := f.Do(bg, s.addr(), get); resp.Status != wire.StatusNotFound {
		t.Fatalf("%+v", resp)
	}
	eventually(t, "the idle connection is closed", func() bool { return conns(s) == 0 })
	if resp := f.Do(bg, s.addr(), get); resp.Status != wire.StatusNotFound {
		t.Fatalf("%+v", resp)
	}
	f.mu.Lock()
	known := len(f.nodes)
	f.mu.Unlock()
	if known > 1 {
		t.Errorf("%d servers are known", known)
	}

	// More addresses than are kept: the one unused for longest leaves.
	f = forwarder(t, ForwarderOptions{})
	f.Do(bg, s.addr(), get)
	held, release := make(chan struct{}, nodesMax), make(chan struct{})
	busy := newFake(t, nil)
	busy.on(func(*fakeConn, *wire.Request) fault { held <- struct{}{}; return fault{hold: release} })
	addrs := []string{busy.addr()}
	_, port, err := net.SplitHostPort(busy.addr())
	if err != nil {
		t.Fatal(err)
	}
	for i := range nodesMax {
		f.Do(bg, fmt.Sprintf("127.0.0.1:%d", i), get) // nobody listens there
		addrs = append(addrs, fmt.Sprintf("127.0.1.%d:%s", i+1, port))
	}
	f.mu.Lock()
	known, kept := len(f.nodes), f.nodes[s.addr()] != nil
	f.mu.Unlock()
	if known != nodesMax || kept {
		t.Errorf("%d servers are known, the oldest among them: %v", known, kept)
	}
	eventually(t, "its connection is closed", func() bool { return conns(s) == 0 })

	// Servers in use stay; one more than that many is refused, and surely not asked.
	f = forwarder(t, ForwarderOptions{limits: func(o *options) {
		dial := o.dial
		o.dial = func(ctx context.Context, network, _ string) (net.Conn, error) { return dial(ctx, network, busy.addr()) }
	}})
	var wg sync.WaitGroup
	for _, a := range addrs[:nodesMax] {
		wg.Go(func() {
			if resp := f.Do(bg, a, get); resp.Status != wire.StatusNotFound {
				t.Errorf("%+v", resp)
			}
		})
	}
	for range nodesMax {
		<-held
	}
	if resp := f.Do(bg, addrs[nodesMax], get); resp.Status != wire.StatusNoLeader {
		t.Errorf("%+v", resp)
	}
	close(release)
	wg.Wait()
}

func TestForwarder_Close_EndsWhatIsUnderWay(t *testing.T) {
	s := newFake(t, nil)
	started := make(chan struct{})
	s.on(func(*fakeConn, *wire.Request) fault { close(started); return fault{ignore: true} })
	f := forwarder(t, ForwarderOptions{})
	done := make(chan wire.Response)
	go func() { done <- f.Do(bg, s.addr(), parsed(t, wire.OpPut, nil, "k", nil)) }()
	<-started
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if resp := <-done; resp.Status != wire.StatusLeadershipLost {
		t.Errorf("%+v", resp)
	}
	if resp := f.Do(bg, s.addr(), parsed(t, wire.OpPut, nil, "k", nil)); resp.Status != wire.StatusDraining {
		t.Errorf("%+v", resp)
	}
}
