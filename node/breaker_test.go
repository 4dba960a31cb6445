package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/wire"
)

// peersWith gives peers on a clock that the test moves, whose requests meet what the test says.
func peersWith(now *int64, pass func(address string) (wire.Response, client.Contact)) *peers {
	return &peers{
		now:  func() int64 { return *now },
		name: func(address string) string { return map[string]string{"10.0.0.1:7001": "node-1"}[address] },
		pass: func(_ context.Context, address string, _ *wire.Request) (wire.Response, client.Contact) {
			return pass(address)
		},
		breakers: make(map[string]*breaker),
	}
}

func pauseOf(ext []byte) (ms uint32) {
	for len(ext) > 0 {
		kind, v, rest, err := wire.NextExt(ext)
		if err != nil {
			return 0
		}
		if ext = rest; kind == wire.ExtRetryAfter {
			ms = binary.LittleEndian.Uint32(v)
		}
	}
	return ms
}

// A breaker opens after breakerFailures failures, sends nothing while it is open, doubles its pause with each probe that
// fails, and closes with the first that is answered, even by a refusal.
func TestPeers_Breaker_OpensProbesAndCloses(t *testing.T) {
	const at = "10.0.0.1:7001"
	now, sent := int64(1e12), 0
	lost := wire.Response{Status: wire.StatusNoLeader}
	answer, contact := lost, client.ContactLost
	p := peersWith(&now, func(string) (wire.Response, client.Contact) { sent++; return answer, contact })
	put := &wire.Request{Op: wire.OpPut}
	state := func(want int) {
		t.Helper()
		if got, _ := p.look(at); got != want {
			t.Fatalf("state %d, want %d", got, want)
		}
	}
	// denied wants the next request not to be sent, and gives the pause that it is told.
	denied := func() time.Duration {
		t.Helper()
		before := sent
		a, d := p.do(t.Context(), at, put)
		ms := pauseOf(a.Ext)
		if d == nil || sent != before {
			t.Fatalf("sent although open: %v", a.Status)
		}
		if !homeless(a.Status) || a.Status.Class() != wire.ClassRetry || a.Status.Applied() != "no" {
			t.Fatalf("answered with %s", a.Status)
		}
		if text := string(a.Payload); !strings.Contains(text, "node-1 at "+at) || !strings.Contains(text, "nothing was sent") || ms == 0 || !strings.Contains(text, fmt.Sprintf("in %d ms", ms)) {
			t.Fatalf("%d ms, %q", ms, text)
		}
		return time.Duration(ms) * time.Millisecond
	}
	pass := func() {
		t.Helper()
		before := sent
		if a, d := p.do(t.Context(), at, put); d != nil || sent != before+1 || a.Status != answer.Status {
			t.Fatalf("not sent: %v", a.Status)
		}
	}
	for range breakerFailures - 1 {
		pass()
	}
	answer, contact = wire.Response{Status: wire.StatusDenied}, client.ContactAnswered
	pass() // a refusal is an answer: the count begins anew
	answer, contact = lost, client.ContactLost
	for range breakerFailures {
		state(breakerClosed)
		now++
		pass()
	}
	state(breakerOpen)

	bound := breakerPauseMin
	for range 8 {
		wait := denied()
		if wait < bound/2 || wait > bound+time.Millisecond {
			t.Fatalf("a pause of %s; want %s to %s", wait, bound/2, bound)
		}
		now += int64(wait) - int64(2*time.Millisecond)
		denied()
		now += int64(2 * time.Millisecond)
		state(breakerHalfOpen)
		pass() // the probe fails
		state(breakerOpen)
		bound = min(2*bound, breakerPauseMax)
	}
	if _, opened := p.look(at); opened != 9 {
		t.Errorf("opened %d times, want 9", opened)
	}

	now += int64(breakerPauseMax)
	answer, contact = wire.Response{Status: wire.StatusNotLeader}, client.ContactAnswered
	pass()
	state(breakerClosed)
	answer, contact = lost, client.ContactLost
	for range breakerFailures {
		now++
		pass()
	}
	if wait := denied(); wait > breakerPauseMin+time.Millisecond {
		t.Errorf("after it was closed the first pause is %s", wait)
	}
	if other, d := p.do(t.Context(), "10.0.0.2:7001", put); d != nil || other.Status != lost.Status {
		t.Error("another server's requests are held back too")
	}
	if n := p.denied.Load(); n != 2*8+1 {
		t.Errorf("%d denied", n)
	}
}

