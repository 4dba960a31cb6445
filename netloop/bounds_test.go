package netloop

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"kvstore/wire"
)

// Goal: no client costs more than its bounds, and others notice nothing. Method: real sockets, one
// client that misbehaves, one that goes on working.

// bystander keeps sending requests until stop is called, and fails the test if one goes unanswered.
func bystander(t *testing.T, s *Server) (stop func() (calls int, worst time.Duration)) {
	t.Helper()
	p := dial(t, s)
	var quit atomic.Bool
	type result struct {
		n     int
		worst time.Duration
		err   error
	}
	done := make(chan result)
	go func() { // ends when stop sets quit
		var r result
		for !quit.Load() {
			at := time.Now()
			r.n++
			if _, r.err = p.c.Write(p.frame(wire.OpGet, uint32(r.n), "small", nil)); r.err != nil {
				break
			}
			var a *reply
			if a, r.err = p.try(); r.err != nil {
				break
			}
			if a.h.ID != uint32(r.n) || a.h.Status() != wire.StatusOK {
				r.err = errors.New("wrong answer " + a.String())
				break
			}
			r.worst = max(r.worst, time.Since(at))
		}
		done <- r
	}()
	return func() (int, time.Duration) {
		quit.Store(true)
		r := <-done
		if r.err != nil {
			t.Errorf("the bystander was hurt: %v", r.err)
		}
		return r.n, r.worst
	}
}

// smallWindow keeps the kernel from reading for the client: it may take 32 MiB by itself.
func smallWindow(t *testing.T, p *peer) {
	t.Helper()
	if err := p.c.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
}

func TestOut_ClientNeverReads_IsBoundedThenClosed(t *testing.T) {
	st := newStore()
	st.put("large", make([]byte, 1<<20))
	st.put("small", []byte("v"))
	s := start(t, st, func(o *Options) { o.Loops = 1; o.StallTimeout = 700 * time.Millisecond })
	stop := bystander(t, s)
	runtime.GC()
	before := rss(t)
	p := dial(t, s)
	smallWindow(t, p)
	var worst int64
	watch := make(chan struct{})
	var watching sync.WaitGroup
	watching.Add(1)
	go func() { // ends when watch is closed
		defer watching.Done()
		for {
			select {
			case <-watch:
				return
			case <-time.After(time.Millisecond):
				worst = max(worst, s.Stats().OutBytes)
			}
		}
	}()
	chunk := bytes.Repeat(p.frame(wire.OpGet, 1, "large", nil), 1000)
	var err error
	sent := 0
	for err == nil && sent < 1_000_000 {
		_, err = p.c.Write(chunk)
		sent += 1000
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("after %d requests: %v, want a closed connection", sent, err)
	}
	close(watch)
	watching.Wait()
	stats := s.Stats()
	const bound = 8<<20 + answerBytesMax
	if worst > bound || worst == 0 {
		t.Errorf("%d bytes of answers were pending, bound %d", worst, bound)
	}
	if grown := rss(t) - before; grown > 4*bound {
		t.Errorf("memory grew by %d MiB for %d MiB of answers", grown>>20, sent)
	}
	if ex := st.executed.Load(); stats.Busy["out_soft_cap"] == 0 || ex > 100_000_000 {
		t.Errorf("executed %d, busy %v", ex, stats.Busy)
	}
	eventually(t, "closed for a reason", func() bool { c := s.Stats().Closed; return c["stalled"]+c["out_hard_cap"] == 1 })
	if n, _ := stop(); n < 10 {
		t.Errorf("the bystander got %d answers", n)
	}
	t.Logf("%d requests for 1 MiB sent, worst pending %d KiB, busy %v, closed %v", sent, worst>>10, stats.Busy, s.Stats().Closed)
}

