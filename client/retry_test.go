package client

import (
	"bytes"
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

// A write that is cut at each possible moment, with and without a session: the three outcomes.
func TestPut_ConnectionCut_OutcomeIsNeverGuessed(t *testing.T) {
	faults := map[string]fault{
		"before execution": {cutBefore: true},
		"after execution":  {cutAfter: true},
		"within answer":    {half: true},
		"broken answer":    {corrupt: true},
	}
	for name, f := range faults {
		for _, size := range []int{10, 100_000} {
			for _, session := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d bytes/session=%v", name, size, session), func(t *testing.T) {
					s := newFake(t, nil)
					s.store.applied = map[string]int{}
					var opts []Option
					if !session {
						opts = append(opts, WithoutSession())
					}
					c := open(t, []*fakeServer{s}, opts...)
					var bodies [][]byte
					s.onOp(wire.OpPut, func(n int, r *wire.Request) fault {
						bodies = append(bodies, bytes.Clone(r.Body))
						if n == 1 {
							return f
						}
						return fault{}
					})
					value := bytes.Repeat([]byte{7}, size)
					v, err := c.Put(bg, "k", value, WithTag("a", "b"))
					s.quiet()
					applied := s.store.count(func(st *fakeStore) int { return st.applied["k"] })
					if !session {
						matches(t, err, ErrMaybeApplied)
						if len(bodies) != 1 {
							t.Fatalf("sent %d times", len(bodies))
						}
						return
					}
					if err != nil || v == 0 {
						t.Fatal(v, err)
					}
					if applied != 1 {
						t.Fatalf("applied %d times", applied)
					}
					if len(bodies) != 2 || !bytes.Equal(bodies[0], bodies[1]) {
						t.Fatalf("%d attempts, or not the same bytes", len(bodies))
					}
				})
			}
		}
	}
}

func TestGet_AnyFailure_IsRepeated(t *testing.T) {
	s, c := fake(t)
	mustPut(t, c, "k", "v")
	for _, f := range []fault{
		{cutBefore: true}, {cutAfter: true}, {half: true}, {corrupt: true}, {twice: true},
		{status: wire.StatusBusy}, {status: wire.StatusLeadershipLost}, {status: wire.StatusTimeout}, {status: wire.StatusInternal},
		{status: wire.StatusShutdown}, {status: wire.StatusReplyFull}, {status: 0x1f}, {status: 0x3f},
	} {
		s.onOp(wire.OpGet, func(n int, r *wire.Request) fault {
			if n == 1 {
				return f
			}
			return fault{}
		})
		if v, err := c.Get(bg, "k"); err != nil || string(v.Data) != "v" {
			t.Fatalf("%+v: %q %v", f, v.Data, err)
		}
	}
}

func TestPut_ClassRetry_IsRepeatedWithAndWithoutSession(t *testing.T) {
	for _, session := range []bool{true, false} {
		s := newFake(t, nil)
		s.store.applied = map[string]int{}
		var opts []Option
		if !session {
			opts = append(opts, WithoutSession())
		}
		c := open(t, []*fakeServer{s}, opts...)
		for st := wire.Status(0x10); st < 0x20; st++ {
			key := fmt.Sprint("k", st)
			n := 0
			s.onOp(wire.OpPut, func(k int, r *wire.Request) fault {
				n = k
				if k <= 2 {
					return fault{status: st}
				}
				return fault{}
			})
			mustPut(t, c, key, "v")
			s.quiet()
			if applied := s.store.count(func(st *fakeStore) int { return st.applied[key] }); applied != 1 || n != 3 {
				t.Fatalf("%v: %d attempts, applied %d times", st, n, applied)
			}
		}
	}
}

