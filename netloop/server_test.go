package netloop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

// Goal: pipelining, answers from elsewhere, draining and both drivers, over real sockets.

// shuffler answers from its own goroutine, a random batch at a time.
type shuffler struct {
	mu   sync.Mutex
	held []func()
	stop chan struct{}
	done chan struct{}
	hold func(func())
}

func startShuffler(t *testing.T, st *store, seed uint64, hold func(func())) *shuffler {
	t.Logf("seed %d", seed)
	sh := &shuffler{stop: make(chan struct{}), done: make(chan struct{}), hold: hold}
	st.park = func(c wire.Completer, tok wire.Token, r *wire.Response) {
		sh.mu.Lock()
		sh.held = append(sh.held, func() { c.Complete(tok, r) })
		sh.mu.Unlock()
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	go func() { // ends when stop is closed
		defer close(sh.done)
		for {
			select {
			case <-sh.stop:
				return
			case <-time.After(200 * time.Microsecond):
			}
			sh.mu.Lock()
			batch := sh.held
			sh.held = nil
			sh.mu.Unlock()
			rnd.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
			sh.hold(func() {
				for _, f := range batch {
					f()
				}
			})
		}
	}()
	t.Cleanup(func() { close(sh.stop); <-sh.done })
	return sh
}

func TestPipeline_AnswersOutOfOrder_EachOnce(t *testing.T) {
	for _, bracket := range []bool{false, true} {
		st := newStore()
		s := start(t, st, nil)
		hold := func(f func()) { f() }
		if bracket {
			hold = func(f func()) { s.HoldFlush(); defer s.ReleaseFlush(); f() }
		}
		startShuffler(t, st, rand.Uint64(), hold)
		const conns, each = 8, 2000
		var all sync.WaitGroup
		for n := range conns {
			p := dial(t, s)
			all.Add(2)
			go func() { // ends when all is sent
				defer all.Done()
				var b []byte
				for id := uint32(1); id <= each; id++ {
					b = append(b, p.frame(wire.OpPut, id, fmt.Sprintf("%d-%d", n, id), []byte("v"))...)
					if len(b) > 3000 {
						if _, err := p.c.Write(b); err != nil {
							t.Error(err)
							return
						}
						b = b[:0]
					}
				}
				if _, err := p.c.Write(b); err != nil {
					t.Error(err)
				}
			}()
			go func() { // ends when all is answered
				defer all.Done()
				seen := make([]bool, each+1)
				inOrder := true
				last := uint32(0)
				for range each {
					r, err := p.try()
					if err != nil {
						t.Error(err)
						return
					}
					if r.h.ID > each || seen[r.h.ID] || r.h.Status() != wire.StatusOK {
						t.Errorf("unexpected %s", r)
						return
					}
					seen[r.h.ID] = true
					inOrder = inOrder && r.h.ID > last
					last = r.h.ID
				}
				if inOrder {
					t.Error("every answer came in order: the test proves nothing")
				}
			}()
		}
		all.Wait()
		if stats := s.Stats(); stats.WakesTotal > conns*each/4 {
			t.Errorf("%d wake-ups for %d answers", stats.WakesTotal, conns*each)
		}
	}
}

func TestHoldFlush_ManyAnswers_OneWakePerLoop(t *testing.T) {
	st := newStore()
	var mu sync.Mutex
	var held []func()
	st.park = func(c wire.Completer, tok wire.Token, r *wire.Response) {
		mu.Lock()
		held = append(held, func() { c.Complete(tok, r) })
		mu.Unlock()
	}
	s := start(t, st, func(o *Options) { o.Loops = 1 })
	var peers []*peer
	for range 4 {
		p := dial(t, s)
		for id := uint32(1); id <= 50; id++ {
			p.send(p.frame(wire.OpGet, id, "k", nil))
		}
		peers = append(peers, p)
	}
	eventually(t, "all requests arrived", func() bool { mu.Lock(); defer mu.Unlock(); return len(held) == 200 })
	before := s.Stats().WakesTotal
	s.HoldFlush()
	for _, f := range held {
		f()
	}
	if n := s.Stats().WakesTotal - before; n != 0 {
		t.Errorf("%d wake-ups within the bracket", n)
	}
	s.ReleaseFlush()
	for _, p := range peers {
		for range 50 {
			p.recv()
		}
	}
	if n := s.Stats().WakesTotal - before; n != 1 {
		t.Errorf("%d wake-ups for 200 answers to 4 connections", n)
	}
}

func TestDrain_FinishesWhatIsUnderWay(t *testing.T) {
	st := newStore()
	held := make(chan func(), 10)
	st.park = func(c wire.Completer, tok wire.Token, r *wire.Response) { held <- func() { c.Complete(tok, r) } }
	s := start(t, st, nil)
	p, idle := dial(t, s), dial(t, s)
	p.send(p.frame(wire.OpPut, 1, "k", []byte("v")))
	finish := <-held
	drained := make(chan error, 1)
	go func() { drained <- s.Drain(within(t, 10*time.Second)) }() // ends with Drain
	if r := p.recv(); r.h.Op != wire.OpGoAway || r.h.Status() != wire.StatusDraining || r.h.ID != 0 {
		t.Fatalf("first came %s", r)
	}
	p.send(p.frame(wire.OpPut, 2, "k", []byte("w")))
	if r := p.recv(); r.h.ID != 2 || r.h.Status() != wire.StatusDraining {
		t.Fatalf("a new request got %s", r)
	}
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("new connections are accepted")
	}
	select {
	case err := <-drained:
		t.Fatalf("drained (%v) with a request under way", err)
	default:
	}
	finish()
	if r := p.recv(); r.h.ID != 1 || r.h.Status() != wire.StatusOK {
		t.Fatalf("the request under way got %s", r)
	}
	if all := p.expectEnd(); len(all) != 0 {
		t.Errorf("more frames: %v", all)
	}
	if all := idle.expectEnd(); len(all) != 1 || all[0].h.Op != wire.OpGoAway {
		t.Errorf("the idle client got %v", all)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	if n := s.Stats().Closed["drain"]; n != 2 {
		t.Errorf("%d connections counted as drained", n)
	}
}

func TestDrain_ConnectionThatOpensMeanwhile_IsToldToo(t *testing.T) {
	r := newRig(t, newStore(), agreed{}, nil)
	r.core.draining.Store(true)
	r.core.register(r.s)
	r.flush()
	if all := r.replies(false, 0); len(all) != 1 || all[0].h.Op != wire.OpGoAway || all[0].h.Status() != wire.StatusDraining {
		t.Errorf("told %v", all)
	}
}

func TestDrain_Deadline_SaysWhatIsLeftUnanswered(t *testing.T) {
	st := newStore()
	held := make(chan func(), 10)
	st.park = func(c wire.Completer, tok wire.Token, r *wire.Response) { held <- func() { c.Complete(tok, r) } }
	s := start(t, st, nil)
	p := dial(t, s)
	p.send(p.frame(wire.OpPut, 1, "k", []byte("v")))
	late := <-held
	err := s.Drain(within(t, 50*time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) || !containsText(err.Error(), "1 requests") {
		t.Errorf("drain: %v", err)
	}
	late() // after everything is closed
	if _, err := s.core.sessionCount(), s.ServeConn(pipeEnd(t)); err != ErrClosed {
		t.Errorf("ServeConn after Close: %v", err)
	}
}

func pipeEnd(t *testing.T) net.Conn {
	a, b := net.Pipe()
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a
}

func TestClose_WithHandshakesAndRequestsUnderWay_ReturnsSoon(t *testing.T) {
	st := newStore()
	held := make(chan func(), 10)
	st.park = func(c wire.Completer, tok wire.Token, r *wire.Response) { held <- func() { c.Complete(tok, r) } }
	s := start(t, st, nil)
	dialRaw(t, s.Addr().String()) // silent
	p := dial(t, s)
	p.send(p.frame(wire.OpPut, 1, "k", []byte("v")))
	late := <-held
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	late()
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// plainPeer connects a client to the plain driver.
func plainPeer(t *testing.T, s *Server, h wire.Hello) *peer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	c := dialRaw(t, ln.Addr().String())
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.ServeConn(far) }() // ends with the connection
	t.Cleanup(func() {
		_ = c.Close()
		if err := <-done; err != nil {
			t.Errorf("ServeConn: %v", err)
		}
	})
	return greet(t, c, h)
}

func TestDrivers_SameBytes_SameAnswers(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 7))
	for _, codec := range []wire.Codec{wire.CodecNone, wire.CodecS2} {
		h := everything
		if codec != wire.CodecNone {
			h.Features |= wire.FeatureCompression
			h.Codecs = []wire.Codec{codec}
		}
		b := stream(true, codec, seed)
		// The fault at the end makes the server close: everything before is answered first.
		b = append(b, encode(false, 0, wire.OpGet, 99, 0, "no checksum", nil)...)
		run := func(connect func(*Server) *peer, cut func() int) []string {
			st := newStore()
			st.put("fixed", bytes.Repeat([]byte("v"), 3000))
			s := start(t, st, nil)
			p := connect(s)
			for rest := b; len(rest) > 0; {
				n := min(cut(), len(rest))
				p.send(rest[:n])
				rest = rest[n:]
			}
			return summary(p.expectEnd())
		}
		viaGnet := func(s *Server) *peer { return greet(t, dialRaw(t, s.Addr().String()), h) }
		viaPlain := func(s *Server) *peer { return plainPeer(t, s, h) }
		want := run(viaGnet, func() int { return 64 << 10 })
		if len(want) < 30 || !slices.ContainsFunc(want, func(a string) bool { return strings.HasPrefix(a, "0 goaway BAD_REQUEST") }) {
			t.Fatalf("answers %v", want)
		}
		for name, got := range map[string][]string{
			"gnet, random":  run(viaGnet, func() int { return 1 + rnd.IntN(9000) }),
			"plain, 64 KiB": run(viaPlain, func() int { return 64 << 10 }),
			"plain, random": run(viaPlain, func() int { return 1 + rnd.IntN(9000) }),
		} {
			if !slices.Equal(got, want) {
				t.Errorf("%s: %d answers differ from %d", name, len(got), len(want))
			}
		}
	}
}