func TestOut_SoftCap_BusyUnexecutedThenServedAgain(t *testing.T) {
	st := newStore()
	st.put("large", make([]byte, 4<<20))
	r := newRig(t, st, agreed{}, nil)
	get := func(id uint32) []byte { return encode(false, 0, wire.OpGet, id, 0, "large", nil) }
	r.holdOutput = true
	feed := func(b []byte) {
		if _, act := r.s.Feed(b); act != ActionFlush {
			t.Fatalf("action %d", act)
		}
	}
	feed(get(1))
	feed(get(2))
	if n := st.executed.Load(); n != 1 {
		t.Fatalf("executed %d above the soft cap", n)
	}
	feed(encode(false, 0, wire.OpPing, 3, 0, "", nil))
	r.holdOutput = false
	r.flush()
	all := r.replies(false, 0)
	if len(all) != 3 || all[0].h.ID != 2 || all[0].h.Status() != wire.StatusBusy || all[1].h.ID != 3 || all[2].h.ID != 1 {
		t.Fatalf("answers %v", all)
	}
	r.feed(get(4))
	if all = r.replies(false, 0); len(all) != 1 || all[0].h.Status() != wire.StatusOK {
		t.Fatalf("answers %v", all)
	}
}

func TestOut_HardCap_ReadsAreBusyWritesEndIt(t *testing.T) {
	st := newStore()
	var held []func()
	st.park = func(c wire.Completer, tok wire.Token, _ *wire.Response) {
		held = append(held, func() { c.Complete(tok, &wire.Response{Payload: make([]byte, 6<<20)}) })
	}
	r := newRig(t, st, agreed{}, nil)
	for id := uint32(1); id <= 3; id++ {
		r.feed(encode(false, 0, wire.OpGet, id, 0, "k", nil))
	}
	for _, f := range held {
		f() // 6 MiB, 12 MiB, then BUSY
	}
	if n := r.core.counters.busy[busyOutHard].Load(); n != 1 || r.s.pending.Load() > 12<<20+200 {
		t.Fatalf("busy %d, pending %d", n, r.s.pending.Load())
	}
	r.flush()
	if all := r.replies(false, 0); len(all) != 3 || all[0].h.ID != 3 || all[0].h.Status() != wire.StatusBusy {
		t.Fatalf("answers %v", all)
	}
	held = held[:0]
	for id := uint32(1); id <= 5; id++ {
		r.feed(encode(false, 0, wire.OpPut, id, 0, "k", nil))
	}
	for _, f := range held {
		f() // the fifth would exceed 8 MiB and one largest answer
	}
	if r.kills != 1 || r.s.reason != closedHardCap || r.s.pending.Load() > 8<<20+answerBytesMax {
		t.Errorf("kills %d, reason %d, pending %d", r.kills, r.s.reason, r.s.pending.Load())
	}
	r.s.closed()
	if used := r.core.out.used.Load(); used != 0 {
		t.Errorf("%d bytes of out buffers are still counted", used)
	}
}

func TestOut_TotalOfAllConnections_IsBounded(t *testing.T) {
	st := newStore()
	st.put("k", make([]byte, 100<<10))
	r := newRig(t, st, agreed{}, nil)
	r.core.out.force(int(r.core.out.limit))
	defer r.core.out.force(-int(r.core.out.limit))
	get := func(id uint32) []byte { return encode(false, 0, wire.OpGet, id, 0, "k", nil) }
	for id := uint32(1); id <= 2; id++ {
		if _, act := r.s.Feed(get(id)); act != ActionFlush {
			t.Fatal(act)
		}
	}
	// The first finds less than its free share pending, the second does not.
	r.flush()
	if all := r.replies(false, 0); len(all) != 2 || all[0].h.Status() != wire.StatusBusy || all[0].h.ID != 2 || all[1].h.Status() != wire.StatusOK {
		t.Fatalf("answers %v", all)
	}
}