func TestPut_ClassUnknown_RepeatedOnlyInSession(t *testing.T) {
	for st := wire.Status(0x30); st < 0x36; st++ {
		for _, exec := range []bool{true, false} {
			s := newFake(t, nil)
			s.store.applied = map[string]int{}
			s.onOp(wire.OpPut, func(n int, r *wire.Request) fault {
				if n%2 == 1 {
					return fault{status: st, exec: exec}
				}
				return fault{}
			})
			c := open(t, []*fakeServer{s})
			if v, err := c.Put(bg, "k", nil); err != nil || v == 0 {
				t.Fatal(st, err)
			}
			if n := s.store.count(func(st *fakeStore) int { return st.applied["k"] }); n != 1 {
				t.Fatalf("%v: applied %d times", st, n)
			}
			plain := open(t, []*fakeServer{s}, WithoutSession())
			_, err := plain.Put(bg, "k", nil)
			matches(t, err, ErrMaybeApplied)
			var e *Error
			if errors.As(err, &e); e.Status != st || e.Applied() != "unknown" || e.Attempts != 1 {
				t.Fatalf("%+v", e)
			}
		}
	}
}

func TestPut_Refused_NotAppliedWithItsReason(t *testing.T) {
	s, c := fake(t)
	for st, kind := range map[wire.Status]error{
		wire.StatusBadRequest: ErrBadRequest, wire.StatusTooLarge: ErrTooLarge, wire.StatusUnknownOp: ErrUnsupported, wire.StatusUnsupported: ErrUnsupported,
		wire.StatusUnauthenticated: ErrUnauthenticated, wire.StatusDenied: ErrDenied, wire.StatusBadKey: ErrBadKey, wire.StatusChecksum: ErrChecksum,
		wire.StatusNoNamespace: ErrNoNamespace, wire.StatusCancelled: ErrBadRequest, wire.StatusSessionStale: ErrBadRequest,
		wire.StatusCompacted: ErrCompacted, wire.StatusFutureRevision: ErrFutureRevision, wire.StatusDamaged: ErrDamaged, wire.StatusSessionsTooMany: ErrTooManySessions,
	} {
		n := 0
		s.onOp(wire.OpPut, func(k int, r *wire.Request) fault {
			n = k
			return fault{status: st, text: "because", ext: wire.AppendExtU64(nil, wire.ExtLimit, 77)}
		})
		_, err := c.Put(bg, "k", nil)
		s.quiet()
		matches(t, err, kind, ErrNotApplied)
		var e *Error
		if errors.As(err, &e); n != 1 || e.Message != "because" || e.Limit != 77 || e.Status != st || e.Applied() != "no" {
			t.Fatalf("%v: %d attempts, %+v", st, n, e)
		}
		if !strings.Contains(err.Error(), "because") || !strings.Contains(err.Error(), st.Info().Code) {
			t.Fatal(err)
		}
	}
}

func TestPut_RefusedAfterAnUnknownAttempt_StaysUnknown(t *testing.T) {
	for _, st := range []wire.Status{wire.StatusDenied, wire.StatusSessionExpired, wire.StatusSessionStale, wire.StatusNoNamespace, wire.StatusCancelled} {
		for _, first := range []fault{{cutAfter: true}, {cutBefore: true}, {status: wire.StatusLeadershipLost}} {
			s, c := fake(t)
			s.onOp(wire.OpPut, func(n int, r *wire.Request) fault {
				switch n {
				case 1:
					return first
				case 2:
					return fault{status: st}
				}
				return fault{} // a third attempt would succeed, and hide that the first may count as well
			})
			_, err := c.Put(bg, "k", nil)
			matches(t, err, ErrMaybeApplied)
		}
	}
}