func TestPlain_Bounds_HoldToo(t *testing.T) {
	st := newStore()
	st.put("large", make([]byte, 16<<20))
	s := start(t, st, func(o *Options) { o.StallTimeout = 300 * time.Millisecond; o.IdleTimeout = 2 * time.Second })
	p := plainPeer(t, s, everything)
	smallWindow(t, p)
	if r := p.call(wire.OpGet, 1, "large", nil); len(r.payload) != 16<<20 {
		t.Fatalf("%d bytes", len(r.payload))
	}
	// It stops reading: the answer is not taken, the connection ends.
	p.send(p.frame(wire.OpGet, 2, "large", nil))
	eventually(t, "closed as stalled", func() bool { return s.Stats().Closed["stalled"] == 1 })
	q := plainPeer(t, s, everything)
	if all := q.expectEnd(); len(all) != 1 || all[0].h.Op != wire.OpGoAway {
		t.Errorf("idle: %v", all)
	}
}

func TestPlain_HalfClose_GetsTheAnswersThatAreReady(t *testing.T) {
	s := start(t, newStore(), nil)
	for _, connect := range []func() *peer{func() *peer { return dial(t, s) }, func() *peer { return plainPeer(t, s, everything) }} {
		p := connect()
		p.send(p.frame(wire.OpGet, 1, "k", nil))
		if err := p.c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if all := p.expectEnd(); len(all) != 1 || all[0].h.ID != 1 {
			t.Errorf("answers %v", all)
		}
	}
}