// What was sent keeps its outcome, also where it opens the breaker: an unknown one stays unknown.
func TestPeers_UnknownOutcome_StaysUnknown(t *testing.T) {
	now := int64(0)
	for _, unknown := range []wire.Status{wire.StatusTimeout, wire.StatusLeadershipLost} {
		contact := client.ContactLost
		if unknown == wire.StatusTimeout {
			contact = client.ContactSilent
		}
		p := peersWith(&now, func(string) (wire.Response, client.Contact) {
			now += int64(breakerSilence)
			return wire.Response{Status: unknown, Payload: []byte("as it was")}, contact
		})
		for i := range breakerFailures {
			a, d := p.do(t.Context(), "a", &wire.Request{Op: wire.OpPut})
			if d != nil || a.Status != unknown || string(a.Payload) != "as it was" {
				t.Errorf("%s, time %d: %s %q", unknown, i, a.Status, a.Payload)
			}
		}
		if a, d := p.do(t.Context(), "a", &wire.Request{Op: wire.OpPut}); d == nil || a.Status.Applied() != "no" {
			t.Errorf("%s: %d failures have not opened it: %s", unknown, breakerFailures, a.Status)
		}
	}
}

func TestBreaker_WhatCounts(t *testing.T) {
	const ms = int64(time.Millisecond)
	long := int64(breakerSilence)
	type event struct {
		began, ended int64
		contact      client.Contact
	}
	for _, test := range []struct {
		name   string
		events []event
		want   int
	}{
		{"one connection is lost with many requests", []event{{1, 9, client.ContactLost}, {2, 9, client.ContactLost}, {3, 9, client.ContactLost}, {4, 9, client.ContactLost}}, breakerClosed},
		{"one after the other", []event{{1, 2, client.ContactLost}, {3, 4, client.ContactLost}, {5, 6, client.ContactLost}}, breakerOpen},
		{"senders without patience", []event{{1, 1 + long - ms, client.ContactSilent}, {long, 2*long - ms, client.ContactSilent}, {2 * long, 3*long - ms, client.ContactSilent}}, breakerClosed},
		{"a silent server", []event{{1, 1 + long, client.ContactSilent}, {1 + long, 1 + 2*long, client.ContactSilent}, {1 + 2*long, 1 + 3*long, client.ContactSilent}}, breakerOpen},
		{"cancelled", []event{{1, 2, client.ContactNone}, {3, 4, client.ContactNone}, {5, 6, client.ContactNone}}, breakerClosed},
		{"an answer between", []event{{1, 2, client.ContactLost}, {3, 4, client.ContactLost}, {5, 6, client.ContactAnswered}, {7, 8, client.ContactLost}}, breakerClosed},
		{"an answer that comes late", []event{{1, 2, client.ContactLost}, {3, 4, client.ContactLost}, {5, 6, client.ContactLost}, {0, 7, client.ContactAnswered}}, breakerClosed},
	} {
		var b breaker
		for _, e := range test.events {
			b.done(e.began, e.ended, e.contact)
		}
		if got, _ := b.look(test.events[len(test.events)-1].ended); got != test.want {
			t.Errorf("%s: state %d, want %d", test.name, got, test.want)
		}
	}
}

// opened gives a breaker that has just opened at now, and when its probe is due.
func opened(now int64) (b *breaker, due int64) {
	b = new(breaker)
	for i := range int64(breakerFailures) {
		b.done(now+i, now+i, client.ContactLost)
	}
	return b, b.until
}

// While a probe is under way nothing else is sent; one that takes its time, or tells nothing, gives way to another; and
// the failure of a request from before is no failure of the probe.
func TestBreaker_HalfOpen_LetsOneThroughAtATime(t *testing.T) {
	b, due := opened(1000)
	if b.admit(due-1) == nil {
		t.Fatal("let through before the pause is over")
	}
	if b.admit(due) != nil {
		t.Fatal("no probe after the pause")
	}
	if d := b.admit(due + 1); d == nil || d.hopeless {
		t.Fatalf("a second one beside the probe: %+v", d)
	}
	b.done(1001, due+2, client.ContactLost) // sent before it opened
	if got, _ := b.look(due + 2); got != breakerHalfOpen {
		t.Fatalf("an old failure ends the probe: state %d", got)
	}
	b.done(due, due+3, client.ContactNone)
	if b.admit(due+3) != nil {
		t.Fatal("a probe that told nothing keeps the next one out")
	}
	if b.admit(due+4) == nil {
		t.Fatal("two probes at once")
	}
	slow := due + 3 + int64(breakerProbe)
	if b.admit(slow) != nil {
		t.Fatal("a slow probe keeps all others out")
	}
	b.done(slow, slow+1, client.ContactAnswered)
	for range 2 {
		if b.admit(slow+1) != nil {
			t.Fatal("closed, it holds something back")
		}
	}
}