func TestPut_BusyAfterAnUnknownAttempt_StaysUnknownAtTheDeadline(t *testing.T) {
	s, c := fake(t, WithTimeout(80*time.Millisecond))
	s.onOp(wire.OpPut, func(n int, r *wire.Request) fault {
		if n == 1 {
			return fault{cutAfter: true}
		}
		return fault{status: wire.StatusBusy}
	})
	_, err := c.Put(bg, "k", nil)
	matches(t, err, ErrMaybeApplied)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestPut_BusyUntilTheDeadline_NotApplied(t *testing.T) {
	s, c := fake(t)
	s.onOp(wire.OpPut, func(n int, _ *wire.Request) fault {
		if n < 3 {
			return fault{status: wire.StatusBusy}
		}
		// No further attempt fits: one that is on its way when the time is up has an unknown outcome.
		return fault{status: wire.StatusBusy, ext: wire.AppendExt(nil, wire.ExtRetryAfter, le32(60_000))}
	})
	ctx, cancel := context.WithTimeout(bg, 10*time.Second)
	defer cancel()
	_, err := c.Put(ctx, "k", nil)
	matches(t, err, ErrBusy, ErrNotApplied)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	var e *Error
	if errors.As(err, &e); e.Attempts != 3 {
		t.Errorf("%d attempts", e.Attempts)
	}
}

func TestBusy_RetryAfter_IsHonoured(t *testing.T) {
	s, c := fake(t)
	var times []time.Time
	s.onOp(wire.OpPut, func(n int, r *wire.Request) fault {
		times = append(times, time.Now())
		if n == 1 {
			return fault{status: wire.StatusBusy, ext: wire.AppendExt(nil, wire.ExtRetryAfter, le32(70))}
		}
		return fault{}
	})
	mustPut(t, c, "k", "v")
	s.quiet()
	if d := times[1].Sub(times[0]); d < 70*time.Millisecond {
		t.Fatalf("asked again after %v", d)
	}
	// A pause beyond the deadline is not slept through.
	s.onOp(wire.OpPut, func(int, *wire.Request) fault {
		return fault{status: wire.StatusLimited, ext: wire.AppendExt(nil, wire.ExtRetryAfter, le32(60_000))}
	})
	start := time.Now()
	_, err := c.Put(bg, "k", nil)
	matches(t, err, ErrBusy, ErrLimited, ErrNotApplied)
	var e *Error
	if errors.As(err, &e); e.RetryAfter != time.Minute || time.Since(start) > 9*time.Second {
		t.Fatalf("%+v after %v", e, time.Since(start))
	}
}

func TestRetryBudget_Spent_PacesRetries(t *testing.T) {
	var waits []time.Duration
	s, c := fake(t, WithRetryBudget(2), WithHooks(Hooks{OnRetry: func(op wire.Opcode, attempt int, wait time.Duration, st wire.Status, err error) {
		if op != wire.OpGet || st != wire.StatusBusy || err != nil {
			t.Error(op, st, err)
		}
		waits = append(waits, wait)
	}}))
	s.onOp(wire.OpGet, func(n int, r *wire.Request) fault {
		if n <= 3 {
			return fault{status: wire.StatusBusy}
		}
		return fault{}
	})
	if _, err := c.Get(bg, "k"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if len(waits) != 3 || waits[0] > 4*backoffMin || waits[2] < backoffMax/2 {
		t.Fatalf("pauses %v", waits)
	}
	// Ten successes give one token back.
	for range 10 {
		if _, err := c.Get(bg, "k"); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
	if !c.budget.take() || c.budget.take() {
		t.Fatal("not one token after eleven successes")
	}
}

func TestBackoff_GrowsToASecond(t *testing.T) {
	for n, bound := 0, 2*time.Millisecond; n < 80; n++ {
		for range 50 {
			if d := backoff(n, time.Second); d < 0 || d >= bound {
				t.Fatalf("backoff(%d) = %v", n, d)
			}
		}
		bound = min(2*bound, time.Second)
	}
}

func TestSession_ExpiredBeforeAnythingWasSent_NewSession(t *testing.T) {
	s, c := fake(t)
	mustPut(t, c, "a", "1")
	s.store.mu.Lock()
	clear(s.store.sessions)
	s.store.mu.Unlock()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := c.Put(bg, fmt.Sprint("k", i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.store.count(func(st *fakeStore) int { return st.opened }); n != 2 {
		t.Fatalf("%d sessions were opened", n)
	}
}

func TestSession_FirstWritesTogether_OneIsOpened(t *testing.T) {
	s, c := fake(t)
	if n := s.store.count(func(st *fakeStore) int { return st.opened }); n != 0 {
		t.Fatal("a session before the first write")
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() { mustPut(t, c, fmt.Sprint(i), "v") })
	}
	wg.Wait()
	if n := s.store.count(func(st *fakeStore) int { return st.opened }); n != 1 {
		t.Fatalf("%d sessions were opened", n)
	}
	// The floor follows: with nothing under way, the next write carries floor = sequence - 1.
	s.onOp(wire.OpPut, func(_ int, r *wire.Request) fault {
		if r.Seq != 51 || r.Floor != 50 {
			t.Errorf("seq %d, floor %d", r.Seq, r.Floor)
		}
		return fault{}
	})
	mustPut(t, c, "k", "v")
}

func TestSession_OutOfOrderEnds_FloorWaitsForTheSlowest(t *testing.T) {
	s, c := fake(t)
	mustPut(t, c, "k", "1") // seq 1
	release := make(chan struct{})
	started := make(chan struct{})
	s.onOp(wire.OpPut, func(n int, r *wire.Request) fault {
		switch {
		case n == 1: // seq 2
			close(started)
			return fault{hold: release}
		case r.Floor != 1 && r.Seq < 40:
			t.Errorf("seq %d carries floor %d", r.Seq, r.Floor)
		case r.Seq == 40 && r.Floor != 39:
			t.Errorf("seq 40 carries floor %d", r.Floor)
		}
		return fault{}
	})
	var wg sync.WaitGroup
	wg.Go(func() { mustPut(t, c, "slow", "1") })
	<-started
	for range 37 {
		mustPut(t, c, "k", "2")
	}
	close(release)
	wg.Wait()
	mustPut(t, c, "k", "3")
}

func TestSession_WindowFull_WritesWait(t *testing.T) {
	s, c := fake(t, WithTimeout(0))
	release := make(chan struct{})
	s.onOp(wire.OpPut, func(n int, r *wire.Request) fault {
		if r.Seq-r.Floor > wire.SessionWindow {
			t.Errorf("seq %d with floor %d", r.Seq, r.Floor)
		}
		if n == 1 {
			return fault{hold: release}
		}
		return fault{}
	})
	var wg sync.WaitGroup
	wg.Add(wire.SessionWindow + 1)
	cb := func(_ Version, err error) {
		if err != nil {
			t.Error(err)
		}
		wg.Done()
	}
	for range wire.SessionWindow {
		c.PutAsync("k", nil, cb)
	}
	eventually(t, "a full window", func() bool { return c.ServerInfo().NodeID != "" && s.reqs.Load() >= wire.SessionWindow+1 })
	done := make(chan struct{})
	go func() {
		c.PutAsync("k", nil, cb)
		close(done)
	}()
	eventually(t, "a write that waits for the window", func() bool {
		c.sessions.mu.Lock()
		defer c.sessions.mu.Unlock()
		return c.sessions.waiters.head != nil
	})
	// A context ends such a wait; nothing was sent.
	ctx, cancel := context.WithTimeout(bg, 10*time.Millisecond)
	defer cancel()
	_, err := c.Put(ctx, "k", nil)
	matches(t, err, ErrNotApplied, ErrTimeout)
	close(release)
	wg.Wait()
	<-done
}

func TestSession_IdleForHalfItsTTL_AnotherIsOpened(t *testing.T) {
	s := newFake(t, nil)
	s.store.ttl = 60 * time.Millisecond
	c := open(t, []*fakeServer{s})
	mustPut(t, c, "k", "1")
	time.Sleep(40 * time.Millisecond) // more than half of the session's life: that is the case under test
	mustPut(t, c, "k", "2")
	if n := s.store.count(func(st *fakeStore) int { return st.opened }); n != 2 {
		t.Fatalf("%d sessions were opened", n)
	}
}

func TestSession_ServerKnowsNone_WritesGoWithout(t *testing.T) {
	s, c := fake(t)
	s.on(func(_ *fakeConn, r *wire.Request) fault {
		if r.Op == wire.OpSessionOpen {
			return fault{status: wire.StatusUnknownOp}
		}
		if r.Session != 0 {
			t.Error("a session element")
		}
		return fault{}
	})
	mustPut(t, c, "k", "1")
	s.onOp(wire.OpPut, func(int, *wire.Request) fault { return fault{cutAfter: true} })
	_, err := c.Put(bg, "k", nil)
	matches(t, err, ErrMaybeApplied)
}

func TestSession_OpeningRefused_WritesAreNotApplied(t *testing.T) {
	s, c := fake(t)
	n := 0
	s.onOp(wire.OpSessionOpen, func(k int, _ *wire.Request) fault { n = k; return fault{status: wire.StatusSessionsTooMany} })
	_, err := c.Put(bg, "k", nil)
	matches(t, err, ErrTooManySessions, ErrNotApplied)
	_, err = c.Put(bg, "k", nil)
	matches(t, err, ErrTooManySessions, ErrNotApplied)
	s.quiet()
	if n != 2 {
		t.Fatalf("%d attempts", n)
	}
	s.on(nil)
	mustPut(t, c, "k", "v")
}

func TestSession_OpeningIsCut_IsRepeated(t *testing.T) {
	s, c := fake(t)
	s.onOp(wire.OpSessionOpen, func(n int, _ *wire.Request) fault {
		if n < 3 {
			return fault{cutAfter: true}
		}
		return fault{}
	})
	mustPut(t, c, "k", "v")
}

func TestReplay_LongResultNotKept_Truncated(t *testing.T) {
	s, c := fake(t)
	s.store.truncate = true
	mustPut(t, c, "a", "1")
	s.onOp(wire.OpBatch, func(n int, _ *wire.Request) fault {
		if n%2 == 1 {
			return fault{cutAfter: true}
		}
		return fault{}
	})
	res, err := c.BatchPut(bg, []KV{{Key: "b"}, {Key: "c", Options: []PutOption{IfExists()}}}, false)
	if err != nil || !res.Truncated || res.Items[0].Err != nil {
		t.Fatal(res, err)
	}
	matches(t, res.Items[1].Err, ErrMaybeApplied)
	res, err = c.BatchPut(bg, []KV{{Key: "b", Options: []PutOption{IfExists()}}, {Key: "c"}}, true)
	if err != nil || !res.Truncated || res.Items[0].Err != nil || res.Revision == 0 {
		t.Fatal(res, err)
	}
	s.onOp(wire.OpTxn, func(n int, _ *wire.Request) fault {
		if n == 1 {
			return fault{cutAfter: true}
		}
		return fault{}
	})
	txn, err := c.Txn().Put("d", nil).Get("a").Commit(bg)
	if err != nil || !txn.Committed || !txn.Truncated {
		t.Fatal(txn, err)
	}
}

// hint is what a follower answers.
func hint(leader string, term uint64) fault {
	ext := wire.AppendExtString(nil, wire.ExtLeader, leader)
	return fault{status: wire.StatusNotLeader, ext: wire.AppendExtU64(ext, wire.ExtTerm, term)}
}

func TestRoute_NotLeader_FollowsTheHint(t *testing.T) {
	store := newFakeStore()
	a, b, old := newFake(t, store), newFake(t, store), newFake(t, store)
	a.on(func(_ *fakeConn, r *wire.Request) fault { return hint(b.addr(), 5) })
	c := open(t, []*fakeServer{a, old})
	mustPut(t, c, "k", "1")
	n := a.reqs.Load()
	mustPut(t, c, "k", "2")
	if a.reqs.Load() != n {
		t.Error("asked the follower again")
	}
	// A hint of a lower term is ignored; one of a higher is followed.
	b.onOp(wire.OpPut, func(n int, r *wire.Request) fault {
		if n == 1 {
			return hint(old.addr(), 4)
		}
		return fault{}
	})
	mustPut(t, c, "k", "3")
	if c.route.cur.Load().addr == old.addr() {
		t.Error("followed a hint of a lower term")
	}
	a.on(func(_ *fakeConn, r *wire.Request) fault { return hint(old.addr(), 6) })
	b.on(func(_ *fakeConn, r *wire.Request) fault { return hint(old.addr(), 6) })
	mustPut(t, c, "k", "4")
	if c.route.cur.Load().addr != old.addr() {
		t.Error("did not follow a hint of a higher term")
	}
}

func TestRoute_HelloNamesTheLeader_GoesThere(t *testing.T) {
	store := newFakeStore()
	a, b := newFake(t, store), newFake(t, store)
	a.ack.Members = []wire.MemberInfo{{ID: a.addr(), Address: "127.0.0.1:1"}, {ID: "b", Address: b.addr(), Leader: true}}
	a.ack.Term = 3
	b.ack.NodeID = "b"
	c := open(t, []*fakeServer{a})
	mustPut(t, c, "k", "1")
	if a.reqs.Load() != 0 || b.reqs.Load() == 0 {
		t.Fatal(a.reqs.Load(), b.reqs.Load())
	}
	// The leader dies: the other address is asked, and its stale hint leads nowhere for long.
	b.stop()
	mustPut(t, c, "k", "2")
	if a.reqs.Load() == 0 {
		t.Fatal("nobody asked the survivor")
	}
}

func TestRoute_FirstAddressDead_NextIsUsed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := ln.Addr().String()
	_ = ln.Close()
	s := newFake(t, nil)
	c, err := Open(bg, []string{dead, s.addr()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mustPut(t, c, "k", "v")
}

func TestRoute_AnotherCluster_IsRefused(t *testing.T) {
	store := newFakeStore()
	a, b := newFake(t, store), newFake(t, store)
	b.ack.ClusterID = [16]byte{9}
	c := open(t, []*fakeServer{a, b})
	a.stop()
	_, err := c.Put(bg, "k", nil)
	matches(t, err, ErrDenied, ErrNotApplied)
}

func TestRoute_ServerGone_UnavailableAtTheDeadlineAndBackAfterRestart(t *testing.T) {
	s := newFake(t, nil)
	c := open(t, []*fakeServer{s})
	addr := s.addr()
	s.stop()
	ctx, cancel := context.WithTimeout(bg, 50*time.Millisecond)
	defer cancel()
	_, err := c.Put(ctx, "k", nil)
	matches(t, err, ErrUnavailable, ErrNotApplied)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	_, err = c.Get(ctx, "k")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	done := make(chan error)
	go func() {
		_, err := c.Put(bg, "k", []byte("v"))
		done <- err
	}()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	serveFake(t, ln, s.store)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestRoute_ManyCallersLoseTheConnection_OneConnects(t *testing.T) {
	s, c := fake(t)
	mustPut(t, c, "k", "v")
	before := s.helloes.Load()
	s.cutAll()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := c.Get(bg, "k"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.helloes.Load() - before; n != 1 {
		t.Fatalf("%d connections were made", n)
	}
}

func TestGoAway_Draining_OthersServeAndAnswersStillCome(t *testing.T) {
	store := newFakeStore()
	a, b := newFake(t, store), newFake(t, store)
	var disconnects atomic.Int64
	c := open(t, []*fakeServer{a, b}, WithHooks(Hooks{OnDisconnect: func(addr string, err error) {
		if !errors.Is(err, errGoAway) && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		disconnects.Add(1)
	}}))
	mustPut(t, c, "k", "v")
	release, held := make(chan struct{}), make(chan struct{})
	a.onOp(wire.OpGet, func(int, *wire.Request) fault { close(held); return fault{hold: release} })
	var wg sync.WaitGroup
	wg.Go(func() {
		if v, err := c.Get(bg, "k"); err != nil || string(v.Data) != "v" {
			t.Error(string(v.Data), err)
		}
	})
	<-held
	a.each(func(fc *fakeConn) {
		fc.send(wire.Header{Op: wire.OpGoAway, Flags: wire.FlagResponse | wire.FlagCRC, StatusOrGroup: uint16(wire.StatusDraining)}, []byte("bye"))
	})
	a.mu.Lock()
	a.accept = func() bool { return false }
	a.mu.Unlock()
	eventually(t, "the connection is given up", func() bool { _, cn := c.route.ready(); return cn == nil || c.route.cur.Load().addr == b.addr() })
	mustPut(t, c, "k", "w")
	close(release)
	wg.Wait()
	eventually(t, "the drained connection is closed", func() bool { return disconnects.Load() >= 1 })
}

func TestGoAway_BrokenStream_IsTold(t *testing.T) {
	s, c := fake(t, WithoutSession())
	s.on(func(fc *fakeConn, r *wire.Request) fault {
		if r.Op == wire.OpPut {
			fc.send(wire.Header{Op: wire.OpGoAway, Flags: wire.FlagResponse | wire.FlagCRC, StatusOrGroup: uint16(wire.StatusBadRequest)}, []byte("lost my place"))
			return fault{ignore: true}
		}
		return fault{}
	})
	_, err := c.Put(bg, "k", nil)
	matches(t, err, ErrMaybeApplied)
	if !strings.Contains(err.Error(), "lost my place") {
		t.Fatal(err)
	}
}

// Exactly once under random cuts: every acknowledged put was executed once, every other at most once, and
// an unknown outcome is the only one that may be either.
func TestProperty_RandomCuts_EveryPutExactlyOnce(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, session := range []bool{true, false} {
		t.Run(fmt.Sprint("session=", session), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			var mu sync.Mutex
			store := newFakeStore()
			store.applied = map[string]int{}
			servers := []*fakeServer{newFake(t, store), newFake(t, store)}
			opts := []Option{WithMaxInflight(32), WithRetryBudget(1 << 20)}
			if !session {
				opts = append(opts, WithoutSession())
			}
			c := open(t, servers, opts...)
			for _, s := range servers {
				s.on(func(_ *fakeConn, r *wire.Request) fault {
					mu.Lock()
					defer mu.Unlock()
					if !r.Op.IsWrite() {
						return fault{}
					}
					switch rnd.IntN(60) {
					case 0:
						return fault{cutBefore: true}
					case 1:
						return fault{cutAfter: true}
					case 2:
						return fault{half: true}
					case 3:
						return fault{status: wire.StatusBusy}
					case 4:
						return fault{status: wire.StatusLeadershipLost, exec: rnd.IntN(2) == 0}
					case 5:
						return hint(servers[rnd.IntN(2)].addr(), 1)
					case 6, 7:
						return fault{twice: true}
					case 8:
						h := make(chan struct{})
						go close(h) // answers overtake each other
						return fault{hold: h}
					case 9:
						return fault{corrupt: true}
					}
					return fault{}
				})
			}
			outcomes := map[string]error{}
			record := func(key string, err error) {
				mu.Lock()
				defer mu.Unlock()
				outcomes[key] = err
			}
			var wg sync.WaitGroup
			for w := range 16 {
				wg.Go(func() {
					for i := range 60 {
						key := fmt.Sprintf("%d/%d", w, i)
						value := bytes.Repeat([]byte(key), 1+(i%7)*2000)
						ctx, cancel := bg, context.CancelFunc(func() {})
						if i%9 == 0 {
							ctx, cancel = context.WithTimeout(bg, time.Duration(i)*100*time.Microsecond)
						}
						switch i % 4 {
						case 0:
							wg.Add(1)
							c.PutAsync(key, value, func(_ Version, err error) { record(key, err); wg.Done() })
						case 1:
							_, err := c.Txn().Put(key, value).Commit(ctx)
							record(key, err)
						default:
							_, err := c.Put(ctx, key, value)
							record(key, err)
						}
						cancel()
					}
				})
			}
			wg.Wait()
			store.mu.Lock()
			defer store.mu.Unlock()
			acked, unknown := 0, 0
			for key, err := range outcomes {
				n := store.applied[key]
				switch {
				case err == nil:
					acked++
					if n != 1 {
						t.Errorf("%s is acknowledged and was applied %d times", key, n)
					}
				case errors.Is(err, ErrMaybeApplied):
					unknown++
					if n > 1 {
						t.Errorf("%s is unknown and was applied %d times", key, n)
					}
				default:
					matches(t, err, append([]error{ErrNotApplied}, reasons(err)...)...)
					if n != 0 {
						t.Errorf("%s is surely not applied and was applied %d times: %v", key, n, err)
					}
				}
			}
			t.Logf("%d acknowledged, %d unknown, %d replays", acked, unknown, store.replays)
			if acked < 100 || session && acked < 500 {
				t.Errorf("only %d of %d acknowledged", acked, len(outcomes))
			}
		})
	}
}

func reasons(err error) (out []error) {
	for _, s := range []error{ErrTimeout, ErrUnavailable, ErrBusy} {
		if errors.Is(err, s) {
			out = append(out, s)
		}
	}
	return out
}