func TestListener_NotTCP_IsServedByThePlainDriver(t *testing.T) {
	ln, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, newStore(), func(o *Options) { o.Addr = ""; o.Listener = ln })
	c, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	greet(t, c, everything).call(wire.OpGet, 1, "k", nil)
	if n := s.Stats().ConnsOpen; n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestMetrics_AreWellFormedAndTell(t *testing.T) {
	s := start(t, newStore(), nil)
	p := dial(t, s)
	for id := uint32(1); id <= 10; id++ {
		p.call(wire.OpPut, id, "k", []byte("v"))
	}
	p.call(wire.OpGet, 11, "", nil)
	var b strings.Builder
	if err := s.WriteMetrics(&b); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteDurations(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"kvstore_native_connections 1\n",
		"kvstore_native_requests_total 11\n",
		`kvstore_native_connections_refused_total{reason="tls"} 0` + "\n",
		`kvstore_request_duration_seconds_count{operation="put",protocol="native",status="ok"} 10` + "\n",
		`kvstore_request_duration_seconds_count{operation="get",protocol="native",status="refused"} 1` + "\n",
		"kvstore_native_bunch_requests_count 10\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("missing %q", want)
		}
	}
	for line := range strings.Lines(b.String()) {
		if !strings.HasPrefix(line, "kvstore_") && !strings.HasPrefix(line, "# ") || strings.Count(line, "\n") != 1 {
			t.Errorf("line %q", line)
		}
	}
	if err := s.WriteMetrics(failingWriter{}); err == nil {
		t.Error("a failing writer goes unnoticed")
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