func TestDeadline_HalfAFrameAndSilence_IsClosed(t *testing.T) {
	for name, f := range map[string]struct {
		b      []byte
		reason string
	}{
		"half a header": {encode(true, 0, wire.OpPut, 1, 0, "k", make([]byte, 100))[:10], "partial_frame"},
		"half a body":   {encode(true, 0, wire.OpPut, 1, 0, "k", make([]byte, 100))[:90], "partial_frame"},
		"half a skip":   {encode(true, 0, wire.OpPut, 1, 0, "k", make([]byte, 9000))[:1000], "partial_frame"},
		"nothing":       {nil, "idle"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, newStore(), func(o *Options) {
				o.PartialTimeout, o.IdleTimeout, o.PartialRateMin = 60*time.Millisecond, 120*time.Millisecond, 1<<20
				if f.reason == "idle" {
					o.PartialTimeout = time.Minute
				} else {
					o.IdleTimeout = time.Minute
				}
				o.MaxFrame = 8 << 10
			})
			p := dial(t, s)
			if len(f.b) > 0 {
				p.send(f.b)
			}
			all := p.expectEnd()
			if len(all) == 0 || all[len(all)-1].h.Op != wire.OpGoAway {
				t.Fatalf("answers %v, want GOAWAY", all)
			}
			if err := p.c.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "counted", func() bool { return s.Stats().Closed[f.reason] == 1 })
		})
	}
}

func TestDeadline_SlowLargeFrameAboveTheRate_IsServed(t *testing.T) {
	s := start(t, newStore(), func(o *Options) { o.PartialTimeout = 150 * time.Millisecond; o.PartialRateMin = 64 << 10 })
	p := dial(t, s)
	b := p.frame(wire.OpPut, 1, "k", make([]byte, 200<<10))
	begun := time.Now()
	for len(b) > 0 {
		n := min(16<<10, len(b))
		p.send(b[:n])
		b = b[n:]
		time.Sleep(30 * time.Millisecond)
	}
	if took := time.Since(begun); took < 300*time.Millisecond {
		t.Fatalf("the test proves nothing: the frame took %v", took)
	}
	if r := p.recv(); r.h.ID != 1 || r.h.Status() != wire.StatusOK {
		t.Fatalf("%s", r)
	}
}

func TestDeadline_RequestUnderWay_IsNotIdle(t *testing.T) {
	st := newStore()
	park := make(chan func(), 1)
	st.park = func(c wire.Completer, tok wire.Token, r *wire.Response) { park <- func() { c.Complete(tok, r) } }
	s := start(t, st, func(o *Options) { o.IdleTimeout = 40 * time.Millisecond })
	p := dial(t, s)
	p.send(p.frame(wire.OpGet, 1, "k", nil))
	answer := <-park
	time.Sleep(150 * time.Millisecond)
	answer()
	if r := p.recv(); r.h.ID != 1 {
		t.Fatalf("%s", r)
	}
	if all := p.expectEnd(); len(all) != 1 || all[0].h.Op != wire.OpGoAway {
		t.Fatalf("%v", all)
	}
}

func TestLargeValues_PassWhileOthersGoOn(t *testing.T) {
	for _, codec := range []wire.Codec{wire.CodecNone, wire.CodecS2} {
		st := newStore()
		st.put("small", []byte("v"))
		s := start(t, st, func(o *Options) { o.Loops = 1 })
		stop := bystander(t, s)
		h := everything
		if codec != wire.CodecNone {
			h.Features |= wire.FeatureCompression
			h.Codecs = []wire.Codec{codec}
		}
		p := greet(t, dialRaw(t, s.Addr().String()), h)
		smallWindow(t, p)
		value := make([]byte, wire.ValueBytesMax)
		for i := range value {
			value[i] = byte(i >> 10)
		}
		for id := uint32(1); id <= 4; id += 2 {
			p.send(encode(true, codec, wire.OpPut, id, 0, "large", value))
			if r := p.recv(); r.h.ID != id || r.h.Status() != wire.StatusOK {
				t.Fatalf("%s", r)
			}
			p.send(p.frame(wire.OpGet, id+1, "large", nil))
			// A slow reader: what the kernel does not take waits in the session.
			time.Sleep(20 * time.Millisecond)
			if r := p.recv(); r.h.ID != id+1 || !bytes.Equal(r.payload, value) {
				t.Fatalf("value of %d bytes is damaged", len(r.payload))
			}
		}
		p.send(p.frame(wire.OpPut, 9, "large", make([]byte, wire.ValueBytesMax+1)))
		if r := p.recv(); r.h.Status() != wire.StatusTooLarge {
			t.Errorf("one byte more: %s", r)
		}
		n, worst := stop()
		t.Logf("codec %s: %d small requests meanwhile, slowest %v", codec, n, worst)
		if n < 20 {
			t.Errorf("only %d small requests were served meanwhile", n)
		}
		eventually(t, "memory is given back", func() bool {
			st := s.Stats()
			return st.BigFrameBytes == 0 && st.OutBufferBytes == 0
		})
	}
}