// Requests wait for a server for as long as an outage may be a change of leadership, and no longer.
func TestBreaker_ProbesFailForLong_Hopeless(t *testing.T) {
	b, due := opened(0)
	for end := int64(breakerHopeless) + due; ; {
		if b.admit(due) != nil {
			t.Fatal("no probe when it is due")
		}
		b.done(due, due+1, client.ContactLost)
		d := b.admit(due + 1)
		if d == nil || d.hopeless != (due+1-2 >= int64(breakerHopeless)) {
			t.Fatalf("down for %s: %+v", time.Duration(due), d)
		}
		if due = b.until; due > end {
			break
		}
	}
	// An hour later nobody knows: the next one is a probe, and others wait for it.
	hour := due + int64(time.Hour)
	if b.admit(hour) != nil {
		t.Fatal("no probe after an hour")
	}
	if d := b.admit(hour + 1); d == nil || d.hopeless {
		t.Errorf("while the probe is under way: %+v", d)
	}
}

func TestPeers_ManyAddresses_AreBounded(t *testing.T) {
	now := int64(0)
	contact := client.ContactLost
	p := peersWith(&now, func(string) (wire.Response, client.Contact) { return wire.Response{}, contact })
	ask := func(i int) { p.do(t.Context(), fmt.Sprint("a", i), &wire.Request{}) }
	for i := range breakersMax {
		ask(i)
	}
	ask(breakersMax)
	if p.breakers["a64"] != nil || len(p.breakers) != breakersMax {
		t.Errorf("%d breakers", len(p.breakers))
	}
	contact = client.ContactAnswered
	ask(0)
	ask(breakersMax)
	if p.breakers["a64"] == nil || p.breakers["a0"] != nil || len(p.breakers) != breakersMax {
		t.Errorf("one that is closed has not given way: %d breakers", len(p.breakers))
	}
}

// relay is where the others find the binary port of a node, until it is cut.
type relay struct {
	t           *testing.T
	target      string
	at          string
	mu          sync.Mutex
	listener    net.Listener
	connections []net.Conn
}

// open listens, the first time where it likes and then there again.
func (r *relay) open() {
	r.t.Helper()
	l, err := net.Listen("tcp", cmp.Or(r.at, "127.0.0.1:0"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.listener, r.at = l, l.Addr().String()
	r.mu.Unlock()
	go func() { // ends when cut closes l
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", r.target)
			if err != nil {
				_ = from.Close()
				continue
			}
			r.mu.Lock()
			r.connections = append(r.connections, from, to)
			r.mu.Unlock()
			for _, c := range [][2]net.Conn{{from, to}, {to, from}} {
				go func() { // ends with the connection
					_, _ = io.Copy(c[1], c[0])
					_, _ = c[0].Close(), c[1].Close()
				}()
			}
		}
	}()
}

func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.listener.Close()
	for _, c := range r.connections {
		_ = c.Close()
	}
	r.connections = nil
}

// A leader that leads, but whose binary port this node cannot reach: requests hear that nothing was done, the first
// after a while in which that might have been a change of leadership, later ones at once; and as soon as the port is
// back, they are passed on again.
func TestForward_LeaderOutOfReach_AnswersAtOnceAndNeverUnknown(t *testing.T) {
	slow(t)
	relays := map[string]*relay{}
	c := newCluster(t, 3, func(o *Options) { o.Advertise = relays[o.NodeID].at })
	for _, id := range c.ids {
		relays[id] = &relay{t: t, target: c.places[id].native}
		relays[id].open()
		t.Cleanup(relays[id].cut)
	}
	c.start(c.ids...)
	leader, others := c.leader()
	recorded(t, others[0])
	ask := func(want wire.Status) time.Duration {
		t.Helper()
		began := time.Now()
		r := put(t, others[0], "k", "v")
		for range 10 {
			if r.Status != wire.StatusLeadershipLost {
				break
			}
			// It was sent before the loss of the connection was noticed.
			began = time.Now()
			r = put(t, others[0], "k", "v")
		}
		if r.Status != want {
			t.Fatalf("%s %q, want %s", r.Status, r.Payload, want)
		}
		return time.Since(began)
	}
	ask(wire.StatusOK)
	relays[leader.info.NodeID].cut()
	if first := ask(wire.StatusNoLeader); first < pursueMax/2 {
		t.Errorf("given up after %s, in which a new leader may have come", first)
	}
	until(t, "nobody waits for it any more", func() bool { return ask(wire.StatusNoLeader) < pursueMax/2 })
	var b strings.Builder
	if err := others[0].shard.writeBreakerMetrics(&b); err != nil {
		t.Fatal(err)
	}
	if strings.Count(b.String(), "_state{") != 2 || !strings.Contains(b.String(), fmt.Sprintf("_state{peer=%q}", leader.info.NodeID)) ||
		strings.Contains(b.String(), fmt.Sprintf("_opened_total{peer=%q} 0", leader.info.NodeID)) || strings.Contains(b.String(), "refused_total 0\n") {
		t.Errorf("metrics:\n%s", b.String())
	}
	relays[leader.info.NodeID].open()
	until(t, "it is asked again", func() bool { return put(t, others[0], "k", "v").Status == wire.StatusOK })
	if state, _ := others[0].shard.peers.look(relays[leader.info.NodeID].at); state != breakerClosed {
		t.Errorf("state %d once it answers", state)
	}
}