func TestFlush_OneTurn_IsBounded(t *testing.T) {
	st := newStore()
	st.put("large", make([]byte, 4<<20))
	s := start(t, st, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	far := dialRaw(t, ln.Addr().String())
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = near.Close() }()
	raw, err := near.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// A connection without gnet: this goroutine plays the loop, and nobody calls it back.
	c := &conn{srv: s, loop: &loop{srv: s, stopped: true}}
	c.s = newSession(s.core, s.core.newShard(), &scratch{}, c, near.RemoteAddr(), agreed{principal: "somebody", maxFrame: wire.FrameBodyBytesMax})
	defer c.s.closed()
	defer s.watch.forget(c)
	var read sync.WaitGroup
	read.Add(1)
	go func() { // ends when near is closed or all has come
		defer read.Done()
		_, _ = io.CopyN(io.Discard, far, wire.HeaderBytes+4<<20)
	}()
	if err := raw.Control(func(fd uintptr) {
		c.fd = int(fd)
		c.s.Feed(encode(false, 0, wire.OpGet, 1, 0, "large", nil)) // flushes by itself
		turns := 1
		for before := int64(4<<20 + wire.HeaderBytes); before > 0; turns++ {
			left := c.s.pending.Load()
			if before-left > flushSliceBytes {
				t.Errorf("one turn wrote %d bytes", before-left)
			}
			if left > 0 && !c.waiting {
				t.Error("not waiting for the next turn")
			}
			before = left
			c.waiting = false
			c.flush()
		}
		if turns < 16 {
			t.Errorf("4 MiB in %d turns", turns)
		}
	}); err != nil {
		t.Fatal(err)
	}
	read.Wait()
}

func TestPanic_InServe_CostsOneConnection(t *testing.T) {
	st := newStore()
	st.put("small", []byte("v"))
	st.panicOn = "boom"
	s := start(t, st, func(o *Options) { o.Loops = 1 })
	stop := bystander(t, s)
	p := dial(t, s)
	p.send(p.frame(wire.OpGet, 1, "boom", nil))
	if _, err := p.try(); err == nil {
		t.Error("the connection lives")
	}
	h := everything
	h.Features |= wire.FeatureCompression
	h.Codecs = []wire.Codec{wire.CodecS2}
	p = greet(t, dialRaw(t, s.Addr().String()), h)
	p.send(encode(true, wire.CodecS2, wire.OpPut, 1, 0, "boom", make([]byte, 1<<20))) // on a worker
	if _, err := p.try(); err == nil {
		t.Error("the connection lives")
	}
	eventually(t, "counted", func() bool { st := s.Stats(); return st.PanicsTotal == 2 && st.Closed["panic"] == 2 })
	stop()
}

func TestGarbage_EndsOnlyItsOwnConnection(t *testing.T) {
	st := newStore()
	st.put("small", []byte("v"))
	s := start(t, st, func(o *Options) { o.Loops = 1 })
	stop := bystander(t, s)
	for i := range 20 {
		p := dial(t, s)
		junk := bytes.Repeat([]byte{byte(i), 0, 0, 0, 0x20, 0x04, byte(i), 7}, 100)
		if _, err := p.c.Write(junk); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if err := p.c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, p.c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("junk %d keeps its connection", i)
		}
	}
	stop()
}

func TestClose_PeersThatVanish_LeaveNothing(t *testing.T) {
	s := start(t, newStore(), nil)
	for i := range 50 {
		p := dial(t, s)
		p.send(p.frame(wire.OpGet, 1, "k", nil)[:5+i%20])
		if i%2 == 0 {
			if err := p.c.(*net.TCPConn).SetLinger(0); err != nil { // a reset
				t.Fatal(err)
			}
		}
		if err := p.c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are gone", func() bool {
		st := s.Stats()
		return st.ConnsOpen == 0 && s.conns.Load() == 0 && st.Closed["peer"] == 50
	})
}
